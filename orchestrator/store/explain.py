"""Reads from the rows what ``orchestrator.explain`` needs to say why a run or a task run does not go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select, text

from orchestrator.errors import NotFound
from orchestrator.explain import (
    AttemptFacts,
    Blocker,
    RunFacts,
    TaskFacts,
    Upstream,
    blockers_of_run,
    blockers_of_task,
)
from orchestrator.explain_ended import ending_of_run, ending_of_task
from orchestrator.records import Plan
from orchestrator.states import RUN_TERMINAL, TASK_TERMINAL, RunState, TaskState
from orchestrator.store.explain_ended import blamed_for, count_states
from orchestrator.store.places import Asked, Level, Place, find_places
from orchestrator.store.tables import runs as r
from orchestrator.store.tables import task_runs as t

MOST_TASKS = 50
_NOTHING_WAITS = RUN_TERMINAL | {RunState.SCHEDULED, RunState.QUEUED}
"""States of a run in which none of its task runs waits for anything of its own."""

_RUN = text(
    "SELECT CAST(r.id AS text) AS id, r.state, r.reason, r.message, COALESCE(r.started_at, r.created_at) AS since, "
    "p.name AS pipeline, p.paused, r.parent_run_id IS NOT NULL AND r.generation = 1 AS is_child, "
    "(SELECT count(*) FROM runs a WHERE a.state IN ('running', 'paused', 'cancelling') "
    "AND (a.parent_run_id IS NULL OR a.generation > 1)) AS active, "
    "(SELECT count(*) FROM runs b WHERE r.state = 'queued' AND b.state = 'queued' "
    "AND (b.parent_run_id IS NULL OR b.generation > 1) "
    "AND (b.priority > r.priority OR (b.priority = r.priority AND b.seq < r.seq))) AS before_it, "
    "(SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp() - max(expires_at)) AS float8) FROM leases "
    "WHERE role = 'scheduler') AS unled "
    "FROM runs r JOIN pipelines p ON p.id = r.pipeline_id WHERE r.tenant_id = :tenant AND r.id = :run"
)
_TASKS = text(
    "SELECT CAST(t.id AS text) AS id, t.name, t.state, t.reason, t.message, t.retry_at, "
    "CASE t.state WHEN 'ready' THEN t.ready_at WHEN 'queued' THEN t.queued_at WHEN 'pending' THEN r.started_at "
    "ELSE COALESCE(a.ended_at, t.started_at, t.ready_at, r.started_at) END AS since, "
    "a.queue, a.direct, a.seq, a.hinted_at, a.granted_at, COALESCE(w.name, a.worker_id) AS worker, "
    "CAST(t.child_run_id AS text) AS child_run_id "
    "FROM task_runs t JOIN runs r ON r.id = t.run_id "
    "LEFT JOIN attempts a ON a.task_run_id = t.id AND a.number = t.attempts "
    "LEFT JOIN workers w ON w.id = a.worker_id "
    "WHERE t.run_id = :run AND t.name = ANY(:names)"
)
_CIRCUITS = text("SELECT service, open_until FROM circuits WHERE state = 'open'")


@dataclass(frozen=True, slots=True)
class TaskExplained:
    name: str
    state: str
    blockers: Sequence[Blocker]
    reason: str = ""
    message: str = ""
    """Of what is over: how it has ended, as a sentence."""


@dataclass(frozen=True, slots=True)
class RunExplained:
    state: str
    blockers: Sequence[Blocker]
    """Of the run itself."""
    tasks: Sequence[TaskExplained]
    """Of those that are neither running nor over, the first ones, in the plan's order; of a run that has failed those
    because of which it has."""
    more: int
    """Further ones that are not explained here."""
    reason: str = ""
    message: str = ""
    """Of a run that is over: how it has ended, as a sentence."""


def explain_task(
    connection: Connection, tenant_id: str, run_id: str, task: str, plan: Plan, most_runs: int
) -> TaskExplained:
    """Say what stands in the way of a task run.

    :param plan: of its run.
    :param most_runs: ``MAX_CONCURRENT_RUNS``.
    :raises NotFound: the tenant has no such run, or the run no such task.
    """
    run = _run(connection, tenant_id, run_id, most_runs)
    found = connection.execute(select(t.c.id, t.c.state).where(t.c.run_id == run_id, t.c.name == task)).first()
    if found is None:
        raise NotFound(f"There is no run {run_id!r} with a task {task!r}.")
    return _explained(connection, run, [found.id], plan)[0]


def explain_run(connection: Connection, tenant_id: str, run_id: str, plan: Plan, most_runs: int) -> RunExplained:
    """Say what stands in the way of a run, and of those of its task runs that wait; of one that is over how it has
    ended, and because of which of them.

    :raises NotFound: no such run of this tenant.
    """
    run = _run(connection, tenant_id, run_id, most_runs)
    blockers = blockers_of_run(run)
    if run.state in RUN_TERMINAL:
        return _ended(connection, run, plan)
    if run.state in _NOTHING_WAITS:
        return RunExplained(run.state.value, blockers, (), 0)
    waiting = [
        row.id
        for row in connection.execute(
            select(t.c.id)
            .where(t.c.run_id == run_id, _waits(), ~t.c.superseded)
            .order_by(t.c.parent_id.nulls_first(), t.c.map_index, t.c.position)
        )
    ]
    tasks = _explained(connection, run, waiting[:MOST_TASKS], plan)
    return RunExplained(run.state.value, blockers, tasks, max(0, len(waiting) - MOST_TASKS))


def _waits() -> ColumnElement[bool]:
    """Of a task run: whether it neither runs nor is over; one that is a run, whether that does not."""
    quiet = [state.value for state in (*TASK_TERMINAL, TaskState.RUNNING)]
    at_work = exists().where(r.c.id == t.c.child_run_id, r.c.state.not_in(("queued", "paused", "scheduled")))
    is_held = and_(t.c.state == TaskState.RUNNING.value, t.c.child_run_id.is_not(None), ~at_work)
    return or_(t.c.state.not_in(quiet), is_held)


def _ended(connection: Connection, run: RunFacts, plan: Plan) -> RunExplained:
    message = ending_of_run(run, count_states(connection, run.id))
    if run.state is not RunState.FAILED:
        return RunExplained(run.state.value, (), (), 0, run.reason, message)
    blamed = blamed_for(connection, run.id, plan, MOST_TASKS)
    tasks = [
        TaskExplained(row.name, row.state, (), row.reason, ending_of_task(TaskState(row.state), row.message))
        for row in blamed.rows
    ]
    return RunExplained(run.state.value, (), tasks, blamed.more, run.reason, message)


def _run(connection: Connection, tenant_id: str, run_id: str, most_runs: int) -> RunFacts:
    row = connection.execute(_RUN, {"tenant": tenant_id, "run": run_id}).first()
    if row is None:
        raise NotFound(f"There is no run {run_id!r}.")
    unled = row.unled
    return RunFacts(
        id=row.id,
        state=RunState(row.state),
        reason=row.reason,
        message=row.message,
        since=row.since,
        pipeline=row.pipeline,
        pipeline_paused=row.paused,
        active_runs=row.active,
        most_runs=most_runs,
        before_it=row.before_it,
        is_child=row.is_child,
        leader_away=None if unled is not None and unled <= 0 else (unled or float("inf")),
    )


def _explained(connection: Connection, run: RunFacts, task_run_ids: Sequence[str], plan: Plan) -> list[TaskExplained]:
    if not task_run_ids:
        return []
    places = find_places(connection, [Asked(id_, plan) for id_ in task_run_ids])
    names = {name for place in places.values() for level in place.levels for name in _names(level)}
    rows = {row.name: row for row in connection.execute(_TASKS, {"run": run.id, "names": sorted(names)})}
    circuits = {row.service: row.open_until for row in connection.execute(_CIRCUITS)}
    found = []
    for id_ in task_run_ids:
        place = places[id_]
        facts = [_task(place, at, rows, circuits) for at in range(len(place.levels))]
        own = facts[-1]
        if own.child_id and own.state is TaskState.RUNNING:
            own = replace(own, child=_child(connection, run, own.child_id))
        blockers, message = blockers_of_task(own, facts[:-1], run), ending_of_task(own.state, own.message)
        found.append(TaskExplained(own.name, own.state.value, blockers, own.reason, message))
    return found


def _child(connection: Connection, run: RunFacts, child_id: str) -> RunFacts | None:
    tenant_id = connection.scalar(select(r.c.tenant_id).where(r.c.id == run.id))
    try:
        return _run(connection, str(tenant_id), child_id, run.most_runs)
    except NotFound:
        return None


def _names(level: Level) -> list[str]:
    return [level.name, *(level.row_name(name) for name in level.planned.upstream)]


def _task(place: Place, at: int, rows: Mapping[str, Any], circuits: Mapping[str, Any]) -> TaskFacts:
    level = place.levels[at]
    row, planned = rows[level.name], level.planned
    container = place.levels[at - 1].planned if at else None
    ups = [rows[level.row_name(name)] for name in planned.upstream if level.row_name(name) in rows]
    attempt = None
    if row.queue is not None and TaskState(row.state) in (TaskState.QUEUED, TaskState.CANCELLING):
        attempt = AttemptFacts(row.queue, row.direct, row.worker, row.seq, row.hinted_at, row.granted_at is not None)
    return TaskFacts(
        name=row.name,
        state=TaskState(row.state),
        reason=row.reason,
        message=row.message,
        since=row.since,
        until=row.retry_at,
        rule=planned.trigger_rule,
        upstreams=[Upstream(up.name, TaskState(up.state), up.reason) for up in ups],
        parallel=container.map.max_parallel if container is not None and container.map is not None else None,
        attempt=attempt,
        tears_down=any(level.planned.teardown for level in place.levels[: at + 1]),
        child_id=row.child_run_id or "",
        open_services={name: circuits[name] for name in planned.connections if name in circuits},
    )
