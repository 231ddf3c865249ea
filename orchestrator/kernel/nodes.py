"""The kernel's own mutable view of a run and of its tasks. Their ``state`` is assigned in ``changes.py`` alone."""

from __future__ import annotations

from orchestrator.kernel.shape import Shape
from orchestrator.placement import Ask
from orchestrator.records import PlannedTask, RunRecord, TaskRunRecord
from orchestrator.states import RunState, TaskState


class RunNode:
    """One active run."""

    __slots__ = (
        "generation",
        "home",
        "id",
        "open",
        "order",
        "priority",
        "reason",
        "shape",
        "state",
        "tasks",
        "tenant_id",
    )

    def __init__(self, record: RunRecord, shape: Shape) -> None:
        self.id = record.id
        self.tenant_id = record.tenant_id
        self.state, self.reason = record.state, record.reason
        self.generation = record.generation
        self.priority = record.priority
        self.order = record.order
        self.shape = shape
        self.tasks: list[TaskNode] = []
        """By position in the plan."""
        self.open = 0
        """Tasks that are not terminal."""
        self.home = ""
        """Host on which its first outputs lie, when stores are local: later tasks would rather go there."""

    @property
    def is_cancelling(self) -> bool:
        return self.state is RunState.CANCELLING

    @property
    def dispatches(self) -> bool:
        return self.state is RunState.RUNNING


class TaskNode:
    """One task run, with the counters of its upstream states."""

    __slots__ = (
        "ask",
        "attempt_id",
        "attempts",
        "avoid",
        "cancelled",
        "failed",
        "failures",
        "generation",
        "id",
        "local_to",
        "losses",
        "position",
        "ready_at",
        "reason",
        "retry_at",
        "run",
        "skipped",
        "spared",
        "state",
        "success",
        "ticket",
        "upstream_failed",
    )

    def __init__(self, record: TaskRunRecord, run: RunNode, position: int) -> None:
        self.id = record.id
        self.run = run
        self.position = position
        self.state, self.reason = record.state, record.reason
        self.attempts = record.attempts
        self.failures = record.failures
        self.losses = record.losses
        self.generation = record.generation
        self.spared = 0
        """Tries that nobody was charged for, as far as this leader has seen: they slow down the next."""
        self.attempt_id = record.attempt_id
        self.retry_at = record.retry_at
        self.local_to = record.local_to
        self.ask: Ask | None = None
        """What it asks of placement, while it is ready."""
        self.ticket = 0
        """Its valid entry in the waiting line; an older one is passed over."""
        self.ready_at = 0.0
        self.avoid = ""
        """The worker that has just lost it for reasons that are not the task's; passed over once, if another fits."""
        self.clear_counts()

    @property
    def planned(self) -> PlannedTask:
        return self.run.shape.plan.tasks[self.position]

    @property
    def name(self) -> str:
        return self.planned.name

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
