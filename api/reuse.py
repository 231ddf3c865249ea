"""Before a rerun is planned: is what it would reuse still in the artifact store? Rows know only what our rules remove.

Asked of the store outside of any transaction and for a bounded time; what is not answered by then is taken for there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection

from api.access import caller
from api.services import services
from orchestrator.errors import Conflict, InvalidDefinition, NotFound
from orchestrator.rerun_plan import RerunPlan
from orchestrator.store.artifact_presence import named_artifacts, note_looked_for

SECONDS = 0.8
"""In all: a request has three."""
_MOST = 500
"""Artifacts asked for."""
_HOST_ID = "host-id"
"""File of ``DATA_DIR`` in which workers keep the id of a host that was given none."""


def look_for_reused(run_id: str, plan: Callable[[Connection], RerunPlan]) -> None:
    """Note which artifacts are gone, or back, that what ``plan`` says is reused names in its outputs.

    What is gone joins the rerun, so that it is looked for once more what that one reads.
    """
    host_id = _host_id()
    if host_id == "":
        return
    tenant_id, until = caller().tenant_id, time.monotonic() + SECONDS
    seen: set[str] = set()
    while (left := until - time.monotonic()) > 0:
        try:
            with services().engine.connect() as connection:
                planned = plan(connection)
                names = [*planned.read, *planned.missing]
                named = named_artifacts(connection, tenant_id, run_id, names, host_id, _MOST)
        except (NotFound, Conflict, InvalidDefinition):
            # The request itself is answered with that.
            return
        named = [one for one in named if one.uri not in seen]
        seen |= {one.uri for one in named}
        is_there = services().presence.look((one.uri for one in named), left)
        found = [(one, is_there[one.uri]) for one in named if one.uri in is_there]
        if all(there is not one.is_marked for one, there in found):
            return
        with services().engine.begin() as connection:
            note_looked_for(connection, tenant_id, found)


def _host_id() -> str | None:
    """Return the host whose artifacts the store here holds; ``None``: those of all; empty: it is not known."""
    if services().artifacts.scope == "shared":
        return None
    settings = services().settings
    file = Path(settings.data_dir) / _HOST_ID
    if settings.host_id or not file.is_file():
        return settings.host_id
    return file.read_text().strip()
