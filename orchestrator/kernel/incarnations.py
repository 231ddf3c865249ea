"""The end of worker incarnations: given up, gone, or gone with all of their host when it was started anew."""

from __future__ import annotations

from orchestrator.effects import RetireQueue
from orchestrator.kernel.adoption import give_up
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.outcomes import lose
from orchestrator.kernel.unclaimed import take_back
from orchestrator.records import Heartbeat, WorkerRecord
from orchestrator.states import WORKER_ENDED, WorkerState


def accept_boot(changes: Changes, heartbeat: Heartbeat) -> bool:
    """Say whether the heartbeat comes from its host as we know it, or as it was started anew: then nothing of before
    lives on it, and all of that is ended first."""
    host = changes.kernel.ledger.hosts.get(heartbeat.host_id)
    if host is None or host.boot_id in {"", heartbeat.boot_id}:
        return True
    if (speaker := _speaks_for_the_known_boot(changes, heartbeat.host_id)) is not None:
        changes.count(
            "another_boot",
            f"Worker {heartbeat.worker_id} says that host {heartbeat.host_id} was started anew, but worker "
            f"{speaker.id} of before still speaks. Each machine, and each sandbox with a boot id of its own, needs a "
            "HOST_ID of its own.",
        )
        return False
    _end_earlier_boots(changes, heartbeat)
    return True


def _speaks_for_the_known_boot(changes: Changes, host_id: str) -> WorkerRecord | None:
    """Return a worker of the boot we know that has spoken within half a lease: a host that was really started anew has
    none. What says otherwise may be a heartbeat of long ago, sent once more by who reaches Redis (docs/adr/0009)."""
    kernel = changes.kernel
    boot_id, recently = kernel.ledger.hosts[host_id].boot_id, changes.now - kernel.settings.lease / 2
    return next(
        (
            worker
            for worker in kernel.workers.values()
            if (worker.host_id, worker.boot_id) == (host_id, boot_id)
            and worker.state not in WORKER_ENDED
            and (kernel.redis_away or max(worker.seen_at, kernel.trusted_from) >= recently)
        ),
        None,
    )


def _end_earlier_boots(changes: Changes, heartbeat: Heartbeat) -> None:
    """The host's boot id has changed: nothing of before lives on it."""
    kernel = changes.kernel
    message = f"Host {heartbeat.hostname or heartbeat.host_id} was started anew."
    for worker in list(kernel.workers.values()):
        if (
            worker.host_id == heartbeat.host_id
            and worker.boot_id != heartbeat.boot_id
            and worker.state not in WORKER_ENDED
        ):
            end_worker(changes, worker, WorkerState.LOST, "boot", "host_rebooted", message, is_dead=True)
    for orphan in [kernel.attempts[attempt_id] for attempt_id in kernel.orphans]:
        if orphan.host_id == heartbeat.host_id:
            lose(changes, orphan, "boot", "host_rebooted", message, is_dead=True)
    for zombie in kernel.ledger.zombies_on(heartbeat.host_id):
        changes.release(zombie.attempt_id)


def end_worker(
    changes: Changes,
    worker: WorkerRecord,
    after: WorkerState,
    cause: str,
    reason: str,
    message: str,
    *,
    is_dead: bool,
) -> None:
    """End an incarnation: what it ran is lost, or waits to be adopted where its tree may live; what it had not claimed
    is planned anew."""
    kernel = changes.kernel
    changes.worker(worker, after, cause, reason=reason)
    for attempt_id in list(kernel.grants.get(worker.id, ())):
        if is_dead:
            lose(changes, kernel.attempts[attempt_id], cause, reason, message, is_dead=True)
        else:
            give_up(changes, kernel.attempts[attempt_id], cause, reason, message)
    take_back(changes, worker.id, cause, reason)
    kernel.shown.pop(worker.id, None)
    changes.emit(RetireQueue(worker.id))


def leave(changes: Changes, worker_id: str) -> None:
    """A worker says that it ends and that nothing of it lives on."""
    worker = changes.kernel.workers.get(worker_id)
    if worker is None or worker.state is WorkerState.DRAINED:
        return
    message = f"Worker {worker.name or worker.id} ended without an outcome of it."
    end_worker(changes, worker, WorkerState.DRAINED, "goodbye", "worker_left", message, is_dead=True)
    for orphan in [changes.kernel.attempts[attempt_id] for attempt_id in changes.kernel.orphans]:
        if orphan.owner_id == worker_id:
            lose(changes, orphan, "goodbye", "worker_left", message, is_dead=True)
    for zombie in changes.kernel.ledger.zombies_on(worker.host_id):
        if zombie.worker_id == worker_id:
            changes.release(zombie.attempt_id)
