"""Decides whether a run of faults has kept the contract (DESIGN §7: I1–I5, I9, I10, I12, I13), exactly.

It replays the audit, compares every row with it, and lays the tasks' own ledger and the users' memory beside both. It
is a function of what it is given: read it with ``history.read_history`` and ``ledger.read_ledger``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.checker_attempts import (
    check_afterlife,
    check_cancels,
    check_lines,
    check_live,
    check_published,
)
from tests.chaos.checker_charges import ChargeWatch, check_reservations
from tests.chaos.checker_losses import LossWatch
from tests.chaos.checker_promises import check_commands, check_refusals
from tests.chaos.checker_rules import check_rule
from tests.chaos.checker_runs import check_accepted, check_progress
from tests.chaos.checker_transitions import check_epochs, check_rows, check_success, check_transition
from tests.chaos.checker_world import Violation, World
from tests.chaos.history import History
from tests.chaos.ledger import Accepted, CancelAsked, Line

__all__ = ["Bounds", "Violation", "check"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the judgement depends on beside the history."""

    max_losses: int = 3
    """``MAX_INFRASTRUCTURE_LOSSES`` of the site."""
    stop_seconds: float | None = None
    """After a cancel and its grace, how long something may live; ``None``: not judged."""
    clock_tolerance: float = 0.25
    """Seconds by which the comparison of a ledger's clock with the database's may err."""
    commits_lost: bool = False
    """The database crashed during the run: what was committed asynchronously, dispatches and grants, may be gone. What
    tasks started is then no proof of a fault; what they changed is."""
    terse_epochs: Collection[int] = ()
    """Epochs of leaders of a release whose audit does not tell what was charged where: I13 is judged without that."""


def check(
    history: History,
    ledger: Sequence[Line],
    accepted: Iterable[Accepted],
    cancels: Collection[CancelAsked] = (),
    *,
    quiescent: bool,
    asked: Collection[str] = (),
    bounds: Bounds | None = None,
) -> list[Violation]:
    """Return every broken promise.

    :param ledger: what tasks noted of themselves.
    :param accepted: runs that the API said 2xx to.
    :param cancels: cancels that the API said 2xx to.
    :param quiescent: all was given time to end, so that every run must have ended and nothing be held.
    :param asked: further Idempotency-Keys that were sent without an answer.
    """
    bounds = bounds or Bounds()
    world = World(history)
    losses = LossWatch(bounds.max_losses)
    charges = ChargeWatch(bounds.terse_epochs)
    found = list(_replay(world, losses, charges))
    for verdicts in (
        check_epochs(world),
        check_rows(world),
        losses.end(world),
        check_lines(world, ledger, bounds.commits_lost),
        check_published(world),
        check_afterlife(world, ledger, bounds.clock_tolerance),
        check_cancels(world, ledger, cancels, bounds.stop_seconds),
        check_commands(world, cancels, quiescent),
        check_refusals(world),
        check_reservations(world, quiescent, charges.untold),
        check_accepted(world, accepted, asked),
        check_progress(world, quiescent),
    ):
        found += verdicts
    return found


def _replay(world: World, losses: LossWatch, charges: ChargeWatch) -> Iterator[Violation]:
    """Judge each event on the world before it, and the sums at the end of each transaction.

    The API's rows may lie between those of a leader's transaction, so its end is its last row, not the first other.
    """
    last = {event.txn: event.id for event in world.history.events}
    for event in world.history.events:
        if not charges.is_untold(event):
            yield from check_transition(event, world)
        yield from check_live(event, world)
        yield from check_rule(event, world)
        yield from check_success(event, world)
        yield from losses.see(event, world)
        yield from charges.see(event, world)
        world.apply(event)
        if last[event.txn] == event.id:
            yield from charges.committed(event.txn, world)
