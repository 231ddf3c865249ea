"""I3: nothing is dispatched unless its trigger rule holds, nor settled without running unless it no longer can.

The columns of DESIGN §10 once more, by other means than the product's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.states import TaskState
from tests.chaos.checker_specification import TASK_ENDED
from tests.chaos.checker_world import Violation, World
from tests.chaos.history import Event
from tests.unit.rule_oracle import runs_when


@dataclass(frozen=True, slots=True)
class Counts:
    """How many upstreams are in which end."""

    good: int
    bad: int
    skipped: int
    total: int

    @property
    def are_done(self) -> bool:
        return self.good + self.bad + self.skipped == self.total

    @property
    def are_done_badly(self) -> bool:
        return self.are_done and not self.good and self.bad > 0

    @property
    def are_all_skipped(self) -> bool:
        return self.skipped == self.total


Column = Mapping[str, Callable[[Counts], bool]]

UPSTREAM_FAILED_WHEN: Column = {
    "all_success": lambda up: up.bad > 0,
    "all_done_min_one_success": lambda up: up.are_done_badly,
    "one_success": lambda up: up.are_done_badly,
    "none_failed": lambda up: up.bad > 0,
    "none_failed_min_one_success": lambda up: up.bad > 0,
}
SKIPPED_WHEN: Column = {
    "all_success": lambda up: up.are_done and up.skipped > 0 and not up.bad,
    "all_failed": lambda up: up.good + up.skipped > 0,
    "all_done_min_one_success": lambda up: up.are_all_skipped,
    "all_skipped": lambda up: up.good + up.bad > 0,
    "one_success": lambda up: up.are_all_skipped,
    "one_failed": lambda up: up.are_done and not up.bad,
    "one_done": lambda up: up.are_all_skipped,
    "none_failed_min_one_success": lambda up: up.are_all_skipped,
    "none_skipped": lambda up: up.skipped > 0,
}


def check_rule(event: Event, world: World) -> Iterator[Violation]:
    """Judge what is made ready, dispatched or settled on the states that the upstreams are in at that moment."""
    run_id, name = event.run_id or "", event.task or ""
    planned = world.history.plans.get(run_id, {}).get(name)
    if planned is None:
        if event.entity == "attempt":
            yield Violation("I3", f"attempt {event.entity_id}", f"The plan of run {run_id} has no task {name!r}.")
        return
    states = {up: TaskState(world.task_state(run_id, up)) for up in planned.upstream}
    ended = [state if state in TASK_ENDED else None for state in states.values()]
    seen = ", ".join(f"{up} {state}" for up, state in states.items()) or "none"
    subject = f"task {name} of run {run_id}"
    if _starts(event):
        if not runs_when(planned.trigger_rule, ended):
            sentence = f"It became {event.after} although {planned.trigger_rule} did not hold; upstreams: {seen}."
            yield Violation("I3", subject, sentence)
    elif event.entity == "task_run" and event.before == "pending" and event.cause == "upstream":
        column = {"upstream_failed": UPSTREAM_FAILED_WHEN, "skipped": SKIPPED_WHEN}.get(event.after, {})
        holds = column.get(planned.trigger_rule)
        if holds is None or not holds(_count(ended, world.runs.get(run_id) == "cancelling")):
            sentence = f"It was settled as {event.after} by {planned.trigger_rule} wrongly; upstreams: {seen}."
            yield Violation("I3", subject, sentence)


def _starts(event: Event) -> bool:
    if event.entity == "attempt":
        return event.after == "dispatched" and event.before != event.after
    return event.entity == "task_run" and (event.before, event.after) == ("pending", "ready")


def _count(ended: list[TaskState | None], is_cancelling: bool) -> Counts:
    """While a run is cancelled, what is cancelled counts as no failure."""
    bad = {TaskState.FAILED, TaskState.UPSTREAM_FAILED} | (set() if is_cancelling else {TaskState.CANCELLED})
    return Counts(
        sum(state is TaskState.SUCCESS for state in ended),
        sum(state in bad for state in ended),
        sum(state is TaskState.SKIPPED for state in ended),
        len(ended),
    )
