"""What the API writes about runs: new runs in their first state, and commands that the leader applies."""

from __future__ import annotations

import uuid
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert as pg_insert

from orchestrator.errors import Conflict, InvalidDefinition, NotFound, Problem
from orchestrator.states import RERUN_OF_FAILED, RUN_TERMINAL, TASK_TERMINAL, Entity, RunState, TaskState
from orchestrator.store.command_queries import shown_columns, with_state
from orchestrator.store.pages import Row
from orchestrator.store.tables import commands, events, idempotency_keys, runs, task_runs, workers

KEYS_LIVE = timedelta(days=7)
"""How long a repeated request is known by its Idempotency-Key."""


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task of the plan, at its place in the topological order."""

    name: str
    operator: str


@dataclass(frozen=True, slots=True)
class NewRun:
    """A checked request to run one version."""

    id: str
    tenant_id: str
    pipeline_id: str
    version_id: str
    tasks: Sequence[NewTask]
    parameters: Mapping[str, Any]
    triggered_by: str
    actor: str
    priority: int = 0
    trigger: str = "api"


def insert_run(connection: Connection, run: NewRun) -> None:
    """Insert the run as ``queued``, its task runs as ``pending`` and the first row of its audit."""
    connection.execute(
        insert(runs).values(
            id=run.id,
            tenant_id=run.tenant_id,
            pipeline_id=run.pipeline_id,
            version_id=run.version_id,
            state=RunState.QUEUED.value,
            parameters=dict(run.parameters),
            triggered_by=run.triggered_by,
            trigger=run.trigger,
            priority=run.priority,
        )
    )
    connection.execute(
        insert(task_runs),
        [
            {
                "id": str(uuid.uuid4()),
                "tenant_id": run.tenant_id,
                "run_id": run.id,
                "name": task.name,
                "position": position,
                "operator": task.operator,
                "state": TaskState.PENDING.value,
            }
            for position, task in enumerate(run.tasks)
        ],
    )
    connection.execute(
        insert(events).values(
            tenant_id=run.tenant_id,
            run_id=run.id,
            entity=Entity.RUN.value,
            entity_id=run.id,
            after=RunState.QUEUED.value,
            cause="request",
            actor=run.actor,
            epoch=0,
        )
    )


def count_unfinished(connection: Connection, tenant_id: str, most: int) -> int:
    """Return how many runs of the tenant have not ended, or are about to start again; counting stops at ``most``."""
    # Literals, as in the index: the planner can't match a parameter with its condition.
    states = ", ".join(f"'{state.value}'" for state in RunState if state not in RUN_TERMINAL)
    some = select(literal(1)).where(runs.c.tenant_id == tenant_id, text(f"state IN ({states})")).limit(most).subquery()
    c = commands.c
    reruns = (
        select(c.run_id)
        .distinct()
        .where(c.applied_at.is_(None), c.tenant_id == tenant_id, c.kind == "rerun")
        .limit(most)
        .subquery()
    )
    unfinished, asked_for = (select(func.count()).select_from(few).scalar_subquery() for few in (some, reruns))
    return min(most, int(connection.execute(select(unfinished + asked_for)).scalar_one()))


def claim_idempotency_key(connection: Connection, tenant_id: str, key: str, request_hash: str, run_id: str) -> str:
    """Bind the key to the run of this transaction, or return the run that it was bound to before.

    A second request with the key waits here until the first one's transaction ends, so one key makes one run (I5).

    A key is forgotten after a week: each new one takes some older ones away.

    :raises Conflict: the key came with another body before.
    """
    _forget_old_keys(connection, tenant_id, key)
    made = connection.execute(
        pg_insert(idempotency_keys)
        .values(tenant_id=tenant_id, key=key, request_hash=request_hash, run_id=run_id)
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.run_id)
    ).first()
    if made is not None:
        return run_id
    known = connection.execute(
        select(idempotency_keys.c.request_hash, idempotency_keys.c.run_id).where(
            idempotency_keys.c.tenant_id == tenant_id, idempotency_keys.c.key == key
        )
    ).one()
    if known.request_hash != request_hash:
        raise Conflict(
            f"Idempotency-Key {key!r} was used for run {known.run_id} with another body; send a new key for a new run."
        )
    return str(known.run_id)


def _forget_old_keys(connection: Connection, tenant_id: str, key: str) -> None:
    k = idempotency_keys.c
    old = k.created_at < func.clock_timestamp() - KEYS_LIVE
    connection.execute(delete(idempotency_keys).where(k.tenant_id == tenant_id, k.key == key, old))
    # What another request is taking away is left to it; what is over the limit, to the next one.
    some = select(k.tenant_id, k.key).where(old).order_by(k.created_at).limit(100).with_for_update(skip_locked=True)
    connection.execute(delete(idempotency_keys).where(tuple_(k.tenant_id, k.key).in_(some)))


def request_cancel(
    connection: Connection, tenant_id: str, run_id: str, actor: str, *, task: str | None = None, reason: str = ""
) -> Row:
    """Ask the leader to cancel the run, or one task of it; asking twice is no error.

    :raises NotFound: no such run or task of this tenant.
    :raises Conflict: it has ended already.
    """
    state = connection.execute(select(runs.c.state).where(runs.c.tenant_id == tenant_id, runs.c.id == run_id)).scalar()
    if state is None:
        raise NotFound(f"There is no run {run_id!r}.")
    if RunState(state) in RUN_TERMINAL:
        raise Conflict(f"Run {run_id} has ended as {state}; there is nothing left to cancel.")
    if task is not None:
        _require_open_task(connection, tenant_id, run_id, task)
    return _insert_command(
        connection, tenant_id, "cancel", actor, run_id=run_id, task=task, payload={"reason": reason} if reason else {}
    )


def request_rerun(connection: Connection, tenant_id: str, run_id: str, actor: str, chosen: str | Sequence[str]) -> Row:
    """Ask the leader to start a run again that is over; it will do so once for each time that the run has ended.

    :param chosen: ``failed``, ``all``, or the names of tasks; everything downstream of them is run again too.
    :raises NotFound: no such run of this tenant.
    :raises Conflict: it has not ended, or none of its tasks has failed.
    :raises InvalidDefinition: it has no task of a name.
    """
    run = connection.execute(
        select(runs.c.state, runs.c.generation).where(runs.c.tenant_id == tenant_id, runs.c.id == run_id)
    ).first()
    if run is None:
        raise NotFound(f"There is no run {run_id!r}.")
    if RunState(run.state) not in RUN_TERMINAL:
        raise Conflict(f"Run {run_id} is {run.state}; cancel it or wait for its end before it is run again.")
    states = {
        row.name: TaskState(row.state)
        for row in connection.execute(
            select(task_runs.c.name, task_runs.c.state).where(
                task_runs.c.tenant_id == tenant_id, task_runs.c.run_id == run_id
            )
        )
    }
    if chosen == "failed" and not RERUN_OF_FAILED.intersection(states.values()):
        raise Conflict(f"No task of run {run_id} has failed; name tasks to run again, or run all of them with `all`.")
    if not isinstance(chosen, str) and (problems := _unknown_tasks(run_id, chosen, states)):
        raise InvalidDefinition(problems)
    wanted = chosen if isinstance(chosen, str) else list(chosen)
    return _insert_command(
        connection, tenant_id, "rerun", actor, run_id=run_id, payload={"from": wanted, "generation": run.generation}
    )


def _unknown_tasks(run_id: str, chosen: Sequence[str], known: Container[str]) -> list[Problem]:
    return [
        Problem(f"/from/{at}", f"Run {run_id} has no task {name!r}.")
        for at, name in enumerate(chosen)
        if name not in known
    ]


def request_drain(
    connection: Connection,
    tenant_id: str,
    worker_id: str,
    actor: str,
    *,
    drain: bool,
    deadline_seconds: float | None = None,
) -> Row:
    """Ask the leader to give the worker no more attempts, or to give it some again.

    :param deadline_seconds: after which the worker preempts what it still runs; ``None``: by its own setting.
    :raises NotFound: no such worker.
    :raises Conflict: it has ended.
    """
    worker = connection.execute(select(workers.c.state, workers.c.ended_at).where(workers.c.id == worker_id)).first()
    if worker is None:
        raise NotFound(f"There is no worker {worker_id!r}.")
    if worker.ended_at is not None or worker.state in {"lost", "drained"}:
        raise Conflict(f"Worker {worker_id} has ended ({worker.state}); a new start of it gets a new id.")
    payload = {"deadline_seconds": deadline_seconds} if deadline_seconds is not None else {}
    kind = "drain" if drain else "undrain"
    return _insert_command(connection, tenant_id, kind, actor, worker_id=worker_id, payload=payload)


def _require_open_task(connection: Connection, tenant_id: str, run_id: str, task: str) -> None:
    state = connection.execute(
        select(task_runs.c.state).where(
            task_runs.c.tenant_id == tenant_id, task_runs.c.run_id == run_id, task_runs.c.name == task
        )
    ).scalar()
    if state is None:
        raise NotFound(f"Run {run_id} has no task {task!r}.")
    if TaskState(state) in TASK_TERMINAL:
        raise Conflict(f"Task {task!r} of run {run_id} has ended as {state}; there is nothing left to cancel.")


def _insert_command(
    connection: Connection,
    tenant_id: str,
    kind: str,
    actor: str,
    *,
    run_id: str | None = None,
    task: str | None = None,
    worker_id: str | None = None,
    payload: Mapping[str, Any] | None = None,
) -> Row:
    row = (
        connection.execute(
            insert(commands)
            .values(
                tenant_id=tenant_id,
                kind=kind,
                actor=actor,
                run_id=run_id,
                task=task,
                worker_id=worker_id,
                payload=dict(payload or {}),
            )
            .returning(*shown_columns())
        )
        .mappings()
        .one()
    )
    return with_state(dict(row))
