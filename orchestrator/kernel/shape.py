"""The shape of a plan: positions instead of names, edges both ways, and each task's longest remaining path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from orchestrator.expressions.templates import references
from orchestrator.kernel.keeping import Kept, both, by_name, kept_by_task, merge, of_entries
from orchestrator.kernel.reading import outputs_read, paths_of_body, paths_of_task, states_asked
from orchestrator.records import Plan, PlannedTask
from orchestrator.rules import failing, run_result
from orchestrator.states import RunState, TaskState

Path = tuple[int, ...]
"""Where a task stands inside of containers: the outermost one's position, then positions in bodies, its own last."""
Inner = Callable[[Path], bool]
"""Says whether the task at this path has succeeded in some index or round, and the containers around it."""


def nowhere(_path: Path) -> bool:
    """Nothing inside of a container has succeeded."""
    return False


def leaves_of(plan: Plan) -> tuple[int, ...]:
    """Return the positions of the tasks below which nothing stands but what tears down: what they leave is what their
    run leaves."""
    inner = {name for task in plan.tasks if not task.teardown for name in task.upstream}
    return tuple(at for at, task in enumerate(plan.tasks) if not task.teardown and task.name not in inner)


class Shape:
    """Worked out once per plan and shared by all its runs. Tasks are known by their position in the plan.

    The body of a container has a shape of its own, shared by all its indices and rounds.
    """

    __slots__ = (
        "bodies",
        "critical",
        "depth",
        "downstream",
        "inner_watchers",
        "kept",
        "leaves",
        "outer_kept",
        "outer_sources",
        "plan",
        "position",
        "remaining",
        "rules",
        "sources",
        "teardown",
        "upstream",
        "watchers",
    )

    def __init__(self, plan: Plan, *, keep: Mapping[str, Kept] = MappingProxyType({})) -> None:
        """Work out the shape.

        :param keep: what expressions around this body read of the outputs of its tasks.
        """
        tasks = plan.tasks
        self.plan = plan
        self.position = {task.name: at for at, task in enumerate(tasks)}
        self.upstream = tuple(tuple(self.position[name] for name in dict.fromkeys(task.upstream)) for task in tasks)
        down: list[list[int]] = [[] for _ in tasks]
        for at, ups in enumerate(self.upstream):
            for up in ups:
                down[up].append(at)
        self.downstream = tuple(tuple(positions) for positions in down)
        self.leaves = leaves_of(plan)
        self.teardown = tuple(task.teardown for task in tasks)
        self.rules = tuple("all_done" if task.teardown else task.trigger_rule for task in tasks)
        """A teardown waits for the end of all its upstreams, whatever that is."""
        self.critical = tuple(task.critical and not task.teardown for task in tasks)
        """Whether the task decides how its run, its index or its round ends."""
        watchers: dict[int, list[int]] = {}
        read: list[Mapping[str, Kept]] = []
        for at, task in enumerate(tasks):
            read.append(kept_by_task(paths_of_task(task)))
            for name in () if task.teardown else states_asked(task):
                if name in self.position:
                    watchers.setdefault(self.position[name], []).append(at)
        self._look_for_kept((keep, *read))
        self._look_for_sources(read)
        self.watchers = {up: tuple(positions) for up, positions in watchers.items()}
        """By position the tasks whose ``when`` names its state; what tears down handles nothing."""
        self.inner_watchers: dict[int, list[Path]] = {}
        """By position such tasks inside of containers."""
        for name, path in _asked_inside(plan):
            if name in self.position:
                self.inner_watchers.setdefault(self.position[name], []).append(path)
        own = [1 if body is None else max(1, body.depth) for body in self.bodies]
        remaining = list(own)
        for at in range(len(tasks) - 1, -1, -1):
            for child in self.downstream[at]:
                remaining[at] = max(remaining[at], remaining[child] + own[at])
        self.remaining = tuple(remaining)
        """Tasks on the longest path from this one to a leaf, itself (or the longest path of its body) included."""
        self.depth: int = max(remaining, default=0)

    def _look_for_kept(self, read: Iterable[Mapping[str, Kept]]) -> None:
        """Find what the rules themselves read of the tasks' outputs, here, in the bodies below and around."""
        tasks = self.plan.tasks
        wanted: dict[str, Kept] = {}
        for named in read:
            merge(wanted, named)
        bodies: dict[int, Shape] = {}
        for at in reversed(range(len(tasks))):
            task = tasks[at]
            if task.body is None:
                continue
            bodies[at] = Shape(task.body, keep=_kept_inside(task, task.body, wanted))
            merge(wanted, bodies[at].outer_kept)
        for at, body in bodies.items():
            # A body that was looked at later may read what this one leaves.
            keep = _kept_inside(tasks[at], body.plan, wanted)
            if not body.keeps(keep):
                bodies[at] = Shape(body.plan, keep=keep)
        self.bodies: tuple[Shape | None, ...] = tuple(bodies.get(at) for at in range(len(tasks)))
        """By position; ``None`` where the task is no container."""
        self.kept = {self.position[name]: kept for name, kept in wanted.items() if name in self.position}
        """Tasks whose outputs the rules read, and what of them, so that the kernel keeps it."""
        self.outer_kept: dict[str, Kept] = {name: kept for name, kept in wanted.items() if name not in self.position}

    def keeps(self, wanted: Mapping[str, Kept]) -> bool:
        """Say whether that much of the outputs of its own tasks is kept."""
        asked = [(self.position[name], kept) for name, kept in wanted.items() if name in self.position]
        return all(at in self.kept and both(self.kept[at], kept) == self.kept[at] for at, kept in asked)

    def _look_for_sources(self, by_rules: Iterable[Mapping[str, Kept]]) -> None:
        read = [
            (*(link.source for link in task.links), *sorted({*named, *outputs_read(references(task.templated))}))
            for task, named in zip(self.plan.tasks, by_rules, strict=True)
        ]
        self.sources = tuple(
            tuple(dict.fromkeys((*ups, *(self.position[name] for name in names if name in self.position))))
            for ups, names in zip(self.upstream, read, strict=True)
        )
        """Tasks whose outputs a task reads: its upstreams, and the ancestors that its inputs and templates name."""
        self.outer_sources = tuple(
            tuple(dict.fromkeys(name for name in names if name not in self.position)) for names in read
        )
        """Names of such ancestors outside of the body."""

    def result(self, states: Sequence[TaskState], inner: Inner = nowhere) -> RunState:
        """Return how a run ends whose tasks have ended so.

        :param inner: tells of what is inside of its containers.
        """
        handled = self._handled(states, inner)
        return run_result(states, self.downstream, self.rules, self.critical, self.watchers, handled)

    def failing(self, states: Sequence[TaskState], inner: Inner = nowhere) -> list[int]:
        """Return the positions of the tasks because of which a run fails: those that failed or were cancelled; of none
        such, the leaves that were never run."""
        handled = self._handled(states, inner)
        found = list(failing(states, self.downstream, self.rules, self.critical, self.watchers, handled))
        return [at for at in found if states[at] in (TaskState.FAILED, TaskState.CANCELLED)] or found

    def index_result(self, states: Sequence[TaskState], inner: Inner = nowhere) -> TaskState:
        """Return how an index or a round ends whose tasks have ended so; skipped where nothing of it ran."""
        if all(state is TaskState.SKIPPED or self.teardown[at] for at, state in enumerate(states)):
            return TaskState.SKIPPED
        return TaskState.SUCCESS if self.result(states, inner) is RunState.SUCCESS else TaskState.FAILED

    def _handled(self, states: Sequence[TaskState], inner: Inner) -> frozenset[int]:
        """Return what failed and was handled inside of a container that has succeeded, by a task that asks for it."""
        broken = (at for at in self.inner_watchers if states[at] in (TaskState.FAILED, TaskState.CANCELLED))
        return frozenset(at for at in broken if any(inner(path) for path in self.inner_watchers[at]))


def _kept_inside(task: PlannedTask, body: Plan, wanted: Mapping[str, Kept]) -> dict[str, Kept]:
    """Return what is read of the tasks inside of a container: by its own expressions, and as what it has left."""
    paths, reads_all = paths_of_body(task)
    names = [inner.name for inner in body.tasks]
    found = by_name(None, names) if reads_all else kept_by_task(paths)
    if task.name in wanted:
        left = of_entries(wanted[task.name]) if task.map is not None else wanted[task.name]
        merge(found, by_name(left, names) if task.is_group else dict.fromkeys(names, left))
    return found


def _asked_inside(plan: Plan) -> Iterator[tuple[str, Path]]:
    """Yield the tasks whose state is named by the ``when`` of one inside of a container of this plan, and where that
    one stands. A name means the nearest task; what tears down handles nothing."""
    for at, task in enumerate(plan.tasks):
        if task.body is None or task.teardown:
            continue
        own = {other.name for other in task.body.tasks}
        asked = [
            (name, (below,))
            for below, other in enumerate(task.body.tasks)
            if not other.teardown
            for name in states_asked(other)
        ]
        yield from ((name, (at, *path)) for name, path in (*asked, *_asked_inside(task.body)) if name not in own)
