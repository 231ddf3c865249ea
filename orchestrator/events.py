"""What can happen to the scheduler: the events that ``decide`` takes. Each is a fact, already authenticated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.records import EndedAttempt, Heartbeat, Outcome, Plan, RunRecord, TaskRunRecord


@dataclass(frozen=True, slots=True)
class RunSubmitted:
    """A queued run was taken from the store because there is a place for it (or a command concerns it)."""

    run: RunRecord
    tasks: tuple[TaskRunRecord, ...]
    plan: Plan
    hold: bool = False
    """Taken only because a command concerns it: it is not started by this."""
    unreadable: str = ""
    """Why its plan can't be read (``plan`` then only names its tasks); it fails for that."""


@dataclass(frozen=True, slots=True)
class ClaimReceived:
    """A worker asks for an attempt; the same (worker, nonce) may ask any number of times."""

    worker_id: str
    attempt_id: str
    seq: int
    nonce: str


@dataclass(frozen=True, slots=True)
class OutcomeReceived:
    """A worker reports an end; ``worker_id`` is the incarnation that *ran* it, ``reply_to`` the one that reports."""

    worker_id: str
    attempt_id: str
    token: str
    outcome: Outcome
    reply_to: str = ""
    ended: EndedAttempt | None = None
    """The row of the attempt, read beforehand when the kernel does not hold it; ``None`` also when there is none."""


@dataclass(frozen=True, slots=True)
class HeartbeatSeen:
    """A heartbeat with a sequence number not seen before."""

    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker says that it ends now and that nothing of it lives on."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class EndedRun:
    """The rows of a run that is over, read because it shall start again."""

    run: RunRecord
    tasks: tuple[TaskRunRecord, ...]
    plan: Plan
    unreadable: str = ""
    """Why its plan can't be read (``plan`` then only names its tasks)."""


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the commands table: ``kind`` is ``cancel`` (of a run, or of one task of it), ``pause``, ``resume``,
    ``rerun`` (of a run that is over), ``mark``, ``approve``, ``reject``, ``event``, ``drain`` or ``undrain``."""

    id: int
    kind: str
    actor: str
    run_id: str | None = None
    task: str | None = None
    worker_id: str | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    """``rerun``: ``from`` (``failed``, ``all`` or names of tasks) and ``generation``, the one that was to be seen."""
    ended: EndedRun | None = None
    """``rerun``: the rows of its run, read beforehand when they say that it is over."""


@dataclass(frozen=True, slots=True)
class ChildRefused:
    """The run that a task is could not be made; ``message`` says why."""

    task_run_id: str
    message: str


@dataclass(frozen=True, slots=True)
class CacheAnswered:
    """The answer to a ``LookUp``."""

    task_run_id: str
    key: str
    """Empty: no key could be worked out; it runs uncached."""
    origin: str | None = None
    """The task run whose outputs are taken; ``None``: a miss."""
    message: str = ""
    """Which component made the miss, or where the hit comes from."""
    outputs: Mapping[str, Any] | None = None
    """Of a hit."""
    local_to: str | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: leases, re-dispatch, retries, deadlines. Comes several times a second."""

    claims_waiting: bool = False
    """The stream still holds unread entries older than the re-dispatch time: claims may be among them."""
    unread_for: float = 0.0
    """Reports that were sent so many seconds ago may still lie unread; infinite before anything was read."""


@dataclass(frozen=True, slots=True)
class RedisAway:
    """The leader can't read Redis; leases of work stand still."""

    since: float | None = None
    """When it answered last, on the leader's monotonic clock; ``None``: just now."""


@dataclass(frozen=True, slots=True)
class RedisBack:
    """Redis answers again. ``reset``: its generation counter is missing or went back, so hints are lost."""

    reset: bool = False
    since: float | None = None
    """Since when it had been away, where the memory was made only after that; on the leader's monotonic clock."""


@dataclass(frozen=True, slots=True)
class ReconcileDue:
    """Recompute every active run from its task states and repair whatever events have missed."""


Event = (
    RunSubmitted
    | ClaimReceived
    | OutcomeReceived
    | HeartbeatSeen
    | WorkerLeft
    | Command
    | ChildRefused
    | CacheAnswered
    | Tick
    | RedisAway
    | RedisBack
    | ReconcileDue
)
