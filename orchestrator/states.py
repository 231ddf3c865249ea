"""The states of runs, task runs, attempts and workers, and the one table of allowed transitions.

``docs/states.md`` is generated from this module. A transition that is not in the table is refused and counted; every
transition that is made becomes a row in the append-only events table.
"""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    SCHEDULED = "scheduled"
    """Its time has not come."""
    QUEUED = "queued"
    """Accepted; waits for a place under ``MAX_CONCURRENT_RUNS``."""
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskState(StrEnum):
    PENDING = "pending"
    """Something upstream is still open."""
    READY = "ready"
    """Its rule is met; waits for admission, ``reason`` says for what."""
    QUEUED = "queued"
    """A reservation is held and a hint is sent."""
    RUNNING = "running"
    RETRY_WAIT = "retry_wait"
    WAITING = "waiting"
    """Waits for a person or an outside event; holds no slot."""
    CANCELLING = "cancelling"
    SUCCESS = "success"
    FAILED = "failed"
    UPSTREAM_FAILED = "upstream_failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    DISPATCHED = "dispatched"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    LOST = "lost"
    EXPIRED = "expired"
    """Never granted: given up or cancelled before any worker claimed it."""


class WorkerState(StrEnum):
    ONLINE = "online"
    SUSPECT = "suspect"
    """Silent for half its lease."""
    LOST = "lost"
    DRAINING = "draining"
    DRAINED = "drained"


class Entity(StrEnum):
    """What a transition is of."""

    RUN = "run"
    TASK_RUN = "task_run"
    ATTEMPT = "attempt"
    WORKER = "worker"


AnyState = RunState | TaskState | AttemptState | WorkerState

RUN_TERMINAL = frozenset({RunState.SUCCESS, RunState.FAILED, RunState.CANCELLED})
TASK_TERMINAL = frozenset(
    {TaskState.SUCCESS, TaskState.FAILED, TaskState.UPSTREAM_FAILED, TaskState.SKIPPED, TaskState.CANCELLED}
)
ATTEMPT_TERMINAL = frozenset(AttemptState) - {AttemptState.DISPATCHED, AttemptState.RUNNING}
WORKER_ENDED = frozenset({WorkerState.LOST, WorkerState.DRAINED})

_R, _T, _A, _W = RunState, TaskState, AttemptState, WorkerState

TRANSITIONS: dict[Entity, dict[AnyState, frozenset[AnyState]]] = {
    Entity.RUN: {
        _R.SCHEDULED: frozenset({_R.QUEUED, _R.CANCELLED}),
        # Failed without having run: no scheduler here can read its plan.
        _R.QUEUED: frozenset({_R.RUNNING, _R.FAILED, _R.CANCELLED}),
        _R.RUNNING: frozenset({_R.PAUSED, _R.CANCELLING, _R.SUCCESS, _R.FAILED, _R.CANCELLED}),
        _R.PAUSED: frozenset({_R.RUNNING, _R.CANCELLING, _R.CANCELLED}),
        # Failed: it was stopped because its time was up.
        _R.CANCELLING: frozenset({_R.CANCELLED, _R.FAILED}),
    },
    Entity.TASK_RUN: {
        # Running at once: a container, or a run as a task. Failed: its condition or its map can't be worked out.
        _T.PENDING: frozenset(
            {_T.READY, _T.RUNNING, _T.WAITING, _T.FAILED, _T.UPSTREAM_FAILED, _T.SKIPPED, _T.CANCELLED}
        ),
        # Success: an equal task run has left its outputs in the cache.
        # Retry or skipped without having run: it has waited for longer than it may.
        _T.READY: frozenset({_T.QUEUED, _T.RETRY_WAIT, _T.SUCCESS, _T.FAILED, _T.SKIPPED, _T.CANCELLED}),
        _T.QUEUED: frozenset({_T.RUNNING, _T.READY, _T.RETRY_WAIT, _T.FAILED, _T.SKIPPED, _T.CANCELLED}),
        _T.RUNNING: frozenset(
            {_T.SUCCESS, _T.FAILED, _T.SKIPPED, _T.RETRY_WAIT, _T.WAITING, _T.READY, _T.CANCELLING, _T.CANCELLED}
        ),
        _T.RETRY_WAIT: frozenset({_T.READY, _T.FAILED, _T.CANCELLED}),
        _T.WAITING: frozenset({_T.READY, _T.SUCCESS, _T.FAILED, _T.SKIPPED, _T.CANCELLED}),
        # Failed: it was stopped because its time was up.
        _T.CANCELLING: frozenset({_T.CANCELLED, _T.FAILED}),
    },
    Entity.ATTEMPT: {
        _A.DISPATCHED: frozenset({_A.RUNNING, _A.EXPIRED}),
        _A.RUNNING: frozenset({_A.SUCCEEDED, _A.FAILED, _A.TIMED_OUT, _A.CANCELLED, _A.PREEMPTED, _A.LOST}),
    },
    Entity.WORKER: {
        _W.ONLINE: frozenset({_W.SUSPECT, _W.LOST, _W.DRAINING, _W.DRAINED}),
        _W.SUSPECT: frozenset({_W.ONLINE, _W.LOST, _W.DRAINING, _W.DRAINED}),
        _W.DRAINING: frozenset({_W.DRAINED, _W.LOST, _W.ONLINE}),
        # A frozen or cut-off incarnation may speak again; its attempts stay lost and are fenced.
        _W.LOST: frozenset({_W.ONLINE, _W.DRAINING, _W.DRAINED}),
    },
}
"""Allowed transitions. A state with no row is terminal; only ``rerun`` and ``mark`` lead out of it, as a new
generation (DESIGN §2): :data:`REOPENINGS`."""

REOPENINGS: dict[Entity, tuple[frozenset[AnyState], AnyState]] = {
    Entity.RUN: (frozenset[AnyState](RUN_TERMINAL), _R.QUEUED),
    Entity.TASK_RUN: (frozenset[AnyState](TASK_TERMINAL), _T.PENDING),
}
"""What a rerun may leave, and where it leads: a run waits for its place again, a task run for its upstreams. Each is
audited and raises the ``generation`` of its row by one. An attempt that has ended stays so: a rerun makes new ones."""

MARKS = frozenset({_T.SUCCESS, _T.FAILED, _T.SKIPPED})
"""What a person may mark a task run as that nothing of runs: audited; one that was over is its next generation then."""

RERUN_OF_FAILED = frozenset({_T.FAILED, _T.UPSTREAM_FAILED, _T.CANCELLED})
"""The task runs that a rerun starts from when it is to start from what failed."""


def is_allowed(entity: Entity, before: AnyState, after: AnyState) -> bool:
    """Say whether the table allows this transition."""
    return after in TRANSITIONS[entity].get(before, frozenset())


def is_reopening(entity: Entity, before: AnyState, after: AnyState) -> bool:
    """Say whether a rerun, and nothing else, may bring this about."""
    left, entered = REOPENINGS.get(entity, (frozenset(), None))
    return before in left and after is entered
