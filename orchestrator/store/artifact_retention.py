"""Which artifacts may go: those past their time that nothing needs any more. The rows outlive the objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from orchestrator.store.text_safety import storable_json

_PAST = text(
    "SELECT CAST(tenant_id AS text) AS tenant_id, uri, created_at, "
    "CASE WHEN expires_at IS NOT NULL THEN 'the time that its task keeps it for was over' "
    "ELSE 'ARTIFACT_RETENTION_DAYS=' || :days END AS rule "
    "FROM artifacts a WHERE deleted_at IS NULL AND (expires_at <= clock_timestamp() "
    "OR (expires_at IS NULL AND created_at <= clock_timestamp() - CAST(:days AS float8) * interval '1 day')) "
    "AND (CAST(:after_at AS timestamptz) IS NULL OR (created_at, uri) > (CAST(:after_at AS timestamptz), :after_uri)) "
    "ORDER BY created_at, uri LIMIT :limit"
)
_NEEDED = text(
    "SELECT CAST(v.tenant_id AS text) AS tenant_id, v.uri "
    "FROM jsonb_to_recordset(CAST(:named AS jsonb)) AS v(tenant_id uuid, uri text) WHERE "
    "EXISTS (SELECT 1 FROM models m WHERE m.tenant_id = v.tenant_id AND m.uri = v.uri) "
    "OR EXISTS (SELECT 1 FROM cache_entries e WHERE e.tenant_id = v.tenant_id "
    "AND (e.expires_at IS NULL OR e.expires_at > clock_timestamp()) "
    "AND strpos(CAST(e.outputs AS text), to_json(v.uri)::text) > 0) "
    "OR EXISTS (SELECT 1 FROM runs r JOIN task_runs t ON t.run_id = r.id WHERE r.tenant_id = v.tenant_id "
    "AND r.state IN ('scheduled', 'queued', 'running', 'paused', 'cancelling') "
    "AND strpos(CAST(t.outputs AS text), to_json(v.uri)::text) > 0)"
)
_MARK = text(
    "UPDATE artifacts AS a SET deleted_at = clock_timestamp(), deleted_by = v.rule "
    "FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS v(tenant_id uuid, uri text, rule text) "
    "WHERE a.tenant_id = v.tenant_id AND a.uri = v.uri AND a.deleted_at IS NULL RETURNING a.uri"
)
_LATELY = text("SELECT uri FROM artifacts WHERE deleted_at > clock_timestamp() - interval '1 hour'")


@dataclass(frozen=True, slots=True)
class PastArtifact:
    """One that is past its time."""

    tenant_id: str
    uri: str
    created_at: datetime
    rule: str
    """In words; kept with the row, for whoever misses it."""


def past_artifacts(
    connection: Connection, days: float | None, after: PastArtifact | None, limit: int
) -> list[PastArtifact]:
    """Return the next ones past their time, the oldest first.

    :param days: after which those go that have no time of their own; ``None``: they stay for ever.
    """
    values = {
        "days": None if days is None else f"{days:g}",
        "after_at": None if after is None else after.created_at,
        "after_uri": "" if after is None else after.uri,
        "limit": limit,
    }
    return [PastArtifact(row.tenant_id, row.uri, row.created_at, row.rule) for row in connection.execute(_PAST, values)]


def still_needed(connection: Connection, artifacts: Sequence[PastArtifact]) -> set[tuple[str, str]]:
    """Return tenant and URI of those that a model, an entry of the cache or a run that is not over names."""
    named = storable_json([{"tenant_id": one.tenant_id, "uri": one.uri} for one in artifacts])
    return {(row.tenant_id, row.uri) for row in connection.execute(_NEEDED, {"named": named})}


def mark_removed(connection: Connection, artifacts: Sequence[PastArtifact]) -> list[str]:
    """Say in the rows that these are removed, and by which rule; return their URIs. The objects are deleted next."""
    rows = [{"tenant_id": one.tenant_id, "uri": one.uri, "rule": one.rule} for one in artifacts]
    return [row.uri for row in connection.execute(_MARK, {"rows": storable_json(rows)})]


def removed_lately(connection: Connection) -> list[str]:
    """Return what was marked in the last hour: the objects may still be there, if a leader died between the two."""
    return [row.uri for row in connection.execute(_LATELY)]
