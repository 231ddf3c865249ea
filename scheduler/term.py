"""One term of leadership: gather, decide, commit, send, until the lease is lost or the process is to stop."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Engine

from orchestrator.config import Settings
from orchestrator.effects import Annotate, Count
from orchestrator.errors import LostLeadership, StaleMemory, StoreUnavailable
from orchestrator.events import Event, ReconcileDue
from orchestrator.kernel import Kernel, KernelSettings
from orchestrator.kernel.hearing import Hearing
from orchestrator.logs import get_logger
from orchestrator.states import Entity
from orchestrator.store.engine import unanswered_is_unavailable
from orchestrator.store.lease import Lease
from orchestrator.store.loader import load_snapshot
from orchestrator.watchdog import Pulse
from orchestrator.wire.hints import HintPublisher
from orchestrator.wire.keys import Keys
from orchestrator.wire.mailbox import ReplySender
from orchestrator.wire.messages import DesiredState
from orchestrator.wire.redis import Client
from orchestrator.wire.seal import Seal
from scheduler.drift import find_drift
from scheduler.file_looks import FileLooks
from scheduler.inbox import Gathered, Inbox
from scheduler.lease_keeper import LeaseKeeper
from scheduler.outbox import HintsLost, Outbox, messages_of
from scheduler.transaction import Committed, Leader, Round
from scheduler.troubles import Troubles

log = get_logger(__name__)

BLOCK = 0.1
"""Longest wait on the stream: timers fire and the lease is checked this often."""
SHORTEST_WAIT = 0.01
POLL_SECONDS = 1.0


class Term:
    """The leading scheduler. Make one per term; it drops and rebuilds its memory as often as it must.

    :param stop: set when the process is to end.
    :param files: looks at files for the keys of the cache; one for all terms, for it may be held by some.
    :param take_counts: returns what others (the log collector) have refused since the last call.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        client: Client,
        lease: Lease,
        *,
        pulse: Pulse,
        stop: threading.Event,
        files: FileLooks | None = None,
        take_counts: Callable[[], list[Count]] = list,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        keys, seal = Keys(settings.redis_task_queue), Seal(settings.worker_key)
        self._settings = settings
        self._kernel_settings = KernelSettings.of(settings, lambda: str(uuid.uuid4()))
        self._engine = engine
        self._lease = lease
        self._pulse = pulse
        self._stop = stop
        self._take_counts = take_counts
        self._clock = clock
        self._inbox = Inbox(
            client,
            keys,
            seal,
            lease.holder,
            heartbeat=settings.heartbeat_interval_seconds,
            redispatch=settings.redispatch_seconds,
            clock=clock,
        )
        self._outbox = Outbox(ReplySender(client, keys, seal), HintPublisher(settings))
        self._leader = Leader(
            engine,
            lease.epoch,
            connections=settings.connections,
            registry_url=settings.model_registry_url or None,
            files=files,
        )
        self._kernel: Kernel | None = None
        self._heard_until = clock()
        """When the last round that was committed had heard the workers; at first, when the term began."""
        self._hearing = Hearing(self._heard_until)
        """What the last memory had heard until then."""
        self._has_heard = False
        """Whether the present memory has heard anything."""
        self._in_doubt = True
        """Whether something may have been committed whose messages were never sent."""
        self._poll_due = 0.0
        self._reconcile_due = 0.0
        self._more_queued = False
        self._own_events: list[Event] = []
        self._own_counts: list[Count] = []
        self._heard: dict[str, int] = {}
        """Sequence number of the latest heartbeat of each worker."""
        self._troubles = Troubles()

    def run(self) -> None:
        """Lead until told to stop.

        :raises LostLeadership: another scheduler has taken over.
        """
        log.info("leading", epoch=self._lease.epoch, holder=self._lease.holder)
        keeper = LeaseKeeper(self._lease, self._pulse)
        keeper.start()
        try:
            while not self._stop.is_set():
                self._pulse.beat()
                keeper.check()
                if self._lease.trusted():
                    self._step()
                else:
                    # PostgreSQL is away: nothing could be committed, and the keeper goes on trying.
                    self._drop_memory()
                    self._stop.wait(BLOCK)
        finally:
            keeper.stop()
            self._outbox.close()

    def _step(self) -> None:
        """Do one round; whatever goes wrong in it makes the memory worthless."""
        found = Gathered()
        self._leader.begin()
        try:
            if self._kernel is None:
                self._rebuild()
                return
            found = self._inbox.gather(self._patience(), self._troubles.batch)
            found.events = self._troubles.mend(found.events)
            if not self._inbox.available and not found.events:
                self._stop.wait(self._patience())
            self._round(self._kernel, found)
            self._troubles.passed()
        except LostLeadership:
            raise
        except StaleMemory as error:
            log.warning("memory_rebuilt", why=str(error))
            self._drop_memory()
            self._in_doubt = False
            self._own_counts.append(Count("stale_memory", str(error)))
            if not self._troubles.ask_less(found.entries):
                raise
            self._recover(found, may_mend=False)
        except StoreUnavailable as error:
            log.warning("postgres_away", why=str(error))
            self._drop_memory()
            if error.speaks_of_server:
                # A full disk is the fault of no run: none of them is put off, and no report dropped.
                self._stop.wait(self._troubles.back_off())
                return
            self._note_taken()
            self._troubles.ask_less(found.entries)
            self._recover(found, may_mend=False)
        except Exception:
            log.exception("round_failed", reports=len(found.entries), **self._leader.at_work)
            self._drop_memory()
            self._note_taken()
            if not self._troubles.may_go_on(found.entries):
                raise
            self._recover(found, may_mend=True)

    def _drop_memory(self) -> None:
        """Forget all but what was heard: the next step makes the memory anew from the rows."""
        if self._kernel is not None and self._has_heard:
            self._hearing = Hearing.of(self._kernel)
        self._kernel, self._has_heard = None, False

    def _recover(self, found: Gathered, *, may_mend: bool) -> None:
        """After a failed round: drop the report that fails every time, and wait a while."""
        if dropped := self._troubles.hopeless(found.entries, found.events, may_mend=may_mend):
            self._inbox.drop(dropped)
            self._own_counts.append(Count("dropped_report", f"The report {dropped[0]} failed every time."))
        self._stop.wait(self._troubles.back_off())

    def _rebuild(self) -> None:
        """Make the memory from the rows, and hear again what was heard but not committed."""
        self._inbox.start_over(messages_in_doubt=self._in_doubt)
        self._own_events = []
        kernel = Kernel(self._kernel_settings, self._clock())
        with unanswered_is_unavailable(), self._engine.connect() as connection:
            # One snapshot for all of it: rows that change in between would contradict each other.
            connection.execution_options(isolation_level="REPEATABLE READ")
            kernel.load(load_snapshot(connection, self._leader.plans, self._clock()), self._clock())
        now = self._clock()
        self._poll_due, self._reconcile_due = now + POLL_SECONDS, now + self._settings.reconcile_seconds
        self._hearing.hand_to(kernel, self._heard_until, now)
        # Neither heartbeats nor reports are read yet, but whether Redis can be read is known.
        round_ = Round(now, [*self._inbox.take_news(), ReconcileDue()], unread_for=math.inf)
        self._finish(kernel, Gathered(), self._leader.take_in(kernel, self._polling(self._bounded(round_))))
        self._kernel, self._in_doubt = kernel, True

    def _polling(self, round_: Round) -> Round:
        """Return the round with a look at the rows."""
        return replace(round_, poll=True, put_off=self._troubles.put_off(round_.now))

    def _bounded(self, round_: Round) -> Round:
        """Return the round no larger than may be tried now."""
        put_off = self._troubles.put_off_runs(round_.now)
        return replace(round_, most_tasks=self._troubles.most_tasks, put_off_runs=put_off)

    def _note_taken(self) -> None:
        """After a failed round: note which commands and runs were in it."""
        commands, runs = self._leader.taking, self._leader.starting
        if self._troubles.note_taken(commands, runs, self._clock()):
            what = f"command {commands[0]}" if commands else f"run {runs[0]}"
            log.error("put_off", what=what)
            self._own_counts.append(Count("put_off", f"The {what} failed each time that it was tried alone."))

    def _patience(self) -> float:
        """Return how long to wait on the stream: not at all when something is due."""
        if self._own_events:
            return 0.0
        now = self._clock()
        due = [BLOCK, self._poll_due - now]
        if self._leader.is_answered_soon:
            due.append(SHORTEST_WAIT)
        if self._kernel is not None and (timer := self._kernel.next_due(now)) is not None:
            # A timer that is due and can do nothing must not turn the wait into a spin.
            due.append(max(timer, SHORTEST_WAIT))
        return max(0.0, min(due))

    def _round(self, kernel: Kernel, found: Gathered) -> None:
        self._pulse.beat()
        now = self._clock()
        poll = found.woken or now >= self._poll_due
        events = [*self._own_events, *found.events]
        self._own_events = []
        if now >= self._reconcile_due:
            self._check_drift(kernel)
            self._reconcile_due = now + self._settings.reconcile_seconds
            events.append(ReconcileDue())
            self._heard = {id_: seq for id_, seq in self._heard.items() if id_ in kernel.workers}
        counts = [*found.counts, *self._own_counts]
        if poll:
            counts += self._take_counts()
            self._poll_due = now + POLL_SECONDS
        unread_for = now - found.read_until
        round_ = self._bounded(Round(now, events, counts, claims_waiting=found.claims_waiting, unread_for=unread_for))
        done = self._leader.take_in(kernel, self._polling(round_) if poll else round_)
        self._own_counts = []
        self._heard_until, self._has_heard = now, True
        if poll:
            self._more_queued = done.more_queued
        self._finish(kernel, found, done)

    def _finish(self, kernel: Kernel, found: Gathered, done: Committed) -> None:
        """Tell the workers what is committed, then acknowledge the reports that led to it."""
        for fault in done.faults:
            log.error("internal_error", run_id=fault.run_id, task=fault.task, exception=fault.trace)
        self._own_events += done.follow_up
        if done.more_at_once or done.run_queued or (done.run_ended and self._more_queued):
            self._poll_due = 0.0
        messages = messages_of(done.effects, done.specs)
        try:
            if self._inbox.available:
                self._outbox.send(messages)
                self._outbox.write_desired(self._desired(kernel, found, done))
            elif messages.hints:
                self._inbox.hints_lost()
        except StoreUnavailable as error:
            if isinstance(error, HintsLost):
                self._inbox.hints_lost()
            self._inbox.lost(error)
        self._inbox.acknowledge(found.entries)

    def _desired(self, kernel: Kernel, found: Gathered, done: Committed) -> list[tuple[str, DesiredState]]:
        """Return what each worker that was just heard is to bring about; all workers when a stop was just asked for."""
        self._heard.update((heartbeat.worker_id, heartbeat.seq) for heartbeat in found.heartbeats)
        urgent = done.commanded or any(
            isinstance(effect, Annotate) and effect.entity in (Entity.ATTEMPT, Entity.WORKER) for effect in done.effects
        )
        addressed = (
            [id_ for id_ in kernel.workers if id_ in self._heard]
            if urgent
            else list(dict.fromkeys(heartbeat.worker_id for heartbeat in found.heartbeats))
        )
        return [(id_, self._desired_of(kernel, id_)) for id_ in addressed]

    def _desired_of(self, kernel: Kernel, worker_id: str) -> DesiredState:
        wanted = kernel.desired(worker_id)
        return DesiredState(
            epoch=self._lease.epoch,
            hb_seq=self._heard[worker_id],
            cancel=wanted.cancel,
            fence=wanted.fence,
            confirm=wanted.confirm,
            drain=wanted.drain,
            drain_left=None if wanted.drain_until is None else max(0.0, wanted.drain_until - self._clock()),
            gen=self._inbox.generation,
        )

    def _check_drift(self, kernel: Kernel) -> None:
        with unanswered_is_unavailable(), self._engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ")
            if (drift := find_drift(connection, kernel)) is not None:
                raise StaleMemory(drift)
