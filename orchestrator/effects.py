"""What ``decide`` wants done: rows to write (in one transaction, first to last), then messages to send after commit.

Row effects are compare-and-set: the writer updates ``WHERE id = … AND state = before`` (and the token where one is
given); a row that does not match means the memory is stale, the transaction is rolled back and the kernel is rebuilt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.limits import Rate
from orchestrator.records import AttemptRecord, ChildPlan, Heartbeat, Outcome, Reservation, TaskRunRecord
from orchestrator.states import AnyState, Entity

MESSAGE_LIMIT = 8_000
"""Characters of a message that are kept in a row."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One entity changes state; becomes an UPDATE and a row of the append-only events table.

    ``changes`` are further columns of the same row, in the store's names; delays are given as ``("in", seconds)``
    and written as ``now() + seconds`` on the database's clock.
    """

    entity: Entity
    id: str
    before: AnyState
    after: AnyState
    cause: str
    """The event that led here: ``outcome``, ``claim``, ``upstream``, ``cancel``, ``lease``, ``timer`` …"""
    reason: str = ""
    message: str = ""
    actor: str = "scheduler"
    run_id: str | None = None
    task: str | None = None
    token: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    durable: bool = False
    """Its transaction must be on disk before anybody is told (DESIGN §4, Ids and tokens)."""
    detail: Mapping[str, Any] | None = None
    """What the audit is told besides. Where an attempt is charged it learns by itself (``store.fold``)."""


@dataclass(frozen=True, slots=True)
class Annotate:
    """Columns change while the state stays (a new ``reason`` to wait for, a hint re-sent, a cancel wanted)."""

    entity: Entity
    id: str
    state: AnyState
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CreateAttempt:
    """Insert the attempt and its event row (``→ dispatched``)."""

    attempt: AttemptRecord
    tenant_id: str
    task: str
    rate: Rate | None = None
    """For which limit, and for how long, it counts as a dispatch."""


@dataclass(frozen=True, slots=True)
class CreateTasks:
    """Insert the task runs of new indices or rounds of a container, and their event rows (``→ pending``)."""

    run_id: str
    tenant_id: str
    tasks: tuple[TaskRunRecord, ...]
    """In the order of their positions; ids are made by the rules, so that a crash expands once."""
    operators: tuple[str, ...]
    """Of each task, for its row."""


@dataclass(frozen=True, slots=True)
class StartChild:
    """Make a run of another pipeline for a task that is one; the transaction makes it and reports it in as
    ``RunSubmitted``, or as ``ChildRefused``."""

    run_id: str
    task_run_id: str
    tenant_id: str
    child_run_id: str
    """Its id, made by the rules."""
    child: ChildPlan
    parameters: Mapping[str, Any]
    depth: int
    priority: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """Look for the outputs of an equal task run; the transaction answers with ``CacheAnswered``."""

    run_id: str
    task_run_id: str


@dataclass(frozen=True, slots=True)
class SaveCircuit:
    """How an external service does, as its tasks see it: ``closed``, ``open`` or ``half_open``."""

    service: str
    state: str
    failures: int
    reason: str = ""
    open_for: float | None = None
    """Seconds until the next try is let through."""


@dataclass(frozen=True, slots=True)
class LearnMemory:
    """What a task with ``memory_gb: "auto"`` asks for the next time, and the most that it has used."""

    pipeline_id: str
    task: str
    """Its planned name."""
    memory: int
    peak: int = 0


@dataclass(frozen=True, slots=True)
class Reserve:
    """Insert the reservation, or replace the one of the same attempt."""

    reservation: Reservation
    moved: AttemptRecord | None = None
    """The live attempt, if it was charged elsewhere before: the audit is told where it is charged now (I13)."""
    task: str | None = None
    """Name of its task, if it moved."""


@dataclass(frozen=True, slots=True)
class Release:
    """Delete the attempt's reservation."""

    attempt_id: str
    zombie: Reservation | None = None
    """What was still held after the attempt's end; the audit is told that it is no more (I13)."""


@dataclass(frozen=True, slots=True)
class SaveOutcome:
    """Write what the attempt reported (exit code, usage, message) and, for a success, the task run's outputs and the
    records it leaves (models). ``task_run_id`` is where the outputs are published."""

    attempt_id: str
    task_run_id: str
    outcome: Outcome
    publish: bool
    """Whether the task run ends with this success, so that its outputs and records become visible."""


@dataclass(frozen=True, slots=True)
class SaveWorker:
    """Insert or update the worker's and the host's row from a heartbeat. ``joined``: first one of this incarnation."""

    heartbeat: Heartbeat
    joined: bool
    resized: bool = False
    """The host has another capacity than before; the audit is told (I13)."""


@dataclass(frozen=True, slots=True)
class CloseCommand:
    """The command was applied, or refused with a sentence."""

    command_id: int
    result: str


@dataclass(frozen=True, slots=True)
class Count:
    """Something happened that should be seen: ``denied``, ``fenced``, ``unknown``, ``lost``, ``uncharged``,
    ``redispatched``, ``repaired``, ``ownerless``, ``abandoned``, ``breaker``, ``orphaned``, ``adopted``,
    ``unreadable_plan``, ``refused_transition``, ``no_run_slot`` … (I19)."""

    what: str
    detail: str = ""


RowEffect = (
    Transition
    | Annotate
    | CreateAttempt
    | CreateTasks
    | SaveCircuit
    | LearnMemory
    | Reserve
    | Release
    | SaveOutcome
    | SaveWorker
    | CloseCommand
    | Count
)


@dataclass(frozen=True, slots=True)
class SendHint:
    """Publish ``{attempt, seq}`` to ``queue`` (a pool's queue, or ``w.<incarnation>``)."""

    attempt_id: str
    seq: int
    queue: str


@dataclass(frozen=True, slots=True)
class SendGrant:
    """Seal and send the grant: the spec is built from the plan, the upstream outputs and the connections."""

    attempt: AttemptRecord
    nonce: str


@dataclass(frozen=True, slots=True)
class SendDenial:
    """Refuse a claim; harms nothing. ``reason``: ``superseded``, ``cancelled``, ``unknown``, ``no_room`` …"""

    worker_id: str
    attempt_id: str
    nonce: str
    reason: str


@dataclass(frozen=True, slots=True)
class SendAnswer:
    """Answer an outcome: ``committed``, ``fenced`` or ``unknown``; the worker then stops re-sending."""

    worker_id: str
    attempt_id: str
    token: str
    verdict: str


@dataclass(frozen=True, slots=True)
class RetireQueue:
    """Delete the own queue ``w.<incarnation>`` of an ended incarnation."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Values met a fault of ours, which has failed the task (or the run) that they are for; for the log."""

    run_id: str
    task: str
    """Empty: the run itself."""
    trace: str


WireEffect = SendHint | SendGrant | SendDenial | SendAnswer | RetireQueue

Question = StartChild | LookUp
"""What the transaction itself brings about and reports back as an event of the same round."""

Effect = RowEffect | WireEffect | Question | Fault


def is_durable(effects: Iterable[Effect]) -> bool:
    """Say whether the transaction that writes these effects must be on disk before its messages are sent."""
    return any(isinstance(effect, CloseCommand) or getattr(effect, "durable", False) for effect in effects)
