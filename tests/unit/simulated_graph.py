"""The rows of a run as a graph: which planned task a row is, what is beside and inside of it; and how a run ends.

Once more and naively: the judge of what the rules make of containers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations_with_replacement

from orchestrator.records import MapPlan, Plan, PlannedTask, TaskRunRecord
from orchestrator.states import TASK_TERMINAL, TaskState

GOOD = (TaskState.SUCCESS, TaskState.SKIPPED)
BROKEN = (TaskState.FAILED, TaskState.CANCELLED)


class Graph:
    """The task runs of one run."""

    def __init__(self, plan: Plan, rows: Sequence[TaskRunRecord]) -> None:
        self.plan = plan
        self.rows = rows
        self.by_id = {row.id: row for row in rows}

    def planned(self, row: TaskRunRecord) -> PlannedTask:
        """Return the task that this row is of."""
        if row.parent_id is None:
            return next(task for task in self.plan.tasks if task.name == row.name)
        container = self.planned(self.by_id[row.parent_id])
        assert container.body is not None
        if not container.is_group:
            return container.body.tasks[0]
        return next(task for task in container.body.tasks if task.name == row.name.rpartition(".")[2])

    def beside(self, row: TaskRunRecord) -> dict[str, TaskRunRecord]:
        """Return the rows of its scope by planned name, itself among them."""
        scope = (row.parent_id, row.map_index)
        return {self.planned(other).name: other for other in self.rows if (other.parent_id, other.map_index) == scope}

    def inside(self, row: TaskRunRecord) -> dict[int, list[TaskRunRecord]]:
        """Return the rows of its indices or rounds that count."""
        found: dict[int, list[TaskRunRecord]] = {}
        for other in self.rows:
            if other.parent_id == row.id and not other.superseded:
                found.setdefault(other.map_index or 0, []).append(other)
        return found

    def below(self, row: TaskRunRecord) -> list[TaskRunRecord]:
        """Return everything inside of it, at any depth."""
        own = [other for rows in self.inside(row).values() for other in rows]
        return own + [deeper for other in own for deeper in self.below(other)]

    def results(self, row: TaskRunRecord) -> list[TaskState | None]:
        """Return how each index of a container has ended; ``None`` is still open."""
        container = self.planned(row)
        assert container.body is not None
        return [self._result(container.body.tasks, rows) for rows in self.inside(row).values()]

    def _result(self, tasks: Sequence[PlannedTask], rows: Sequence[TaskRunRecord]) -> TaskState | None:
        states = {self.planned(row).name: row.state for row in rows}
        if any(state not in TASK_TERMINAL for state in states.values()):
            return None
        if all(states[task.name] is TaskState.SKIPPED for task in tasks if not task.teardown):
            return TaskState.SKIPPED
        return TaskState.SUCCESS if is_success(tasks, states, self.asked_inside(rows)) else TaskState.FAILED

    def asked_inside(self, rows: Sequence[TaskRunRecord]) -> set[str]:
        """Return for which tasks' states something has asked that succeeded inside of a container of these rows."""
        found: set[str] = set()
        for row in rows:
            task = self.planned(row)
            if task.body is None or task.teardown or row.state is not TaskState.SUCCESS:
                continue
            for own in self.inside(row).values():
                asked = {self.planned(other).when for other in own if other.state is TaskState.SUCCESS}
                named = {word.split(".")[1] for when in asked for word in when.split() if word.endswith(".state")}
                found |= (named | self.asked_inside(own)) - {other.name for other in task.body.tasks}
        return found

    def tears_down(self, row: TaskRunRecord) -> bool:
        """Say whether it is a teardown, or inside of one."""
        if self.planned(row).teardown:
            return True
        return row.parent_id is not None and self.tears_down(self.by_id[row.parent_id])

    def upstream_states(self, row: TaskRunRecord) -> list[TaskState | None]:
        """Return the states its rule looks at; ``None`` is still open."""
        beside = self.beside(row)
        states = [beside[name].state for name in self.planned(row).upstream]
        return [state if state in TASK_TERMINAL else None for state in states]


def possible_ends(map_: MapPlan, results: Sequence[TaskState | None]) -> set[TaskState]:
    """Return how a map may still end, whatever becomes of its open indices."""
    open_ = results.count(None)
    ended = [result for result in results if result is not None]
    kinds = (TaskState.SUCCESS, TaskState.FAILED, TaskState.SKIPPED)
    return {_end_of_map(map_, [*ended, *rest]) for rest in combinations_with_replacement(kinds, open_)}


def _end_of_map(map_: MapPlan, results: Sequence[TaskState]) -> TaskState:
    good, bad = results.count(TaskState.SUCCESS), results.count(TaskState.FAILED)
    if good + bad == 0:
        return TaskState.SKIPPED
    is_met = {
        "all": bad == 0,
        "any": good >= 1,
        "min_count": good >= map_.least,
        "min_ratio": good / (good + bad) >= map_.least,
    }[map_.success]
    return TaskState.SUCCESS if is_met else TaskState.FAILED


def is_success(
    tasks: Sequence[PlannedTask], states: Mapping[str, TaskState], asked_inside: Collection[str] = ()
) -> bool:
    """Say whether tasks that have ended so make a success: all leaves well, and each failure handled."""
    deciding = {task.name: task for task in tasks if task.critical and not task.teardown}
    for name, task in deciding.items():
        has_below = any(name in other.upstream for other in deciding.values())
        if states[name] not in GOOD and not has_below:
            return False
        if states[name] in BROKEN and name not in asked_inside and not _is_handled(task, tasks, states):
            return False
    return True


def _is_handled(failed: PlannedTask, tasks: Sequence[PlannedTask], states: Mapping[str, TaskState]) -> bool:
    reached = {failed.name}
    for task in tasks:  # in topological order
        if not reached.isdisjoint(task.upstream) and states[task.name] is TaskState.UPSTREAM_FAILED:
            reached.add(task.name)
    return any(
        states[task.name] is TaskState.SUCCESS
        and not task.teardown
        and (
            (not reached.isdisjoint(task.upstream) and task.trigger_rule in ("one_failed", "all_failed"))
            or f"tasks.{failed.name}.state" in task.when
        )
        for task in tasks
    )
