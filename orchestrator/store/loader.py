"""Reads rows into the records the rules speak of; stored times become the leader's monotonic seconds (I14)."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace

from sqlalchemy import Connection, RowMapping, text

from orchestrator.events import Command, EndedRun, RunSubmitted
from orchestrator.kernel import Snapshot
from orchestrator.kernel.held_runs import HeldBack
from orchestrator.limits import DISPATCHES, Rate
from orchestrator.logs import get_logger
from orchestrator.records import EndedAttempt, Plan, PlannedTask, TaskRunRecord
from orchestrator.states import RUN_TERMINAL, TASK_TERMINAL, AttemptState, RunState
from orchestrator.store.beside_rows import KeptOutputs, handing_on, learned_of, with_learned
from orchestrator.store.plans import PlanCache
from orchestrator.store.row_records import (
    attempt_record,
    host_record,
    reservation_record,
    run_record,
    task_run_record,
    worker_record,
)

log = get_logger(__name__)

MOST_TASKS = 2000
"""Tasks of the runs that are started, or that commands concern, in one transaction. To start 100 runs of 1,000 tasks
again took 8.4 s (2 cores, idle), one statement of it 2.2 s: above it lies the limit for a statement, and a leader who
fails there would fail each time anew."""

NOTHING_HELD = HeldBack()
MOST_CHILDREN = 200
"""Queued runs that are tasks of others, taken at once: they need no place, but are seldom left for this."""

# No more than the whole deadline is left of a run's, though the clock may have gone back an hour since (I14).
_RUN_COLUMNS = (
    "id, tenant_id, version_id, state, reason, message, generation, priority, seq, pipeline_id, parameters, "
    "parent_task_run_id, depth, paused_with_parent, "
    "(SELECT name FROM pipelines p WHERE p.id = pipeline_id) AS pipeline, "
    "CAST(EXTRACT(EPOCH FROM LEAST(deadline_at - clock_timestamp(), deadline_at - started_at)) AS float8) "
    "AS deadline_left"
)

_ACTIVE_RUNS = text(
    f"SELECT {_RUN_COLUMNS} FROM runs WHERE state IN ('running', 'paused', 'cancelling') ORDER BY seq"  # noqa: S608
)
# What is taken together makes one transaction. The first is taken however large it is.
# Thousands of runs may be held back: joined, they are left out by a hash, not by a look through all of them each time.
_MAY_START = (
    "runs LEFT JOIN unnest(CAST(:held AS uuid[])) AS held (held_id) ON held_id = id "
    "WHERE state = 'queued' AND (id = ANY(CAST(:wanted AS uuid[])) "
    "OR held_id IS NULL AND pipeline_id NOT IN (SELECT id FROM pipelines WHERE paused)) "
    "AND id <> ALL(CAST(:put_off AS uuid[]))"
)
# Runs that are there as tasks of others (``RunRecord.is_inside``) need no place; all but those of paused pipelines, and
# those that are to be stopped, are taken.
_INSIDE = "(parent_run_id IS NOT NULL AND generation = 1)"
_QUEUED_RUNS = text(
    f"SELECT {_RUN_COLUMNS} FROM (SELECT next.*, sum(size) OVER (ORDER BY NOT {_INSIDE}, priority DESC, seq) - size "  # noqa: S608
    "AS before FROM (SELECT one.*, (SELECT count(*) FROM task_runs t WHERE t.run_id = one.id) AS size FROM ("
    f"(SELECT runs.* FROM {_MAY_START} AND {_INSIDE} "
    "ORDER BY priority DESC, seq LIMIT :children) "
    "UNION ALL "
    f"(SELECT runs.* FROM {_MAY_START} AND NOT {_INSIDE} ORDER BY priority DESC, seq LIMIT :limit)"
    f") one) next) sized WHERE before < :most_tasks ORDER BY NOT {_INSIDE}, priority DESC, seq"
)
_OPEN_RUNS = text(
    f"SELECT {_RUN_COLUMNS} FROM runs WHERE id = ANY(CAST(:ids AS uuid[])) "  # noqa: S608
    "AND state NOT IN ('success', 'failed', 'cancelled') ORDER BY seq"
)
_STATES = text("SELECT id, state FROM runs WHERE id = ANY(CAST(:ids AS uuid[]))")
_UNTOLD = text("SELECT id FROM runs WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'queued' AND reason <> :reason")
_PAUSED = text("SELECT id FROM pipelines WHERE paused")
_ENDED_RUNS = text(
    f"SELECT {_RUN_COLUMNS} FROM runs WHERE id = ANY(CAST(:ids AS uuid[])) "  # noqa: S608
    "AND state IN ('success', 'failed', 'cancelled') ORDER BY seq"
)
# `since` columns are how long ago, `left` columns how long until, in seconds on the database's own clock.
# A retry's delay began when its last try ended, in the same transaction. No more than that whole delay is left of it,
# though the clock may have gone back an hour since (I14).
_TASK_RUNS = text(
    "SELECT id, run_id, name, state, reason, message, generation, attempts, failures, losses, attempt_id, local_to, "
    "parent_id, map_index, map_key, item, memory, queue, child_run_id, wait_token, cache_key, resumed, awaits_turn, "
    "superseded, ready_at IS NOT NULL OR started_at IS NOT NULL AS begun, "
    "CAST(EXTRACT(EPOCH FROM CASE WHEN state = 'retry_wait' THEN LEAST(retry_at - clock_timestamp(), retry_at - "
    "(SELECT a.ended_at FROM attempts a WHERE a.task_run_id = task_runs.id AND a.number = task_runs.attempts)) "
    "WHEN state NOT IN ('success', 'failed', 'upstream_failed', 'skipped', 'cancelled') "
    "THEN retry_at - clock_timestamp() END) AS float8) AS retry_left, "
    "CAST(EXTRACT(EPOCH FROM deadline_at - clock_timestamp()) AS float8) AS deadline_left, "
    "CASE WHEN state IN ('ready', 'queued') THEN CAST(EXTRACT(EPOCH FROM clock_timestamp() - ready_at) AS float8) END "
    "AS ready_since "
    "FROM task_runs WHERE run_id = ANY(CAST(:ids AS uuid[])) "
    "ORDER BY run_id, parent_id NULLS FIRST, map_index, position"
)
_LIVE_ATTEMPTS = text(
    "SELECT id, run_id, task_run_id, number, state, token, nonce, queue, direct, seq, host_id, worker_id, cpu, memory, "
    "gpus, gpu_memory, devices, cancel, cancel_grace, keeper_id, "
    "CAST(EXTRACT(EPOCH FROM clock_timestamp() - orphaned_at) AS float8) AS orphaned_since, "
    "CAST(EXTRACT(EPOCH FROM clock_timestamp() - hinted_at) AS float8) AS hinted_since, "
    "CAST(EXTRACT(EPOCH FROM clock_timestamp() - granted_at) AS float8) AS granted_since, "
    "CAST(EXTRACT(EPOCH FROM deadline_at - clock_timestamp()) AS float8) AS deadline_left "
    "FROM attempts WHERE state IN ('dispatched', 'running')"
)
_RESERVATIONS = text(
    "SELECT attempt_id, host_id, worker_id, cpu, memory, gpus, gpu_memory, devices, zombie FROM reservations"
)
# Of each key only as many as the widest of its limits has units. No more than the whole window is left of any, though
# the clock may have gone back an hour since (I14).
_DISPATCHES = text(
    "SELECT tenant_id, rate_key, rate_units, rate_per, rate_left FROM (SELECT *, "
    "CAST(EXTRACT(EPOCH FROM rate_until - clock_timestamp()) AS float8) AS rate_left, "
    "row_number() OVER (PARTITION BY tenant_id, rate_key ORDER BY created_at DESC, id) AS n, "
    "max(rate_units) OVER (PARTITION BY tenant_id, rate_key) AS most "
    "FROM attempts WHERE rate_until > clock_timestamp()) latest WHERE n <= most ORDER BY n DESC"
)
_CIRCUITS = text("SELECT service FROM circuits WHERE state <> 'closed' ORDER BY service")
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
    plans_of = {row["id"]: found.readable[row["version_id"]] for row in runs}
    learned = learned_of(connection, ((row["pipeline_id"], plans_of[row["id"]]) for row in runs))
    task_runs = [task_run_record(row, now) for row in connection.execute(_TASK_RUNS, {"ids": ids}).mappings()]
    of_tasks = handing_on(((row["id"], row["parent_task_run_id"]) for row in runs), task_runs, plans_of)
    kept = KeptOutputs(connection, plans_of, of_tasks)
    unmade, ended = _children_of(connection, plans, task_runs, now)
    return Snapshot(
        runs=tuple(run_record(row, now, learned.get(row["pipeline_id"], {})) for row in runs),
        plans=plans_of,
        task_runs=tuple(map(kept.added_to, task_runs)),
        unmade_children=unmade,
        ended_children=ended,
        attempts=tuple(attempt_record(row, now) for row in attempts if row["run_id"] not in unreadable),
        unreadable=unreadable,
        left_alone=frozenset(row["id"] for row in attempts if row["run_id"] in unreadable),
        reservations=tuple(reservation_record(row) for row in connection.execute(_RESERVATIONS).mappings()),
        dispatches=_dispatches(connection, now),
        circuits=tuple(row.service for row in connection.execute(_CIRCUITS)),
        hosts=tuple(host_record(row) for row in connection.execute(_HOSTS).mappings()),
        workers=tuple(worker_record(row, now) for row in connection.execute(_WORKERS).mappings()),
    )


def _children_of(
    connection: Connection, plans: PlanCache, task_runs: Iterable[TaskRunRecord], now: float
) -> tuple[frozenset[str], dict[str, EndedRun]]:
    """Return which of the runs that open tasks are were never made, and read those that are over."""
    ids = {row.child_run_id for row in task_runs if row.child_run_id is not None and row.state not in TASK_TERMINAL}
    if not ids:
        return frozenset(), {}
    states = {row.id: RunState(row.state) for row in connection.execute(_STATES, {"ids": sorted(ids)})}
    over = [id_ for id_, state in states.items() if state in RUN_TERMINAL]
    return frozenset(ids - states.keys()), load_ended_runs(connection, plans, now, over)


def paused_pipelines(connection: Connection) -> frozenset[str]:
    return frozenset(connection.execute(_PAUSED).scalars())


def untold(connection: Connection, run_ids: Iterable[str], reason: str) -> list[str]:
    """Return those of the runs that are queued and do not give this reason for it."""
    wanted = sorted(run_ids)
    return list(connection.execute(_UNTOLD, {"ids": wanted, "reason": reason}).scalars()) if wanted else []


def _dispatches(connection: Connection, now: float) -> tuple[tuple[Rate, float], ...]:
    found = []
    for row in connection.execute(_DISPATCHES).mappings():
        rate = Rate((row["tenant_id"], DISPATCHES, row["rate_key"]), row["rate_units"], row["rate_per"])
        found.append((rate, now - max(0.0, rate.per - row["rate_left"])))
    return tuple(sorted(found, key=lambda sent: sent[1]))


def load_queued_runs(
    connection: Connection,
    plans: PlanCache,
    now: float,
    *,
    limit: int,
    most_tasks: int = MOST_TASKS,
    held_back: HeldBack = NOTHING_HELD,
    put_off: Iterable[str] = (),
) -> list[RunSubmitted]:
    """Read the runs that are next in line: by priority, then in the order of their creation.

    Before them those that are tasks of other runs, for they need no place. None of a paused pipeline, save for those
    that are to be stopped with the task they are. As many as come to ``most_tasks`` tasks, and the first in any case.

    One whose plan can't be read comes with the names of its tasks and a sentence (``RunSubmitted.unreadable``).

    :param limit: how many places there are.
    :param held_back: runs that may not start yet for a reason that the rules know.
    :param put_off: ids of runs that are not to be read now.
    """
    values = {
        "limit": max(0, limit),
        "children": MOST_CHILDREN,
        "most_tasks": most_tasks,
        "held": list(held_back.runs),
        "wanted": list(held_back.wanted),
        "put_off": list(put_off),
    }
    rows = connection.execute(_QUEUED_RUNS, values).mappings().all()
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
    readable = {row["id"]: found.readable[row["version_id"]] for row in rows if row["version_id"] in found.readable}
    learned = learned_of(
        connection, ((row["pipeline_id"], readable[row["id"]]) for row in rows if row["id"] in readable)
    )
    kept = KeptOutputs(connection, readable, {row["id"] for row in rows if row["parent_task_run_id"] is not None})
    tasks: dict[str, list[TaskRunRecord]] = {row["id"]: [] for row in rows}
    for row in connection.execute(_TASK_RUNS, {"ids": list(tasks)}).mappings():
        tasks[row["run_id"]].append(kept.added_to(task_run_record(row, now)))
    submitted = []
    for row in rows:
        records, why = tuple(tasks[row["id"]]), found.unreadable.get(row["version_id"], "")
        if why:
            # Each stands by itself then: nobody knows what belongs to what.
            records = tuple(replace(record, parent_id=None, map_index=None) for record in records)
        plan = _names_only(records) if why else readable[row["id"]]
        taught = learned.get(row["pipeline_id"], {})
        if taught:
            records = with_learned(records, plan, taught)
        submitted.append(RunSubmitted(run_record(row, now, taught), records, plan, hold=hold, unreadable=why))
    return submitted


def _names_only(tasks: Iterable[TaskRunRecord]) -> Plan:
    """Return what stands in for a plan that can't be read: enough to end each of the run's tasks."""
    return Plan(tuple(PlannedTask(task.name, "") for task in tasks))
