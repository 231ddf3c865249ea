"""I13: what is held never exceeds what a host has, in any committed state, and nothing leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from tests.chaos.checker_specification import ATTEMPT_ENDED
from tests.chaos.checker_world import AttemptLife, Charge, Violation, World, charge_of
from tests.chaos.history import Event

GONE = frozenset({"lost", "drained"})


class ChargeWatch:
    """Sums what is held on every host, at the end of every transaction that charged something there.

    :param terse_epochs: of leaders that did not tell what they charged where.
    """

    def __init__(self, terse_epochs: Collection[int] = ()) -> None:
        self._terse_epochs = frozenset(terse_epochs)
        self._charged: dict[str, set[str]] = {}
        """Transaction → hosts that it charged something to."""
        self.untold: set[str] = set()
        """Attempts of which part of the audit does not tell what they are charged where."""

    def is_untold(self, event: Event) -> bool:
        """Say whether this gives something back of which nobody has told that it was held."""
        return event.entity == "reservation" and event.entity_id in self.untold

    def see(self, event: Event, world: World) -> Iterator[Violation]:
        """Judge one event on the world before it."""
        subject = f"attempt {event.entity_id}"
        if event.epoch in self._terse_epochs and event.entity == "attempt":
            self.untold.add(event.entity_id)
        if event.entity_id in self.untold or event.epoch in self._terse_epochs:
            return
        if event.entity == "attempt":
            if "host" in event.detail:
                life, charge = world.attempts.get(event.entity_id), charge_of(event.detail)
                if life is None or life.charge is None or replace(life.charge, worker=charge.worker) != charge:
                    self._charged.setdefault(event.txn, set()).add(charge.host)
            elif event.after == "dispatched":
                yield Violation("I13", subject, f"Event {event.id} does not tell what it is charged where.")
            if event.detail.get("held") and event.after not in ATTEMPT_ENDED:
                yield Violation("I13", subject, f"It is held after its end, but event {event.id} ends nothing.")
        elif event.entity == "reservation":
            life = world.attempts.get(event.entity_id)
            if life is None or not life.is_held:
                yield Violation("I13", subject, f"Event {event.id} releases what was not held.")

    def committed(self, txn: str, world: World) -> Iterator[Violation]:
        """Judge the sums as a transaction leaves them; a host that shrinks under what it holds is no fault."""
        for host in sorted(self._charged.pop(txn, ())):
            lives = [life for life in world.charged() if _host_of(life) == host]
            if self._terse_epochs and host not in world.capacities:
                continue  # a terse leader has not told the size of a host that joined under it
            yield from _check_host(host, lives, world, txn)


def _host_of(life: AttemptLife) -> str:
    return life.charge.host if life.charge else ""


def _check_host(host: str, lives: list[AttemptLife], world: World, txn: str) -> Iterator[Violation]:
    charges = [life.charge for life in lives if life.charge is not None]
    capacity = world.capacities.get(host)
    subject, when = f"host {host}", f"after transaction {txn}"
    if capacity is None:
        if charges:
            yield Violation(
                "I13", subject, f"{len(charges)} attempts are charged to it {when}; nobody has told its size."
            )
        return
    gpus = len(capacity.gpus)
    for what, held, most in (
        ("cpu", sum(charge.cpu for charge in charges), capacity.cpu),
        ("memory", sum(charge.memory for charge in charges), capacity.memory),
        ("gpus", sum(charge.gpus for charge in charges), gpus),
    ):
        if held > most:
            ids = ", ".join(life.id for life in lives)
            yield Violation("I13", subject, f"{what}: {held} of {most} are held {when}, by {ids}.")
    holders = Counter(device for charge in charges for device in charge.devices)
    for device, count in holders.items():
        if count > 1:
            yield Violation("I13", subject, f"Device {device} is held {count} times {when}.")
        if device not in capacity.gpus:
            yield Violation("I13", subject, f"Device {device} is held {when}, which it has not.")
    for life, charge in zip(lives, charges, strict=True):
        if len(charge.devices) != charge.gpus:
            yield Violation("I13", f"attempt {life.id}", f"It asked for {charge.gpus} GPUs and holds {charge.devices}.")


def check_reservations(world: World, quiescent: bool, untold: Collection[str] = ()) -> Iterator[Violation]:
    """The rows are what the audit says is held; in the end nothing is, save on hosts that were given up.

    :param untold: attempts of which the audit does not tell all.
    """
    rows = world.history.reservations
    held = {life.id: (life.charge, life.is_held) for life in world.charged()}
    for attempt_id in sorted((rows.keys() | held.keys()) - set(untold)):
        subject = f"attempt {attempt_id}"
        row = rows.get(attempt_id)
        said = (
            (Charge(row.host_id, row.worker_id, row.cpu, row.memory, row.gpus, row.devices), row.zombie)
            if row
            else None
        )
        if said != held.get(attempt_id):
            yield Violation("I13", subject, f"Its reservation is {said}; the audit says {held.get(attempt_id)}.")
    if quiescent:
        yield from _check_leaks(world.charged(), world)


def _check_leaks(lives: Iterable[AttemptLife], world: World) -> Iterator[Violation]:
    alive = {worker.host_id for worker in world.history.workers.values() if worker.state not in GONE}
    for life in lives:
        host = _host_of(life)
        if not life.is_held:
            yield Violation("I13", f"attempt {life.id}", f"All is over, and it still holds room on host {host}.")
        elif host in alive:
            sentence = f"It has ended and all is over, but its room on host {host}, which lives, was not released."
            yield Violation("I13", f"attempt {life.id}", sentence)
