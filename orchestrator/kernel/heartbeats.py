"""Heartbeats: what a worker says of itself, its host and the attempts whose trees may live there."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.effects import SaveWorker
from orchestrator.kernel.adoption import can_keep, take_over
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.claims import devices_there, grant
from orchestrator.kernel.drain import start_draining, stays
from orchestrator.kernel.incarnations import accept_boot
from orchestrator.kernel.outcomes import holds_token, lose
from orchestrator.records import AttemptRecord, Capacity, Heartbeat, HostRecord, Reservation, WorkerRecord
from orchestrator.states import WORKER_ENDED, AttemptState, WorkerState

MISSES = 3
"""Heartbeats in a row that do not show a granted attempt. The first may have been taken before the grant came; the
two after it were not (DESIGN §4)."""


def see(changes: Changes, heartbeat: Heartbeat) -> None:
    """Take a heartbeat in: the worker's and its host's row, adoption of lost grants, attempts that are missing, trees
    that are dead. What it shows that is not its own is fenced in the answer (``Kernel.desired``)."""
    known = changes.kernel.workers.get(heartbeat.worker_id)
    if known is not None and heartbeat.seq <= known.seq:
        if known.devices is None and heartbeat.seq == known.seq and known.state not in WORKER_ENDED:
            # Read again by a new leader: no sign of life, but the rows do not tell its GPUs, nor its own ceilings.
            says = heartbeat.capacity
            changes.kernel.admit(replace(known, devices=_devices(heartbeat), cpu=says.cpu, memory=says.memory))
            changes.kernel.waiting_lines.unblock()
        return
    if not accept_boot(changes, heartbeat):
        return
    worker = _admit(changes, heartbeat, known)
    changes.kernel.shown[worker.id] = heartbeat.running
    _adopt_lost_grants(changes, heartbeat, worker)
    take_over(changes, heartbeat, worker)
    _give_up_missing(changes, heartbeat)
    _bury_the_dead(changes, heartbeat)


def _admit(changes: Changes, heartbeat: Heartbeat, known: WorkerRecord | None) -> WorkerRecord:
    """Index the worker as it now says it is; one that was silent or lost is back."""
    kernel = changes.kernel
    before = known.state if known else (WorkerState.DRAINING if heartbeat.draining else WorkerState.ONLINE)
    worker = WorkerRecord(
        id=heartbeat.worker_id,
        host_id=heartbeat.host_id,
        boot_id=heartbeat.boot_id,
        state=before,
        queues=frozenset(heartbeat.queues),
        slots=heartbeat.slots,
        labels=heartbeat.labels,
        store_scope=heartbeat.store_scope,
        seen_at=changes.now,
        seq=heartbeat.seq,
        hostname=heartbeat.hostname,
        name=heartbeat.name,
        version=heartbeat.version,
        draining=known.draining if known else False,
        drain_until=known.drain_until if known else None,
        devices=_devices(heartbeat),
        cpu=heartbeat.capacity.cpu,
        memory=heartbeat.capacity.memory,
    )
    host = kernel.ledger.hosts.get(heartbeat.host_id)
    capacity = _capacity_of_host(changes, heartbeat)
    offers_other = known is None or host is None or host.capacity != capacity or _offers_of(known) != _offers_of(worker)
    is_resized = host is None or _sizes(host.capacity) != _sizes(capacity)
    kernel.ledger.register(HostRecord(heartbeat.host_id, heartbeat.boot_id, capacity))
    kernel.admit(worker)
    changes.emit(SaveWorker(replace(heartbeat, capacity=capacity), joined=known is None, resized=is_resized))
    if offers_other:
        kernel.waiting_lines.unblock()
    if heartbeat.draining or worker.draining:
        if worker.state is not WorkerState.DRAINED:
            start_draining(changes, worker.id)
    elif worker.state in {WorkerState.SUSPECT, WorkerState.LOST, WorkerState.DRAINING} and stays(changes, worker.id):
        changes.worker(worker, WorkerState.ONLINE, "heartbeat")
    return kernel.workers[worker.id]


def _devices(heartbeat: Heartbeat) -> frozenset[str]:
    return frozenset(device.uuid for device in heartbeat.capacity.gpus)


def _sizes(capacity: Capacity) -> tuple[int, int, frozenset[str]]:
    """Return what the audit knows of a capacity; whether a GPU is busy changes too often to be kept."""
    return (capacity.cpu, capacity.memory, frozenset(device.uuid for device in capacity.gpus))


def _offers_of(worker: WorkerRecord) -> tuple[object, ...]:
    return (worker.slots, worker.queues, worker.labels, worker.devices)


def _capacity_of_host(changes: Changes, heartbeat: Heartbeat) -> Capacity:
    """Return what the worker says of its host, with the GPUs that only its neighbours there may use, and the most cores
    and memory that one of them says: each may be set to ceilings of its own, and what it says counts until it ends."""
    host, mine = changes.kernel.ledger.hosts.get(heartbeat.host_id), heartbeat.capacity
    if host is None or _covers(mine, host.capacity):
        return mine
    known = {device.uuid: device for device in host.capacity.gpus}
    merged = known | {device.uuid: device for device in mine.gpus}
    cpu, memory, offered = mine.cpu, mine.memory, {device.uuid for device in mine.gpus}
    for worker in changes.kernel.workers.values():
        if worker.host_id != heartbeat.host_id or worker.id == heartbeat.worker_id or worker.state in WORKER_ENDED:
            continue
        # One that a new leader has not heard yet may offer all of what the rows tell.
        unheard = worker.devices is None
        cpu = max(cpu, host.capacity.cpu if unheard else worker.cpu)
        memory = max(memory, host.capacity.memory if unheard else worker.memory)
        offered |= known.keys() if worker.devices is None else worker.devices
    return Capacity(cpu, memory, tuple(merged[uuid] for uuid in merged if uuid in offered))


def _covers(mine: Capacity, known: Capacity) -> bool:
    """Say whether the worker offers all that is known of its host, so that its neighbours need not be asked."""
    cpu, memory, devices = _sizes(known)
    return cpu <= mine.cpu and memory <= mine.memory and devices <= {device.uuid for device in mine.gpus}


def _adopt_lost_grants(changes: Changes, heartbeat: Heartbeat, worker: WorkerRecord) -> None:
    """An attempt that is only dispatched for us, but shown under its token, was granted and the rows lost it."""
    kernel = changes.kernel
    for attempt_id, token in heartbeat.running.items():
        attempt = kernel.attempts.get(attempt_id)
        if attempt is None or attempt.state is not AttemptState.DISPATCHED or not holds_token(attempt, token):
            continue
        if attempt.worker_id != worker.id and can_keep(kernel, attempt, worker):
            # The one it was planned for has run it and is gone; this one takes it over in a moment. Or this one has
            # claimed it, and the rows have lost that too: a report of either counts.
            grant(changes, attempt, attempt.worker_id, attempt.nonce, "readopted")
        elif _charge_to(changes, attempt, worker):
            adopted = kernel.attempts[attempt_id]
            grant(changes, adopted, worker.id, adopted.nonce, "readopted")


def _charge_to(changes: Changes, attempt: AttemptRecord, worker: WorkerRecord) -> bool:
    """Move the reservation to where the attempt really runs. Where its room has been given away meanwhile it can't be
    adopted: it is fenced there, and stays dispatched."""
    if attempt.worker_id == worker.id:
        return True
    kernel, ledger = changes.kernel, changes.kernel.ledger
    held = ledger.release(attempt.id)
    devices = devices_there(changes, attempt, worker)
    if held is not None:
        ledger.take(held)
    if devices is None:
        return False
    changes.reserve(Reservation(attempt.id, worker.host_id, worker.id, attempt.resources, devices))
    changes.note_attempt(
        attempt,
        {"worker_id": worker.id, "host_id": worker.host_id, "devices": devices},
        worker_id=worker.id,
        host_id=worker.host_id,
        devices=devices,
    )
    kernel.waiting_lines.unblock()
    return True


def _give_up_missing(changes: Changes, heartbeat: Heartbeat) -> None:
    """A granted attempt that its incarnation does not show never started, or was forgotten: it is lost.

    Heartbeats also go out at every change, so that several may pass in a second: the grant must be too old as well to
    start anything. A new leader, and one that could not read Redis, first gives claims time to be sent again.
    """
    kernel = changes.kernel
    mine = list(kernel.grants.get(heartbeat.worker_id, ()))
    mine += [id_ for id_ in kernel.orphans if kernel.attempts[id_].owner_id == heartbeat.worker_id]
    for attempt_id in mine:
        attempt = kernel.attempts[attempt_id]
        if heartbeat.running.get(attempt_id) == attempt.token:
            if attempt.missed_by:
                kernel.keep_attempt(replace(attempt, missed_by=0))
        elif attempt.missed_by + 1 >= MISSES and _is_grant_dead(changes, attempt):
            name = heartbeat.name or heartbeat.worker_id
            if attempt.keeper_id:
                lose(changes, attempt, "heartbeat", "worker_lost", f"Worker {name} kept it and shows it no more.")
            else:
                message = f"Worker {name} was granted it and does not show it."
                lose(changes, attempt, "heartbeat", "never_started", message)
        else:
            kernel.keep_attempt(replace(attempt, missed_by=attempt.missed_by + 1))


def _is_grant_dead(changes: Changes, attempt: AttemptRecord) -> bool:
    kernel = changes.kernel
    sent_at = max(attempt.granted_at or 0.0, attempt.regranted_at or 0.0, kernel.trusted_from)
    return changes.now - sent_at > kernel.settings.grant_life


def _bury_the_dead(changes: Changes, heartbeat: Heartbeat) -> None:
    """Give back what dead trees held, and give up attempts whose silent incarnation left a dead tree behind."""
    kernel, ledger = changes.kernel, changes.kernel.ledger
    for attempt_id in heartbeat.dead:
        reservation = ledger.reservations.get(attempt_id)
        if reservation is None or reservation.host_id != heartbeat.host_id:
            continue
        attempt = kernel.attempts.get(attempt_id)
        if reservation.zombie:
            changes.release(attempt_id)
        elif attempt is not None and attempt.state is AttemptState.RUNNING and _is_silent(changes, attempt, heartbeat):
            lose(
                changes,
                attempt,
                "heartbeat",
                "worker_died",
                "Its worker died; the host has confirmed that nothing of it lives on.",
                is_dead=True,
            )
    for zombie in ledger.zombies_on(heartbeat.host_id):
        if zombie.worker_id == heartbeat.worker_id and zombie.attempt_id not in heartbeat.running:
            # Its own incarnation does not show it. A grant still on its way could start it, so not before that is old.
            _release_when_grant_is_old(changes, zombie)


def _is_silent(changes: Changes, attempt: AttemptRecord, heartbeat: Heartbeat) -> bool:
    """Say whether the incarnation that answers for the attempt is another one, and has not spoken for half its lease;
    or the keeper itself has lost it."""
    if heartbeat.worker_id == attempt.owner_id:
        return bool(attempt.keeper_id) and attempt.id not in heartbeat.running
    if attempt.orphaned_at is not None:
        return True
    worker = changes.kernel.workers.get(attempt.owner_id)
    return worker is None or worker.state is WorkerState.SUSPECT or worker.state in WORKER_ENDED


def _release_when_grant_is_old(changes: Changes, zombie: Reservation) -> None:
    buried_at = changes.kernel.buried_at.setdefault(zombie.attempt_id, changes.now)
    if changes.now - buried_at >= changes.kernel.settings.grant_life:
        changes.release(zombie.attempt_id)
