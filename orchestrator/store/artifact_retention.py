"""Which artifacts may go: those past their time that nothing needs any more. The rows outlive the objects.

What the runs that are not over name is read before, run after run, for their outputs may be more than a transaction can
look through; in it only those count that were not looked at, and what has ended since.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, text

from orchestrator.store.artifact_presence import NOT_IN_STORE
from orchestrator.store.text_safety import storable_json

_PAST_THEIR_OWN = text(
    "SELECT CAST(tenant_id AS text) AS tenant_id, uri, created_at, expires_at AS at, "
    "'the time that its task keeps it for was over' AS rule FROM artifacts "
    "WHERE deleted_at IS NULL AND expires_at <= now() "
    "AND (CAST(:after_at AS timestamptz) IS NULL OR (expires_at, uri) > (CAST(:after_at AS timestamptz), :after_uri)) "
    "ORDER BY expires_at, uri LIMIT :limit"
)
_PAST_OURS = text(
    "SELECT CAST(tenant_id AS text) AS tenant_id, uri, created_at, created_at AS at, "
    "'ARTIFACT_RETENTION_DAYS=' || :shown AS rule FROM artifacts "
    "WHERE deleted_at IS NULL AND expires_at IS NULL "
    "AND created_at <= now() - CAST(:days AS float8) * interval '1 day' "
    "AND (CAST(:after_at AS timestamptz) IS NULL OR (created_at, uri) > (CAST(:after_at AS timestamptz), :after_uri)) "
    "ORDER BY created_at, uri LIMIT :limit"
)
_UNFINISHED_RUNS = text(
    "SELECT CAST(id AS text) AS id FROM runs WHERE state IN ('scheduled', 'queued', 'running', 'paused', 'cancelling')"
)
_NAMED_IN = text(
    "SELECT CAST(t.tenant_id AS text) AS tenant_id, CAST(t.run_id AS text) AS run_id, t.name, "
    "ARRAY(SELECT DISTINCT a.uri FROM "
    "jsonb_path_query(t.outputs, 'strict $.** ? (@ starts with \"artifact://\")', '{}', true) AS u(uri) "
    "JOIN artifacts a ON a.tenant_id = t.tenant_id AND a.uri = u.uri #>> '{}' WHERE a.deleted_at IS NULL) AS uris "
    "FROM task_runs t WHERE t.run_id = ANY(CAST(:runs AS uuid[])) AND t.outputs IS NOT NULL "
    "AND (t.run_id, t.name) > (CAST(:run AS uuid), :name) ORDER BY t.run_id, t.name LIMIT :limit"
)
_LAST_EVENT = text("SELECT COALESCE(max(id), 0) FROM events")
# What has ended since is found by the events: to look through all task runs takes long where there are many. The query
# of the cache is planned for all that it finds: PostgreSQL expects many, of which the first would soon be found without
# the index, and so read 40,000 entries for each artifact.
_NEEDED = text(
    "WITH v AS MATERIALIZED (SELECT tenant_id, uri FROM "
    "jsonb_to_recordset(CAST(:named AS jsonb)) AS n(tenant_id uuid, uri text)), "
    "since AS MATERIALIZED (SELECT DISTINCT CASE WHEN entity = 'task_run' THEN CAST(entity_id AS uuid) END AS id "
    "FROM events WHERE id > :last_event AND entity = 'task_run'), "
    "unfinished AS MATERIALIZED ("
    "SELECT id FROM runs WHERE state IN ('scheduled', 'queued', 'running', 'paused', 'cancelling')), "
    "f AS (SELECT t.tenant_id, t.outputs FROM since JOIN task_runs t ON t.id = since.id "
    "WHERE t.run_id IN (SELECT id FROM unfinished) "
    "UNION ALL SELECT t.tenant_id, t.outputs FROM unfinished r JOIN task_runs t ON t.run_id = r.id "
    "WHERE NOT EXISTS (SELECT 1 FROM unnest(CAST(:looked AS uuid[])) AS l(id) WHERE l.id = r.id)) "
    "SELECT CAST(v.tenant_id AS text) AS tenant_id, v.uri FROM v WHERE "
    "EXISTS (SELECT 1 FROM models m WHERE m.tenant_id = v.tenant_id AND m.uri = v.uri) "
    "OR EXISTS (WITH found AS MATERIALIZED (SELECT 1 FROM cache_entries e "
    "WHERE e.tenant_id = v.tenant_id AND e.artifacts @> ARRAY[v.uri] "
    "AND (e.expires_at IS NULL OR e.expires_at > clock_timestamp())) SELECT 1 FROM found) "
    "UNION SELECT CAST(v.tenant_id AS text), v.uri FROM f, "
    "jsonb_path_query(f.outputs, 'strict $.** ? (@ starts with \"artifact://\")', '{}', true) AS u(uri), v "
    "WHERE f.outputs IS NOT NULL AND v.tenant_id = f.tenant_id AND v.uri = u.uri #>> '{}'"
)
_ENTRIES_OVER = text(
    "DELETE FROM cache_entries WHERE ctid = ANY(ARRAY(SELECT ctid FROM cache_entries "
    "WHERE expires_at <= clock_timestamp() - :seconds * interval '1 second' LIMIT :limit FOR UPDATE SKIP LOCKED))"
)
_ENTRIES_UNUSED = text(
    "DELETE FROM cache_entries WHERE ctid = ANY(ARRAY(SELECT ctid FROM cache_entries "
    "WHERE used_at <= clock_timestamp() - :seconds * interval '1 second' LIMIT :limit FOR UPDATE SKIP LOCKED))"
)
_MARK = text(
    "UPDATE artifacts AS a SET deleted_at = clock_timestamp(), deleted_by = v.rule "
    "FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS v(tenant_id uuid, uri text, rule text, created_at timestamptz) "
    "WHERE a.tenant_id = v.tenant_id AND a.uri = v.uri AND a.deleted_at IS NULL AND a.created_at = v.created_at "
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
# Of what is named by its content, and may so be another attempt's as well, which has not told of it yet.
_AT_WORK = text(
    "SELECT EXISTS (SELECT 1 FROM attempts r, artifacts a WHERE a.tenant_id = :tenant AND a.uri = :uri "
    "AND r.tenant_id = a.tenant_id AND r.state IN ('dispatched', 'running') "
    "AND r.granted_at <= to_timestamp(:modified) AND r.id IS DISTINCT FROM a.attempt_id)"
)
_SPARE = text(
    "UPDATE artifacts SET deleted_at = NULL, deleted_by = '', "
    "expires_at = clock_timestamp() + :seconds * interval '1 second' "
    "WHERE tenant_id = :tenant AND uri = :uri AND deleted_at IS NOT NULL"
)
SPARED = 7 * 86_400.0
"""Seconds for which an object is left alone that was written again: until then its task has told of it, or has failed.
"""
SPARED_FOR_OTHERS = 3_600.0
"""Seconds for which an object is left alone that an attempt which is still at work may have written again."""
ENTRY_TOLD = 86_400.0
"""Seconds for which an entry of the cache is kept when its time is over: who misses it is told so."""
ENTRY_UNUSED = 3_600.0
"""Seconds for which an entry is kept that nobody takes, however short the time of artifacts is: one that a task is just
taking is not removed."""
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
    at: datetime
    """By which they are in order: when its own time was over, or when it was made."""
    has_own_time: bool


@dataclass(frozen=True, slots=True)
class NamedByRuns:
    """What the runs name that were not over a moment ago."""

    runs: frozenset[str] = frozenset()
    artifacts: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    """Tenant and URI."""
    last_event: int = 2**63 - 1
    """The last one that the leader had written before they were read: what has ended since is not among them."""


NOTHING_LOOKED_AT = NamedByRuns()


def past_artifacts(
    connection: Connection, days: float | None, after: PastArtifact | None, limit: int
) -> list[PastArtifact]:
    """Return the next ones past their time: first those past their own, then those past ours; of both the oldest first.

    :param days: after which those go that have no time of their own; ``None``: they stay for ever.
    """
    found: list[PastArtifact] = []
    for has_own_time in (True, False):
        if (after is not None and has_own_time and not after.has_own_time) or (days is None and not has_own_time):
            continue
        last = after if after is not None and after.has_own_time is has_own_time else None
        values = {
            "after_at": None if last is None else last.at,
            "after_uri": "" if last is None else last.uri,
            "limit": limit - len(found),
        }
        if has_own_time:
            rows = connection.execute(_PAST_THEIR_OWN, values)
        else:
            rows = connection.execute(_PAST_OURS, {**values, "days": days, "shown": f"{days:g}"})
        found += [PastArtifact(row.tenant_id, row.uri, row.created_at, row.rule, row.at, has_own_time) for row in rows]
        if len(found) >= limit:
            break
    return found


def unfinished_runs(connection: Connection) -> tuple[list[str], int]:
    """Return the ids of all runs that are not over, and of the last event; the caller holds the epoch, so that no
    event that the leader writes later has a lower one."""
    last_event = int(connection.execute(_LAST_EVENT).scalar_one())
    return list(connection.execute(_UNFINISHED_RUNS).scalars()), last_event


def named_in_runs(
    connection: Connection, run_ids: Sequence[str], after: tuple[str, str] | None, limit: int
) -> tuple[set[tuple[str, str]], tuple[str, str] | None]:
    """Return tenant and URI of the artifacts that so many task runs of these runs name, and where to go on.

    :param after: where to go on, from the call before; ``None``: begin.
    """
    run, name = after or ("00000000-0000-0000-0000-000000000000", "")
    rows = connection.execute(_NAMED_IN, {"runs": list(run_ids), "run": run, "name": name, "limit": limit}).all()
    found = {(row.tenant_id, uri) for row in rows for uri in row.uris}
    return found, (rows[-1].run_id, rows[-1].name) if len(rows) == limit else None


def still_needed(
    connection: Connection, artifacts: Iterable[PastArtifact], by_runs: NamedByRuns = NOTHING_LOOKED_AT
) -> set[tuple[str, str]]:
    """Return tenant and URI of those that a model, an entry of the cache or a run that is not over names.

    :param by_runs: what was looked at before; the other runs, and what has ended since, are looked at now.
    """
    named = {(one.tenant_id, one.uri) for one in artifacts}
    needed = named & by_runs.artifacts
    if asked := [{"tenant_id": tenant_id, "uri": uri} for tenant_id, uri in sorted(named - needed)]:
        values = {
            "named": storable_json(asked),
            "looked": sorted(by_runs.runs),
            "last_event": by_runs.last_event,
        }
        needed |= {(row.tenant_id, row.uri) for row in connection.execute(_NEEDED, values)}
    return needed


def delete_entries_over(connection: Connection, limit: int) -> int:
    """Delete so many entries of the cache whose time is over; return how many that were."""
    return connection.execute(_ENTRIES_OVER, {"seconds": ENTRY_TOLD, "limit": limit}).rowcount


def delete_entries_unused(connection: Connection, days: float, limit: int) -> int:
    """Delete so many entries of the cache that nobody has taken for these days; return how many that were. Reads the
    whole table, for an index would have to be written with each hit."""
    values = {"seconds": max(days * 86_400.0, ENTRY_UNUSED), "limit": limit}
    return connection.execute(_ENTRIES_UNUSED, values).rowcount


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
    """Say in the rows that these are removed, and by which rule; return those. The objects are deleted next.

    What a task has told of again meanwhile stays.
    """
    rows = [
        {"tenant_id": one.tenant_id, "uri": one.uri, "rule": one.rule, "created_at": one.created_at.isoformat()}
        for one in artifacts
    ]
    return [RemovedArtifact(row.tenant_id, row.uri) for row in connection.execute(_MARK, {"rows": storable_json(rows)})]


def removed_lately(connection: Connection) -> list[RemovedArtifact]:
    """Return what was marked in the last hour: the objects may still be there, if a leader died between the two."""
    return [RemovedArtifact(row.tenant_id, row.uri) for row in connection.execute(_LATELY, {"not_ours": NOT_IN_STORE})]


def find_mark(connection: Connection, one: RemovedArtifact) -> Mark | None:
    """Return what the row says now; ``None``: a task has made it again and told of it, so that it stays."""
    row = connection.execute(_MARKED, {"tenant": one.tenant_id, "uri": one.uri}).one_or_none()
    return None if row is None else Mark(float(row.created), float(row.marked))


def may_be_anothers(connection: Connection, one: RemovedArtifact, modified: float) -> bool:
    """Say whether an attempt that is still at work may have saved the same content, and not told of it yet."""
    if "/sha256/" not in one.uri:
        return False
    values = {"tenant": one.tenant_id, "uri": one.uri, "modified": modified + _SKEW}
    return bool(connection.execute(_AT_WORK, values).scalar_one())


def spare(connection: Connection, one: RemovedArtifact, seconds: float = SPARED) -> None:
    """Take the mark back; it is past its time again if no task tells of it until then."""
    connection.execute(_SPARE, {"tenant": one.tenant_id, "uri": one.uri, "seconds": seconds})
