"""How large a grant would become, by PostgreSQL's own count: what no grant can carry is refused before it is read."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.errors import TooLarge
from orchestrator.wire.messages import MAX_GRANT_BYTES

_SIZES = """
SELECT name, octet_length(outputs::text) FROM task_runs
WHERE run_id = %s AND name = ANY(%s) AND state = 'success' AND outputs IS NOT NULL
"""
_AT_ONCE = 100
"""Names in one look. The outputs of a task are 256 KB at most, so a look lasts a fraction of a second."""
_LIMIT = MAX_GRANT_BYTES * 3 // 2
"""PostgreSQL puts a space after each comma and colon, we do not: what is longer than this can't become a grant."""


class OutputSizes:
    """Bytes of outputs, each measured once; made for one transaction.

    Reading and decoding them all would take the leader's transaction half a minute where a thousand tasks have left as
    much as they may, and hold up all tenants each time the claim comes again.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[tuple[str, str], int] = {}

    def refusal(self, run_id: str, task: str, sources: Sequence[str]) -> TooLarge | None:
        """Return why no grant can carry the outputs of these tasks of the run, if none can."""
        total = 0
        for start in range(0, len(sources), _AT_ONCE):
            total += sum(self._measure(run_id, sources[start : start + _AT_ONCE]))
            if total > _LIMIT:
                return TooLarge(
                    f"The outputs of the tasks upstream of {task!r} come to more than {MAX_GRANT_BYTES // 2**20} MB, "
                    "and a task is given all of them. Let those tasks save what is large with context.artifacts, and "
                    "return its URI."
                )
        return None

    def _measure(self, run_id: str, names: Sequence[str]) -> list[int]:
        unknown = [name for name in names if (run_id, name) not in self._known]
        if unknown:
            self._known.update(dict.fromkeys(((run_id, name) for name in unknown), 0))
            found = self._connection.exec_driver_sql(_SIZES, (run_id, unknown)).all()
            self._known.update({(run_id, name): size for name, size in found})
        return [self._known[run_id, name] for name in names]
