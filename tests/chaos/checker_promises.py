"""I4 and I10: what was asked for was applied, and nothing had to be repaired or refused that the rules have decided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.chaos.checker_world import Violation, World
from tests.chaos.history import CommandRow
from tests.chaos.ledger import CancelAsked

NEVER = {
    "repaired": "An event has missed something, and the recomputation from the rows has hidden it.",
    "refused_transition": "The rules wanted a transition that the table does not allow.",
    "dropped_report": "A report was given up, for it failed every time.",
}
"""What no fault excuses, and what it means when it was counted."""


def check_refusals(world: World) -> Iterator[Violation]:
    """The counters of what must never happen are at zero, however soon it was healed."""
    for what, meaning in NEVER.items():
        if times := world.history.refusals.get(what, 0):
            yield Violation("I4", f"counter {what}", f"It is at {times}. {meaning}")


def check_commands(world: World, cancels: Iterable[CancelAsked], quiescent: bool) -> Iterator[Violation]:
    """Every cancel that was accepted is on record, and in the end applied: its run was cancelled or had ended.

    One that found its run being cancelled has no record of its own: the one that it repeats has.
    """
    asked: dict[str, int] = {}
    for cancel in cancels:
        asked[cancel.run_id] = asked.get(cancel.run_id, 0) + (not cancel.is_repeat)
    asked = {run_id: max(1, times) for run_id, times in asked.items()}
    found: dict[str, list[CommandRow]] = {}
    for command in world.history.commands:
        if command.kind == "cancel" and command.run_id in asked:
            found.setdefault(command.run_id, []).append(command)
    cancelled = {
        event.entity_id
        for event in world.history.events
        if event.entity == "run" and event.after in ("cancelling", "cancelled")
    }
    for run_id, times in asked.items():
        commands = found.get(run_id, [])
        if len(commands) < times:
            yield Violation(
                "I5", f"run {run_id}", f"{times} cancels of it were accepted, {len(commands)} are on record."
            )
        if quiescent and (waiting := sum(command.result is None for command in commands)):
            yield Violation("I10", f"run {run_id}", f"{waiting} cancels of it were accepted and never applied.")
        effective = [one for one in commands if one.task is None and one.result and "ancelled" in one.result]
        if effective and run_id not in cancelled:
            yield Violation("I10", f"run {run_id}", f"It was not cancelled, though it was said: {effective[0].result}")
