"""Rows of the append-only audit: each transition, and what a replay needs to know of charges and capacities (I13)."""

from __future__ import annotations

from typing import Any

from orchestrator.effects import MESSAGE_LIMIT, CreateAttempt, Transition
from orchestrator.records import AttemptRecord, Heartbeat, Reservation, TaskRunRecord
from orchestrator.states import Entity, WorkerState

AuditRow = dict[str, Any]

HELD_AFTER_ITS_END, HOST = "reservation", "host"
"""What those rows are of that tell no transition: what a lost attempt held is released; a host is resized."""


def transition(effect: Transition) -> AuditRow:
    row: AuditRow = {
        "run_id": effect.run_id,
        "task": effect.task,
        "entity": effect.entity,
        "entity_id": effect.id,
        "before": effect.before,
        "after": effect.after,
        "reason": effect.reason,
        "message": effect.message[:MESSAGE_LIMIT],
        "cause": effect.cause,
        "actor": effect.actor,
        "token": effect.token,
    }
    if effect.detail:
        row["detail"] = dict(effect.detail)
    return row


def created(record: TaskRunRecord) -> AuditRow:
    """Tell that a container was expanded into this task run."""
    row = _plain(Entity.TASK_RUN, record.id, None, record.state, "expanded", "scheduler")
    return {**row, "run_id": record.run_id, "task": record.name, "reason": record.reason, "message": record.message}


def dispatched(effect: CreateAttempt) -> AuditRow:
    attempt = effect.attempt
    held = Reservation(attempt.id, attempt.host_id, attempt.worker_id, attempt.resources, attempt.devices)
    return _of_attempt(attempt, effect.task, None, "dispatch", "", held)


def moved(attempt: AttemptRecord, held: Reservation, task: str | None) -> AuditRow:
    """Tell that a live attempt is charged elsewhere from now on."""
    message = f"Charged to worker {held.worker_id} on host {held.host_id} from now on."
    return _of_attempt(attempt, task, attempt.state, "moved", message, held)


def _of_attempt(
    attempt: AttemptRecord, task: str | None, before: str | None, cause: str, message: str, held: Reservation
) -> AuditRow:
    return {
        "run_id": attempt.run_id,
        "task": task,
        "entity": Entity.ATTEMPT,
        "entity_id": attempt.id,
        "before": before,
        "after": attempt.state,
        "reason": "",
        "message": message,
        "cause": cause,
        "actor": "scheduler",
        "token": attempt.token,
        "detail": charge(held),
    }


def released(zombie: Reservation) -> AuditRow:
    """Tell that nothing is held any more for an attempt that ended earlier."""
    row = _plain(HELD_AFTER_ITS_END, zombie.attempt_id, "held", "released", "released", "scheduler")
    return {**row, "detail": charge(zombie)}


def joined(heartbeat: Heartbeat, state: WorkerState) -> AuditRow:
    row = _plain(Entity.WORKER, heartbeat.worker_id, None, state, "joined", "worker")
    return {**row, "detail": _capacity(heartbeat)}


def resized(heartbeat: Heartbeat) -> AuditRow:
    row = _plain(HOST, heartbeat.host_id, None, "resized", "heartbeat", "worker")
    return {**row, "detail": _capacity(heartbeat)}


def tell(row: AuditRow, **detail: Any) -> None:
    """Add to what a row says besides the transition; most rows say nothing."""
    row["detail"] = {**row.get("detail", {}), **detail}


def _plain(entity: str, entity_id: str, before: str | None, after: str, cause: str, actor: str) -> AuditRow:
    return {
        "entity": entity,
        "entity_id": entity_id,
        "before": before,
        "after": after,
        "reason": "",
        "message": "",
        "cause": cause,
        "actor": actor,
    }


def charge(held: Reservation) -> dict[str, Any]:
    """Return what is held where."""
    return {
        "host": held.host_id,
        "worker": held.worker_id,
        "cpu": held.resources.cpu,
        "memory": held.resources.memory,
        "gpus": held.resources.gpus,
        "gpu_memory": held.resources.gpu_memory,
        "devices": list(held.devices),
    }


def _capacity(heartbeat: Heartbeat) -> dict[str, Any]:
    """Return what the host offers, and how many slots this worker has."""
    return {
        "host": heartbeat.host_id,
        "cpu": heartbeat.capacity.cpu,
        "memory": heartbeat.capacity.memory,
        "gpus": [device.uuid for device in heartbeat.capacity.gpus],
        "slots": heartbeat.slots,
    }
