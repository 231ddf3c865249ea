"""What an event brings about besides states: reservations, counts, and words about what a task waits for."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.effects import Annotate, Count, Effect, Release, Reserve
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.nodes import TaskNode
from orchestrator.records import AttemptRecord, Reservation
from orchestrator.states import Entity


class Ledgered:
    """The effects of one event so far, with the ledger of the index kept in step with them."""

    __slots__ = ("effects", "kernel", "now")

    def __init__(self, kernel: Kernel, now: float) -> None:
        self.kernel = kernel
        self.now = now
        self.effects: list[Effect] = []

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def count(self, what: str, detail: str = "") -> None:
        self.effects.append(Count(what, detail))

    def explain(self, node: TaskNode, reason: str, message: str) -> None:
        """Say what a task waits for, if that is not said already."""
        if node.reason != reason:
            node.reason = reason
            self.emit(Annotate(Entity.TASK_RUN, node.id, node.state, {"reason": reason, "message": message}))

    def reserve(self, reservation: Reservation) -> None:
        """Charge the attempt to a worker and its host; the audit is told of every move."""
        kernel = self.kernel
        before = kernel.ledger.reservations.get(reservation.attempt_id)
        kernel.ledger.take(reservation)
        attempt = kernel.attempts.get(reservation.attempt_id)
        if before is None or attempt is None or _place_of(before) == _place_of(reservation):
            self.emit(Reserve(reservation))
        else:
            self.emit(Reserve(reservation, attempt, kernel.tasks[attempt.task_run_id].name))

    def release(self, attempt_id: str) -> None:
        """Give back what the attempt holds, if anything; others may be waiting for it."""
        self.kernel.buried_at.pop(attempt_id, None)
        held = self.kernel.ledger.release(attempt_id)
        if held is not None:
            self.emit(Release(attempt_id, held if held.zombie else None))
            self.kernel.waiting_lines.unblock()

    def bury(self, attempt: AttemptRecord) -> None:
        """Keep what the attempt holds charged to its host until the host confirms that its tree is dead: the tree of
        the incarnation that ran it, whoever has adopted it."""
        zombie = self.kernel.ledger.bury(attempt.id)
        if zombie is not None:
            if zombie.worker_id != attempt.worker_id:
                zombie = replace(zombie, worker_id=attempt.worker_id)
                self.kernel.ledger.take(zombie)
            self.emit(Reserve(zombie))
            self.kernel.waiting_lines.unblock()


def _place_of(reservation: Reservation) -> tuple[str, str, tuple[str, ...]]:
    return (reservation.host_id, reservation.worker_id, reservation.devices)
