"""Reads of runs, their task runs, attempts and audit, always inside one tenant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, Text, and_, cast, func, null, or_, select, text

from orchestrator.errors import NotFound
from orchestrator.states import RUN_TERMINAL, RunState
from orchestrator.store.pages import Page, Row, Window, read_page
from orchestrator.store.tables import attempts as a
from orchestrator.store.tables import events as e
from orchestrator.store.tables import pipeline_versions as v
from orchestrator.store.tables import pipelines as p
from orchestrator.store.tables import runs as r
from orchestrator.store.tables import task_runs as t
from orchestrator.store.tables import workers as w

RUN_ORDERS = {"created_at": (r.c.seq,), "state": (r.c.state, r.c.seq), "pipeline_name": (p.c.name, r.c.seq)}
# A container's indices come before the positions inside of each; keyset pages compare no nulls.
_INDEX = func.coalesce(t.c.map_index, -1)
TASK_ORDERS = {
    "position": (_INDEX, t.c.position, t.c.id),
    "name": (t.c.name, t.c.id),
    "state": (t.c.state, _INDEX, t.c.id),
}
WAIT_ORDERS = {"id": (t.c.id,)}
_UNFINISHED = ", ".join(f"'{state.value}'" for state in RunState if state not in RUN_TERMINAL)
ATTEMPT_ORDERS = {"number": (a.c.number, a.c.id)}
EVENT_ORDERS = {"id": (e.c.id,)}
_STORED_AT_WORST = 8
"""Times as many bytes as its text has may jsonb take: of a list of small numbers it takes four."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """What a list of runs is narrowed to; ``None`` narrows nothing."""

    states: Sequence[str] | None = None
    pipeline_id: str | None = None
    pipeline_name: str | None = None
    triggered_by: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What the audit of a run is narrowed to."""

    task: str | None = None
    entity: str | None = None


def list_runs(connection: Connection, tenant_id: str, window: Window, wanted: RunFilter) -> Page:
    """Return one page of the tenant's runs, without their tasks."""
    query = _runs(tenant_id)
    if wanted.states is not None:
        query = query.where(r.c.state.in_(wanted.states))
    if wanted.pipeline_id is not None:
        query = query.where(r.c.pipeline_id == wanted.pipeline_id)
    if wanted.pipeline_name is not None:
        query = query.where(p.c.name == wanted.pipeline_name)
    if wanted.triggered_by is not None:
        query = query.where(r.c.triggered_by == wanted.triggered_by)
    if wanted.created_after is not None:
        query = query.where(r.c.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(r.c.created_at < wanted.created_before)
    return read_page(connection, query, window)


def get_run(connection: Connection, tenant_id: str, run_id: str) -> Row:
    """Return the run without its tasks.

    :raises NotFound: no such run of this tenant.
    """
    row = connection.execute(_runs(tenant_id).where(r.c.id == run_id)).mappings().first()
    if row is None:
        raise NotFound(f"There is no run {run_id!r}.")
    return dict(row)


def run_state(connection: Connection, tenant_id: str, run_id: str) -> str:
    """Return the run's state alone.

    :raises NotFound: no such run of this tenant.
    """
    state = connection.execute(select(r.c.state).where(r.c.tenant_id == tenant_id, r.c.id == run_id)).scalar()
    if state is None:
        raise NotFound(f"There is no run {run_id!r}.")
    return str(state)


def all_tasks(connection: Connection, tenant_id: str, run_id: str, *, outputs: bool = True) -> list[Row]:
    """Return every task run of the run with its latest attempt, in the plan's order; without those inside containers,
    of which there may be thousands.

    :param outputs: whether to read them; else they are ``None``.
    """
    query = _tasks(tenant_id, run_id, outputs=outputs).where(t.c.parent_id.is_(None)).order_by(t.c.position)
    return [dict(row) for row in connection.execute(query).mappings()]


def outputs_exceed(connection: Connection, tenant_id: str, run_id: str, most: int) -> bool:
    """Say whether the outputs of the run's own tasks have more bytes together, as JSON.

    What is too much by far as it is stored, which is compressed, is not unpacked to be counted.
    """
    own = [t.c.tenant_id == tenant_id, t.c.run_id == run_id, t.c.parent_id.is_(None), t.c.outputs.is_not(None)]
    stored = select(func.coalesce(func.sum(func.pg_column_size(t.c.outputs)), 0)).where(*own)
    if connection.execute(stored).scalar_one() > _STORED_AT_WORST * most:
        return True
    told = select(func.coalesce(func.sum(func.octet_length(cast(t.c.outputs, Text))), 0)).where(*own)
    return bool(connection.execute(told).scalar_one() > most)


def list_tasks(
    connection: Connection,
    tenant_id: str,
    run_id: str,
    window: Window,
    *,
    states: Sequence[str] | None = None,
    operator: str | None = None,
    parent: str | None = None,
    outputs: bool = True,
    superseded: bool = False,
) -> Page:
    """Return one page of the run's task runs, each with its latest attempt.

    :param parent: the container whose task runs are wanted, by its name in the run; ``None``: the run's own tasks.
    :param outputs: whether to read them; else they are ``None``.
    :param superseded: also those that their container was expanded anew without, which count no more.
    :raises NotFound: the run has no such container.
    """
    query = _tasks(tenant_id, run_id, outputs=outputs)
    if not superseded:
        query = query.where(~t.c.superseded)
    if parent is None:
        query = query.where(t.c.parent_id.is_(None))
    else:
        query = query.where(t.c.parent_id == get_task(connection, tenant_id, run_id, parent)["id"])
    if states is not None:
        query = query.where(t.c.state.in_(states))
    if operator is not None:
        query = query.where(t.c.operator == operator)
    return read_page(connection, query, window)


def count_inside(connection: Connection, tenant_id: str, run_id: str) -> dict[str, dict[str, int]]:
    """Return, by the id of each container, how many task runs inside of it are in which state."""
    query = (
        select(t.c.parent_id, t.c.state, func.count().label("number"))
        .where(t.c.tenant_id == tenant_id, t.c.run_id == run_id, t.c.parent_id.is_not(None), ~t.c.superseded)
        .group_by(t.c.parent_id, t.c.state)
    )
    found: dict[str, dict[str, int]] = {}
    for row in connection.execute(query):
        found.setdefault(row.parent_id, {})[row.state] = row.number
    return found


def list_waits(connection: Connection, tenant_id: str, window: Window, *, kind: str | None = None) -> Page:
    """Return one page of the tenant's task runs that wait for a person or an outside event, with their tokens.

    :param kind: ``approval`` or ``event``; ``None``: both.
    """
    query = (
        select(
            t.c.id,
            t.c.run_id,
            p.c.name.label("pipeline_name"),
            t.c.name.label("task"),
            t.c.reason,
            t.c.message,
            t.c.wait_token,
            t.c.retry_at.label("times_out_at"),
        )
        .join(r, and_(r.c.tenant_id == t.c.tenant_id, r.c.id == t.c.run_id))
        .join(p, and_(p.c.tenant_id == r.c.tenant_id, p.c.id == r.c.pipeline_id))
        # In words of the index of unfinished runs: there are few of those, and no index of waiting task runs.
        .where(r.c.tenant_id == tenant_id, text(f"runs.state IN ({_UNFINISHED})"))
        .where(t.c.tenant_id == tenant_id, t.c.state == "waiting")
        .where(t.c.reason.in_(("approval", "event") if kind is None else (kind,)))
    )
    return read_page(connection, query, window)


def children_of(connection: Connection, tenant_id: str, run_id: str, window: Window) -> Page:
    """Return one page of the runs that are tasks of this one, and of those that are reruns of it."""
    related = or_(r.c.parent_run_id == run_id, r.c.rerun_of == run_id)
    return read_page(connection, _runs(tenant_id).where(related), window)


def get_task(connection: Connection, tenant_id: str, run_id: str, task: str) -> Row:
    """Return one task run with its latest attempt.

    :raises NotFound: the tenant has no such run, or the run has no such task.
    """
    row = connection.execute(_tasks(tenant_id, run_id).where(t.c.name == task)).mappings().first()
    if row is None:
        raise NotFound(f"There is no run {run_id!r} with a task {task!r}.")
    return dict(row)


def tasks_named(connection: Connection, tenant_id: str, run_id: str, names: Sequence[str]) -> list[Row]:
    """Return those task runs of a run that have one of these names."""
    query = _tasks(tenant_id, run_id).where(t.c.name.in_(names))
    return [dict(row) for row in connection.execute(query).mappings()]


def named_task_runs(connection: Connection, tenant_id: str, ids: Iterable[str]) -> dict[str, Row]:
    """Return, by its id, the run and the name of each of these task runs that is still there."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    query = select(t.c.id, t.c.run_id, t.c.name.label("task")).where(t.c.tenant_id == tenant_id, t.c.id.in_(wanted))
    return {row["id"]: {"run_id": row["run_id"], "task": row["task"]} for row in connection.execute(query).mappings()}


def list_attempts(connection: Connection, tenant_id: str, run_id: str, task: str, window: Window) -> Page:
    """Return one page of the task's attempts.

    :raises NotFound: the tenant has no such run, or the run has no such task.
    """
    task_run_id = get_task(connection, tenant_id, run_id, task)["id"]
    query = _attempts(tenant_id).where(a.c.task_run_id == task_run_id)
    return read_page(connection, query, window)


def find_attempt(connection: Connection, tenant_id: str, run_id: str, task: str, number: int | None) -> Row | None:
    """Return the n-th attempt of the task, the latest for ``None``; nothing when it was never tried.

    ``ended_for`` is how long ago it ended by the database's clock, which is not that of this host.

    :raises NotFound: the tenant has no such run, the run no such task, or the task no attempt of that number.
    """
    task_run_id = get_task(connection, tenant_id, run_id, task)["id"]
    ended_for = (func.clock_timestamp() - a.c.ended_at).label("ended_for")
    query = _attempts(tenant_id).add_columns(ended_for).where(a.c.task_run_id == task_run_id)
    if number is not None:
        query = query.where(a.c.number == number)
    row = connection.execute(query.order_by(a.c.number.desc()).limit(1)).mappings().first()
    if row is None and number is not None:
        raise NotFound(f"Task {task!r} of run {run_id} has no attempt {number}.")
    return None if row is None else dict(row)


def attempt_state(connection: Connection, tenant_id: str, attempt_id: str) -> str:
    """Return the attempt's state alone.

    :raises NotFound: no such attempt of this tenant.
    """
    state = connection.execute(select(a.c.state).where(a.c.tenant_id == tenant_id, a.c.id == attempt_id)).scalar()
    if state is None:
        raise NotFound(f"There is no attempt {attempt_id!r}.")
    return str(state)


def list_events(connection: Connection, tenant_id: str, run_id: str, window: Window, wanted: EventFilter) -> Page:
    """Return one page of the run's audit of transitions."""
    query = _events(tenant_id, run_id)
    if wanted.task is not None:
        query = query.where(e.c.task == wanted.task)
    if wanted.entity is not None:
        query = query.where(e.c.entity == wanted.entity)
    return read_page(connection, query, window)


def events_after(connection: Connection, tenant_id: str, run_id: str, after: int, limit: int) -> list[Row]:
    """Return the run's next rows of the audit, oldest first."""
    query = _events(tenant_id, run_id).where(e.c.id > after).order_by(e.c.id).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def _runs(tenant_id: str) -> Select[Any]:
    return (
        select(
            r.c.id,
            r.c.pipeline_id,
            p.c.name.label("pipeline_name"),
            r.c.version_id,
            v.c.version,
            r.c.state,
            r.c.reason,
            r.c.message,
            r.c.parameters,
            r.c.triggered_by,
            r.c.trigger,
            r.c.priority,
            r.c.generation,
            r.c.parent_run_id,
            r.c.parent_task_run_id,
            r.c.depth,
            r.c.rerun_of,
            r.c.deadline_at,
            r.c.created_at,
            r.c.started_at,
            r.c.ended_at,
        )
        .join(p, and_(p.c.tenant_id == r.c.tenant_id, p.c.id == r.c.pipeline_id))
        .join(v, and_(v.c.tenant_id == r.c.tenant_id, v.c.id == r.c.version_id))
        .where(r.c.tenant_id == tenant_id)
    )


def _tasks(tenant_id: str, run_id: str, *, outputs: bool = True) -> Select[Any]:
    return (
        select(
            t.c.id,
            t.c.name,
            t.c.operator,
            t.c.state,
            t.c.reason,
            t.c.message,
            t.c.position,
            t.c.outputs if outputs else null().label("outputs"),
            t.c.attempts.label("attempt_number"),
            t.c.failures,
            t.c.losses,
            t.c.generation,
            t.c.parent_id,
            t.c.map_index,
            t.c.map_key,
            t.c.item,
            t.c.child_run_id,
            t.c.wait_token,
            t.c.cached_from,
            t.c.cache_detail,
            t.c.deadline_at,
            t.c.retry_at,
            t.c.ready_at,
            t.c.queued_at,
            t.c.started_at,
            t.c.ended_at,
            a.c.id.label("attempt_id"),
            a.c.queue,
            a.c.worker_id,
            w.c.name.label("worker"),
            a.c.peak_memory,
            a.c.cpu_seconds,
            a.c.wall_seconds,
            a.c.gpu_memory_used,
        )
        # A task run that waits has no attempt yet; its latest one is that with the highest number.
        .outerjoin(a, and_(a.c.tenant_id == t.c.tenant_id, a.c.task_run_id == t.c.id, a.c.number == t.c.attempts))
        .outerjoin(w, w.c.id == a.c.worker_id)
        .where(t.c.tenant_id == tenant_id, t.c.run_id == run_id)
    )


def _attempts(tenant_id: str) -> Select[Any]:
    # Neither the token nor the nonce leaves the store: who knows them could report in the worker's place.
    return (
        select(
            a.c.id,
            a.c.number,
            a.c.state,
            a.c.reason,
            a.c.message,
            a.c.queue,
            a.c.seq.label("hints"),
            a.c.host_id,
            a.c.worker_id,
            a.c.keeper_id,
            a.c.orphaned_at,
            w.c.name.label("worker"),
            a.c.cpu,
            a.c.memory,
            a.c.gpus,
            a.c.devices,
            a.c.exit_code,
            a.c.exception,
            a.c.setup_seconds,
            a.c.peak_memory,
            a.c.cpu_seconds,
            a.c.wall_seconds,
            a.c.gpu_memory_used,
            a.c.created_at,
            a.c.granted_at,
            a.c.deadline_at,
            a.c.ended_at,
        )
        .outerjoin(w, w.c.id == a.c.worker_id)
        .where(a.c.tenant_id == tenant_id)
    )


def _events(tenant_id: str, run_id: str) -> Select[Any]:
    return select(
        e.c.id,
        e.c.at,
        e.c.entity,
        e.c.entity_id,
        e.c.task,
        e.c.before,
        e.c.after,
        e.c.reason,
        e.c.message,
        e.c.cause,
        e.c.actor,
        e.c.epoch,
    ).where(e.c.tenant_id == tenant_id, e.c.run_id == run_id)
