"""I12: what is lost to infrastructure is charged exactly, and the third such loss is the last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.chaos.checker_specification import ATTEMPT_ENDED, TASK_ENDED, charge_of
from tests.chaos.checker_world import Violation, World
from tests.chaos.history import Event

Key = tuple[str, int]
"""Task run and generation."""


class LossWatch:
    """Counts what each task run is charged for.

    :param most: losses that a task run is given.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._losses: Counter[Key] = Counter()
        self._failures: Counter[Key] = Counter()

    def see(self, event: Event, world: World) -> Iterator[Violation]:
        """Judge one event on the world before it."""
        if event.entity == "attempt" and event.after in ATTEMPT_ENDED:
            yield from self._see_end(event, world)
        elif event.entity == "task_run":
            yield from self._see_task(event, world)

    def _see_end(self, event: Event, world: World) -> Iterator[Violation]:
        life = world.attempts.get(event.entity_id)
        if life is None or world.tasks.get(life.task_run_id) == "cancelling":
            return  # a cancel is charged to nobody
        key, charge = (life.task_run_id, life.generation), charge_of(event)
        self._failures[key] += charge == "failure"
        if charge != "loss":
            return
        self._losses[key] += 1
        if self._losses[key] > self._most:
            sentence = f"It lost {self._losses[key]} tries to infrastructure; {self._most} are allowed."
            yield Violation("I12", f"task run {life.task_run_id}", sentence)

    def _see_task(self, event: Event, world: World) -> Iterator[Violation]:
        losses = self._losses[(event.entity_id, world.generation_of(event.entity_id))]
        is_poison = event.after == "failed" and event.reason == "poison"
        told = f"{losses} tries were lost to infrastructure, and it became {event.after} ({event.reason})"
        if is_poison and losses != self._most:
            yield Violation("I12", f"task run {event.entity_id}", f"{told}; poison is {self._most}.")
        if not is_poison and losses >= self._most and event.before not in TASK_ENDED and event.after != "cancelled":
            yield Violation("I12", f"task run {event.entity_id}", f"{told}; {self._most} make it poison.")

    def end(self, world: World) -> Iterator[Violation]:
        """Compare the rows with what was counted."""
        for task in world.history.tasks.values():
            key = (task.id, world.generation_of(task.id))
            for what, row, counted in (
                ("losses", task.losses, self._losses[key]),
                ("failures", task.failures, self._failures[key]),
            ):
                if row != counted:
                    sentence = f"Its row has {row} {what}; the audit has {counted}."
                    yield Violation("I12", f"task run {task.id}", sentence)
