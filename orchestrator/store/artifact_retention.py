"""Which artifacts may go: those past their time that nothing needs any more. The rows outlive the objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from orchestrator.store.artifact_presence import NOT_IN_STORE
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
    "WHERE a.tenant_id = v.tenant_id AND a.uri = v.uri AND a.deleted_at IS NULL "
    "RETURNING CAST(a.tenant_id AS text) AS tenant_id, a.uri"
)
_LATELY = text(
    "SELECT CAST(tenant_id AS text) AS tenant_id, uri FROM artifacts "
    "WHERE deleted_at > clock_timestamp() - interval '1 hour' AND deleted_by <> :not_ours"
)
_MARKED = text(
    "SELECT EXTRACT(epoch FROM created_at) AS created, EXTRACT(epoch FROM deleted_at) AS marked FROM artifacts "
    "WHERE tenant_id = :tenant AND uri = :uri AND deleted_at IS NOT NULL"
)
_SPARE = text(
    "UPDATE artifacts SET deleted_at = NULL, deleted_by = '', "
    "expires_at = clock_timestamp() + :seconds * interval '1 second' "
    "WHERE tenant_id = :tenant AND uri = :uri AND deleted_at IS NOT NULL"
)
SPARED = 7 * 86_400.0
"""Seconds for which an object is left alone that was written again: until then its task has told of it, or has failed.
"""
_SKEW = 60.0
"""Seconds by which the clocks of the artifact store and of PostgreSQL may differ."""


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


@dataclass(frozen=True, slots=True)
class RemovedArtifact:
    """One whose row says that it is removed; its object goes next."""

    tenant_id: str
    uri: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What the row says of one that is still marked, in seconds since the epoch, on PostgreSQL's clock."""

    created: float
    """When the latest task that made it had told of it."""
    marked: float

    def is_made_again(self, modified: float) -> bool:
        """Say whether the object is another than the one that was marked: a task has written it again since, and has
        not yet told of it."""
        margin = min(_SKEW, (self.marked - self.created) / 2)
        return modified > self.created + margin and modified > self.marked - SPARED


def mark_removed(connection: Connection, artifacts: Sequence[PastArtifact]) -> list[RemovedArtifact]:
    """Say in the rows that these are removed, and by which rule; return those. The objects are deleted next."""
    rows = [{"tenant_id": one.tenant_id, "uri": one.uri, "rule": one.rule} for one in artifacts]
    return [RemovedArtifact(row.tenant_id, row.uri) for row in connection.execute(_MARK, {"rows": storable_json(rows)})]


def removed_lately(connection: Connection) -> list[RemovedArtifact]:
    """Return what was marked in the last hour: the objects may still be there, if a leader died between the two."""
    return [RemovedArtifact(row.tenant_id, row.uri) for row in connection.execute(_LATELY, {"not_ours": NOT_IN_STORE})]


def find_mark(connection: Connection, one: RemovedArtifact) -> Mark | None:
    """Return what the row says now; ``None``: a task has made it again and told of it, so that it stays."""
    row = connection.execute(_MARKED, {"tenant": one.tenant_id, "uri": one.uri}).one_or_none()
    return None if row is None else Mark(float(row.created), float(row.marked))


def spare(connection: Connection, one: RemovedArtifact) -> None:
    """Take the mark back; it is past its time again if no task tells of it until then."""
    connection.execute(_SPARE, {"tenant": one.tenant_id, "uri": one.uri, "seconds": SPARED})
