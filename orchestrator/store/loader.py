"""Reads rows into the records the rules speak of; stored times become the leader's monotonic seconds (I14)."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from orchestrator.events import Command, EndedRun, RunSubmitted
from orchestrator.kernel import Snapshot
from orchestrator.logs import get_logger
from orchestrator.records import (
    AttemptRecord,
    Capacity,
    EndedAttempt,
    GpuDevice,
    HostRecord,
    Plan,
    PlannedTask,
    Reservation,
    Resources,
    RunRecord,
    TaskRunRecord,
    WorkerRecord,
)
from orchestrator.states import AttemptState, RunState, TaskState, WorkerState
from orchestrator.store.plans import PlanCache

log = get_logger(__name__)

MOST_TASKS = 2000
"""Tasks of the runs that are started, or that commands concern, in one transaction. To start 100 runs of 1,000 tasks
again took 8.4 s (2 cores, idle), one statement of it 2.2 s: above it lies the limit for a statement, and a leader who
fails there would fail each time anew."""

_RUN_COLUMNS = "id, tenant_id, version_id, state, reason, generation, priority, seq"

_ACTIVE_RUNS = text(
    f"SELECT {_RUN_COLUMNS} FROM runs WHERE state IN ('running', 'paused', 'cancelling') ORDER BY seq"  # noqa: S608
)
# What is taken together makes one transaction. The first is taken however large it is.
_QUEUED_RUNS = text(
    f"SELECT {_RUN_COLUMNS} FROM (SELECT next.*, sum(size) OVER (ORDER BY priority DESC, seq) - size AS before "  # noqa: S608
    "FROM (SELECT *, (SELECT count(*) FROM task_runs t WHERE t.run_id = runs.id) AS size FROM runs "
    "WHERE state = 'queued' ORDER BY priority DESC, seq LIMIT :limit) next) sized "
    "WHERE before < :most_tasks ORDER BY priority DESC, seq"
)
_OPEN_RUNS = text(
    f"SELECT {_RUN_COLUMNS} FROM runs WHERE id = ANY(CAST(:ids AS uuid[])) "  # noqa: S608
    "AND state NOT IN ('success', 'failed', 'cancelled') ORDER BY seq"
)
_ENDED_RUNS = text(
    f"SELECT {_RUN_COLUMNS} FROM runs WHERE id = ANY(CAST(:ids AS uuid[])) "  # noqa: S608
    "AND state IN ('success', 'failed', 'cancelled') ORDER BY seq"
)
# `since` columns are how long ago, `left` columns how long until, in seconds on the database's own clock.
_TASK_RUNS = text(
    "SELECT id, run_id, name, state, reason, message, generation, attempts, failures, losses, attempt_id, local_to, "
    "CAST(EXTRACT(EPOCH FROM LEAST(retry_at - clock_timestamp(), retry_at - "
    "(SELECT a.ended_at FROM attempts a WHERE a.task_run_id = task_runs.id AND a.number = task_runs.attempts))) "
    "AS float8) AS retry_left "
    "FROM task_runs WHERE run_id = ANY(CAST(:ids AS uuid[])) ORDER BY run_id, position"
)
_LIVE_ATTEMPTS = text(
    "SELECT id, run_id, task_run_id, number, state, token, nonce, queue, direct, seq, host_id, worker_id, cpu, memory, "
    "gpus, gpu_memory, devices, cancel, keeper_id, "
    "CAST(EXTRACT(EPOCH FROM clock_timestamp() - orphaned_at) AS float8) AS orphaned_since, "
    "CAST(EXTRACT(EPOCH FROM clock_timestamp() - hinted_at) AS float8) AS hinted_since, "
    "CAST(EXTRACT(EPOCH FROM clock_timestamp() - granted_at) AS float8) AS granted_since, "
    "CAST(EXTRACT(EPOCH FROM deadline_at - clock_timestamp()) AS float8) AS deadline_left "
    "FROM attempts WHERE state IN ('dispatched', 'running')"
)
_RESERVATIONS = text(
    "SELECT attempt_id, host_id, worker_id, cpu, memory, gpus, gpu_memory, devices, zombie FROM reservations"
)
_HOSTS = text(
    "SELECT id, boot_id, cpu, memory, gpus FROM hosts h WHERE id IN (SELECT host_id FROM reservations) OR EXISTS "
    "(SELECT FROM workers w WHERE w.host_id = h.id AND (w.state NOT IN ('lost', 'drained') "
    "OR w.ended_at > clock_timestamp() - interval '10 minutes' OR w.id IN (SELECT worker_id FROM reservations)))"
    # Where every pod is a host of its own their rows are many.
)
_WORKERS = text(
    "SELECT w.id, w.host_id, w.boot_id, w.state, w.queues, w.slots, w.labels, w.store_scope, w.heartbeat_seq, "
    "h.hostname, w.name, w.version, w.draining, "
    "CAST(EXTRACT(EPOCH FROM w.drain_until - clock_timestamp()) AS float8) AS drain_left, "
    "CAST(EXTRACT(EPOCH FROM clock_timestamp() - w.ended_at) AS float8) AS ended_since "
    "FROM workers w JOIN hosts h ON h.id = w.host_id WHERE w.state NOT IN ('lost', 'drained') "
    "OR w.ended_at > clock_timestamp() - interval '10 minutes' OR w.id IN (SELECT worker_id FROM reservations)"
)
# An ended worker's last heartbeat may lie in Redis for a minute: who it is must be known, or it would seem to be new.
_ENDED = text(
    "SELECT id, state, token, worker_id, reason, keeper_id FROM attempts WHERE id = ANY(CAST(:ids AS uuid[]))"
)
_COMMANDS = text(
    "SELECT id, kind, actor, run_id, task, worker_id, payload FROM "
    "(SELECT next.*, sum(size) OVER (ORDER BY id) - size AS before FROM (SELECT *, "
    "(SELECT count(*) FROM task_runs t WHERE t.run_id = commands.run_id) AS size FROM commands "
    "WHERE applied_at IS NULL AND id <> ALL(CAST(:put_off AS bigint[])) "
    "AND (run_id IS NULL OR run_id <> ALL(CAST(:left_alone AS uuid[]))) ORDER BY id LIMIT :limit) next) sized "
    "WHERE before < :most_tasks ORDER BY id"
)


def load_snapshot(connection: Connection, plans: PlanCache, now: float) -> Snapshot:
    """Read everything the kernel needs to go on where the last leader stopped.

    A run under way whose plan can't be read (it is of a newer release) is left alone: all others go on.

    :param now: the leader's monotonic clock.
    """
    rows = connection.execute(_ACTIVE_RUNS).mappings().all()
    found = plans.get(connection, {row["version_id"] for row in rows})
    unreadable = {row["id"]: why for row in rows if (why := found.unreadable.get(row["version_id"])) is not None}
    for run_id, why in unreadable.items():
        log.error("run_left_alone", run_id=run_id, why=why)
    runs = [row for row in rows if row["id"] not in unreadable]
    ids = [row["id"] for row in runs]
    attempts = connection.execute(_LIVE_ATTEMPTS).mappings().all()
    return Snapshot(
        runs=tuple(_run(row) for row in runs),
        plans={row["id"]: found.readable[row["version_id"]] for row in runs},
        task_runs=tuple(_task_run(row, now) for row in connection.execute(_TASK_RUNS, {"ids": ids}).mappings()),
        attempts=tuple(_attempt(row, now) for row in attempts if row["run_id"] not in unreadable),
        unreadable=unreadable,
        left_alone=frozenset(row["id"] for row in attempts if row["run_id"] in unreadable),
        reservations=tuple(_reservation(row) for row in connection.execute(_RESERVATIONS).mappings()),
        hosts=tuple(_host(row) for row in connection.execute(_HOSTS).mappings()),
        workers=tuple(_worker(row, now) for row in connection.execute(_WORKERS).mappings()),
    )


def load_queued_runs(
    connection: Connection, plans: PlanCache, now: float, *, limit: int, most_tasks: int = MOST_TASKS
) -> list[RunSubmitted]:
    """Read the runs that are next in line: by priority, then in the order of their creation.

    As many as come to ``most_tasks`` tasks, and the first in any case.

    One whose plan can't be read comes with the names of its tasks and a sentence (``RunSubmitted.unreadable``).
    """
    if limit <= 0:
        return []
    rows = connection.execute(_QUEUED_RUNS, {"limit": limit, "most_tasks": most_tasks}).mappings().all()
    return _submitted(connection, plans, rows, now, hold=False)


def load_runs(connection: Connection, plans: PlanCache, now: float, ids: Iterable[str]) -> list[RunSubmitted]:
    """Read these runs, as far as they have not ended, because commands concern them."""
    wanted = sorted(set(ids))
    if not wanted:
        return []
    rows = connection.execute(_OPEN_RUNS, {"ids": wanted}).mappings().all()
    return _submitted(connection, plans, rows, now, hold=True)


def load_ended_runs(connection: Connection, plans: PlanCache, now: float, ids: Iterable[str]) -> dict[str, EndedRun]:
    """Read those of these runs that are over, by their ids, because they shall start again."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    rows = connection.execute(_ENDED_RUNS, {"ids": wanted}).mappings().all()
    return {
        found.run.id: EndedRun(found.run, found.tasks, found.plan, found.unreadable)
        for found in _submitted(connection, plans, rows, now, hold=True)
    }


def load_commands(
    connection: Connection,
    limit: int = 100,
    left_alone: Iterable[str] = (),
    *,
    most_tasks: int = MOST_TASKS,
    put_off: Iterable[int] = (),
) -> list[Command]:
    """Read the open commands, oldest first.

    :param left_alone: runs of which this scheduler knows no more than that; their commands wait for one that does.
    :param most_tasks: read as many as concern runs of so many tasks together, and the first in any case.
    :param put_off: ids of commands that are not to be read now.
    """
    parameters = {
        "limit": limit,
        "left_alone": list(left_alone),
        "most_tasks": most_tasks,
        "put_off": list(put_off),
    }
    return [
        Command(
            id=int(row["id"]),
            kind=row["kind"],
            actor=row["actor"],
            run_id=row["run_id"],
            task=row["task"],
            worker_id=row["worker_id"],
            payload=row["payload"],
        )
        for row in connection.execute(_COMMANDS, parameters).mappings()
    ]


def load_attempts(connection: Connection, ids: Iterable[str]) -> dict[str, EndedAttempt]:
    """Read what is known of attempts that the kernel does not hold."""
    wanted = sorted({id_ for id_ in ids if is_uuid(id_)})
    if not wanted:
        return {}
    return {
        row["id"]: EndedAttempt(
            row["id"], AttemptState(row["state"]), row["token"], row["worker_id"], row["reason"], row["keeper_id"]
        )
        for row in connection.execute(_ENDED, {"ids": wanted}).mappings()
    }


def is_uuid(value: str) -> bool:
    """Say whether the text can be an id; ids in reports are whatever a hint made the worker say."""
    try:
        return str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _submitted(
    connection: Connection, plans: PlanCache, rows: Sequence[RowMapping], now: float, *, hold: bool
) -> list[RunSubmitted]:
    if not rows:
        return []
    found = plans.get(connection, {row["version_id"] for row in rows})
    tasks: dict[str, list[TaskRunRecord]] = {row["id"]: [] for row in rows}
    for row in connection.execute(_TASK_RUNS, {"ids": list(tasks)}).mappings():
        tasks[row["run_id"]].append(_task_run(row, now))
    submitted = []
    for row in rows:
        records, why = tuple(tasks[row["id"]]), found.unreadable.get(row["version_id"], "")
        plan = _names_only(records) if why else found.readable[row["version_id"]]
        submitted.append(RunSubmitted(_run(row), records, plan, hold=hold, unreadable=why))
    return submitted


def _names_only(tasks: Iterable[TaskRunRecord]) -> Plan:
    """Return what stands in for a plan that can't be read: enough to end each of the run's tasks."""
    return Plan(tuple(PlannedTask(task.name, "") for task in tasks))


def _run(row: RowMapping) -> RunRecord:
    return RunRecord(
        id=row["id"],
        tenant_id=row["tenant_id"],
        state=RunState(row["state"]),
        reason=row["reason"],
        generation=row["generation"],
        priority=row["priority"],
        order=row["seq"],
    )


def _task_run(row: RowMapping, now: float) -> TaskRunRecord:
    return TaskRunRecord(
        id=row["id"],
        run_id=row["run_id"],
        name=row["name"],
        state=TaskState(row["state"]),
        reason=row["reason"],
        message=row["message"],
        generation=row["generation"],
        attempts=row["attempts"],
        failures=row["failures"],
        losses=row["losses"],
        attempt_id=row["attempt_id"],
        retry_at=_later(now, row["retry_left"]),
        local_to=row["local_to"],
    )


def _attempt(row: RowMapping, now: float) -> AttemptRecord:
    return AttemptRecord(
        id=row["id"],
        run_id=row["run_id"],
        task_run_id=row["task_run_id"],
        number=row["number"],
        queue=row["queue"],
        resources=_resources(row),
        host_id=row["host_id"],
        worker_id=row["worker_id"],
        token=row["token"],
        state=AttemptState(row["state"]),
        devices=tuple(row["devices"]),
        seq=row["seq"],
        nonce=row["nonce"],
        direct=row["direct"],
        hinted_at=_earlier(now, row["hinted_since"]) or now,
        granted_at=_earlier(now, row["granted_since"]),
        deadline=_later(now, row["deadline_left"]),
        cancel=row["cancel"],
        keeper_id=row["keeper_id"],
        orphaned_at=_earlier(now, row["orphaned_since"]),
    )


def _reservation(row: RowMapping) -> Reservation:
    return Reservation(
        attempt_id=row["attempt_id"],
        host_id=row["host_id"],
        worker_id=row["worker_id"],
        resources=_resources(row),
        devices=tuple(row["devices"]),
        zombie=row["zombie"],
    )


def _host(row: RowMapping) -> HostRecord:
    gpus = tuple(_gpu(device) for device in row["gpus"])
    return HostRecord(row["id"], row["boot_id"], Capacity(row["cpu"], row["memory"], gpus))


def _gpu(device: Mapping[str, Any]) -> GpuDevice:
    return GpuDevice(device["uuid"], device.get("model", ""), int(device.get("memory", 0)), device.get("busy_with", ""))


def _worker(row: RowMapping, now: float) -> WorkerRecord:
    return WorkerRecord(
        id=row["id"],
        host_id=row["host_id"],
        boot_id=row["boot_id"],
        state=WorkerState(row["state"]),
        queues=frozenset(row["queues"]),
        slots=row["slots"],
        labels=row["labels"],
        store_scope=row["store_scope"],
        seen_at=_earlier(now, row["ended_since"]) or now,
        seq=row["heartbeat_seq"],
        hostname=row["hostname"],
        name=row["name"],
        version=row["version"],
        draining=row["draining"],
        drain_until=_later(now, row["drain_left"]),
    )


def _resources(row: RowMapping) -> Resources:
    return Resources(cpu=row["cpu"], memory=row["memory"], gpus=row["gpus"], gpu_memory=row["gpu_memory"])


def _later(now: float, left: float | None) -> float | None:
    return None if left is None else now + left


def _earlier(now: float, since: float | None) -> float | None:
    """Return when it was; a database clock that went back must not put it into the future."""
    return None if since is None else now - max(0.0, since)
