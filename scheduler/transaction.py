"""The leader's one transaction: hold the epoch, read what the rules need, decide, write, commit (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

from sqlalchemy import Connection, Engine, text

from orchestrator.compile import Site
from orchestrator.effects import Annotate, Count, Effect, Fault, RowEffect, SendGrant, Transition, is_durable
from orchestrator.events import Command, Event, OutcomeReceived, RunSubmitted, Tick
from orchestrator.kernel import Kernel, decide, would_publish
from orchestrator.records import AttemptRecord, Outcome
from orchestrator.states import RUN_TERMINAL, AttemptState, Entity, RunState
from orchestrator.store.engine import unanswered_is_unavailable
from orchestrator.store.grants import GrantedTask, build_specs, reason_of
from orchestrator.store.lease import lock_epoch
from orchestrator.store.loader import (
    MOST_TASKS,
    load_attempts,
    load_commands,
    load_ended_runs,
    load_queued_runs,
    load_runs,
    paused_pipelines,
    untold,
)
from orchestrator.store.plans import PlanCache
from orchestrator.store.writer import write
from orchestrator.wire.messages import GrantSpec
from scheduler.file_looks import FileLooks
from scheduler.missed_artifacts import tell_removals
from scheduler.questions import MOST_CHILDREN, Questions, Room
from scheduler.registered_models import settle_registrations

_RELAXED = text("SET LOCAL synchronous_commit TO off")
_ROW_EFFECTS = get_args(RowEffect)
OF_ENDED_RUNS = frozenset({"rerun", "mark"})
"""Kinds of commands that may start a run again."""
MOST_AHEAD = 100
"""Runs that are looked at beyond the free places where some of those before them are held back by a limit."""
PUT_OFF = "put_off"
PUT_OFF_MESSAGE = (
    "To start it has failed each time, so that it waits while others are started, and is tried again later; the "
    "scheduler's log says why."
)


@dataclass(frozen=True, slots=True)
class Round:
    """What one transaction is to take in."""

    now: float
    """Leader's monotonic clock."""
    events: Sequence[Event] = ()
    counts: Sequence[Count] = ()
    poll: bool = False
    """Also look for open commands and queued runs in the rows."""
    most_tasks: int = MOST_TASKS
    """Take of either only what comes to so many tasks, or one. With 1 the round takes in one thing alone: a command, or
    a run, or makes a run that is a task; should it fail, that is the cause."""
    put_off: frozenset[int] = frozenset()
    """Commands to leave for later."""
    put_off_runs: frozenset[str] = frozenset()
    """Runs to leave for later."""
    claims_waiting: bool = False
    unread_for: float = 0.0
    """See :class:`Tick`."""

    @property
    def tick(self) -> Tick:
        return Tick(self.claims_waiting, self.unread_for)

    @property
    def is_alone(self) -> bool:
        return self.most_tasks == 1

    @property
    def room(self) -> Room:
        """What may be made in it for tasks that are runs."""
        return Room(children=min(MOST_CHILDREN, self.most_tasks), tasks=self.most_tasks, put_off=self.put_off_runs)


@dataclass(slots=True)
class Committed:
    """What was committed, and what is to be sent now."""

    effects: list[Effect] = field(default_factory=list)
    specs: dict[str, GrantSpec] = field(default_factory=dict)
    commanded: bool = False
    more_queued: bool = False
    """Runs may still be waiting for a place under ``MAX_CONCURRENT_RUNS``."""
    more_at_once: bool = False
    """There may be more commands, or runs that have a place, or runs to be made, than one transaction was to take."""
    follow_up: list[Event] = field(default_factory=list)
    """Outcomes of attempts that can never run, because no grant of them can be made, or none was sent."""

    @property
    def run_ended(self) -> bool:
        """Whether a place for another run came free."""
        return any(
            isinstance(effect, Transition) and effect.entity is Entity.RUN and effect.after in RUN_TERMINAL
            for effect in self.effects
        )

    @property
    def faults(self) -> list[Fault]:
        """What has failed by a fault of ours, for the log."""
        return [effect for effect in self.effects if isinstance(effect, Fault)]

    @property
    def run_queued(self) -> bool:
        """Whether a run that was over waits for its place again."""
        return any(
            isinstance(effect, Transition) and effect.entity is Entity.RUN and effect.after is RunState.QUEUED
            for effect in self.effects
        )


class Leader:
    """Runs the rules inside transactions at one epoch.

    :param connections: the site's named connections, for grants.
    :param files: looks at the files of tasks, for the keys of the cache; none: they are found nowhere.
    """

    def __init__(
        self,
        engine: Engine,
        epoch: int,
        *,
        connections: Mapping[str, Mapping[str, Any]],
        registry_url: str | None,
        files: FileLooks | None = None,
    ) -> None:
        self._engine = engine
        self._epoch = epoch
        self._connections = connections
        self._registry_url = registry_url
        self.plans = PlanCache()
        self._files = files or FileLooks()
        self._questions = Questions(self.plans, Site(connections=frozenset(connections)), self._files)
        self.taking: tuple[int, ...] = ()
        """The commands in the present transaction, or in the one that failed."""
        self._starting: tuple[str, ...] = ()
        self._kernel: Kernel | None = None
        self._ahead = 0

    @property
    def starting(self) -> tuple[str, ...]:
        """The runs that were to be started, or to be made, in the present transaction, or in the one that failed."""
        return (*self._starting, *self._questions.making)

    @property
    def at_work(self) -> dict[str, str]:
        """The ids of what the rules were looking at when the present transaction failed in them."""
        node = None if self._kernel is None else self._kernel.at_work
        return {} if node is None else {"run_id": node.run.id, "task": node.name}

    @property
    def is_answered_soon(self) -> bool:
        """Whether another round may have an answer in no time that this one was still waiting for."""
        return self._files.is_soon_done

    def begin(self) -> None:
        """Begin a step: nothing has been taken yet."""
        self.taking, self._starting, self._questions.making = (), (), ()
        self._kernel = None

    def take_in(self, kernel: Kernel, round_: Round) -> Committed:
        """Decide and commit one round. When it raises, the kernel's memory is worthless: rebuild it.

        :raises LostLeadership: the epoch is over; nothing was written.
        :raises StaleMemory: a row is not as the kernel remembers it; nothing was written.
        :raises StoreUnavailable: PostgreSQL does not answer; whether it was written is unknown.
        """
        done = Committed()
        self.begin()
        self._kernel = kernel
        self._questions.begin(kernel, round_.room)
        if not (round_.events or round_.counts or round_.poll or self._questions.are_open):
            # Most rounds are only the passing of time; without effects they need no transaction.
            done.effects += decide(kernel, round_.tick, round_.now)
            if not done.effects:
                return done
            with unanswered_is_unavailable(), self._engine.begin() as connection:
                lock_epoch(connection, self._epoch)
                self._finish(connection, kernel, round_, done)
            return done
        with unanswered_is_unavailable(), self._engine.begin() as connection:
            lock_epoch(connection, self._epoch)
            self._decide(connection, kernel, round_, done)
            done.effects += round_.counts
            self._finish(connection, kernel, round_, done)
        return done

    def _decide(self, connection: Connection, kernel: Kernel, round_: Round, done: Committed) -> None:
        now = round_.now
        events = tell_removals(connection, self._with_ended_attempts(connection, kernel, round_.events))
        for event in settle_registrations(connection, events, partial(would_publish, kernel)):
            done.effects += decide(kernel, event, now)
        if round_.poll:
            for run_id in untold(connection, round_.put_off_runs, PUT_OFF):
                columns = {"reason": PUT_OFF, "message": PUT_OFF_MESSAGE}
                done.effects.append(Annotate(Entity.RUN, run_id, RunState.QUEUED, columns))
            for event in self._commands(connection, kernel, round_):
                done.effects += decide(kernel, event, now)
                done.commanded = True
            done.more_at_once = done.commanded
            if not (round_.is_alone and (self.taking or self._questions.are_children_open)):
                self._start_runs(connection, kernel, round_, done)
        if round_.is_alone and (self.taking or self._starting):
            self._questions.make_none()
        done.effects += decide(kernel, round_.tick, now)

    def _start_runs(self, connection: Connection, kernel: Kernel, round_: Round, done: Committed) -> None:
        """Take in the queued runs that have a place. Where some of those are held back by a limit, others further
        behind are looked at for their places, more of them at once."""
        free, paused = kernel.run_slots_free(), paused_pipelines(connection)
        queued = load_queued_runs(
            connection,
            self.plans,
            round_.now,
            limit=free + self._ahead if free else 0,
            most_tasks=round_.most_tasks,
            held_back=kernel.held_back(paused),
            put_off=round_.put_off_runs,
        )
        is_full = sum(len(run.tasks) for run in queued) >= round_.most_tasks
        done.more_queued = is_full or free <= 0 or sum(not run.run.is_inside for run in queued) >= free
        self._starting = tuple(run.run.id for run in queued)
        looked_at: list[str] = []
        for run in queued:
            needs_place = not run.run.is_inside and not run.unreadable
            if needs_place and free <= 0:
                continue
            done.effects += decide(kernel, run, round_.now)
            if not kernel.knows_run(run.run.id):
                looked_at.append(run.run.id)
            elif needs_place:
                free -= 1
        is_held = bool(looked_at) and not set(kernel.held_back(paused).runs).isdisjoint(looked_at)
        self._ahead = MOST_AHEAD if is_held else 0
        done.more_at_once |= is_full or is_held

    def _commands(self, connection: Connection, kernel: Kernel, round_: Round) -> Iterable[Event]:
        """Yield the open commands, each run they concern before them when the kernel does not hold it; one that may
        start a run again has its rows with it."""
        now = round_.now
        commands: list[Command] = load_commands(
            connection, left_alone=kernel.unreadable, most_tasks=round_.most_tasks, put_off=round_.put_off
        )
        self.taking = tuple(command.id for command in commands)
        unknown = [c.run_id for c in commands if c.run_id is not None and not kernel.knows_run(c.run_id)]
        held: list[RunSubmitted] = load_runs(connection, self.plans, now, unknown)
        reruns = [c.run_id for c in commands if c.kind in OF_ENDED_RUNS and c.run_id in unknown]
        ended = load_ended_runs(connection, self.plans, now, filter(None, reruns))
        return [
            *held,
            *(replace(c, ended=ended.get(c.run_id or "")) if c.kind in OF_ENDED_RUNS else c for c in commands),
        ]

    @staticmethod
    def _with_ended_attempts(connection: Connection, kernel: Kernel, events: Sequence[Event]) -> list[Event]:
        """Add to outcomes of attempts that the kernel does not hold what the rows say of them."""
        unheld = [
            event.attempt_id
            for event in events
            if isinstance(event, OutcomeReceived) and not kernel.holds_attempt(event.attempt_id)
        ]
        if not unheld:
            return list(events)
        rows = load_attempts(connection, unheld)
        return [
            replace(event, ended=rows.get(event.attempt_id))
            if isinstance(event, OutcomeReceived) and not kernel.holds_attempt(event.attempt_id)
            else event
            for event in events
        ]

    def _finish(self, connection: Connection, kernel: Kernel, round_: Round, done: Committed) -> None:
        """Write what was decided and answer what the rules ask, in turns, until nothing is asked; then build grants.

        A question may be about what was just decided, so that is written before it is answered. There is an end to it,
        for a round has room for so many answers.
        """
        effects = list(done.effects)
        while True:
            if rows := [effect for effect in effects if isinstance(effect, _ROW_EFFECTS)]:
                write(connection, rows, self._epoch)
            answers = self._questions.answer(connection, kernel, effects, round_.now)
            if not answers:
                break
            effects = [effect for answer in answers for effect in decide(kernel, answer, round_.now)]
            # What became ready by an answer is dispatched at once.
            effects += decide(kernel, round_.tick, round_.now)
            done.effects += effects
        # Workers are heard in between; what could not be answered is asked again at once.
        done.more_at_once |= self._questions.are_open
        if not is_durable(done.effects):
            connection.execute(_RELAXED)
        wanted = [effect.attempt for effect in done.effects if isinstance(effect, SendGrant)]
        # One that has ended or was cancelled in the same round gets none.
        granted = [attempt for attempt in wanted if kernel.is_granted(attempt)]
        if granted:
            self._build_grants(connection, kernel, granted, done)
        if len(granted) < len(wanted):
            done.follow_up += _withheld(kernel, done.effects)

    def _build_grants(
        self, connection: Connection, kernel: Kernel, granted: Sequence[AttemptRecord], done: Committed
    ) -> None:
        items = []
        for attempt in {attempt.id: attempt for attempt in granted}.values():
            _, tenant_id, _ = kernel.task_of(attempt)
            plan, generation = kernel.plan_of(attempt.run_id), kernel.tasks[attempt.task_run_id].generation
            items.append(GrantedTask(attempt, tenant_id, kernel.planned(attempt), plan, generation))
        built = build_specs(connection, items, self._connections, self._registry_url, self.plans)
        for attempt_id, spec in built.items():
            if isinstance(spec, GrantSpec):
                done.specs[attempt_id] = spec
                continue
            attempt = next(item.attempt for item in items if item.attempt.id == attempt_id)
            done.follow_up.append(_impossible(attempt, reason_of(spec), str(spec)))


def _withheld(kernel: Kernel, effects: Iterable[Effect]) -> Iterator[OutcomeReceived]:
    """Return the end of attempts that were cancelled in the very round that granted them: as nobody is sent the grant,
    nobody will ever report it. One that was granted before may be running, and its worker is asked."""
    claimed = {
        effect.id
        for effect in effects
        if isinstance(effect, Transition) and effect.entity is Entity.ATTEMPT and effect.cause == "claim"
    }
    for attempt in filter(None, map(kernel.attempts.get, sorted(claimed))):
        if attempt.cancel:
            message = "Cancelled before its worker was told of it; nothing of it has run."
            outcome = Outcome(AttemptState.CANCELLED, "cancelled", message, retryable=False)
            yield OutcomeReceived(attempt.worker_id, attempt.id, attempt.token, outcome)


def _impossible(attempt: AttemptRecord, reason: str, message: str) -> OutcomeReceived:
    outcome = Outcome(AttemptState.FAILED, reason=reason, message=message, retryable=False)
    return OutcomeReceived(attempt.worker_id, attempt.id, attempt.token, outcome)
