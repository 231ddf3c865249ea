"""A model of the rows: transactions with compare-and-set, a fence on the epoch, and a tail that a crash may lose.

It is also the checker: every committed transaction is held against the invariants I1, I2, I3, I12, I13 and I14.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any, TypeVar

from orchestrator import effects as fx
from orchestrator.events import Command, Event, OutcomeReceived
from orchestrator.kernel import Snapshot
from orchestrator.nonces import claim_of
from orchestrator.records import (
    AttemptRecord,
    EndedAttempt,
    Heartbeat,
    HostRecord,
    Plan,
    Reservation,
    RunRecord,
    TaskRunRecord,
    WorkerRecord,
)
from orchestrator.states import (
    ATTEMPT_TERMINAL,
    RUN_TERMINAL,
    TASK_TERMINAL,
    AttemptState,
    Entity,
    RunState,
    TaskState,
    WorkerState,
)
from tests.unit.rule_oracle import runs_when


class Violation(AssertionError):
    """An invariant does not hold."""


class StaleRow(Exception):
    """A compare-and-set did not match, or a constraint refused the row: the transaction is rolled back."""


class LostLease(Exception):
    """The epoch of the transaction is not the current one."""


R = TypeVar("R", TaskRunRecord, AttemptRecord, WorkerRecord)
Undo = list[tuple[dict[str, Any], str, Any]]
_ABSENT = object()
LIVE_RUNS = frozenset({RunState.RUNNING, RunState.PAUSED, RunState.CANCELLING})
_COLUMN_TO_FIELD = {"deadline_at": "deadline"}
_IGNORED = {"exit_code", "ended_at", "outputs", "started_at", "ready_at", "queued_at"}
_SINCE = ("hinted_at", "granted_at", "orphaned_at")
_UNTIL = ("deadline", "retry_at", "drain_until")
TAKES_WORK = frozenset({WorkerState.ONLINE, WorkerState.SUSPECT})


class ModelStore:
    """Rows as frozen records in dicts, changed only by :meth:`commit`."""

    def __init__(self) -> None:
        self.epoch = 0
        self.runs: dict[str, RunRecord] = {}
        self.plans: dict[str, Plan] = {}
        self.task_runs: dict[str, TaskRunRecord] = {}
        self.tasks_of: dict[str, list[str]] = {}
        self.attempts: dict[str, AttemptRecord] = {}
        self.reservations: dict[str, Reservation] = {}
        self.hosts: dict[str, HostRecord] = {}
        self.workers: dict[str, WorkerRecord] = {}
        self.outcomes: dict[str, str] = {}
        """Attempt → token of the report whose outcome was committed."""
        self.grants: dict[str, tuple[str, str]] = {}
        """Attempt → worker and nonce of the grant that was sent and that the rows have not lost."""
        self.tail: list[Undo] = []
        """Transactions that were committed asynchronously and would be lost in a crash of the database."""
        self.checks_epoch = True
        self.counts: dict[str, int] = {}
        self.clock_ahead = 0.0
        """Seconds by which this clock, which stamps the rows, runs ahead of the leaders' monotonic one."""
        self.retry_due: dict[str, tuple[int, float]] = {}
        """Task run → epoch in which it was put off, and until when on the monotonic clock."""
        self.generation_of: dict[str, int] = {}
        """Attempt → generation of its task run when it was made."""

    # Writing

    def insert_run(self, run: RunRecord, plan: Plan) -> None:
        self.runs[run.id], self.plans[run.id] = run, plan
        self.tasks_of[run.id] = []
        for number, task in enumerate(plan.tasks):
            row = TaskRunRecord(f"{run.id}/t{number}", run.id, task.name)
            self.task_runs[row.id] = row
            self.tasks_of[run.id].append(row.id)
        self.tail.clear()

    def commit(self, epoch: int, effects: list[fx.Effect], events: list[Event], now: float) -> None:
        """Write the row effects of one transaction, all or none, and check what they did."""
        if self.checks_epoch and epoch != self.epoch:
            raise LostLease
        undo: Undo = []
        try:
            for effect in effects:
                self._write(effect, undo, events, now)
        except StaleRow:
            self._roll_back(undo)
            raise
        self._check_capacity()
        self._check_reruns(effects, events)
        if fx.is_durable(effects):
            self.tail.clear()
        else:
            self.tail.append(undo)

    def lose_tail(self) -> None:
        """The database crashed: what was committed asynchronously since the last durable commit is gone."""
        for undo in reversed(self.tail):
            self._roll_back(undo)
        self.tail.clear()
        for attempt_id in list(self.grants):
            attempt = self.attempts.get(attempt_id)
            if attempt is None or attempt.state is AttemptState.DISPATCHED:
                del self.grants[attempt_id]

    def _roll_back(self, undo: Undo) -> None:
        for table, key, before in reversed(undo):
            if before is _ABSENT:
                table.pop(key, None)
            else:
                table[key] = before

    def _set(self, table: dict[str, Any], key: str, value: Any, undo: Undo) -> None:
        undo.append((table, key, table.get(key, _ABSENT)))
        if value is _ABSENT:
            table.pop(key, None)
        else:
            table[key] = value

    def _write(self, effect: fx.Effect, undo: Undo, events: list[Event], now: float) -> None:
        match effect:
            case fx.Transition():
                self._transition(effect, undo, now)
            case fx.Annotate():
                self._annotate(effect, undo, now)
            case fx.CreateAttempt():
                self._create(effect.attempt, undo)
            case fx.Reserve():
                self._set(self.reservations, effect.reservation.attempt_id, effect.reservation, undo)
            case fx.Release():
                self._set(self.reservations, effect.attempt_id, _ABSENT, undo)
            case fx.SaveOutcome():
                self._save_outcome(effect, undo, events)
            case fx.SaveWorker():
                self._save_worker(effect.heartbeat, effect.joined, undo, now)
            case fx.Count():
                self.counts[effect.what] = self.counts.get(effect.what, 0) + 1
            case _:
                pass

    def _table(self, entity: Entity) -> dict[str, Any]:
        tables: dict[Entity, dict[str, Any]] = {
            Entity.RUN: self.runs,
            Entity.TASK_RUN: self.task_runs,
            Entity.ATTEMPT: self.attempts,
            Entity.WORKER: self.workers,
        }
        return tables[entity]

    def _transition(self, effect: fx.Transition, undo: Undo, now: float) -> None:
        table = self._table(effect.entity)
        row = table.get(effect.id)
        if row is None or row.state is not effect.before:
            raise StaleRow(f"{effect.entity} {effect.id} is not {effect.before}")
        if effect.token is not None and row.token != effect.token:
            raise StaleRow(f"attempt {effect.id} has another token")
        if effect.entity is Entity.ATTEMPT and row.state in ATTEMPT_TERMINAL:
            raise Violation(f"I1: attempt {effect.id} leaves {row.state}")
        fields = _fields(effect.changes, now + self.clock_ahead)
        if effect.entity is not Entity.ATTEMPT and effect.entity is not Entity.WORKER:
            fields["reason"] = effect.reason
        changed = replace(row, state=effect.after, **fields)
        if effect.entity is Entity.RUN or effect.entity is Entity.TASK_RUN:
            _check_generation(effect, row, changed)
        if effect.entity is Entity.TASK_RUN:
            self._check_charges(effect, row, changed, now)
        if effect.after is AttemptState.RUNNING and effect.cause == "claim":
            self._check_is_taken_by_a_worker_that_stays(changed)
        self._set(table, effect.id, changed, undo)

    def _check_charges(self, effect: fx.Transition, row: TaskRunRecord, changed: TaskRunRecord, now: float) -> None:
        if changed.losses > 3:
            raise Violation(f"I12: task run {effect.id} was lost {changed.losses} times")
        ended = self.attempts.get(row.attempt_id or "")
        is_preempted = ended is not None and ended.state is AttemptState.PREEMPTED and effect.cause == "outcome"
        if is_preempted and (changed.failures, changed.losses) != (row.failures, row.losses):
            raise Violation(f"I12: task run {effect.id} is charged for having been preempted")
        if changed.state is TaskState.RETRY_WAIT:
            self.retry_due[effect.id] = (self.epoch, now + effect.changes["retry_at"][1])
        elif row.state is TaskState.RETRY_WAIT and effect.cause == "timer":
            epoch, due = self.retry_due[effect.id]
            if epoch == self.epoch and now < due:
                raise Violation(f"I14: {effect.id} is tried again {due - now:g} s too early")

    def _check_is_taken_by_a_worker_that_stays(self, attempt: AttemptRecord) -> None:
        worker = self.workers[attempt.worker_id]
        if worker.state not in TAKES_WORK:
            raise Violation(f"drain: {attempt.id} is granted to worker {worker.id}, which is {worker.state}")

    def _annotate(self, effect: fx.Annotate, undo: Undo, now: float) -> None:
        table = self._table(effect.entity)
        row = table.get(effect.id)
        if row is None or row.state is not effect.state:
            raise StaleRow(f"{effect.entity} {effect.id} is not {effect.state}")
        self._set(table, effect.id, replace(row, **_fields(effect.changes, now + self.clock_ahead)), undo)

    def _create(self, attempt: AttemptRecord, undo: Undo) -> None:
        for other in self.attempts.values():
            if other.task_run_id == attempt.task_run_id and (
                other.state not in ATTEMPT_TERMINAL or other.number == attempt.number
            ):
                raise StaleRow(f"task run {attempt.task_run_id} has attempt {other.id}")
        self._check_rule(attempt)
        worker = self.workers[attempt.worker_id]
        if worker.state is not WorkerState.ONLINE:
            raise Violation(f"drain: {attempt.id} is dispatched to worker {worker.id}, which is {worker.state}")
        used = sum(held.worker_id == worker.id and not held.zombie for held in self.reservations.values())
        if used >= worker.slots:
            raise Violation(f"I13: worker {worker.id} gets {attempt.id} though it holds {used} of {worker.slots} slots")
        self.generation_of[attempt.id] = self.task_runs[attempt.task_run_id].generation
        self._set(self.attempts, attempt.id, replace(attempt, hinted_at=attempt.hinted_at + self.clock_ahead), undo)

    def _save_outcome(self, effect: fx.SaveOutcome, undo: Undo, events: list[Event]) -> None:
        if effect.attempt_id in self.outcomes:
            raise Violation(f"I1: the outcome of {effect.attempt_id} is committed twice")
        reports = [e for e in events if isinstance(e, OutcomeReceived) and e.attempt_id == effect.attempt_id]
        token = self.attempts[effect.attempt_id].token
        if not any(report.token == token and report.outcome == effect.outcome for report in reports):
            raise Violation(f"I2: an outcome of {effect.attempt_id} was committed under another token")
        if self.generation_of[effect.attempt_id] != self.task_runs[effect.task_run_id].generation:
            raise Violation(f"I2: an outcome of {effect.attempt_id} was committed to another generation")
        self._set(self.outcomes, effect.attempt_id, token, undo)

    def _save_worker(self, beat: Heartbeat, joined: bool, undo: Undo, now: float) -> None:
        self._set(self.hosts, beat.host_id, HostRecord(beat.host_id, beat.boot_id, beat.capacity), undo)
        row = self.workers.get(beat.worker_id)
        state = WorkerState.DRAINING if beat.draining else WorkerState.ONLINE
        if row is not None and not joined:
            state = row.state
        self._set(
            self.workers,
            beat.worker_id,
            WorkerRecord(
                beat.worker_id,
                beat.host_id,
                beat.boot_id,
                state,
                frozenset(beat.queues),
                beat.slots,
                beat.labels,
                beat.store_scope,
                now,
                beat.seq,
                draining=row.draining if row else False,
                drain_until=row.drain_until if row else None,
            ),
            undo,
        )

    # Checking

    def _check_rule(self, attempt: AttemptRecord) -> None:
        plan = self.plans[attempt.run_id]
        name = self.task_runs[attempt.task_run_id].name
        task = next(task for task in plan.tasks if task.name == name)
        by_name = {self.task_runs[i].name: self.task_runs[i].state for i in self.tasks_of[attempt.run_id]}
        states = [by_name[up] if by_name[up] in TASK_TERMINAL else None for up in task.upstream]
        if not runs_when(task.trigger_rule, states):
            raise Violation(f"I3: {name} of {attempt.run_id} dispatched by {task.trigger_rule} on {states}")

    def _check_reruns(self, effects: list[fx.Effect], events: list[Event]) -> None:
        """Check that each generation was asked for by somebody who had seen the end of the one before."""
        for effect in effects:
            if isinstance(effect, fx.Transition) and effect.entity is Entity.RUN and effect.cause == "rerun":
                commands = [event for event in events if isinstance(event, Command) and event.run_id == effect.id]
                seen = {command.payload["generation"] for command in commands if command.kind == "rerun"}
                if (ended := effect.changes["generation"] - 1) not in seen:
                    raise Violation(f"I1: {effect.id} is run again as it was in {seen}, though it is in {ended}")

    def _check_capacity(self) -> None:
        sums: dict[str, list[int]] = {}
        devices: set[tuple[str, str]] = set()
        slots: dict[str, int] = {}
        for held in self.reservations.values():
            used = sums.setdefault(held.host_id, [0, 0])
            used[0] += held.resources.cpu
            used[1] += held.resources.memory
            for device in held.devices:
                if (held.host_id, device) in devices:
                    raise Violation(f"I13: device {device} is held twice")
                devices.add((held.host_id, device))
            attempt = self.attempts.get(held.attempt_id)
            if not held.zombie and not (attempt and attempt.keeper_id):
                # What it has adopted is there, whether it had a slot for it or not.
                slots[held.worker_id] = slots.get(held.worker_id, 0) + 1
        for host_id, (cpu, memory) in sums.items():
            capacity = self.hosts[host_id].capacity
            if cpu > capacity.cpu or memory > capacity.memory:
                raise Violation(f"I13: host {host_id} holds {cpu} of {capacity.cpu} cpu, {memory} bytes")
        for worker_id, used_slots in slots.items():
            if used_slots > self.workers[worker_id].slots:
                raise Violation(f"I13: worker {worker_id} holds {used_slots} slots")

    def note_grant(self, attempt: AttemptRecord, nonce: str) -> None:
        """Check a grant that is about to be sent: one attempt is granted to one claim only (I2)."""
        row = self.attempts[attempt.id]
        owner = (attempt.worker_id, claim_of(nonce))
        if row.state is not AttemptState.RUNNING or (row.worker_id, claim_of(row.nonce)) != owner:
            raise Violation(f"I2: a grant of {attempt.id} is sent that the rows do not know")
        if self.grants.setdefault(attempt.id, owner) != owner:
            raise Violation(f"I2: {attempt.id} is granted to {self.grants[attempt.id]} and to {owner}")

    def check_owners(self) -> None:
        """Check I4 on the rows: whatever is not over has an owner, a dispatch, a timer, a reason or an open upstream;
        and nothing lives in a run that is over."""
        for attempt in self.attempts.values():
            if attempt.state not in ATTEMPT_TERMINAL and self.runs[attempt.run_id].state not in LIVE_RUNS:
                raise Violation(f"I10: attempt {attempt.id} lives in a run that is over")
        for run in self.runs.values():
            if run.state not in LIVE_RUNS:
                continue
            rows = [self.task_runs[i] for i in self.tasks_of[run.id]]
            if all(row.state in TASK_TERMINAL for row in rows):
                raise Violation(f"I4: run {run.id} is {run.state} though all its tasks are over")
            for row in rows:
                if not self._has_owner(row):
                    raise Violation(f"I4: task {row.name} of {run.id} is {row.state} without an owner")

    def _has_owner(self, row: TaskRunRecord) -> bool:
        owner = self.attempts.get(row.attempt_id or "")
        match row.state:
            case TaskState.QUEUED:
                return owner is not None and owner.state is AttemptState.DISPATCHED
            case TaskState.RUNNING | TaskState.CANCELLING:
                return owner is not None and owner.state is AttemptState.RUNNING
            case TaskState.RETRY_WAIT:
                return row.retry_at is not None
            case TaskState.READY:
                return bool(row.reason)
            case _:
                return True

    def check_finished(self) -> None:
        """Check that every run has ended and nothing is held any more (I4, I13)."""
        for run in self.runs.values():
            if run.state not in RUN_TERMINAL:
                rows = [
                    (self.task_runs[i].name, self.task_runs[i].state, self.task_runs[i].reason)
                    for i in self.tasks_of[run.id]
                ]
                raise Violation(f"I4: run {run.id} hangs in {run.state}: {rows}")
        if self.reservations:
            raise Violation(f"I13: reservations leak: {self.reservations}")

    # Reading

    def ended(self, attempt_id: str) -> EndedAttempt | None:
        row = self.attempts.get(attempt_id)
        return EndedAttempt(row.id, row.state, row.token, row.worker_id, keeper_id=row.keeper_id) if row else None

    def is_of_an_older_generation(self, report: OutcomeReceived) -> bool:
        """Say whether the task run has been run again since this attempt of it was made."""
        attempt = self.attempts.get(report.attempt_id)
        return attempt is not None and (self.generation_of[attempt.id] < self.task_runs[attempt.task_run_id].generation)

    def check_timers(self, now: float) -> None:
        """Check that nothing of this term waits for a moment that has passed, whatever the rows' clock says (I14)."""
        for id_, (epoch, due) in self.retry_due.items():
            if self.task_runs[id_].state is TaskState.RETRY_WAIT and epoch == self.epoch and due <= now:
                raise Violation(f"I14: {id_} is tried again {now - due:g} s too late")

    def snapshot(self, now: float) -> Snapshot:
        """Return what a new leader reads, with times on its own clock, as ``store.loader`` does it."""
        runs = tuple(run for run in self.runs.values() if run.state in LIVE_RUNS)
        return Snapshot(
            runs=runs,
            plans={run.id: self.plans[run.id] for run in runs},
            task_runs=tuple(self._loaded(self.task_runs[i], now) for run in runs for i in self.tasks_of[run.id]),
            attempts=tuple(self._loaded(a, now) for a in self.attempts.values() if a.state not in ATTEMPT_TERMINAL),
            reservations=tuple(self.reservations.values()),
            hosts=tuple(self.hosts.values()),
            workers=tuple(self._loaded(worker, now) for worker in self.workers.values()),
        )

    def _loaded(self, row: R, now: float) -> R:
        names = {field.name for field in fields_of(row)}
        times = {name: at for name in (*_SINCE, *_UNTIL) if name in names and (at := getattr(row, name)) is not None}
        mine = {name: at - self.clock_ahead for name, at in times.items()}
        return replace(row, **{name: min(now, at) if name in _SINCE else at for name, at in mine.items()})

    def queued_runs(self) -> list[RunRecord]:
        return [run for run in self.runs.values() if run.state is RunState.QUEUED]


def _check_generation(effect: fx.Transition, row: Any, changed: Any) -> None:
    """Only a rerun leads out of a terminal state, once for each generation; nothing else touches the generation."""
    is_rerun = effect.cause == "rerun"
    if changed.generation != row.generation + is_rerun:
        raise Violation(f"I1: {effect.id} goes from generation {row.generation} to {changed.generation}")
    if is_rerun != (row.state in RUN_TERMINAL or row.state in TASK_TERMINAL):
        raise Violation(f"I1: {effect.id} leaves {row.state} because of {effect.cause}")


def _fields(columns: Any, now: float) -> dict[str, Any]:
    delay: Callable[[Any], Any] = lambda value: now + value[1] if _is_delay(value) else value  # noqa: E731
    return {_COLUMN_TO_FIELD.get(name, name): delay(value) for name, value in columns.items() if name not in _IGNORED}


def _is_delay(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and value[0] == "in"
