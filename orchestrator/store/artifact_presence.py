"""Artifacts that have left the store without a rule of ours: noted in their rows, so that nobody takes them for there.

The rows say what was made and what our own rules have removed. What a bucket's lifecycle or a person removes is seen
by who looks for it: a task in vain (:func:`write_missed`), or the API before a rerun (:func:`note_looked_for`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from orchestrator.store.text_safety import storable_json

NOT_IN_STORE = "not in the store"
"""The rule that such a row names. Nobody deletes its object: it may come back, as a folder that was not mounted."""

# One that was made again meanwhile is there. A store of one host says nothing of what lies on another.
_MISSED = """
UPDATE artifacts AS a SET deleted_at = clock_timestamp(), deleted_by = %s
FROM jsonb_to_recordset(%s::jsonb) AS v(attempt_id uuid, uri text) JOIN attempts r ON r.id = v.attempt_id
LEFT JOIN workers w ON w.id = r.worker_id
WHERE a.tenant_id = r.tenant_id AND a.uri = v.uri AND a.deleted_at IS NULL
  AND a.created_at < COALESCE(r.granted_at, r.created_at)
  AND (w.store_scope = 'shared'
       OR EXISTS (SELECT 1 FROM attempts m WHERE m.id = a.attempt_id AND m.host_id = r.host_id))
"""
_NAMED = text(
    "SELECT DISTINCT a.uri, a.created_at, a.deleted_at IS NOT NULL AS is_marked FROM task_runs t, "
    "jsonb_path_query(t.outputs, 'strict $.** ? (@ starts with \"artifact://\")', '{}', true) AS u(uri), artifacts a "
    "WHERE t.tenant_id = :tenant AND t.run_id = :run AND t.name = ANY(:names) AND t.outputs IS NOT NULL "
    "AND t.local_to IS NOT DISTINCT FROM CAST(:host AS text) "
    "AND a.tenant_id = t.tenant_id AND a.uri = u.uri #>> '{}' AND (a.deleted_at IS NULL OR a.deleted_by = :rule) "
    "ORDER BY a.created_at, a.uri LIMIT :most"
)
_LOOKED_FOR = text(
    "UPDATE artifacts AS a SET deleted_at = CASE WHEN v.is_there THEN NULL ELSE clock_timestamp() END, "
    "deleted_by = CASE WHEN v.is_there THEN '' ELSE :rule END "
    "FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS v(uri text, created_at timestamptz, is_there boolean) "
    "WHERE a.tenant_id = :tenant AND a.uri = v.uri AND a.created_at = v.created_at "
    "AND CASE WHEN v.is_there THEN a.deleted_by = :rule ELSE a.deleted_at IS NULL END"
)


@dataclass(frozen=True, slots=True)
class NamedArtifact:
    """One that outputs name and that no rule of ours has removed."""

    uri: str
    created_at: datetime
    """When it was made last; made again later it is another."""
    is_marked: bool
    """Whether it was looked for in vain before."""


def write_missed(connection: Connection, missed: Sequence[Mapping[str, Any]]) -> None:
    """Note what these attempts have looked for in vain: ``attempt_id`` and ``uri`` of each."""
    if missed:
        connection.exec_driver_sql(_MISSED, (NOT_IN_STORE, storable_json(list(missed))))


def named_artifacts(
    connection: Connection, tenant_id: str, run_id: str, tasks: Sequence[str], host_id: str | None, most: int
) -> list[NamedArtifact]:
    """Return the artifacts that these task runs name in their outputs, the oldest first.

    :param host_id: of the host whose store is looked into; ``None``: that which all hosts share. What lies elsewhere is
        left out.
    """
    values = {
        "tenant": tenant_id,
        "run": run_id,
        "names": list(tasks),
        "host": host_id,
        "rule": NOT_IN_STORE,
        "most": most,
    }
    return [NamedArtifact(row.uri, row.created_at, row.is_marked) for row in connection.execute(_NAMED, values)]


def note_looked_for(connection: Connection, tenant_id: str, found: Sequence[tuple[NamedArtifact, bool]]) -> None:
    """Note which of these are there, as far as their rows say something else and they were not made again since."""
    rows = [
        {"uri": one.uri, "created_at": one.created_at.isoformat(), "is_there": is_there}
        for one, is_there in found
        if is_there is one.is_marked
    ]
    if rows:
        values = {"tenant": tenant_id, "rule": NOT_IN_STORE, "rows": storable_json(rows)}
        connection.execute(_LOOKED_FOR, values)
