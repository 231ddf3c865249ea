"""Drains: a worker that leaves is given nothing more; what still runs at its deadline it preempts itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.effects import Annotate
from orchestrator.events import Command
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.unclaimed import take_back
from orchestrator.records import AttemptRecord
from orchestrator.states import WORKER_ENDED, Entity, WorkerState


def drain(changes: Changes, command: Command) -> str:
    """Let the worker finish. A deadline replaces the one of an earlier drain; a drain without one leaves that alone."""
    worker = changes.kernel.workers.get(command.worker_id or "")
    if worker is None or worker.state in WORKER_ENDED:
        return f"Nothing to drain: worker {command.worker_id} has ended, or there is none."
    columns: dict[str, Any] = {} if worker.draining else {"draining": True}
    seconds, until = command.payload.get("deadline_seconds"), worker.drain_until
    if isinstance(seconds, (int, float)) and seconds >= 0:
        until, columns["drain_until"] = changes.now + seconds, ("in", float(seconds))
    if columns:
        changes.emit(Annotate(Entity.WORKER, worker.id, worker.state, columns))
        changes.kernel.admit(replace(worker, draining=True, drain_until=until))
    start_draining(changes, worker.id, command.actor)
    if until is None:
        return f"Worker {worker.id} takes no new work and ends when its attempts have ended."
    left = max(0.0, until - changes.now)
    return f"Worker {worker.id} takes no new work; what it still runs in {left:g} s goes elsewhere."


def undrain(changes: Changes, command: Command) -> str:
    """Take a drain by command back, with its deadline."""
    worker = changes.kernel.workers.get(command.worker_id or "")
    if worker is None or worker.state is not WorkerState.DRAINING or not worker.draining:
        return f"Refused: worker {command.worker_id} is not draining by command."
    changes.emit(Annotate(Entity.WORKER, worker.id, worker.state, {"draining": False, "drain_until": None}))
    worker = replace(worker, draining=False, drain_until=None)
    changes.kernel.admit(worker)
    changes.kernel.leaving.pop(worker.id, None)
    # A worker that drains by itself says so in its next heartbeat and is draining again.
    changes.worker(worker, WorkerState.ONLINE, "undrain", actor=command.actor)
    return f"Worker {worker.id} takes work again."


def start_draining(changes: Changes, worker_id: str, actor: str = "scheduler") -> None:
    """Plan nothing more for the worker, and take back what it has not claimed."""
    changes.worker(changes.kernel.workers[worker_id], WorkerState.DRAINING, "drain", actor=actor)
    take_back(changes, worker_id, "drain", "worker_draining")


def note_preemption(changes: Changes, attempt: AttemptRecord) -> None:
    """A worker preempts because it leaves, and its report may be read before the heartbeat that says so: without this
    the task would be sent back to it. Its next heartbeat may have been taken before, so that one does not count."""
    worker = changes.kernel.workers.get(attempt.owner_id)
    if worker is not None and worker.state not in WORKER_ENDED:
        changes.kernel.leaving[worker.id] = 1
        start_draining(changes, worker.id)


def stays(changes: Changes, worker_id: str) -> bool:
    """Say whether a worker whose heartbeat speaks of no drain is to be believed."""
    doubted = changes.kernel.leaving.pop(worker_id, 0)
    if doubted > 1:
        changes.kernel.leaving[worker_id] = doubted - 1
    return not doubted
