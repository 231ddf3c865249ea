"""A model of the rows: transactions with compare-and-set, a fence on the epoch, and a tail that a crash may lose.

Every committed transaction is held against the invariants (``simulated_judge``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any, TypeVar

from orchestrator import effects as fx
from orchestrator.events import EndedRun, Event, OutcomeReceived
from orchestrator.kernel import Snapshot
from orchestrator.records import (
    AttemptRecord,
    EndedAttempt,
    Heartbeat,
    HostRecord,
    Outcome,
    Plan,
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
from tests.unit.simulated_judge import LIVE_RUNS, Judge, Undo, Violation, has_begun


class StaleRow(Exception):
    """A compare-and-set did not match, or a constraint refused the row: the transaction is rolled back."""


class LostLease(Exception):
    """The epoch of the transaction is not the current one."""


R = TypeVar("R", TaskRunRecord, AttemptRecord, WorkerRecord)
MOST_CHILDREN = 3
"""Runs that are tasks, made in one transaction; few, so that many are left over for the next one."""
MOST_TURNS = 2
"""Times that a leader answers what was asked, in one transaction."""
_ABSENT = object()
_COLUMN_TO_FIELD = {Entity.ATTEMPT: {"deadline_at": "deadline"}}
_IGNORED = {
    "exit_code", "ended_at", "started_at", "ready_at", "queued_at", "cached_from", "cache_detail", "runs_below"
}  # fmt: skip
_SINCE = ("hinted_at", "granted_at", "orphaned_at")
_UNTIL = ("deadline", "retry_at", "drain_until", "deadline_at")


class ModelStore(Judge):
    """Rows as frozen records in dicts, changed only by :meth:`commit`."""

    # Writing

    def insert_run(self, run: RunRecord, plan: Plan) -> None:
        self._insert_run(run, plan, [])
        self.tail.clear()

    def _insert_run(self, run: RunRecord, plan: Plan, undo: Undo) -> None:
        rows = [TaskRunRecord(f"{run.id}/t{number}", run.id, task.name) for number, task in enumerate(plan.tasks)]
        self._set(self.runs, run.id, run, undo)
        self._set(self.plans, run.id, plan, undo)
        for row in rows:
            self._set(self.task_runs, row.id, row, undo)
        self._set(self.tasks_of, run.id, [row.id for row in rows], undo)

    def child_of(self, effect: fx.StartChild) -> tuple[RunRecord, Plan] | None:
        """Return the run that a task asks to be; ``None``: there is no such pipeline."""
        plan = self.pipelines.get(effect.child.pipeline)
        if plan is None:
            return None
        record = RunRecord(
            effect.child_run_id,
            effect.tenant_id,
            RunState.QUEUED,
            priority=effect.priority,
            order=0,
            parameters=effect.parameters,
            pipeline=effect.child.pipeline,
            parent_task_run_id=effect.task_run_id,
            depth=effect.depth,
        )
        return record, plan

    def _start_child(self, effect: fx.StartChild, undo: Undo) -> None:
        if self.task_runs[effect.task_run_id].child_run_id != effect.child_run_id:
            raise Violation(f"child: {effect.child_run_id} is made for a task that does not know of it")
        if (child := self.child_of(effect)) is not None:
            self._insert_run(*child, undo)

    def _create_tasks(self, effect: fx.CreateTasks, undo: Undo) -> None:
        names = {self.task_runs[id_].name for id_ in self.tasks_of[effect.run_id]}
        new = [row.name for row in effect.tasks]
        if not names.isdisjoint(new) or len(set(new)) < len(new):
            raise Violation(f"expanded twice: {names & set(new) or new}")
        if len(effect.operators) != len(new):
            raise Violation("expanded: not every task run has its operator")
        for row in effect.tasks:
            if self.task_runs[row.parent_id or ""].state is not TaskState.RUNNING:
                raise Violation(f"{row.name} is made inside of a container that does not run")
            self._set(self.task_runs, row.id, row, undo)
        self._set(self.tasks_of, effect.run_id, [*self.tasks_of[effect.run_id], *(r.id for r in effect.tasks)], undo)

    def commit(self, epoch: int, effects: list[fx.Effect], events: list[Event], now: float) -> None:
        """Write the row effects of one transaction, all or none, and check what they did."""
        if self.checks_epoch and epoch != self.epoch:
            raise LostLease
        made = sum(isinstance(effect, fx.StartChild) for effect in effects)
        if made > MOST_CHILDREN:
            raise Violation(f"long: one transaction makes {made} runs that are tasks, at most {MOST_CHILDREN} may be")
        undo: Undo = []
        try:
            for effect in effects:
                if isinstance(effect, fx.Count):
                    self.counts[effect.what] = self.counts.get(effect.what, 0) + 1
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
                self._note_rate(effect, undo, now)
            case fx.CreateTasks():
                self._create_tasks(effect, undo)
            case fx.StartChild():
                self._start_child(effect, undo)
            case fx.Reserve():
                self._set(self.reservations, effect.reservation.attempt_id, effect.reservation, undo)
            case fx.Release():
                self._set(self.reservations, effect.attempt_id, _ABSENT, undo)
            case fx.SaveOutcome():
                self._save_outcome(effect, undo, events)
            case fx.SaveWorker():
                self._save_worker(effect.heartbeat, effect.joined, undo, now)

    def _note_rate(self, effect: fx.CreateAttempt, undo: Undo, now: float) -> None:
        if effect.rate is not None:
            self._set(self.dispatches, effect.attempt.id, (effect.rate, now + self.clock_ahead), undo)

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
        fields = _fields(effect.entity, effect.changes, now + self.clock_ahead)
        if effect.entity is not Entity.ATTEMPT and effect.entity is not Entity.WORKER:
            fields["reason"] = effect.reason
            fields["message"] = effect.message
        if effect.entity is Entity.TASK_RUN:
            fields["begun"] = has_begun(row, effect)
        changed = replace(row, state=effect.after, **fields)
        self._check_transition(effect, row, changed, now)
        self._set(table, effect.id, changed, undo)

    def _annotate(self, effect: fx.Annotate, undo: Undo, now: float) -> None:
        table = self._table(effect.entity)
        row = table.get(effect.id)
        if row is None or row.state is not effect.state:
            raise StaleRow(f"{effect.entity} {effect.id} is not {effect.state}")
        fields = _fields(effect.entity, effect.changes, now + self.clock_ahead)
        self._set(table, effect.id, replace(row, **fields), undo)

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
        if not any(report.token == token and _is_of(report.outcome, effect.outcome) for report in reports):
            raise Violation(f"I2: an outcome of {effect.attempt_id} was committed under another token")
        if self.generation_of[effect.attempt_id] != self.task_runs[effect.task_run_id].generation:
            raise Violation(f"I2: an outcome of {effect.attempt_id} was committed to another generation")
        self._set(self.outcomes, effect.attempt_id, token, undo)
        if effect.publish:
            row = replace(self.task_runs[effect.task_run_id], outputs=effect.outcome.outputs)
            self._set(self.task_runs, row.id, row, undo)

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
        children = {
            row.child_run_id: self.runs.get(row.child_run_id)
            for run in runs
            for row in (self.task_runs[id_] for id_ in self.tasks_of[run.id])
            if row.child_run_id is not None and row.state not in TASK_TERMINAL
        }
        return Snapshot(
            unmade_children=frozenset(id_ for id_, child in children.items() if child is None),
            ended_children={
                id_: EndedRun(child, tuple(self.task_runs[i] for i in self.tasks_of[id_]), self.plans[id_])
                for id_, child in children.items()
                if child is not None and child.state in RUN_TERMINAL
            },
            runs=runs,
            plans={run.id: self.plans[run.id] for run in runs},
            task_runs=tuple(self._loaded(self.task_runs[i], now) for run in runs for i in self.tasks_of[run.id]),
            attempts=tuple(self._loaded(a, now) for a in self.attempts.values() if a.state not in ATTEMPT_TERMINAL),
            reservations=tuple(self.reservations.values()),
            dispatches=tuple(
                (rate, min(now, at - self.clock_ahead))
                for rate, at in self.dispatches.values()
                if at + rate.per > now + self.clock_ahead
            ),
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


def _is_of(reported: Outcome, saved: Outcome) -> bool:
    """Say whether this is what was reported, or that success as the failure that its outputs make of it."""
    if saved.reason not in ("too_large", "bad_outputs") or reported.state is not AttemptState.SUCCEEDED:
        return reported == saved
    refused = replace(reported, state=AttemptState.FAILED, retryable=False, outputs={}, skipped=False)
    return saved == replace(refused, reason=saved.reason, message=saved.message)


def _fields(entity: Entity, columns: Any, now: float) -> dict[str, Any]:
    delay: Callable[[Any], Any] = lambda value: now + value[1] if _is_delay(value) else value  # noqa: E731
    names = _COLUMN_TO_FIELD.get(entity, {})
    return {names.get(name, name): delay(value) for name, value in columns.items() if name not in _IGNORED}


def _is_delay(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and value[0] == "in"
