"""The kernel's own mutable view of a run and of its tasks. Their ``state`` is assigned in ``changes.py`` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.kernel.inside import Inside
from orchestrator.kernel.keeping import MOST_KEPT, kept_of, size_of
from orchestrator.kernel.shape import Path, Shape
from orchestrator.placement import Ask
from orchestrator.records import PlannedTask, RunRecord, TaskRunRecord
from orchestrator.states import TASK_TERMINAL, RunState, TaskState

if TYPE_CHECKING:
    from orchestrator.kernel.gates import Gate

TEMPLATE = "template"
"""Reason of what has failed because a template of it can't be resolved."""
RUN_PAUSED = "run_paused"
"""Reason of what could start, if its run were not paused."""
MARKED = "marked"
"""Reason of what a person has said the state of."""
FORCED = "force_cancelled"
"""Reason of a run whose cancel kills at once and lets no teardown run."""
WAITS_FOR_ITS_HOST = (
    "Its worker is lost and the task may live on: it ends when another worker of its host has stopped it or found it "
    "dead, or when it is given up."
)
"""What the message of a task run says besides, that is being cancelled while nobody answers for it."""
DEADLINE, RUN_DEADLINE = "deadline", "run_deadline"
"""Reasons of tasks and runs that are stopped because their time is up: they end failed, not cancelled."""


class RunNode:
    """One active run."""

    __slots__ = (
        "deadline_at",
        "depth",
        "generation",
        "hands_on",
        "home",
        "id",
        "kept",
        "learned",
        "open",
        "order",
        "parameters",
        "parent_task_run_id",
        "paused_with_parent",
        "pipeline",
        "pipeline_id",
        "priority",
        "reason",
        "root",
        "state",
        "stopped_because",
        "tasks",
        "taught",
        "tenant_id",
    )

    def __init__(self, record: RunRecord, shape: Shape) -> None:
        self.id = record.id
        self.tenant_id = record.tenant_id
        self.pipeline_id, self.pipeline = record.pipeline_id, record.pipeline
        self.state, self.reason = record.state, record.reason
        self.stopped_because = record.message if record.state is RunState.CANCELLING else ""
        """While it is being cancelled, the sentence that its end is to tell: who wanted it, and why."""
        self.generation = record.generation
        self.priority = record.priority
        self.order = record.order
        self.parameters = record.parameters
        self.parent_task_run_id = record.parent_task_run_id
        self.paused_with_parent = record.paused_with_parent
        self.depth = record.depth
        self.deadline_at = record.deadline_at
        self.learned = dict(record.learned)
        """Bytes that tasks with a learned request ask for, by their planned names."""
        self.taught: dict[str, int] = {}
        """What of it this run itself has taught, as far as this leader has seen."""
        self.hands_on = False
        """Whether the rules read what it leaves, as the outputs of the task that it is."""
        self.kept = 0
        """Characters of JSON of the outputs that the kernel keeps of its task runs."""
        self.root = Scope(self, shape)
        """Its own tasks; those of its containers stand in scopes of their own."""
        self.tasks: list[TaskNode] = []
        """All its task runs, those of its containers too, in the order they were made."""
        self.open = 0
        """Task runs that are not terminal, wherever they stand."""
        self.home = ""
        """Host on which its first outputs lie, when stores are local: later tasks would rather go there."""

    @property
    def shape(self) -> Shape:
        return self.root.shape

    @property
    def is_cancelling(self) -> bool:
        return self.state is RunState.CANCELLING

    @property
    def is_forced(self) -> bool:
        return self.reason == FORCED

    @property
    def is_inside(self) -> bool:
        """Whether it is there as a task of another run: see :attr:`RunRecord.is_inside`."""
        return self.parent_task_run_id is not None and self.generation == 1

    @staticmethod
    def stopped_as(reason: str) -> RunState:
        """Return how a run ends that was stopped for this reason."""
        return RunState.FAILED if reason == RUN_DEADLINE else RunState.CANCELLED

    @property
    def dispatches(self) -> bool:
        return self.state is RunState.RUNNING


class Scope:
    """One graph at work: the tasks of a run, or those of one index or round of a container."""

    __slots__ = ("index", "is_started", "item", "key", "open", "owner", "result", "run", "shape", "tasks")

    def __init__(
        self, run: RunNode, shape: Shape, owner: TaskNode | None = None, index: int = 0, key: str = "", item: Any = None
    ) -> None:
        self.run = run
        self.shape = shape
        self.owner = owner
        """The container it belongs to; ``None``: it is the run's own."""
        self.index = index
        self.key = key
        self.item = item
        self.tasks: list[TaskNode] = []
        """By position in the shape's plan."""
        self.open = 0
        """Of these, those that are not terminal."""
        self.is_started = owner is None
        """Whether its rules are looked at; else it waits for a place under ``max_parallel``."""
        self.result: TaskState | None = None
        """How the index or round has ended: success, failed or skipped."""

    @property
    def prefix(self) -> str:
        """What the names of its task runs begin with."""
        return "" if self.owner is None else f"{self.owner.name}[{self.index}]"

    def name_of(self, position: int) -> str:
        """Return the name of the task run at this position: ``train``, ``train[3]`` or ``folds[2].train``."""
        name = self.shape.plan.tasks[position].name
        if self.owner is None:
            return name
        return f"{self.prefix}.{name}" if self.owner.planned.is_group else self.prefix

    def is_superseded(self) -> bool:
        """Say whether its container was expanded anew without it: it counts no more."""
        inside = None if self.owner is None else self.owner.inside
        return inside is not None and (self.index >= len(inside.scopes) or inside.scopes[self.index] is not self)

    def end(self) -> TaskState:
        """Note how it ended, all of whose tasks are over."""
        self.result = self.shape.index_result([node.state for node in self.tasks], self.has_succeeded_at)
        return self.result

    def has_succeeded_at(self, path: Path) -> bool:
        """Say whether the task at this path inside of its containers has succeeded, in any index, and those too."""
        node, rest = self.tasks[path[0]], path[1:]
        if node.state is not TaskState.SUCCESS:
            return False
        return not rest or any(scope.has_succeeded_at(rest) for scope in (node.inside.scopes if node.inside else ()))

    def outward(self) -> Iterator[Scope]:
        """Yield this scope and those around it, up to the run's own."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.owner.scope if scope.owner is not None else None


class TaskNode:
    """One task run, with the counters of its upstream states."""

    __slots__ = (
        "ask",
        "attempt_id",
        "attempts",
        "avoid",
        "awaits_turn",
        "begun",
        "cache_key",
        "cancelled",
        "child_run_id",
        "deadline_at",
        "failed",
        "failures",
        "gate",
        "generation",
        "id",
        "inside",
        "kept",
        "local_to",
        "losses",
        "memory",
        "name",
        "outputs",
        "position",
        "queue",
        "ready_at",
        "ready_since",
        "reason",
        "resumed",
        "retry_at",
        "scope",
        "skipped",
        "spared",
        "state",
        "stopped_because",
        "success",
        "superseded",
        "ticket",
        "upstream_failed",
        "wait_token",
    )

    def __init__(self, record: TaskRunRecord, scope: Scope, position: int) -> None:
        self.id = record.id
        self.name = record.name
        self.scope = scope
        self.position = position
        self.state, self.reason = record.state, record.reason
        self.stopped_because = ""
        """While it is being cancelled, the sentence that its end is to tell: who wanted it, and why."""
        if record.state is TaskState.CANCELLING:
            self.stopped_because = record.message.removesuffix(WAITS_FOR_ITS_HOST).rstrip()
        self.attempts = record.attempts
        self.failures = record.failures
        self.losses = record.losses
        self.generation = record.generation
        self.spared = 0
        """Tries that nobody was charged for, as far as this leader has seen: they slow down the next."""
        self.attempt_id = record.attempt_id
        self.retry_at = record.retry_at
        self.local_to = record.local_to
        self.outputs: Mapping[str, Any] | None = None
        """What expressions of the rules read of them, set by :meth:`keep` alone."""
        self.kept = 0
        """Characters of JSON that it comes to."""
        self.child_run_id = record.child_run_id
        self.wait_token = record.wait_token
        self.memory, self.queue = record.memory, record.queue
        self.cache_key = record.cache_key
        self.deadline_at = record.deadline_at
        self.inside: Inside | None = None
        """Of a container that has been expanded."""
        self.resumed = record.resumed
        """Of a pending container: whether it goes on with what it has expanded into before, or expands anew."""
        self.awaits_turn, self.superseded = record.awaits_turn, record.superseded
        """What its row says of the index it belongs to: see :mod:`orchestrator.kernel.scopes`."""
        self.begun = record.begun or record.state not in (TaskState.PENDING, *TASK_TERMINAL)
        """Whether it has been let begin since it was pending last: whatever ended it then, and whatever a person has
        said of it since, it was not settled beforehand."""
        self.ask: Ask | None = None
        """What it asks of placement, while it is ready."""
        self.ticket = 0
        """Its valid entry in the waiting line; an older one is passed over."""
        self.gate: Gate | None = None
        """What stands before it besides room, worked out when it is first ready."""
        self.ready_at = 0.0
        """When it was lined up."""
        self.ready_since = record.ready_at
        """Since when it has waited for its next attempt to be claimed."""
        self.avoid = ""
        """The worker that has just lost it for reasons that are not the task's; passed over once, if another fits."""
        self.clear_counts()

    @property
    def run(self) -> RunNode:
        return self.scope.run

    @property
    def planned(self) -> PlannedTask:
        return self.scope.shape.plan.tasks[self.position]

    @property
    def body(self) -> Shape | None:
        """Of a container, the shape of what it runs."""
        return self.scope.shape.bodies[self.position]

    @property
    def is_teardown(self) -> bool:
        """Whether it is one, or inside of one: then it runs though its run is being cancelled."""
        return any(node.scope.shape.teardown[node.position] for node in self._around())

    @property
    def tears_down(self) -> bool:
        """Whether there may be something to tear down for it: none in an index that never started."""
        return any(node.scope.is_started for node in self._around() if node.scope.shape.teardown[node.position])

    def _around(self) -> Iterator[TaskNode]:
        """Yield it and the containers around it."""
        node: TaskNode | None = self
        while node is not None:
            yield node
            node = node.scope.owner

    @property
    def dispatches(self) -> bool:
        """Whether it may be sent out when it is ready."""
        run = self.run
        return run.dispatches or (run.is_cancelling and not run.is_forced and self.is_teardown)

    @property
    def is_being_cancelled(self) -> bool:
        """Whether its run, or a container around it, is: then a cancelled upstream settles nothing."""
        return self.run.is_cancelling or any(
            scope.owner is not None and scope.owner.state in (TaskState.CANCELLING, TaskState.CANCELLED)
            for scope in self.scope.outward()
        )

    @property
    def has_started(self) -> bool:
        """Whether anything of it has been at work: what it has set up is to be torn down. Its attempts and its outputs
        of earlier generations count for nothing, for they were torn down with these."""
        return self.begun or self.state is TaskState.SUCCESS

    @property
    def was_settled(self) -> bool:
        """Whether it is over because of its upstreams, or of what they have left it, without having begun. What has
        begun may end with any word for its reason; of what has not, only a person may say another state."""
        is_settled = self.state in (TaskState.SKIPPED, TaskState.FAILED, TaskState.UPSTREAM_FAILED)
        return is_settled and not self.begun and self.reason != MARKED

    @property
    def has_ended_undecided(self) -> bool:
        """Whether it is over without having decided anything: it was stopped, its time was up, or its upstreams have
        settled it, or left it nothing right to go over. Of such a container nothing inside runs on, whatever a rerun
        was to begin there."""
        if self.state in (TaskState.SKIPPED, TaskState.FAILED):
            return self.was_settled or (self.state is TaskState.FAILED and self.reason == DEADLINE)
        return self.state in (TaskState.CANCELLED, TaskState.UPSTREAM_FAILED)

    @property
    def is_kept(self) -> bool:
        """Whether the kernel keeps its outputs: an expression reads them, or the task that its run is hands them on."""
        return self.position in self.scope.shape.kept or self._is_handed_on

    @property
    def _is_handed_on(self) -> bool:
        if not self.run.hands_on:
            return False
        node = self
        while node.scope.owner is not None:
            node = node.scope.owner
        return node.position in node.scope.shape.leaves

    def kept_of(self, outputs: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return what the kernel keeps of these outputs."""
        if outputs is None or self._is_handed_on:
            return outputs
        if self.position not in self.scope.shape.kept:
            return None
        kept: Mapping[str, Any] = kept_of(outputs, self.scope.shape.kept[self.position])
        return kept

    def has_room_for(self, outputs: Mapping[str, Any] | None) -> bool:
        """Say whether what the kernel keeps of these outputs fits beside what it keeps of its run's other task runs."""
        return not self.is_kept or self.run.kept - self.kept + size_of(self.kept_of(outputs)) <= MOST_KEPT

    def keep(self, outputs: Mapping[str, Any] | None) -> None:
        """Keep of its outputs what the rules read of them, in place of what was kept before."""
        self.outputs = self.kept_of(outputs)
        size = size_of(self.outputs)
        self.run.kept += size - self.kept
        self.kept = size

    @property
    def counts_for_its_run(self) -> bool:
        """Whether it still counts: not in an index, at any depth, that its container was expanded anew without."""
        return not any(scope.is_superseded() for scope in self.scope.outward())

    @staticmethod
    def stopped_as(reason: str) -> TaskState:
        """Return how a task run ends that was stopped for this reason."""
        return TaskState.FAILED if reason == DEADLINE else TaskState.CANCELLED

    @property
    def rule(self) -> str:
        return self.scope.shape.rules[self.position]

    @property
    def upstream_count(self) -> int:
        return len(self.scope.shape.upstream[self.position])

    @property
    def remaining(self) -> int:
        """Tasks on the longest path from this one to a leaf of the run."""
        found = self.scope.shape.remaining[self.position]
        scope = self.scope
        while scope.owner is not None:
            found += scope.owner.scope.shape.remaining[scope.owner.position] - scope.shape.depth
            scope = scope.owner.scope
        return found

    def hosts(self) -> tuple[str, ...]:
        """Return the hosts that alone hold its outputs, or those of what it has expanded into."""
        if self.inside is not None:
            return tuple(self.inside.hosts)
        return () if self.local_to is None else (self.local_to,)

    def sources_within(self) -> Iterator[TaskNode]:
        """Yield the task runs of its own scope whose outputs it reads."""
        return (self.scope.tasks[at] for at in self.scope.shape.sources[self.position])

    def sources_around(self) -> Iterator[TaskNode]:
        """Yield the task runs around its scope that it names itself; what its container reads, it reads too."""
        found = (self.visible(name) for name in self.scope.shape.outer_sources[self.position])
        return (node for node in found if node is not None)

    def visible(self, name: str) -> TaskNode | None:
        """Return the task run that this name means here: of its own scope, else of the nearest around it."""
        for scope in self.scope.outward():
            position = scope.shape.position.get(name)
            if position is not None:
                return scope.tasks[position]
        return None

    def clear_counts(self) -> None:
        self.success = self.failed = self.upstream_failed = self.skipped = self.cancelled = 0

    def counts(self) -> tuple[int, int, int, int, int]:
        return (self.success, self.failed, self.upstream_failed, self.skipped, self.cancelled)

    def count(self, upstream: TaskState) -> None:
        """Note that one upstream has ended so."""
        if upstream is TaskState.SUCCESS:
            self.success += 1
        elif upstream is TaskState.FAILED:
            self.failed += 1
        elif upstream is TaskState.UPSTREAM_FAILED:
            self.upstream_failed += 1
        elif upstream is TaskState.SKIPPED:
            self.skipped += 1
        elif upstream is TaskState.CANCELLED:
            self.cancelled += 1
