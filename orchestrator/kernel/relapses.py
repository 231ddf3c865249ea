"""Which hosts run tasks that were lost before: kept, for to look for them at each placement would take their square."""

from __future__ import annotations

from orchestrator.records import AttemptRecord


class Relapses:
    """Live attempts of tasks that were lost before, by host. A task's losses change only while it has none."""

    def __init__(self) -> None:
        self.hosts: dict[str, set[str]] = {}
        """Host → its attempts of that kind; no host without one."""
        self._host_of: dict[str, str] = {}

    def note(self, attempt: AttemptRecord, losses: int) -> None:
        """Index a live attempt, or that it goes to another host now."""
        if not losses or self._host_of.get(attempt.id) == attempt.host_id:
            return
        self.drop(attempt.id)
        self._host_of[attempt.id] = attempt.host_id
        self.hosts.setdefault(attempt.host_id, set()).add(attempt.id)

    def drop(self, attempt_id: str) -> None:
        """Forget an attempt that has ended."""
        host_id = self._host_of.pop(attempt_id, None)
        if host_id is None:
            return
        self.hosts[host_id].discard(attempt_id)
        if not self.hosts[host_id]:
            del self.hosts[host_id]
