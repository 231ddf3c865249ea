"""What PostgreSQL says has happened: the audit and the rows it led to, read in one snapshot, as frozen records.

The order of ``events.id`` is the order in which things happened, so a replay may follow it. Only the leading scheduler
writes transitions, one transaction after the other; each locks the lease row at its epoch first, so that a take-over
waits for the last of the old epoch and every id of the new one is higher. A run's first row (epoch 0) is the API's: it
is committed before the leader can see the run. I9 checks the rest: epochs never go down along the ids. Rows of one
transaction share ``txn``; between them nothing was visible to anybody, so sums are judged at its end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, text

from orchestrator.plan_json import plan_from_json
from orchestrator.records import PlannedTask


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the audit."""

    id: int
    txn: str
    """The transaction that wrote it."""
    at: float
    """Seconds of the database's clock, a moment before the commit."""
    entity: str
    entity_id: str
    before: str | None
    after: str
    epoch: int
    cause: str = ""
    reason: str = ""
    run_id: str | None = None
    task: str | None = None
    token: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRow:
    id: str
    state: str
    generation: int = 1


@dataclass(frozen=True, slots=True)
class TaskRow:
    id: str
    run_id: str
    name: str
    state: str
    reason: str = ""
    generation: int = 1
    failures: int = 0
    losses: int = 0
    attempt_id: str | None = None
    has_timer: bool = False
    fence: str | None = None
    """The token in its published outputs."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    id: str
    run_id: str
    task_run_id: str
    state: str
    token: str
    host_id: str
    worker_id: str
    is_orphaned: bool = False
    keeper_id: str = ""


@dataclass(frozen=True, slots=True)
class ReservationRow:
    attempt_id: str
    host_id: str
    worker_id: str
    cpu: int
    memory: int
    gpus: int
    devices: tuple[str, ...]
    zombie: bool


@dataclass(frozen=True, slots=True)
class WorkerRow:
    id: str
    host_id: str
    state: str


@dataclass(frozen=True, slots=True)
class ModelRow:
    name: str
    version: str
    run_id: str | None
    task: str | None


@dataclass(frozen=True, slots=True)
class CommandRow:
    kind: str
    run_id: str | None
    task: str | None
    result: str | None
    """What the leader said when it applied it; ``None``: it has not."""


@dataclass(frozen=True, slots=True)
class History:
    """One snapshot of everything that the checker judges."""

    events: tuple[Event, ...] = ()
    runs: Mapping[str, RunRow] = field(default_factory=dict)
    tasks: Mapping[str, TaskRow] = field(default_factory=dict)
    attempts: Mapping[str, AttemptRow] = field(default_factory=dict)
    reservations: Mapping[str, ReservationRow] = field(default_factory=dict)
    workers: Mapping[str, WorkerRow] = field(default_factory=dict)
    plans: Mapping[str, Mapping[str, PlannedTask]] = field(default_factory=dict)
    """Run → name of a task → the task."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Idempotency-Key → run."""
    models: tuple[ModelRow, ...] = ()
    commands: tuple[CommandRow, ...] = ()
    refusals: Mapping[str, int] = field(default_factory=dict)
    epoch: int | None = None
    """Of the lease."""
    clock: float | None = None
    """What to add to the machine's monotonic clock to get the database's; ``None``: they can't be compared, since the
    database's clock jumped."""


def read_history(engine: Engine) -> History:
    """Read everything in one snapshot, so that rows and audit are of one moment."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        runs = {row.id: RunRow(**row._mapping) for row in _rows(connection, "SELECT id, state, generation FROM runs")}
        return History(
            events=_events(connection),
            runs=runs,
            tasks={row.id: TaskRow(**row._mapping) for row in _rows(connection, _TASKS)},
            attempts={row.id: AttemptRow(**row._mapping) for row in _rows(connection, _ATTEMPTS)},
            reservations={
                row.attempt_id: ReservationRow(**{**row._mapping, "devices": tuple(row.devices)})
                for row in _rows(connection, _RESERVATIONS)
            },
            workers={
                row.id: WorkerRow(**row._mapping) for row in _rows(connection, "SELECT id, host_id, state FROM workers")
            },
            plans=_plans(connection),
            keys={row.key: row.run_id for row in _rows(connection, "SELECT key, run_id FROM idempotency_keys")},
            models=tuple(
                ModelRow(**row._mapping) for row in _rows(connection, "SELECT name, version, run_id, task FROM models")
            ),
            commands=tuple(
                CommandRow(**row._mapping)
                for row in _rows(connection, "SELECT kind, run_id, task, result FROM commands ORDER BY id")
            ),
            refusals={row.what: row.count for row in _rows(connection, "SELECT what, count FROM refusals")},
            epoch=connection.execute(text("SELECT max(epoch) FROM leases")).scalar(),
            clock=_clock(connection),
        )


_EVENTS = """
SELECT id, xmin::text AS txn, EXTRACT(EPOCH FROM at)::float AS at, entity, entity_id, before, after, epoch, cause,
       reason, run_id, task, token, COALESCE(detail, '{}') AS detail
FROM events ORDER BY id
"""
_TASKS = """
SELECT id, run_id, name, state, reason, generation, failures, losses, attempt_id, retry_at IS NOT NULL AS has_timer,
       outputs->>'fence' AS fence
FROM task_runs
"""
_ATTEMPTS = """
SELECT id, run_id, task_run_id, state, token, host_id, worker_id, orphaned_at IS NOT NULL AS is_orphaned, keeper_id
FROM attempts
"""
_RESERVATIONS = """
SELECT attempt_id, host_id, worker_id, cpu, memory, gpus, devices, zombie FROM reservations
"""
_PLANS = "SELECT r.id AS run_id, v.id AS version_id, v.plan FROM runs r JOIN pipeline_versions v ON v.id = r.version_id"


def _rows(connection: Connection, statement: str) -> list[Any]:
    return list(connection.execute(text(statement.replace(":", "\\:"))).all())


def _events(connection: Connection) -> tuple[Event, ...]:
    return tuple(Event(**row._mapping) for row in _rows(connection, _EVENTS))


def _plans(connection: Connection) -> dict[str, Mapping[str, PlannedTask]]:
    by_version: dict[str, Mapping[str, PlannedTask]] = {}
    found: dict[str, Mapping[str, PlannedTask]] = {}
    for row in _rows(connection, _PLANS):
        if row.version_id not in by_version:
            plan = plan_from_json(row.plan)
            by_version[row.version_id] = {task.name: task for task in plan.tasks}
        found[row.run_id] = by_version[row.version_id]
    return found


def _clock(connection: Connection) -> float:
    """Compare the two clocks; the error is half of what asking takes."""
    offsets = []
    for _ in range(3):
        asked = time.monotonic()
        said = connection.execute(text("SELECT EXTRACT(EPOCH FROM clock_timestamp())\\:\\:float")).scalar_one()
        answered = time.monotonic()
        offsets.append((answered - asked, said - (asked + answered) / 2))
    return float(min(offsets)[1])
