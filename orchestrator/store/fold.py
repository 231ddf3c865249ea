"""Folds the row effects of one transaction into the net change of every row, so that each table is written once.

A batch may move one row several times (a task run: pending, ready, queued). Inside one transaction only the first
expected state and the last values matter to the row; the audit keeps every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.artifacts.recorded import MISSING
from orchestrator.effects import (
    MESSAGE_LIMIT,
    Annotate,
    CloseCommand,
    Count,
    CreateAttempt,
    CreateTasks,
    LearnMemory,
    Release,
    Reserve,
    RowEffect,
    SaveCircuit,
    SaveOutcome,
    SaveWorker,
    Transition,
)
from orchestrator.errors import StaleMemory
from orchestrator.records import AttemptRecord, Heartbeat, Reservation, TaskRunRecord
from orchestrator.states import (
    ATTEMPT_TERMINAL,
    RUN_TERMINAL,
    TASK_TERMINAL,
    AttemptState,
    Entity,
    TaskState,
    WorkerState,
)
from orchestrator.store import audit
from orchestrator.store.audit import AuditRow
from orchestrator.store.leavings import artifact_row

NOW = ("in", 0.0)
_LONGEST_NAME = 500

_STAMPS: Mapping[tuple[Entity, str], str] = {
    (Entity.TASK_RUN, "ready"): "ready_at",
    (Entity.TASK_RUN, "queued"): "queued_at",
    (Entity.TASK_RUN, "running"): "started_at",
    (Entity.ATTEMPT, "running"): "granted_at",
    (Entity.WORKER, "lost"): "ended_at",
    (Entity.WORKER, "drained"): "ended_at",
    **{(Entity.RUN, state): "ended_at" for state in RUN_TERMINAL},
    **{(Entity.TASK_RUN, state): "ended_at" for state in TASK_TERMINAL},
    **{(Entity.ATTEMPT, state): "ended_at" for state in ATTEMPT_TERMINAL},
}
"""Which column says when a state was entered."""


@dataclass(slots=True)
class RowChange:
    """The net change of one row: update it where ``state = before`` (and the token matches)."""

    id: str
    before: str | None
    after: str | None
    token: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class NetChanges:
    """Everything one transaction writes."""

    updates: dict[Entity, dict[str, RowChange]] = field(default_factory=lambda: {entity: {} for entity in Entity})
    new_attempts: dict[str, dict[str, Any]] = field(default_factory=dict)
    new_tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    reserved: dict[str, Reservation] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    heartbeats: dict[str, Heartbeat] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    models: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    missed: list[dict[str, Any]] = field(default_factory=list)
    """Artifacts that attempts have looked for in vain."""
    published: set[str] = field(default_factory=set)
    """Task runs whose outputs this batch publishes."""
    learned: dict[tuple[str, str], LearnMemory] = field(default_factory=dict)
    circuits: dict[str, SaveCircuit] = field(default_factory=dict)
    closed_commands: dict[int, str] = field(default_factory=dict)
    counts: dict[str, tuple[int, str]] = field(default_factory=dict)
    events: list[AuditRow] = field(default_factory=list)
    told: dict[str, AuditRow] = field(default_factory=dict)
    """Attempt → the row of ``events`` that tells its latest transition of this batch."""
    moves: dict[str, AuditRow] = field(default_factory=dict)
    """Attempt → where it has been charged since, if no transition has told it yet."""


def fold(effects: Iterable[RowEffect]) -> NetChanges:
    """Return the net changes.

    :raises StaleMemory: two effects of the batch contradict each other about a row's state.
    """
    net = NetChanges()
    for effect in effects:
        _APPLY[type(effect)](net, effect)
    # Mostly a claim moves an attempt, and the transition that follows tells it: these are the moves between two states.
    net.events += net.moves.values()
    return net


def state_on_joining(heartbeat: Heartbeat) -> WorkerState:
    """Return the state in which an incarnation first appears."""
    return WorkerState.DRAINING if heartbeat.draining else WorkerState.ONLINE


def _transition(net: NetChanges, effect: Transition) -> None:
    columns: dict[str, Any] = {"reason": effect.reason}
    if effect.entity is not Entity.WORKER:
        columns["message"] = effect.message[:MESSAGE_LIMIT]
    if stamp := _STAMPS.get((effect.entity, effect.after)):
        columns[stamp] = NOW
    if effect.entity is Entity.RUN and effect.before in ("queued", "scheduled") and effect.after == "running":
        columns["started_at"] = NOW
    columns.update(effect.changes)
    _move(net, effect.entity, effect.id, effect.before, effect.after, effect.token, columns)
    row = audit.transition(effect)
    net.events.append(row)
    if effect.entity is Entity.ATTEMPT:
        net.told[effect.id] = row
        if (moved := net.moves.pop(effect.id, None)) is not None:
            audit.tell(row, **moved["detail"])


def _move(
    net: NetChanges,
    entity: Entity,
    id: str,
    before: str | None,
    after: str | None,
    token: str | None,
    columns: Mapping[str, Any],
) -> None:
    made = {Entity.ATTEMPT: net.new_attempts, Entity.TASK_RUN: net.new_tasks}.get(entity, {})
    created = made.get(id)
    if created is not None:
        if before not in (None, created["state"]) or token not in (None, created.get("token")):
            raise StaleMemory(f"The new {entity} {id} is {created['state']}, not {before}: the batch is inconsistent.")
        created.update(columns)
        created["state"] = after or created["state"]
        return
    row = net.updates[entity].get(id)
    if row is None:
        net.updates[entity][id] = RowChange(id, before, after, token, dict(columns))
        return
    if before is not None and row.after is not None and row.after != before:
        raise StaleMemory(f"The {entity} {id} is {row.after}, not {before}; the batch is inconsistent.")
    if row.before is None:
        row.before = before
    row.after = after or row.after
    row.token = row.token or token
    row.columns.update(columns)


def _annotate(net: NetChanges, effect: Annotate) -> None:
    _move(net, effect.entity, effect.id, effect.state, effect.state, None, effect.changes)


def _reserve(net: NetChanges, effect: Reserve) -> None:
    held = effect.reservation
    net.reserved[held.attempt_id] = held
    net.released.discard(held.attempt_id)
    if held.zombie:
        if (lost := net.told.get(held.attempt_id)) is not None:
            audit.tell(lost, held=True, **audit.charge(held))
    elif effect.moved is not None:
        net.moves[held.attempt_id] = audit.moved(effect.moved, held, effect.task)


def _release(net: NetChanges, effect: Release) -> None:
    net.reserved.pop(effect.attempt_id, None)
    net.released.add(effect.attempt_id)
    if effect.zombie is not None:
        net.events.append(audit.released(effect.zombie))


def _save_worker(net: NetChanges, effect: SaveWorker) -> None:
    heartbeat = effect.heartbeat
    net.heartbeats[heartbeat.worker_id] = heartbeat
    if effect.joined:
        net.joined.add(heartbeat.worker_id)
        net.events.append(audit.joined(heartbeat, state_on_joining(heartbeat)))
    elif effect.resized:
        net.events.append(audit.resized(heartbeat))


def _close_command(net: NetChanges, effect: CloseCommand) -> None:
    net.closed_commands[effect.command_id] = effect.result


def _count(net: NetChanges, effect: Count) -> None:
    net.counts[effect.what] = (net.counts.get(effect.what, (0, ""))[0] + 1, effect.detail)


def _create_attempt(net: NetChanges, effect: CreateAttempt) -> None:
    attempt = effect.attempt
    net.new_attempts[attempt.id] = _attempt_row(attempt, effect.tenant_id) | _rate_columns(effect)
    net.told[attempt.id] = audit.dispatched(effect)
    net.events.append(net.told[attempt.id])


def _create_tasks(net: NetChanges, effect: CreateTasks) -> None:
    places: Counter[tuple[str | None, int | None]] = Counter()
    for record, operator in zip(effect.tasks, effect.operators, strict=True):
        scope = (record.parent_id, record.map_index)
        net.new_tasks[record.id] = _task_row(record, effect.tenant_id, operator, places[scope])
        places[scope] += 1
        net.events.append(audit.created(record))


def _task_row(record: TaskRunRecord, tenant_id: str, operator: str, position: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": record.id,
        "tenant_id": tenant_id,
        "run_id": record.run_id,
        "name": record.name,
        "position": position,
        "operator": operator,
        "state": record.state,
        "reason": record.reason,
        "message": record.message[:MESSAGE_LIMIT],
        "parent_id": record.parent_id,
        "map_index": record.map_index,
        "map_key": record.map_key,
        "item": record.item,
        "memory": record.memory,
        "queue": record.queue,
        "wait_token": record.wait_token,
        "awaits_turn": record.awaits_turn,
    }
    if record.state is TaskState.READY:
        row["ready_at"] = NOW
    return row


def _attempt_row(attempt: AttemptRecord, tenant_id: str) -> dict[str, Any]:
    return {
        "id": attempt.id,
        "tenant_id": tenant_id,
        "run_id": attempt.run_id,
        "task_run_id": attempt.task_run_id,
        "number": attempt.number,
        "state": attempt.state,
        "token": attempt.token,
        "nonce": attempt.nonce,
        "queue": attempt.queue,
        "direct": attempt.direct,
        "seq": attempt.seq,
        "host_id": attempt.host_id,
        "worker_id": attempt.worker_id,
        "cpu": attempt.resources.cpu,
        "memory": attempt.resources.memory,
        "gpus": attempt.resources.gpus,
        "gpu_memory": attempt.resources.gpu_memory,
        "devices": list(attempt.devices),
        "cancel": attempt.cancel,
        "hinted_at": NOW,
        "granted_at": NOW if attempt.state is AttemptState.RUNNING else None,
    }


def _rate_columns(effect: CreateAttempt) -> dict[str, Any]:
    rate = effect.rate
    if rate is None:
        return {}
    return {"rate_key": rate.key[2], "rate_units": rate.units, "rate_per": rate.per, "rate_until": ("in", rate.per)}


def _outcome(net: NetChanges, effect: SaveOutcome) -> None:
    outcome, usage = effect.outcome, effect.outcome.usage
    measured = {
        "exit_code": _within(outcome.exit_code, 31),
        "peak_memory": _within(usage.peak_memory, 63),
        "cpu_seconds": usage.cpu_seconds,
        "wall_seconds": usage.wall_seconds,
        "gpu_memory_used": _within(usage.gpu_memory, 63),
        "exception": outcome.exception[:_LONGEST_NAME],
        "setup_seconds": usage.setup_seconds or None,
    }
    _move(net, Entity.ATTEMPT, effect.attempt_id, None, None, None, measured)
    if outcome.infrastructure and (ended := net.told.get(effect.attempt_id)) is not None:
        audit.tell(ended, infrastructure=True)
    for record in outcome.records:
        if record.get("kind") == "artifact" and (row := artifact_row(effect.attempt_id, record)) is not None:
            net.artifacts.append(row)
        elif record.get("kind") == MISSING and isinstance(uri := record.get("uri"), str):
            net.missed.append({"attempt_id": effect.attempt_id, "uri": uri})
    if not effect.publish:
        return
    net.published.add(effect.task_run_id)
    _move(net, Entity.TASK_RUN, effect.task_run_id, None, None, None, {"outputs": dict(outcome.outputs)})
    for record in outcome.records:
        if record.get("kind") == "model":
            net.models.append({**record, "task_run_id": effect.task_run_id})


def _save_circuit(net: NetChanges, effect: SaveCircuit) -> None:
    net.circuits[effect.service] = effect


def _learn_memory(net: NetChanges, effect: LearnMemory) -> None:
    net.learned[effect.pipeline_id, effect.task] = effect


def _within(number: int | None, bits: int) -> int | None:
    """Return the number, bounded by what the column takes."""
    return None if number is None else max(-(2**bits), min(2**bits - 1, number))


_APPLY: Mapping[type[Any], Callable[[NetChanges, Any], None]] = {
    Transition: _transition,
    Annotate: _annotate,
    CreateAttempt: _create_attempt,
    CreateTasks: _create_tasks,
    SaveCircuit: _save_circuit,
    LearnMemory: _learn_memory,
    Reserve: _reserve,
    Release: _release,
    SaveOutcome: _outcome,
    SaveWorker: _save_worker,
    CloseCommand: _close_command,
    Count: _count,
}
