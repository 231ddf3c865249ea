"""Reads of worker incarnations: what their hosts have, what is held there and what runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, func, select
from sqlalchemy.dialects.postgresql import array

from orchestrator.errors import NotFound
from orchestrator.store.pages import Page, Row, Window, read_page
from orchestrator.store.tables import attempts as a
from orchestrator.store.tables import hosts as h
from orchestrator.store.tables import reservations as s
from orchestrator.store.tables import task_runs as t
from orchestrator.store.tables import workers as w

WORKER_ORDERS = {
    "started_at": (w.c.seq,),
    "name": (w.c.name, w.c.seq),
    "state": (w.c.state, w.c.seq),
}
_OWNER = func.coalesce(func.nullif(a.c.keeper_id, ""), a.c.worker_id)
"""The incarnation that answers for an attempt: the one that adopted it, else the one it was given to."""
LIVE_STATES = ("online", "suspect", "draining")


def list_workers(
    connection: Connection,
    tenant_id: str,
    window: Window,
    *,
    states: Sequence[str] | None,
    queue: str | None = None,
    host_id: str | None = None,
) -> Page:
    """Return one page of workers; workers serve all tenants, their running attempts are shown to their own."""
    query = _workers()
    if states is not None:
        query = query.where(w.c.state.in_(states))
    if queue is not None:
        query = query.where(w.c.queues.contains(array([queue])))
    if host_id is not None:
        query = query.where(w.c.host_id == host_id)
    page = read_page(connection, query, window)
    return Page(_with_work(connection, tenant_id, page.items), page.after)


def get_worker(connection: Connection, tenant_id: str, worker_id: str) -> Row:
    """Return one worker incarnation.

    :raises NotFound: no such worker.
    """
    row = connection.execute(_workers().where(w.c.id == worker_id)).mappings().first()
    if row is None:
        raise NotFound(f"There is no worker {worker_id!r}.")
    return _with_work(connection, tenant_id, [dict(row)])[0]


def _workers() -> Select[Any]:
    return select(
        w.c.id,
        w.c.name,
        w.c.host_id,
        h.c.hostname,
        w.c.state,
        w.c.reason,
        w.c.queues,
        w.c.slots,
        w.c.version,
        w.c.store_scope,
        w.c.draining,
        w.c.drain_until,
        w.c.labels,
        h.c.cpu,
        h.c.memory,
        h.c.gpus,
        w.c.started_at,
        w.c.seen_at,
        w.c.ended_at,
    ).join(h, h.c.id == w.c.host_id)


def _with_work(connection: Connection, tenant_id: str, workers: list[Row]) -> list[Row]:
    """Add what is reserved on each worker's host and the attempts it holds: two queries, however many workers."""
    held = {
        row["host_id"]: dict(row)
        for row in connection.execute(
            select(
                s.c.host_id,
                func.sum(s.c.cpu).label("cpu"),
                func.sum(s.c.memory).label("memory"),
                func.sum(s.c.gpus).label("gpus"),
                func.count().label("attempts"),
            )
            .where(s.c.host_id.in_({worker["host_id"] for worker in workers}))
            .group_by(s.c.host_id)
        ).mappings()
    }
    running: dict[str, list[Row]] = {worker["id"]: [] for worker in workers}
    slots: dict[str, int] = dict.fromkeys(running, 0)
    for attempt in connection.execute(
        select(
            a.c.id,
            a.c.tenant_id,
            a.c.run_id,
            t.c.name.label("task"),
            a.c.number,
            a.c.state,
            _OWNER.label("worker_id"),
            a.c.cpu,
            a.c.memory,
            a.c.gpus,
            a.c.devices,
            a.c.granted_at,
        )
        .join(t, and_(t.c.tenant_id == a.c.tenant_id, t.c.id == a.c.task_run_id))
        .where(a.c.state.in_(["dispatched", "running"]), _OWNER.in_(list(running)))
        .order_by(a.c.created_at)
    ).mappings():
        slots[attempt["worker_id"]] += 1
        if attempt["tenant_id"] == tenant_id:
            running[attempt["worker_id"]].append(dict(attempt))
    nothing: Row = {"cpu": 0, "memory": 0, "gpus": 0, "attempts": 0}
    return [
        {
            **worker,
            "reserved": held.get(worker["host_id"], nothing),
            "running": running[worker["id"]],
            "slots_used": slots[worker["id"]],
        }
        for worker in workers
    ]
