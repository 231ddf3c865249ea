"""Figures from the rows: gauges for a scrape of the metrics, health of the leader, statistics over days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from orchestrator.store.pages import Row


@dataclass(frozen=True, slots=True)
class Leader:
    """The lease of the leading scheduler; ``age`` is the seconds since it was renewed."""

    holder: str
    epoch: int
    age: float
    held: bool
    """Whether the lease has not expired."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """What a scrape shows; runs and tasks are the tenant's, hosts and workers the site's."""

    runs: list[Row]
    tasks: list[Row]
    queues: list[Row]
    workers: list[Row]
    hosts: list[Row]
    refusals: list[Row]
    open_commands: int
    leader: Leader | None


def read_leader(connection: Connection) -> Leader | None:
    """Return who leads, by the database's clock; ``None`` when nobody ever did."""
    row = connection.execute(
        text(
            "SELECT holder, epoch, extract(epoch FROM clock_timestamp() - renewed_at)::float AS age, "
            "expires_at > clock_timestamp() AS held FROM leases WHERE role = 'scheduler' AND holder <> ''"
        )
    ).first()
    return None if row is None else Leader(row.holder, int(row.epoch), max(0.0, float(row.age)), bool(row.held))


def read_gauges(connection: Connection, tenant_id: str) -> Gauges:
    """Count what is in the tables now; ended runs are counted too, open tasks only."""
    tenant = {"tenant": tenant_id}
    return Gauges(
        runs=_rows(
            connection, "SELECT state, count(*) AS count FROM runs WHERE tenant_id = :tenant GROUP BY state", tenant
        ),
        tasks=_rows(connection, _OPEN_TASKS, tenant),
        queues=_rows(connection, _QUEUES, tenant),
        workers=_rows(
            connection,
            "SELECT state, count(*) AS count, sum(slots) AS slots FROM workers "
            "WHERE state IN ('online', 'suspect', 'draining') GROUP BY state",
        ),
        hosts=_rows(connection, _HOSTS),
        refusals=_rows(connection, "SELECT what, count FROM refusals"),
        open_commands=int(
            connection.execute(
                text("SELECT count(*) FROM commands WHERE applied_at IS NULL AND tenant_id = :tenant"), tenant
            ).scalar_one()
        ),
        leader=read_leader(connection),
    )


def count_live_workers(connection: Connection) -> dict[str, int]:
    """Return how many workers are in each live state."""
    found = _rows(
        connection,
        "SELECT state, count(*) AS count FROM workers WHERE state IN ('online', 'suspect', 'draining') GROUP BY state",
    )
    return {row["state"]: int(row["count"]) for row in found}


def has_left_runs_alone(connection: Connection, within: float) -> bool:
    """Say whether the leader has met runs under way whose plans it can't read, in the last ``within`` seconds."""
    query = (
        "SELECT count(*) FROM refusals WHERE what = 'unreadable_plan' "
        "AND last_at > clock_timestamp() - :within * interval '1 second'"
    )
    return bool(connection.execute(text(query), {"within": within}).scalar_one())


def read_circuits(connection: Connection) -> list[Row]:
    """Return the external services that were in trouble, as their tasks saw them."""
    return _rows(
        connection, "SELECT service, state, failures, reason, open_until, changed_at FROM circuits ORDER BY service"
    )


def server_version(connection: Connection) -> str:
    """Return PostgreSQL's version."""
    return str(connection.execute(text("SHOW server_version")).scalar_one())


def schema_revision(connection: Connection) -> str | None:
    """Return the revision that the tables were migrated to."""
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def read_statistics(connection: Connection, tenant_id: str, days: int) -> dict[str, Any]:
    """Return what became of the runs that were created in the last ``days`` days; durations in seconds."""
    bounds = {"tenant": tenant_id, "days": days}
    since: datetime = connection.execute(
        text("SELECT clock_timestamp() - :days * interval '1 day'"), bounds
    ).scalar_one()
    totals = connection.execute(text(_RUN_TOTALS), bounds).mappings().one()
    states = _rows(connection, _RUN_STATES, bounds)
    return {
        "days": days,
        "since": since,
        "runs": {
            "total": sum(int(row["count"]) for row in states),
            "by_state": {row["state"]: int(row["count"]) for row in states},
            **_rate(totals),
            **_spread(totals, "duration"),
            **_spread(totals, "wait"),
        },
        "tasks": dict(connection.execute(text(_TASK_TOTALS), bounds).mappings().one()),
        "pipelines": [
            {"pipeline_name": row["pipeline_name"], "runs": int(row["runs"]), **_rate(row), **_spread(row, "duration")}
            for row in _rows(connection, _BY_PIPELINE, bounds)
        ],
        "operators": [
            {
                "operator": row["operator"],
                "tasks": int(row["tasks"]),
                **_rate(row),
                "retries": int(row["retries"] or 0),
                **_spread(row, "duration"),
                "peak_memory_bytes": row["peak_memory"],
                "cpu_seconds": row["cpu_seconds"],
            }
            for row in _rows(connection, _BY_OPERATOR, bounds)
        ],
    }


def _rows(connection: Connection, statement: str, values: dict[str, Any] | None = None) -> list[Row]:
    return [dict(row) for row in connection.execute(text(statement), values or {}).mappings()]


def _rate(row: Any) -> Row:
    ended = int(row["succeeded"] or 0) + int(row["failed"] or 0)
    return {"success_rate": int(row["succeeded"] or 0) / ended if ended else None}


def _spread(row: Any, what: str) -> Row:
    marks = row[f"{what}_marks"] or [None, None, None]
    return {f"{what}_seconds": {"p50": marks[0], "p95": marks[1], "p99": marks[2]}}


_OPEN_TASKS = """
SELECT t.state, t.reason, count(*) AS count
FROM task_runs t JOIN runs r ON r.tenant_id = t.tenant_id AND r.id = t.run_id
WHERE t.tenant_id = :tenant AND r.state IN ('running', 'paused', 'cancelling')
  AND t.state NOT IN ('success', 'failed', 'upstream_failed', 'skipped', 'cancelled')
GROUP BY t.state, t.reason
"""

_QUEUES = """
SELECT queue, state, count(*) AS count,
       max(extract(epoch FROM clock_timestamp() - created_at))::float AS oldest_seconds
FROM attempts WHERE tenant_id = :tenant AND state IN ('dispatched', 'running') GROUP BY queue, state
"""

_HOSTS = """
SELECT h.id, h.hostname, h.cpu, h.memory, jsonb_array_length(h.gpus) AS gpus, coalesce(s.cpu, 0) AS reserved_cpu,
       coalesce(s.memory, 0) AS reserved_memory, coalesce(s.gpus, 0) AS reserved_gpus
FROM hosts h
LEFT JOIN (
  SELECT host_id, sum(cpu) AS cpu, sum(memory) AS memory, sum(gpus) AS gpus FROM reservations GROUP BY host_id
) s ON s.host_id = h.id
WHERE s.host_id IS NOT NULL
   OR EXISTS (SELECT 1 FROM workers w WHERE w.host_id = h.id AND w.state IN ('online', 'suspect', 'draining'))
"""

_RUN_STATES = """
SELECT state, count(*) AS count FROM runs
WHERE tenant_id = :tenant AND created_at >= clock_timestamp() - :days * interval '1 day' GROUP BY state
"""

_RUN_TOTALS = """
SELECT count(*) FILTER (WHERE state = 'success') AS succeeded, count(*) FILTER (WHERE state = 'failed') AS failed,
       percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - started_at)::float)
         FILTER (WHERE ended_at IS NOT NULL AND started_at IS NOT NULL) AS duration_marks,
       percentile_cont(ARRAY[0.5, 0.95, 0.99])
         WITHIN GROUP (ORDER BY extract(epoch FROM started_at - created_at)::float)
         FILTER (WHERE started_at IS NOT NULL) AS wait_marks
FROM runs WHERE tenant_id = :tenant AND created_at >= clock_timestamp() - :days * interval '1 day'
"""

_TASK_TOTALS = """
SELECT count(*) AS total, count(*) FILTER (WHERE t.state = 'success') AS succeeded,
       count(*) FILTER (WHERE t.state = 'failed') AS failed, coalesce(sum(t.failures), 0)::bigint AS failures,
       coalesce(sum(t.losses), 0)::bigint AS losses, coalesce(sum(greatest(t.attempts - 1, 0)), 0)::bigint AS retries,
       avg(extract(epoch FROM t.started_at - t.ready_at)) FILTER (WHERE t.started_at >= t.ready_at)::float
         AS mean_wait_seconds
FROM task_runs t JOIN runs r ON r.tenant_id = t.tenant_id AND r.id = t.run_id
WHERE t.tenant_id = :tenant AND r.created_at >= clock_timestamp() - :days * interval '1 day'
"""

_BY_PIPELINE = """
SELECT p.name AS pipeline_name, count(*) AS runs, count(*) FILTER (WHERE r.state = 'success') AS succeeded,
       count(*) FILTER (WHERE r.state = 'failed') AS failed,
       percentile_cont(ARRAY[0.5, 0.95, 0.99])
         WITHIN GROUP (ORDER BY extract(epoch FROM r.ended_at - r.started_at)::float)
         FILTER (WHERE r.ended_at IS NOT NULL AND r.started_at IS NOT NULL) AS duration_marks
FROM runs r JOIN pipelines p ON p.tenant_id = r.tenant_id AND p.id = r.pipeline_id
WHERE r.tenant_id = :tenant AND r.created_at >= clock_timestamp() - :days * interval '1 day'
GROUP BY p.id, p.name ORDER BY runs DESC, p.name LIMIT 100
"""

_BY_OPERATOR = """
WITH recent AS (
  SELECT id FROM runs WHERE tenant_id = :tenant AND created_at >= clock_timestamp() - :days * interval '1 day'
), used AS (
  SELECT a.task_run_id, max(a.peak_memory) AS peak_memory, sum(a.cpu_seconds) AS cpu_seconds
  FROM attempts a JOIN recent ON recent.id = a.run_id WHERE a.tenant_id = :tenant GROUP BY a.task_run_id
)
SELECT t.operator, count(*) AS tasks, count(*) FILTER (WHERE t.state = 'success') AS succeeded,
       count(*) FILTER (WHERE t.state = 'failed') AS failed, sum(greatest(t.attempts - 1, 0)) AS retries,
       percentile_cont(ARRAY[0.5, 0.95, 0.99])
         WITHIN GROUP (ORDER BY extract(epoch FROM t.ended_at - t.started_at)::float)
         FILTER (WHERE t.ended_at IS NOT NULL AND t.started_at IS NOT NULL) AS duration_marks,
       max(u.peak_memory) AS peak_memory, sum(u.cpu_seconds) AS cpu_seconds
FROM task_runs t JOIN recent ON recent.id = t.run_id LEFT JOIN used u ON u.task_run_id = t.id
WHERE t.tenant_id = :tenant GROUP BY t.operator ORDER BY t.operator
"""
