"""A small world around the kernel: leaders and their transactions, people, time; hosts and workers are its site."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from orchestrator import effects as fx
from orchestrator.events import (
    ChildRefused,
    Command,
    EndedRun,
    Event,
    HeartbeatSeen,
    OutcomeReceived,
    ReconcileDue,
    RedisAway,
    RedisBack,
    RunSubmitted,
    Tick,
)
from orchestrator.kernel import Kernel, KernelSettings, decide
from orchestrator.kernel.hearing import Hearing
from orchestrator.records import Heartbeat, Plan, RunRecord, TaskRunRecord
from orchestrator.states import RUN_TERMINAL, WORKER_ENDED, AttemptState, Entity, RunState, TaskState, WorkerState
from tests.unit.simulated_judge import Violation
from tests.unit.simulated_plans import PIPELINES
from tests.unit.simulated_site import LEASE, OUTCOMES, Reply, Site, Tree
from tests.unit.simulated_store import MOST_CHILDREN, MOST_TURNS, LostLease, ModelStore, StaleRow

ADOPT_SECONDS = 40.0
BEAT_LIVES = 60.0


def check_books(kernel: Kernel) -> None:
    """Hold the kernel's sums and devices against its reservations (I13)."""
    ledger = kernel.ledger
    for host in ledger.hosts.values():
        held = [r for r in ledger.reservations.values() if r.host_id == host.id]
        devices = {device: r.attempt_id for r in held for device in r.devices}
        if len(devices) != sum(len(r.devices) for r in held) or devices != host.devices_used:
            raise Violation(f"I13: host {host.id} marks {host.devices_used}, reservations hold {held}")
        sums = sum(r.resources.cpu for r in held), sum(r.resources.memory for r in held)
        if sums != (host.cpu_used, host.memory_used):
            raise Violation(f"I13: host {host.id} counts {host.cpu_used}, {host.memory_used}, reservations {sums}")


class World(Site):
    """Everything outside of the kernel, driven by the state machine's rules."""

    def __init__(self, *, breaker: bool = True) -> None:
        super().__init__()
        self.breaker = breaker
        self.store = ModelStore()
        self.store.pipelines.update(PIPELINES)
        self.commands: list[Command] = []
        self.late_commands: list[Command] = []
        """What the API has checked already and not written yet."""
        self.was_reset = False
        self.redis_away = False
        self.lost_rows: set[str] = set()
        """Attempts for which a crash of the database has lost what was reserved."""
        self.gone_from: dict[str, float] = {}
        """Workers that have ended, and when the leader has surely heard their last word."""
        self.undisturbed_from = self.now
        """Since when one leader has heard all there was to hear."""
        self.has_read = False
        """Whether the leader's memory has heard anything."""
        self.left: set[str] = set()
        """Workers that have told the leader that they end, by what they have preempted."""
        self.asked = WeakKeyDictionary[Kernel, dict[str, fx.StartChild]]()
        """Runs that are tasks, which the leader with this memory still has to make."""
        self.old_leader: tuple[Kernel, int] | None = None
        self.kernel, self.epoch = self._lead()

    # Leaders

    def _lead(self) -> tuple[Kernel, int]:
        self.store.epoch += 1
        self.undisturbed_from = self.now
        kernel = self._rebuild()
        Hearing(self.now).hand_to(kernel, self.now, self.now)
        return kernel, self.store.epoch

    def _rebuild(self) -> Kernel:
        settings = KernelSettings(
            new_id=self.new_id,
            max_runs=4,
            redispatch=20.0,
            lease=LEASE,
            adopt_seconds=ADOPT_SECONDS,
            breaker=self.breaker,
        )
        kernel = Kernel(settings, self.now)
        kernel.load(self.store.snapshot(self.now), self.now)
        self.read_seq: dict[str, int] = {}
        self.pending: list[Event] = [RedisAway(), ReconcileDue()] if self.redis_away else [ReconcileDue()]
        return kernel

    def change_leader(self, *, lose_tail: bool, keep_old: bool) -> None:
        """Another scheduler takes over; the old one may live on without knowing."""
        if keep_old:
            self.old_leader = (self.kernel, self.epoch)
        if lose_tail:
            before = set(self.store.reservations)
            self.store.lose_tail()
            self.lost_rows |= before - set(self.store.reservations)
        self.kernel, self.epoch = self._lead()
        self._begin()

    def _begin(self) -> None:
        """The first transaction of a new memory: it has read the rows, and nothing of the workers yet."""
        events, self.pending = [*self.pending, Tick(unread_for=math.inf)], []
        self._transact(self.kernel, self.epoch, iter(events))
        self.has_read = False

    def postgres_returns(self, deaf_from: float) -> None:
        """PostgreSQL was away since then: the same leader makes its memory anew, and remembers whom it has heard."""
        hearing = Hearing.of(self.kernel)
        self.undisturbed_from = self.now
        self.kernel = self._rebuild()
        hearing.hand_to(self.kernel, deaf_from, self.now)
        self._begin()

    def step(self, taken: list[Event], *, reconcile: bool = False) -> None:
        """One transaction of the leader: what it gathered, then a tick; messages go out after the commit."""
        self._transact(self.kernel, self.epoch, self._gather(taken, reconcile))
        if not self.redis_away:
            self._check_dead_are_seen()

    def _gather(self, taken: list[Event], reconcile: bool) -> Iterator[Event]:
        if self.pending or not self.has_read:
            self.undisturbed_from = self.now
            self.has_read = not self.redis_away
        yield from self.pending
        self.pending = []
        if self.was_reset and not self.redis_away:
            self.was_reset = False
            yield RedisBack(reset=True)
        if self.redis_away:
            self.stream[:0] = taken
        else:
            for beat in self._changed_beats():
                yield HeartbeatSeen(beat)
            yield from taken
        yield from self._commanded()
        for run in self.store.queued_runs():
            if self.kernel.run_slots_free() > 0 or run.is_inside:
                yield self._submission(run)
        if reconcile:
            yield ReconcileDue()
        yield Tick(unread_for=math.inf if self.stream else 0.0)

    def _changed_beats(self) -> list[Heartbeat]:
        """Return the heartbeats that this memory has not read yet."""
        for worker_id in [id_ for id_, at in self.beat_at.items() if self.now - at > BEAT_LIVES]:
            del self.beat_at[worker_id]
            self.beats.pop(worker_id, None)
        changed = [beat for beat in self.beats.values() if self.read_seq.get(beat.worker_id) != beat.seq]
        self.read_seq = {beat.worker_id: beat.seq for beat in self.beats.values()}
        return changed

    def _commanded(self) -> list[Event]:
        """Return the open commands with the rows they need, all read before the first of them is applied."""
        held: list[Event] = []
        commands, self.commands = self.commands, []
        for at, command in enumerate(commands):
            run = self.store.runs.get(command.run_id or "")
            if run is None or self.kernel.knows_run(run.id):
                continue
            if run.state is RunState.QUEUED:
                held.append(self._submission(run, hold=True))
            elif command.kind in ("rerun", "mark") and run.state in RUN_TERMINAL:
                rows = self._submission(run)
                commands[at] = replace(command, ended=EndedRun(rows.run, rows.tasks, rows.plan))
        return [*held, *commands]

    def _submission(self, run: RunRecord, *, hold: bool = False) -> RunSubmitted:
        rows = tuple(self.store.task_runs[i] for i in self.store.tasks_of[run.id])
        return RunSubmitted(run, rows, self.store.plans[run.id], hold)

    def _transact(self, kernel: Kernel, epoch: int, events: Iterator[Event]) -> None:
        effects: list[fx.Effect] = []
        seen: list[Event] = []
        for event in events:
            seen.append(self._with_row(kernel, event))
            effects += self._decided(kernel, seen[-1])
        effects += self._made(kernel)
        live = {row.id: row.host_id for row in self.store.workers.values() if row.state not in WORKER_ENDED}
        live |= {e.heartbeat.worker_id: e.heartbeat.host_id for e in effects if isinstance(e, fx.SaveWorker)}
        try:
            self.store.commit(epoch, effects, seen, self.now)
        except StaleRow as error:
            if kernel is self.kernel and self.store.checks_epoch:
                raise Violation(f"the leader's memory differs from the rows: {error}") from error
            if kernel is self.kernel:
                self.kernel = self._rebuild()
            return
        check_books(kernel)
        if kernel is self.kernel:
            self.store.asked = {effect.child_run_id for effect in self.asked[kernel].values()}
            self.store.check_timers(self.now)
        self._check_places(effects)
        self._check_given_up(effects, live)
        if self.redis_away:
            return
        self._send(kernel, effects)
        for worker_id in self.beats:
            self.desired[worker_id] = kernel.desired(worker_id)

    def _check_places(self, effects: list[fx.Effect]) -> None:
        """Hold what was decided against how things really are on the hosts."""
        for effect in effects:
            if isinstance(effect, fx.Annotate) and (keeper := effect.changes.get("keeper_id")):
                if (keeper, effect.id) not in self.had:
                    raise Violation(f"I2: {effect.id} is kept by {keeper}, which never had its tree")
            elif isinstance(effect, fx.SaveOutcome) and effect.attempt_id in self.preempted_by:
                self.left.add(self.preempted_by[effect.attempt_id])
            elif isinstance(effect, fx.Transition) and effect.cause == "undrain":
                # A person has said otherwise; so it is until the worker itself is heard again.
                self.left.discard(effect.id)
            elif isinstance(effect, fx.CreateAttempt) and effect.attempt.worker_id in self.left:
                raise Violation(f"drain: {effect.attempt.id} goes to {effect.attempt.worker_id}, which preempts all")

    def _check_given_up(self, effects: list[fx.Effect], live: dict[str, str]) -> None:
        """Nothing of a worker that speaks is given up; and of many that are silent not many at once (I11).

        :param live: the workers before and those that were heard just now, each with its host.
        """
        lost = [effect for effect in effects if isinstance(effect, fx.Transition) and effect.cause != "outcome"]
        for effect in lost:
            if effect.entity is not Entity.ATTEMPT or effect.after is not AttemptState.LOST:
                continue
            row = self.store.attempts[effect.id]
            worker = self.workers.get(row.keeper_id or row.worker_id)
            if worker is None or not worker.speaks(self.now if self.redis_down_from is None else self.redis_down_from):
                continue
            is_reported = any(
                isinstance(report, OutcomeReceived) and (report.attempt_id, report.token) == (row.id, row.token)
                for report in self.stream
            )
            has_tree = row.id in worker.trees and worker.trees[row.id].token == row.token
            if is_reported or (has_tree and effect.reason != "overdue"):
                raise Violation(f"live: {row.id} of {worker.id}, which speaks, is lost: {effect.reason}")
        given_up = {e.id for e in lost if e.after is WorkerState.LOST and e.cause == "lease"} & live.keys()
        is_mass = len(given_up) >= 3 and len(given_up) > len(live) / 2 and len({live[id_] for id_ in given_up}) > 1
        if self.breaker and is_mass:
            raise Violation(f"I11: {sorted(given_up)} of {sorted(live)} are given up at once")

    def _check_dead_are_seen(self) -> None:
        """A worker that is gone is given up after its lease (I6), unless many are silent and held up."""
        # A crash of the database may have lost that it was ever heard.
        self.gone_from = {id_: at for id_, at in self.gone_from.items() if id_ in self.store.workers}
        for row in self.store.workers.values():
            if row.state in WORKER_ENDED or row.id in self.workers:
                continue
            gone_from = max(self.gone_from.setdefault(row.id, self.now), self.undisturbed_from)
            if self.now - gone_from > LEASE and not self.breaker:
                raise Violation(f"I6: {row.id} is gone for {self.now - gone_from:g} s and still {row.state}")

    def deliver(self, reply: Reply) -> None:
        """Bring one reply to its worker; what it starts must be charged to its host (I13)."""
        if self.redis_down_from is not None:
            return
        worker = self.workers.get(reply[1])
        before = set(worker.trees) if worker else set()
        super().deliver(reply)
        if worker and (started := set(worker.trees) - before - set(self.store.reservations) - self.lost_rows):
            raise Violation(f"I13: {started} starts at {worker.id}, and nothing is charged for it")

    def _decided(self, kernel: Kernel, event: Event) -> Iterator[fx.Effect]:
        """Yield what is decided; the run that a task asks to be is noted, to be made."""
        for effect in decide(kernel, event, self.now):
            if isinstance(effect, fx.StartChild):
                self.asked.setdefault(kernel, {})[effect.task_run_id] = effect
            else:
                yield effect

    def _made(self, kernel: Kernel) -> Iterator[fx.Effect]:
        """Yield the making of runs that tasks ask to be, and what follows: so many, the others are left for the next
        transaction."""
        asked, left = self.asked.setdefault(kernel, {}), MOST_CHILDREN
        for _ in range(MOST_TURNS):
            if not asked or not left:
                return
            for task_run_id in list(asked)[:left]:
                effect, node = asked.pop(task_run_id), kernel.tasks.get(task_run_id)
                left -= 1
                if node is None or node.state is not TaskState.RUNNING:
                    yield from self._decided(kernel, ChildRefused(task_run_id, "It is not wanted any more."))
                    continue
                yield effect
                if (answer := self._answer(effect)) is not None:
                    yield from self._decided(kernel, answer)
            yield from self._decided(kernel, Tick(unread_for=math.inf))

    def _answer(self, effect: fx.StartChild) -> Event | None:
        """Return the run that was made, as submitted, or why none was."""
        made = self.store.child_of(effect)
        if made is None:
            return ChildRefused(effect.task_run_id, "There is no such pipeline.")
        record, plan = made
        rows = (TaskRunRecord(f"{record.id}/t{n}", record.id, t.name) for n, t in enumerate(plan.tasks))
        return RunSubmitted(record, tuple(rows), plan)

    def _with_row(self, kernel: Kernel, event: Event) -> Event:
        """Read the attempt's row beforehand where the kernel does not hold it, as the scheduler does."""
        if isinstance(event, OutcomeReceived) and not kernel.holds_attempt(event.attempt_id):
            return replace(event, ended=self.store.ended(event.attempt_id))
        return event

    def old_leader_acts(self) -> None:
        """The replaced leader thaws and goes on from its stale memory; its transaction must not be written."""
        if self.old_leader is None:
            return
        kernel, epoch = self.old_leader
        self.old_leader = None
        events: list[Event] = [*self.stream, Tick()]
        for run in self.store.queued_runs():
            events.insert(0, self._submission(run))
        before = len(self.store.tail), self.store.epoch
        try:
            self._transact(kernel, epoch, iter(events))
        except LostLease:
            return
        if epoch != self.store.epoch and self.store.checks_epoch:
            raise Violation(f"I9: a replaced leader has written {before}")

    def _send(self, kernel: Kernel, effects: list[fx.Effect]) -> None:
        for effect in effects:
            match effect:
                case fx.SendHint():
                    self.hints.append((effect.queue, effect.attempt_id, effect.seq))
                case fx.SendGrant(attempt=attempt, nonce=nonce) if kernel.is_granted(attempt):
                    self.store.note_grant(attempt, nonce)
                    worker = self.workers.get(attempt.worker_id)
                    if worker is not None and not set(attempt.devices) <= set(worker.mask):
                        raise Violation(f"I13: {attempt.id} is granted {attempt.devices} at {worker.id}, {worker.mask}")
                    tree = Tree(attempt.token, attempt.worker_id, kernel.planned(attempt))
                    self.replies.append(("grant", attempt.worker_id, attempt.id, nonce, tree))
                case fx.SendDenial():
                    self.replies.append(("denial", effect.worker_id, effect.attempt_id, effect.nonce, ""))
                case fx.SendAnswer():
                    self.replies.append(("answer", effect.worker_id, effect.attempt_id, effect.token, effect.verdict))

    # People

    def submit(self, plan: Plan, priority: int) -> None:
        number = len(self.store.runs) + 1
        self.store.insert_run(RunRecord(f"r{number}", "tenant", RunState.QUEUED, priority=priority, order=number), plan)

    def command(
        self,
        kind: str,
        *,
        run_id: str | None = None,
        task: str | None = None,
        worker_id: str | None = None,
        **payload: Any,
    ) -> None:
        self.commands.append(Command(next(self.ids), kind, "person", run_id, task, worker_id, payload))

    def rerun(self, run: RunRecord, chosen: str | list[str], *, late: bool = False) -> None:
        """Ask for a run again as the API does: in the generation that is seen; ``late``: it is written later."""
        asked = {"from": chosen, "generation": run.generation}
        command = Command(next(self.ids), "rerun", "person", run.id, payload=asked)
        (self.late_commands if late else self.commands).append(command)

    # Redis

    def switch_redis(self) -> None:
        """The leader's link to Redis is cut, or comes back; what it sends meanwhile is lost."""
        self.redis_away = not self.redis_away
        self.pending.append(RedisAway() if self.redis_away else RedisBack())

    def redis_fails(self) -> None:
        """Redis answers nobody."""
        self.redis_down_from = self.now
        if not self.redis_away:
            self.switch_redis()

    def redis_returns(self) -> None:
        assert self.redis_down_from is not None
        for worker in self.workers.values():
            worker.spoke_at += self.now - self.redis_down_from
        self.redis_down_from = None
        self.switch_redis()
        self.step([])

    def flush(self) -> None:
        self.hints.clear()
        self.stream.clear()
        self.replies.clear()
        self.beats.clear()
        for worker in self.workers.values():
            # What it said last may be lost unheard.
            worker.well_from = self.now
        self.desired.clear()
        self.was_reset = True

    # Getting on

    def everyone_works(self) -> None:
        """Nothing fails for a moment: hints, claims, grants and answers all arrive."""
        for worker in list(self.workers.values()):
            while len(worker.claims) + len(worker.trees) < worker.slots:
                before = len(self.hints)
                self.take_hint(worker, keep=False)
                if len(self.hints) == before:
                    break
        taken, self.stream = self.stream, []
        self.step(taken)
        replies, self.replies = self.replies, []
        for reply in replies:
            self.deliver(reply)

    def heal(self, rounds: int = 150) -> None:
        """Let nothing fail any more, and see every run end and every reservation go."""
        self._repair_everything()
        for turn in range(rounds):
            for worker in list(self.workers.values()):
                self.beat(worker)
                self.resend(worker)
                for attempt_id in list(worker.trees):
                    # Most succeed; the others end in every way there is: retries and budgets are seen to the end.
                    number = int(attempt_id.removeprefix("id"))
                    self.finish(worker, attempt_id, OUTCOMES[number // 3 % len(OUTCOMES) if number % 3 == 0 else 0])
            self._answer_what_waits()
            self.everyone_works()
            while self.gone:
                self.restart()
            # A clock that jumped before a change of leaders may have put a retry off by an hour (I14).
            retries = [at for at, _ in self.kernel.retries if at > self.now + 60.0]
            self.now = retries[0] if len(retries) == len(self.kernel.retries) > 0 else self.now + 5.0
            if turn % 6 == 5:
                self.step([], reconcile=True)
            if not self.store.reservations and all(run.state in RUN_TERMINAL for run in self.store.runs.values()):
                break
        self.store.check_finished()

    def _answer_what_waits(self) -> None:
        for row in self.store.task_runs.values():
            if row.state is TaskState.WAITING and row.reason in ("approval", "event"):
                kind = "approve" if row.reason == "approval" else "event"
                self.command(kind, run_id=row.run_id, task=row.name, token=row.wait_token)

    def mend(self) -> None:
        """Thaw and start every worker, and let the leader hear them."""
        for worker in self.workers.values():
            worker.frozen = False
        while self.gone:
            self.restart()
        if self.redis_away:
            self.switch_redis()
        for worker in list(self.workers.values()):
            self.beat(worker)

    def _repair_everything(self) -> None:
        self.mend()
        self.step([])
        for run in self.store.runs.values():
            if run.state is RunState.PAUSED:
                self.command("resume", run_id=run.id)
        for worker_row in self.store.workers.values():
            if worker_row.draining:
                self.command("undrain", worker_id=worker_row.id)
