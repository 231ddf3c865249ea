"""Reads of what tasks left in the artifact store: who made an object, and which rule has removed it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Text, bindparam, select, text

from orchestrator.store.artifact_presence import NOT_IN_STORE
from orchestrator.store.pages import Page, Window, read_page
from orchestrator.store.tables import artifacts as a
from orchestrator.store.text_safety import storable_json

_REMOVED = """
SELECT a.tenant_id::text, a.uri, a.task, a.run_id::text, a.deleted_by, to_char(a.deleted_at AT TIME ZONE 'UTC',
       'YYYY-MM-DD HH24:MI') AS at
FROM jsonb_to_recordset(%s::jsonb) AS v(tenant_id uuid, uri text)
JOIN artifacts a ON a.tenant_id = v.tenant_id AND a.uri = v.uri
WHERE a.deleted_at IS NOT NULL
"""

Named = tuple[str, str]
"""Tenant and URI."""
ARTIFACT_ORDERS = {"created_at": (a.c.created_at, a.c.uri), "uri": (a.c.uri,)}

# What tasks name in their outputs may be another run's: taken from the cache, or taken over by a rerun.
_OF_RUN = text(
    "SELECT uri FROM artifacts WHERE run_id = :run AND (CAST(:task AS text) IS NULL OR task = :task) "
    "UNION SELECT u.uri #>> '{}' FROM task_runs t, "
    "jsonb_path_query(t.outputs, 'strict $.** ? (@ starts with \"artifact://\")', '{}', true) AS u(uri) "
    "WHERE t.run_id = :run AND t.outputs IS NOT NULL AND (CAST(:task AS text) IS NULL OR t.name = :task)"
)
_NAMED_BY = text(
    "SELECT t.name, u.uri #>> '{}' AS uri FROM task_runs t, "
    "jsonb_path_query(t.outputs, 'strict $.** ? (@ starts with \"artifact://\")', '{}', true) AS u(uri) "
    "WHERE t.run_id = :run AND t.outputs IS NOT NULL AND t.name = ANY(:names) ORDER BY 1, 2"
)


def artifact_fates(connection: Connection, named: Iterable[Named]) -> dict[Named, str]:
    """Return a sentence about each of these artifacts that was removed: its producer, and the rule."""
    return {
        (row.tenant_id, row.uri): (
            f"{row.uri}, made by task {row.task!r} of run {row.run_id}, {_fate(row)}. "
            f"Run that task again to make it anew."
        )
        for row in _removed(connection, named)
    }


def artifact_removals(connection: Connection, named: Iterable[Named]) -> dict[Named, str]:
    """Return a sentence about each of these artifacts that one of our rules has removed: when, and which."""
    return {
        (row.tenant_id, row.uri): f"{row.uri} {_fate(row)}."
        for row in _removed(connection, named)
        if row.deleted_by != NOT_IN_STORE
    }


def _removed(connection: Connection, named: Iterable[Named]) -> Sequence[Any]:
    wanted = sorted(set(named))
    if not wanted:
        return ()
    document = storable_json([{"tenant_id": tenant_id, "uri": uri} for tenant_id, uri in wanted])
    return connection.exec_driver_sql(_REMOVED, (document,)).all()


def _fate(row: Any) -> str:
    if row.deleted_by == NOT_IN_STORE:
        return f"is not in the artifact store any more, as was seen at {row.at} UTC; no rule of ours has removed it"
    return f"was removed at {row.at} UTC: {row.deleted_by}"


def list_artifacts(
    connection: Connection, tenant_id: str, run_id: str, window: Window, task: str | None = None
) -> Page:
    """Return one page of what a run has left in the artifact store, or has taken over, removed objects too.

    :param task: only what this task run has made, or names in its outputs.
    """
    of_run = _OF_RUN.bindparams(bindparam("run", run_id), bindparam("task", task, Text)).columns(uri=Text).subquery()
    query = select(
        a.c.uri,
        a.c.digest,
        a.c.size,
        a.c.run_id,
        a.c.task,
        a.c.attempt_id,
        a.c.created_at,
        a.c.expires_at,
        a.c.deleted_at,
        a.c.deleted_by,
    ).where(a.c.tenant_id == tenant_id, a.c.uri.in_(select(of_run.c.uri)))
    return read_page(connection, query, window)


def artifacts_named_by(connection: Connection, run_id: str, tasks: Sequence[str]) -> dict[str, list[str]]:
    """Return, by its name, the artifacts that each of these task runs of a run names in its outputs."""
    found: dict[str, list[str]] = {}
    if tasks:
        for row in connection.execute(_NAMED_BY, {"run": run_id, "names": list(tasks)}):
            found.setdefault(row.name, []).append(row.uri)
    return found
