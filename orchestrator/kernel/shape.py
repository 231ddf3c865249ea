"""The shape of a plan: positions instead of names, edges both ways, and each task's longest remaining path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.expressions import states_named
from orchestrator.kernel.reading import outputs_read, paths_of_body, paths_of_task
from orchestrator.records import Plan
from orchestrator.rules import failing, run_result
from orchestrator.states import RunState, TaskState


class Shape:
    """Worked out once per plan and shared by all its runs. Tasks are known by their position in the plan.

    The body of a container has a shape of its own, shared by all its indices and rounds.
    """

    __slots__ = (
        "bodies",
        "critical",
        "depth",
        "downstream",
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

    def __init__(self, plan: Plan, *, keep: Iterable[str] = (), keep_all: bool = False) -> None:
        """Work out the shape.

        :param keep: tasks whose outputs are read by expressions around this body.
        :param keep_all: so are those of all tasks.
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
        self.leaves = tuple(at for at, below in enumerate(down) if not below)
        self.teardown = tuple(task.teardown for task in tasks)
        self.rules = tuple("all_done" if task.teardown else task.trigger_rule for task in tasks)
        """A teardown waits for the end of all its upstreams, whatever that is."""
        self.critical = tuple(task.critical and not task.teardown for task in tasks)
        """Whether the task decides how its run, its index or its round ends."""
        self._look_for_kept(keep, keep_all)
        self._look_for_sources()
        watched = [
            (at, up)
            for at, task in enumerate(tasks)
            for up in states_named(task.when)
            if up in self.position and not task.teardown
        ]
        self.watchers = {self.position[up]: tuple(at for at, other in watched if other == up) for _, up in watched}
        """By position the tasks whose ``when`` names its state; what tears down handles nothing."""
        own = [1 if body is None else max(1, body.depth) for body in self.bodies]
        remaining = list(own)
        for at in range(len(tasks) - 1, -1, -1):
            for child in self.downstream[at]:
                remaining[at] = max(remaining[at], remaining[child] + own[at])
        self.remaining = tuple(remaining)
        """Tasks on the longest path from this one to a leaf, itself (or the longest path of its body) included."""
        self.depth: int = max(remaining, default=0)

    def _look_for_kept(self, keep: Iterable[str], keep_all: bool) -> None:
        """Find the tasks whose outputs the rules themselves read, here, in the bodies below and around."""
        tasks = self.plan.tasks
        wanted = set[str](task.name for task in tasks) if keep_all else set(keep)
        for task in tasks:
            wanted |= outputs_read(paths_of_task(task))
        bodies: dict[int, Shape] = {}
        for at in reversed(range(len(tasks))):
            task = tasks[at]
            if task.body is None:
                continue
            inner, inner_all = paths_of_body(task)
            body = Shape(task.body, keep=outputs_read(inner), keep_all=inner_all or task.name in wanted)
            bodies[at] = body
            wanted |= body.outer_kept
        for at, body in bodies.items():
            if tasks[at].name in wanted and len(body.kept) < len(body.plan.tasks):
                bodies[at] = Shape(body.plan, keep_all=True)
        self.bodies: tuple[Shape | None, ...] = tuple(bodies.get(at) for at in range(len(tasks)))
        """By position; ``None`` where the task is no container."""
        self.kept: frozenset[int] = frozenset(self.position[name] for name in wanted if name in self.position)
        """Tasks whose outputs the rules read, so that the kernel keeps them."""
        self.outer_kept: frozenset[str] = frozenset(wanted - self.position.keys())

    def _look_for_sources(self) -> None:
        read = [
            (*(link.source for link in task.links), *sorted(outputs_read(paths_of_task(task, parameters=True))))
            for task in self.plan.tasks
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

    def result(self, states: Sequence[TaskState]) -> RunState:
        """Return how a run ends whose tasks have ended so."""
        return run_result(states, self.downstream, self.rules, self.critical, self.watchers)

    def failing(self, states: Sequence[TaskState]) -> list[int]:
        """Return the positions of the tasks because of which a run fails: those that failed or were cancelled; of none
        such, the leaves that were never run."""
        found = list(failing(states, self.downstream, self.rules, self.critical, self.watchers))
        return [at for at in found if states[at] in (TaskState.FAILED, TaskState.CANCELLED)] or found

    def index_result(self, states: Sequence[TaskState]) -> TaskState:
        """Return how an index or a round ends whose tasks have ended so; skipped where nothing of it ran."""
        if all(state is TaskState.SKIPPED or self.teardown[at] for at, state in enumerate(states)):
            return TaskState.SKIPPED
        return TaskState.SUCCESS if self.result(states) is RunState.SUCCESS else TaskState.FAILED
