"""What is written about runs before the leader takes them: new runs in their first state, once for each key."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert as pg_insert

from orchestrator.errors import Conflict
from orchestrator.states import RUN_TERMINAL, Entity, RunState, TaskState
from orchestrator.store.tables import commands, events, idempotency_keys, runs, task_runs

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
    parent_run_id: str | None = None
    parent_task_run_id: str | None = None
    depth: int = 0
    rerun_of: str | None = None


def insert_run(connection: Connection, run: NewRun) -> None:
    """Insert the run as ``queued``, its task runs as ``pending`` and the first row of its audit."""
    insert_runs(connection, [run])


def insert_runs(connection: Connection, new: Sequence[NewRun]) -> None:
    """Insert runs as :func:`insert_run` does, in this order, in one statement for each table."""
    if not new:
        return
    connection.execute(
        insert(runs),
        [
            {
                "id": run.id,
                "tenant_id": run.tenant_id,
                "pipeline_id": run.pipeline_id,
                "version_id": run.version_id,
                "state": RunState.QUEUED.value,
                "parameters": dict(run.parameters),
                "triggered_by": run.triggered_by,
                "trigger": run.trigger,
                "priority": run.priority,
                "parent_run_id": run.parent_run_id,
                "parent_task_run_id": run.parent_task_run_id,
                "depth": run.depth,
                "rerun_of": run.rerun_of,
            }
            for run in new
        ],
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
            for run in new
            for position, task in enumerate(run.tasks)
        ],
    )
    connection.execute(
        insert(events),
        [
            {
                "tenant_id": run.tenant_id,
                "run_id": run.id,
                "entity": Entity.RUN.value,
                "entity_id": run.id,
                "after": RunState.QUEUED.value,
                "cause": "request",
                "actor": run.actor,
                "epoch": 0,
            }
            for run in new
        ],
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


def claim_idempotency_key(
    connection: Connection, tenant_id: str, key: str, request_hash: str, run_id: str
) -> str | None:
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
        return None
    known = connection.execute(
        select(idempotency_keys.c.request_hash, idempotency_keys.c.run_id).where(
            idempotency_keys.c.tenant_id == tenant_id, idempotency_keys.c.key == key
        )
    ).one()
    if known.request_hash != request_hash:
        raise Conflict(
            f"Idempotency-Key {key!r} was used for run {known.run_id} with another body; send a new key for another "
            "request."
        )
    return str(known.run_id)


def _forget_old_keys(connection: Connection, tenant_id: str, key: str) -> None:
    k = idempotency_keys.c
    old = k.created_at < func.clock_timestamp() - KEYS_LIVE
    connection.execute(delete(idempotency_keys).where(k.tenant_id == tenant_id, k.key == key, old))
    # What another request is taking away is left to it; what is over the limit, to the next one.
    some = select(k.tenant_id, k.key).where(old).order_by(k.created_at).limit(100).with_for_update(skip_locked=True)
    connection.execute(delete(idempotency_keys).where(tuple_(k.tenant_id, k.key).in_(some)))
