"""Claims: a worker asks for an attempt and is granted it, or is refused, which harms nothing (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.effects import SendDenial, SendGrant
from orchestrator.events import ClaimReceived
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.dispatch import hint_again, move
from orchestrator.nonces import claim_of
from orchestrator.placement import Choice, suits
from orchestrator.records import AttemptRecord, Reservation, WorkerRecord
from orchestrator.states import AttemptState, TaskState, WorkerState

TAKES_WORK = frozenset({WorkerState.ONLINE, WorkerState.SUSPECT})
"""A suspect that claims is evidently alive."""


def claim(changes: Changes, event: ClaimReceived) -> None:
    """Answer a claim.

    - Still dispatched: granted, whatever the seq, if the attempt is or can be planned for this worker; else the hint
      goes to the planned worker's own queue.
    - Refused before, in any sending of this claim: refused again, for its worker has let go of it. A late copy of the
      claim would else be granted to nobody.
    - Granted already to the same incarnation and claim: the same grant again, for this sending of it.
    - Anything else is refused.
    """
    kernel = changes.kernel
    attempt = kernel.attempts.get(event.attempt_id)
    if attempt is None:
        _deny(changes, event, "superseded" if event.attempt_id in kernel.ended else "unknown")
        return
    if may_be_granted(attempt) and (reason := kernel.refused_claims.get(_key(event))):
        _deny(changes, event, reason)
    elif may_be_granted(attempt):
        _grant_if_it_fits(changes, event, attempt)
    elif attempt.cancel:
        _deny(changes, event, "cancelled")
    elif _is_of_the_granted_claim(attempt, event):
        again = replace(attempt, missed_by=0, regranted_at=changes.now)
        kernel.keep_attempt(again)
        changes.emit(SendGrant(again, event.nonce))
    else:
        _deny(changes, event, "taken")


def _is_of_the_granted_claim(attempt: AttemptRecord, event: ClaimReceived) -> bool:
    same_worker = attempt.worker_id == event.worker_id and not attempt.keeper_id
    return same_worker and claim_of(attempt.nonce) == claim_of(event.nonce)


def may_be_granted(attempt: AttemptRecord) -> bool:
    """Say whether nobody has been granted the attempt yet: the compare of the claim's compare-and-set."""
    return attempt.state is AttemptState.DISPATCHED


def _grant_if_it_fits(changes: Changes, event: ClaimReceived, attempt: AttemptRecord) -> None:
    worker = changes.kernel.workers.get(event.worker_id)
    if worker is None or worker.state not in TAKES_WORK:
        _refuse(changes, event, attempt, "unknown_worker" if worker is None else f"worker_{worker.state}")
        return
    if attempt.worker_id != worker.id or not _still_offers(worker, attempt):
        moved = _moved_to(changes, attempt, worker)
        if moved is None:
            _refuse(changes, event, attempt, "no_room")
            return
        attempt = moved
    granted = grant(changes, attempt, worker.id, event.nonce, "claim")
    if granted is not None:
        changes.emit(SendGrant(granted, event.nonce))


def _still_offers(worker: WorkerRecord, attempt: AttemptRecord) -> bool:
    """Say whether the worker may use the devices it was planned for; an earlier leader that planned so knew them."""
    return worker.devices is None or worker.devices.issuperset(attempt.devices)


def _refuse(changes: Changes, event: ClaimReceived, attempt: AttemptRecord, reason: str) -> None:
    """Refuse a claim of an attempt that is still to be had; the pool's hint is used up, so its own worker gets one."""
    changes.kernel.refuse_claim(_key(event), reason)
    _deny(changes, event, reason)
    if not attempt.direct and attempt.worker_id != event.worker_id and attempt.worker_id in changes.kernel.workers:
        hint_again(changes, attempt, direct=True)


def grant(changes: Changes, attempt: AttemptRecord, worker_id: str, nonce: str, cause: str) -> AttemptRecord | None:
    """Give the attempt to the worker: from now on only its token counts."""
    kernel = changes.kernel
    node = kernel.tasks[attempt.task_run_id]
    planned = node.planned
    columns: dict[str, Any] = {"worker_id": worker_id, "nonce": nonce, "granted_at": ("in", 0.0)}
    deadline = None
    if (allowed := kernel.settings.allowed(planned)) is not None:
        deadline = changes.now + allowed
        columns["deadline_at"] = ("in", allowed)
    granted = changes.attempt(
        attempt,
        AttemptState.RUNNING,
        cause,
        durable=planned.exclusive,
        columns=columns,
        worker_id=worker_id,
        nonce=nonce,
        granted_at=changes.now,
        deadline=deadline,
        missed_by=0,
    )
    if granted is not None:
        changes.task(node, TaskState.RUNNING, cause)
    return granted


def _moved_to(changes: Changes, attempt: AttemptRecord, worker: WorkerRecord) -> AttemptRecord | None:
    """Move the attempt's reservation to the worker that claims it, if it fits there, maybe by a swap."""
    kernel, ledger = changes.kernel, changes.kernel.ledger
    if not suits(kernel.ask_of(kernel.tasks[attempt.task_run_id]), worker):
        return None
    held = ledger.release(attempt.id)
    devices = devices_there(changes, attempt, worker)
    if held is not None:
        ledger.take(held)
    if devices is not None:
        return move(changes, attempt, Choice(worker.id, worker.host_id, devices, attempt.direct))
    return _swapped(changes, attempt, worker)


def devices_there(changes: Changes, attempt: AttemptRecord, worker: WorkerRecord) -> tuple[str, ...] | None:
    """Return the devices the attempt would get at this worker, or ``None`` where it has no slot or no room."""
    kernel, ledger = changes.kernel, changes.kernel.ledger
    if ledger.slots_used(worker.id) >= worker.slots:
        return None
    return ledger.fit(worker, kernel.ask_of(kernel.tasks[attempt.task_run_id]))


def _swapped(changes: Changes, attempt: AttemptRecord, worker: WorkerRecord) -> AttemptRecord | None:
    """Exchange places with an unclaimed attempt that is planned for the claiming worker.

    Two workers of a pool often take each other's hint from the shared queue; a refusal would cost both a round trip.
    """
    kernel, ledger = changes.kernel, changes.kernel.ledger
    planned_for = kernel.workers.get(attempt.worker_id)
    if planned_for is None or planned_for is worker or planned_for.state not in TAKES_WORK:
        return None
    for other_id in sorted(ledger.by_worker.get(worker.id, ())):
        other = kernel.attempts.get(other_id)
        if other is None or other.direct or not may_be_granted(other):
            continue
        if not suits(kernel.ask_of(kernel.tasks[other.task_run_id]), planned_for):
            continue
        places = _exchange(changes, (attempt, worker), (other, planned_for))
        if places is not None:
            move(changes, other, places[1])
            return move(changes, attempt, places[0])
    return None


def _exchange(
    changes: Changes, first: tuple[AttemptRecord, WorkerRecord], second: tuple[AttemptRecord, WorkerRecord]
) -> tuple[Choice, Choice] | None:
    """Try both attempts on each other's worker; the ledger is left as it was."""
    ledger = changes.kernel.ledger
    held: Mapping[str, Reservation | None] = {a.id: ledger.release(a.id) for a, _ in (first, second)}
    found: list[Choice] = []
    for attempt, worker in (first, second):
        devices = devices_there(changes, attempt, worker)
        if devices is None:
            break
        found.append(Choice(worker.id, worker.host_id, devices, attempt.direct))
        ledger.take(Reservation(attempt.id, worker.host_id, worker.id, attempt.resources, devices))
    for attempt, _ in (first, second):
        ledger.release(attempt.id)
    for reservation in held.values():
        if reservation is not None:
            ledger.take(reservation)
    return (found[0], found[1]) if len(found) == 2 else None


def _key(event: ClaimReceived) -> tuple[str, str, str]:
    return (event.attempt_id, event.worker_id, claim_of(event.nonce))


def _deny(changes: Changes, event: ClaimReceived, reason: str) -> None:
    changes.count("denied", f"attempt {event.attempt_id}: {reason}")
    changes.emit(SendDenial(event.worker_id, event.attempt_id, event.nonce, reason))
