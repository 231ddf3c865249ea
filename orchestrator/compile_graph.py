"""The tasks of a definition as one graph, those inside of groups too: who comes before whom, and what a task sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError

from orchestrator.documents import did_you_mean
from orchestrator.errors import Problem
from orchestrator.graph import above, depth, find_cycle, topological_order
from orchestrator.lasting import maker_of
from orchestrator.spec import TaskSpec
from orchestrator.spec_reading import Reading, ReadTask

MAX_EDGES = 50_000
MAX_DEPTH = 200
_INSIDE = "inside of "


@dataclass(frozen=True, slots=True)
class Placed:
    """A task and where it stands."""

    pointer: str
    spec: TaskSpec
    body: tuple[ReadTask, ...] = ()
    container: str = ""
    """The group that it is in; empty: none."""
    mapped: str = ""
    """The nearest group around it that is mapped; empty: none."""
    repeated: str = ""
    siblings: frozenset[str] = frozenset()
    """The tasks it may wait for: those of its own group, or of none."""
    faulty: frozenset[str] = frozenset()
    """Its fields in which there are faults; ``spec`` is without them."""


_placed_task = maker_of(Placed)


def placed_tasks(reading: Reading) -> list[Placed]:
    """Return all tasks, each group before what is inside of it; of those with faults the sound parts."""
    return list(_placed(reading.tasks, Placed("", TaskSpec(""))))


def _placed(tasks: Sequence[ReadTask], around: Placed) -> Iterator[Placed]:
    siblings = frozenset(task.spec.name for task in tasks)
    for task in tasks:
        yield _placed_task(
            task.pointer, task.spec, task.body, around.spec.name, around.mapped, around.repeated, siblings, task.faulty
        )
        if task.body:
            mapped = around.mapped if task.spec.map is None else task.spec.name
            repeated = around.repeated if task.spec.repeat is None else task.spec.name
            yield from _placed(task.body, Placed("", task.spec, mapped=mapped, repeated=repeated))


class Flow:
    """The graph of all tasks. What waits for nothing inside of a group waits for what the group waits for.

    The group itself is another task: what waits for it is not above the tasks inside, nor they above what waits for it.
    """

    def __init__(self, tasks: Sequence[Placed]) -> None:
        self.upstreams: dict[str, tuple[str, ...]] = {}
        for task in tasks:
            if task.body:
                # One node that stands for the beginning of the group, or each of its tasks would have all its edges.
                self.upstreams[_INSIDE + task.spec.name] = ()
        for task in tasks:
            own = tuple(name for name in task.spec.upstream_tasks if name in task.siblings)
            self.upstreams[task.spec.name] = own or ((_INSIDE + task.container,) if task.container else ())
            if task.body:
                self.upstreams[_INSIDE + task.spec.name] = self.upstreams[task.spec.name]
        self.cycle: tuple[str, ...] = ()
        try:
            self.order = topological_order(self.upstreams)
        except CycleError:
            self.cycle, self.order = find_cycle(self.upstreams), ()
        """All tasks, each after those above it; empty where there is a cycle."""
        self.position = {name: at for at, name in enumerate(self.order)}
        self._above: dict[str, int] = {}

    def is_above(self, name: str, task: str) -> bool:
        """Say whether the one has ended when the other starts, near or far."""
        if name in self.upstreams[task]:
            return True
        if not self._above:
            self._above = above(self.upstreams, self.order)
        return bool(self._above[task] >> self.position[name] & 1)


def upstream_problems(task: Placed, names: frozenset[str], groups: Mapping[str, str]) -> list[Problem]:
    """Return the upstreams that are no tasks, or are in another group.

    :param groups: the group that each task is in.
    """
    found: list[Problem] = []
    for at, upstream in enumerate(task.spec.upstream_tasks):
        if upstream in names and groups.get(upstream, task.container) == task.container:
            continue
        here = f"{task.pointer}/upstream_tasks/{at}"
        if upstream not in names:
            message = f"There is no task {upstream!r} in this pipeline.{did_you_mean(upstream, names)}"
            found.append(Problem(here, message))
        else:
            other = groups[upstream]
            place = f"inside of the group {other!r}, and this task is not"
            hint = f"wait for {other!r}"
            if not other:
                place, hint = f"not in the group {task.container!r}", f"let {task.container!r} wait for it"
            found.append(Problem(here, f"{upstream!r} is {place}; {hint}."))
    return found


def graph_problems(tasks: Sequence[Placed], flow: Flow) -> list[Problem]:
    """Return what is wrong with the graph as a whole; unknown names are told elsewhere."""
    edges = sum(len(task.spec.upstream_tasks) for task in tasks)
    if edges > MAX_EDGES:
        return [Problem("/tasks", f"The tasks have {edges} edges; at most {MAX_EDGES} are allowed.")]
    if flow.cycle:
        at = next(task.pointer for task in tasks if task.spec.name == flow.cycle[-1])
        path = " → ".join(flow.cycle)
        return [Problem(f"{at}/upstream_tasks", f"These tasks wait for each other in a circle: {path}.")]
    longest = depth(flow.upstreams, flow.order)
    if longest > MAX_DEPTH:
        return [Problem("/tasks", f"The longest path has {longest} tasks; at most {MAX_DEPTH} are allowed.")]
    return []
