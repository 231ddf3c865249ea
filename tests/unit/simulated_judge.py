"""The judge of the simulation: holds each transition and the rows as they stand against the invariants I1 to I14."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from orchestrator import effects as fx
from orchestrator.events import Command, Event
from orchestrator.limits import Rate
from orchestrator.nonces import claim_of
from orchestrator.records import (
    AttemptRecord,
    HostRecord,
    Plan,
    PlannedTask,
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
from tests.unit.simulated_ends import differences
from tests.unit.simulated_graph import Graph, is_success, possible_ends

LIVE_RUNS = frozenset({RunState.RUNNING, RunState.PAUSED, RunState.CANCELLING})
TAKES_WORK = frozenset({WorkerState.ONLINE, WorkerState.SUSPECT})
AT_WORK = frozenset({TaskState.QUEUED, TaskState.RUNNING, TaskState.CANCELLING})
MOST_HELD_TO_THEIR_PLAN = 300
"""Task runs of a run whose end is looked at one by one: to find what is beside each takes the square of that."""
Undo = list[tuple[dict[str, Any], str, Any]]


class Violation(AssertionError):
    """An invariant does not hold."""


class Judge:
    """The rows, and what must hold of them."""

    def __init__(self) -> None:
        self.epoch = 0
        self.runs: dict[str, RunRecord] = {}
        self.plans: dict[str, Plan] = {}
        self.pipelines: dict[str, Plan] = {}
        """By name, for runs that are tasks."""
        self.task_runs: dict[str, TaskRunRecord] = {}
        self.tasks_of: dict[str, list[str]] = {}
        self.attempts: dict[str, AttemptRecord] = {}
        self.reservations: dict[str, Reservation] = {}
        self.dispatches: dict[str, tuple[Rate, float]] = {}
        """Attempts that count against a rate limit, and when they were made."""
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
        self.asked: Collection[str] = ()
        """Ids of runs that are tasks, which the present leader still has to make."""
        self.left_alone: Collection[str] = ()
        """Runs whose plan the present leader can't read."""
        self.marked: set[str] = set()
        """Runs in which a person has marked something: what had run by then stays as it was."""
        self.generation_of: dict[str, int] = {}
        """Attempt → generation of its task run when it was made."""

    def graph(self, run_id: str) -> Graph:
        return Graph(self.plans[run_id], [self.task_runs[id_] for id_ in self.tasks_of[run_id]])

    # Each transition

    def _check_transition(self, effect: fx.Transition, row: Any, changed: Any, now: float) -> None:
        if effect.entity is Entity.ATTEMPT:
            if row.state in ATTEMPT_TERMINAL:
                raise Violation(f"I1: attempt {effect.id} leaves {row.state}")
            if effect.after is AttemptState.RUNNING and effect.cause == "claim":
                self._check_is_taken_by_a_worker_that_stays(changed)
        elif effect.entity is Entity.RUN:
            _check_generation(effect, row, changed)
            if effect.cause == "tasks_ended":
                self._check_result(changed)
        elif effect.entity is Entity.TASK_RUN:
            _check_generation(effect, row, changed)
            self._check_charges(effect, row, changed, now)
            if effect.cause == "indices":
                self._check_decided(row, changed)
            elif effect.cause == "mark":
                self.marked.add(effect.run_id or "")

    def _check_charges(self, effect: fx.Transition, row: TaskRunRecord, changed: TaskRunRecord, now: float) -> None:
        if changed.losses > 3:
            raise Violation(f"I12: task run {effect.id} was lost {changed.losses} times")
        ended = self.attempts.get(row.attempt_id or "")
        is_preempted = ended is not None and ended.state is AttemptState.PREEMPTED and effect.cause == "outcome"
        if is_preempted and (changed.failures, changed.losses) != (row.failures, row.losses):
            raise Violation(f"I12: task run {effect.id} is charged for having been preempted")
        if changed.state is TaskState.RETRY_WAIT:
            self.retry_due[effect.id] = (self.epoch, now + effect.changes["retry_at"][1])
        elif row.state is TaskState.RETRY_WAIT and effect.cause == "timer" and changed.state is TaskState.READY:
            epoch, due = self.retry_due[effect.id]
            if epoch == self.epoch and now < due:
                raise Violation(f"I14: {effect.id} is tried again {due - now:g} s too early")

    def _check_is_taken_by_a_worker_that_stays(self, attempt: AttemptRecord) -> None:
        worker = self.workers[attempt.worker_id]
        if worker.state not in TAKES_WORK:
            raise Violation(f"drain: {attempt.id} is granted to worker {worker.id}, which is {worker.state}")

    # What they come to

    def _check_rule(self, attempt: AttemptRecord) -> None:
        graph, row = self.graph(attempt.run_id), self.task_runs[attempt.task_run_id]
        task, states = graph.planned(row), graph.upstream_states(row)
        rule = "all_done" if task.teardown else task.trigger_rule
        if not runs_when(rule, states):
            raise Violation(f"I3: {row.name} of {attempt.run_id} dispatched by {rule} on {states}")
        if not task.has_attempts:
            raise Violation(f"I3: {row.name} of {attempt.run_id} is dispatched, though no worker executes it")
        if self.runs[attempt.run_id].state is RunState.CANCELLING and not graph.tears_down(row):
            raise Violation(f"I10: {row.name} is dispatched while run {attempt.run_id} is being cancelled")
        around = row
        while around.parent_id is not None:
            around = self.task_runs[around.parent_id]
            is_shut = around.state in (TaskState.CANCELLED, TaskState.PENDING) and not graph.tears_down(row)
            if is_shut or _was_settled(around):
                raise Violation(f"I3: {row.name} is dispatched inside of {around.name}, which is {around.state}")

    def _check_decided(self, before: TaskRunRecord, after: TaskRunRecord) -> None:
        """A map is decided only as it would end whatever became of the indices that are still open."""
        graph = self.graph(after.run_id)
        map_ = graph.planned(before).map
        if map_ is None or before.state is not TaskState.RUNNING:
            return
        results = graph.results(before)
        if (ends := possible_ends(map_, results)) != {after.state}:
            raise Violation(f"map: {after.name} is {after.state} with {results}, and may end as {ends}")

    def _check_result(self, run: RunRecord) -> None:
        """Hold the end of a run against what its tasks have come to."""
        rows = [self.task_runs[id_] for id_ in self.tasks_of[run.id]]
        if still := [row.name for row in rows if row.state not in TASK_TERMINAL]:
            raise Violation(f"I4: run {run.id} is {run.state} while {still} are open")
        own = [row for row in rows if row.parent_id is None]
        states = {row.name: row.state for row in own}
        said = is_success(self.plans[run.id].tasks, states, self.graph(run.id).asked_inside(own))
        if run.reason == "run_deadline":
            # Its tasks may all be well that decide; then one that does not was stopped, maybe an index of a map that
            # was decided without it.
            said = {row.state for row in rows} <= {TaskState.SUCCESS, TaskState.SKIPPED}
        if run.state in (RunState.SUCCESS, RunState.FAILED) and said != (run.state is RunState.SUCCESS):
            raise Violation(f"result: run {run.id} is {run.state} with {states}")
        is_by_itself = run.state in (RunState.SUCCESS, RunState.FAILED) and run.reason != "run_deadline"
        if is_by_itself and run.id not in self.marked and len(rows) <= MOST_HELD_TO_THEIR_PLAN:
            for difference in differences(self.graph(run.id)):
                raise Violation(f"end: of run {run.id}, which is {run.state}: {difference}")

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
            if run.state not in LIVE_RUNS or run.id in self.left_alone:
                continue
            rows = [self.task_runs[i] for i in self.tasks_of[run.id]]
            if all(row.state in TASK_TERMINAL for row in rows):
                raise Violation(f"I4: run {run.id} is {run.state} though all its tasks are over")
            graph = self.graph(run.id)
            for row in rows:
                if not self._has_owner(row, graph):
                    raise Violation(f"I4: task {row.name} of {run.id} is {row.state} without an owner")
                if graph.planned(row).body is not None:
                    self._check_stopped(row, graph)

    def _check_stopped(self, row: TaskRunRecord, graph: Graph) -> None:
        """Check that whoever stops a container stops all inside of it, at any depth."""
        open_ = [other for other in graph.below(row) if other.state not in TASK_TERMINAL]
        is_late = row.state is TaskState.FAILED and row.reason == "deadline"
        if row.state is not TaskState.CANCELLING:
            if row.state is not TaskState.CANCELLED and not _was_settled(row) and not is_late:
                return
        elif self.runs[row.run_id].reason != "force_cancelled":
            open_ = [other for other in open_ if not graph.tears_down(other)]
        for other in open_:
            if other.state is not TaskState.CANCELLING:
                raise Violation(f"I4: {row.name} of {row.run_id} is {row.state}, and {other.name} {other.state}")

    def _has_owner(self, row: TaskRunRecord, graph: Graph) -> bool:
        planned = graph.planned(row)
        if row.state is TaskState.READY:
            return bool(row.reason)
        if row.state is TaskState.RETRY_WAIT:
            return row.retry_at is not None
        if row.state is TaskState.WAITING:
            return row.retry_at is not None or planned.approval is not None or planned.event is not None
        return row.state not in AT_WORK or self._is_at_work(row, graph, planned)

    def _is_at_work(self, row: TaskRunRecord, graph: Graph, planned: PlannedTask) -> bool:
        if planned.body is not None:
            delayed = row.reason == "repeat_delay" and row.retry_at is not None
            waits = row.state is TaskState.RUNNING and (delayed or row.reason == "conditions")
            return waits or any(other.state not in TASK_TERMINAL for other in graph.below(row))
        if planned.child is not None:
            child = self.runs.get(row.child_run_id or "")
            return row.child_run_id in self.asked if child is None else child.state not in RUN_TERMINAL
        owner = self.attempts.get(row.attempt_id or "")
        wanted = AttemptState.DISPATCHED if row.state is TaskState.QUEUED else AttemptState.RUNNING
        return owner is not None and owner.state is wanted

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


def has_begun(row: TaskRunRecord, effect: fx.Transition) -> bool:
    """Say whether the row has a time since when it was ready, or running, once this is written (``store.fold``)."""
    times = [effect.changes.get(name, row.begun) for name in ("ready_at", "started_at")]
    return any(times) or effect.after in (TaskState.READY, TaskState.RUNNING)


def _was_settled(row: TaskRunRecord) -> bool:
    """Say whether a container has ended by its upstreams or its condition, and not by what is inside of it."""
    is_skipped = row.state is TaskState.SKIPPED and not row.begun and row.reason != "marked"
    return is_skipped or row.state is TaskState.UPSTREAM_FAILED


def _check_generation(effect: fx.Transition, row: Any, changed: Any) -> None:
    """Only a rerun and a mark lead out of a terminal state, once for each generation, which nothing else touches."""
    was_over = row.state in RUN_TERMINAL or row.state in TASK_TERMINAL
    if changed.generation != row.generation + was_over:
        raise Violation(f"I1: {effect.id} goes from generation {row.generation} to {changed.generation}")
    if effect.cause != "mark" and (effect.cause == "rerun") != was_over:
        raise Violation(f"I1: {effect.id} leaves {row.state} because of {effect.cause}")
