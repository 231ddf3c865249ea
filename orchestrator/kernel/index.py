"""The kernel's index: everything that is not over, in memory, rebuilt from rows at start and after any doubt."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from orchestrator.events import EndedRun
from orchestrator.kernel.desired import desired_of
from orchestrator.kernel.due import next_due
from orchestrator.kernel.evaluating import CONDITIONS, Evaluating
from orchestrator.kernel.expanding import EXPANSION, Expanding
from orchestrator.kernel.flights import Flights
from orchestrator.kernel.gates import Passed, gate_of
from orchestrator.kernel.held_runs import HeldBack, HeldRuns
from orchestrator.kernel.input_hosts import InputHosts
from orchestrator.kernel.nodes import RUN_DEADLINE, RunNode, Scope, TaskNode
from orchestrator.kernel.relapses import Relapses
from orchestrator.kernel.scopes import has_timer, populate, recount
from orchestrator.kernel.settings import Desired, KernelSettings, Snapshot
from orchestrator.kernel.shape import Shape
from orchestrator.kernel.timers import Timers, set_timers
from orchestrator.kernel.waiting import Waiting
from orchestrator.placement import Ask, Ledger
from orchestrator.records import (
    AttemptRecord,
    EndedAttempt,
    Plan,
    PlannedTask,
    Reservation,
    RunRecord,
    TaskRunRecord,
    WorkerRecord,
)
from orchestrator.states import ATTEMPT_TERMINAL, TASK_TERMINAL, AttemptState, RunState, TaskState

ACTIVE = frozenset({RunState.RUNNING, RunState.PAUSED, RunState.CANCELLING})
TIMERS_KEPT = 1_000
"""Entries of a heap of timers that may be outdated before it is made anew."""
ENDED_KEPT = 20_000
"""Ended attempts and runs that are remembered, so that an outcome sent twice within a batch is answered without its
row, and a run that was read as queued before a command of the same batch ended it is not started."""


class Kernel:
    """The mutable index. Only ``decide`` and its siblings change it; the scheduler asks the questions below."""

    def __init__(self, settings: KernelSettings, now: float) -> None:
        self.settings = settings
        self.runs: dict[str, RunNode] = {}
        self.tasks: dict[str, TaskNode] = {}
        self.attempts: dict[str, AttemptRecord] = {}
        """Dispatched and running ones."""
        self.unclaimed: dict[str, None] = {}
        """Dispatched ones, the one whose hint is oldest first."""
        self.ended: dict[str, EndedAttempt] = {}
        self.closed: dict[str, int] = {}
        """Runs that are over, with the generation that is."""
        self.unreadable: dict[str, str] = {}
        """Runs under way whose plan can't be read here, and why; another scheduler has to see to them."""
        self.left_alone: frozenset[str] = frozenset()
        """Their live attempts: nothing is said or done about them."""
        self.refused_claims: dict[tuple[str, str, str], str] = {}
        """Claims (attempt, worker, nonce) of attempts that were still to be had, and why they were refused."""
        self.ledger = Ledger()
        self.waiting_lines = Waiting()
        self.passed = Passed()
        self.flights = Flights()
        self.held_runs = HeldRuns()
        self.timers = Timers()
        self.unread_children: dict[str, TaskNode] = {}
        """Runs that are to be stopped and were not read yet, with the tasks that they are."""
        self.unmade_children = set[str]()
        """Runs that are tasks and were asked for by the last leader, which has not made them; asked for again by the
        next reconcile."""
        self.ended_children: dict[str, EndedRun] = {}
        """Runs that are tasks and were over when we began to lead, though the tasks are not; ended by the next
        reconcile."""
        self.shapes: dict[int, tuple[Shape, int]] = {}
        """By identity of the plan: its shape, and the number of runs that use it."""
        self.retries: list[tuple[float, str]] = []
        self.deadlines: list[tuple[float, str]] = []
        self._begin_with_workers()
        self._begin_to_settle()
        self._begin_to_hear(now)

    def _begin_with_workers(self) -> None:
        self.workers: dict[str, WorkerRecord] = {}
        self.listeners: dict[str, dict[str, None]] = {}
        """Queue → ids of the workers that listen to it."""
        self.shown: dict[str, Mapping[str, str]] = {}
        """Attempts (and tokens) in the latest heartbeat of each worker."""
        self.grants: dict[str, dict[str, None]] = {}
        """Worker → running attempts that it answers for: granted to it, or adopted by it."""
        self.orphans: dict[str, None] = {}
        """Running attempts that nobody answers for until another worker of their host adopts them, the oldest first."""
        self.relapses = Relapses()
        self.leaving: dict[str, int] = {}
        """Workers that have preempted something, and how many more of their heartbeats may be older than that."""

    def _begin_to_settle(self) -> None:
        self.at_work: TaskNode | None = None
        """The task that is being looked at: should an exception leave ``decide``, the log names it."""
        self.unsettled: list[TaskNode] = []
        """Tasks one of whose upstreams has ended; looked at before ``decide`` returns."""
        self.ended_scopes: list[Scope] = []
        """Indices and rounds whose last task has ended; counted before ``decide`` returns."""
        self.advancing: dict[str, TaskNode] = {}
        """Containers in which something has ended; looked at before ``decide`` returns."""
        self.expanding = Expanding()
        self.evaluating = Evaluating()
        self.input_hosts = InputHosts()
        self.returned: list[RunNode] = []
        """Runs that are tasks of others and are over; those tasks end before ``decide`` returns."""
        self.finishing: dict[str, RunNode] = {}
        """Runs that may be over; looked at before ``decide`` returns."""

    def _begin_to_hear(self, now: float) -> None:
        self.trusted_from = now
        """Silence is counted from here at the earliest: when we began to lead, or Redis came back (DESIGN §4)."""
        self.hints_from = now - 1e9
        """The age of a hint is counted from here at the earliest: claims may have waited unread until then."""
        self.redis_away = False
        self.away_since: float | None = None
        """Since when it was, the last time."""
        self.breaker_until: float | None = None
        """While mass expiry is held: when the next few workers may be given up."""
        self.buried_at: dict[str, float] = {}
        """When the incarnation of a zombie was first seen not to show it."""

    def load(self, snapshot: Snapshot, now: float) -> None:
        """Build the index from the rows; ``ReconcileDue`` must be the next event."""
        for host in snapshot.hosts:
            self.ledger.register(host)
        for worker in snapshot.workers:
            self.admit(worker)
        for reservation in snapshot.reservations:
            self.ledger.take(reservation)
        rows: dict[str, list[TaskRunRecord]] = {}
        for row in snapshot.task_runs:
            rows.setdefault(row.run_id, []).append(row)
        for run in snapshot.runs:
            self.adopt_run(run, tuple(rows.get(run.id, ())), snapshot.plans[run.id], now)
        for attempt in sorted(snapshot.attempts, key=lambda attempt: attempt.hinted_at):
            self.keep_attempt(attempt)
        self.orphans = dict.fromkeys(sorted(self.orphans, key=lambda id_: self.attempts[id_].orphaned_at or 0.0))
        self.unreadable, self.left_alone = dict(snapshot.unreadable), snapshot.left_alone
        self.passed.stale_circuits = snapshot.circuits
        for rate, at in snapshot.dispatches:
            self.passed.dispatches.note(rate, at)
        self.unmade_children, self.ended_children = set(snapshot.unmade_children), dict(snapshot.ended_children)

    def adopt_run(self, record: RunRecord, tasks: tuple[TaskRunRecord, ...], plan: Plan, now: float) -> RunNode:
        """Index one run and its task runs, with all counters worked out from their states."""
        shape = self._shape_of(plan)
        run = RunNode(record, shape)
        parent = self.tasks.get(record.parent_task_run_id or "")
        run.hands_on = parent is not None and parent.is_kept
        populate(run, tasks)
        recount(run)
        for node in run.tasks:
            self.tasks[node.id] = node
            if node.state is TaskState.READY:
                self.line_up(node, now)
            elif node.state is TaskState.RETRY_WAIT:
                self.set_retry(node, now if node.retry_at is None else node.retry_at)
            elif node.retry_at is not None and has_timer(node):
                self.set_retry(node, node.retry_at)
            else:
                node.retry_at = None
            if node.state is TaskState.CANCELLING and node.child_run_id is not None:
                self.unread_children[node.child_run_id] = node
            if (follower := self.flights.found_flying(node)) is not None:
                self.waiting_lines.drop(follower)
            set_timers(self.timers, node, now)
            if node.state is TaskState.PENDING:
                self._let_wait(node)
        self.runs[run.id] = run
        if run.state in ACTIVE:
            self.start_run(run)
        return run

    def _let_wait(self, node: TaskNode) -> None:
        """Let a task run wait for its turn that has waited for it under the leader before."""
        if node.reason == EXPANSION:
            self.expanding.wait(node)
        elif node.reason == CONDITIONS:
            self.evaluating.wait(node)

    def start_run(self, run: RunNode) -> None:
        """Let a run that is under way have its slots and its deadline."""
        self.passed.take_run(run)
        if run.deadline_at is not None:
            self.timers.set(RUN_DEADLINE, run.id, run.deadline_at)

    def close_run(self, run: RunNode) -> None:
        """Forget a run that is over but for its id; its rows remain."""
        self.drop_run(run)
        self.closed[run.id] = run.generation
        if len(self.closed) > ENDED_KEPT:
            del self.closed[next(iter(self.closed))]

    def drop_run(self, run: RunNode) -> None:
        """Forget a run; its rows remain."""
        self.runs.pop(run.id, None)
        self.held_runs.forget(run.id)
        self.timers.drop(RUN_DEADLINE, run.id)
        for node in run.tasks:
            self.tasks.pop(node.id, None)
            self.timers.forget(node.id)
            self.expanding.forget(node)
            self.evaluating.forget(node)
        self.passed.runs.free(run.id)
        key = id(run.shape.plan)
        shape, users = self.shapes.get(key, (run.shape, 1))
        if users > 1:
            self.shapes[key] = (shape, users - 1)
        else:
            self.shapes.pop(key, None)

    def admit(self, worker: WorkerRecord) -> None:
        """Index a worker, or what is new of it."""
        known = self.workers.get(worker.id)
        self.workers[worker.id] = worker
        if known is not None and known.queues != worker.queues:
            for queue in known.queues - worker.queues:
                self.listeners.get(queue, {}).pop(worker.id, None)
        for queue in worker.queues:
            self.listeners.setdefault(queue, {})[worker.id] = None

    def forget_worker(self, worker_id: str) -> None:
        worker = self.workers.pop(worker_id)
        self.shown.pop(worker_id, None)
        self.leaving.pop(worker_id, None)
        for queue in worker.queues:
            self.listeners.get(queue, {}).pop(worker_id, None)

    def refuse_claim(self, claim: tuple[str, str, str], reason: str) -> None:
        """Remember why a claim (attempt, worker, nonce) was refused; only so many, the oldest are forgotten."""
        self.refused_claims.setdefault(claim, reason)
        if len(self.refused_claims) > ENDED_KEPT:
            del self.refused_claims[next(iter(self.refused_claims))]

    def listeners_of(self, queue: str) -> list[WorkerRecord]:
        return [self.workers[worker_id] for worker_id in self.listeners.get(queue, ())]

    def keep_attempt(self, attempt: AttemptRecord, reason: str = "") -> None:
        """Index an attempt as it now is; one that has ended (for this ``reason``) is only remembered for answers."""
        before = self.attempts.get(attempt.id)
        if attempt.state in ATTEMPT_TERMINAL:
            self._forget_attempt(attempt, reason)
            return
        if (task := self.tasks.get(attempt.task_run_id)) is not None:
            self.relapses.note(attempt, task.losses)
        self.attempts[attempt.id] = attempt
        if before is None and (node := self.tasks.get(attempt.task_run_id)) is not None:
            self.passed.take_attempt(node, attempt)
        if attempt.state is AttemptState.DISPATCHED:
            if before is None or before.hinted_at != attempt.hinted_at:
                self.unclaimed.pop(attempt.id, None)
                self.unclaimed[attempt.id] = None
            return
        self.unclaimed.pop(attempt.id, None)
        if before is not None and (before.owner_id, before.orphaned_at) != (attempt.owner_id, attempt.orphaned_at):
            self._drop_grant(before)
        if attempt.orphaned_at is None:
            self.grants.setdefault(attempt.owner_id, {})[attempt.id] = None
        else:
            self.orphans[attempt.id] = None
        if attempt.deadline is not None and (before is None or before.deadline is None):
            heapq.heappush(self.deadlines, (attempt.deadline, attempt.id))
            if len(self.deadlines) > 2 * len(self.attempts) + TIMERS_KEPT:
                live = self.attempts.values()
                self.deadlines = [(a.deadline, a.id) for a in live if a.deadline is not None]
                heapq.heapify(self.deadlines)

    def _forget_attempt(self, attempt: AttemptRecord, reason: str) -> None:
        self.attempts.pop(attempt.id, None)
        self.relapses.drop(attempt.id)
        self.unclaimed.pop(attempt.id, None)
        self._drop_grant(attempt)
        if self.passed.attempts.free(attempt.id):
            self.waiting_lines.unblock()
        self.ended[attempt.id] = EndedAttempt(
            attempt.id, attempt.state, attempt.token, attempt.worker_id, reason, attempt.keeper_id
        )
        if len(self.ended) > ENDED_KEPT:
            del self.ended[next(iter(self.ended))]

    def _drop_grant(self, attempt: AttemptRecord) -> None:
        self.orphans.pop(attempt.id, None)
        granted = self.grants.get(attempt.owner_id)
        if granted is not None:
            granted.pop(attempt.id, None)
            if not granted:
                del self.grants[attempt.owner_id]

    def line_up(self, node: TaskNode, now: float) -> None:
        """Put a ready task into the line of its ask and gate, unless it waits for what the cache says first.

        One whose run is paused stands nowhere: others that work on the same would wait for it as long as the pause.
        """
        node.ready_at = now
        if node.dispatches and not self.flights.holds(node):
            self.waiting_lines.add(node, self.ask_of(node), gate_of(node, self.expanding.texts))

    def ask_of(self, node: TaskNode) -> Ask:
        """Return what the task asks of placement: its own words, what its tries have taught, and the hosts that alone
        hold its inputs."""
        planned, queue, resources = node.planned, node.planned.queue, node.planned.resources
        if node.memory is not None and node.memory != resources.memory:
            resources = replace(resources, memory=node.memory)
            if queue == "cpu" and node.memory > self.settings.highmem_above:
                queue = "highmem"
        return Ask(node.queue or queue, resources, planned.labels, tuple(self.input_hosts.of(node)))

    def set_retry(self, node: TaskNode, at: float) -> None:
        node.retry_at = at
        heapq.heappush(self.retries, (at, node.id))
        if len(self.retries) > 2 * len(self.tasks) + TIMERS_KEPT:
            self.retries = [(task.retry_at, task.id) for task in self.tasks.values() if task.retry_at is not None]
            heapq.heapify(self.retries)

    def _shape_of(self, plan: Plan) -> Shape:
        shape, users = self.shapes.get(id(plan), (None, 0))
        if shape is None:
            shape = Shape(plan)
        self.shapes[id(plan)] = (shape, users + 1)
        return shape

    # Questions the scheduler asks; they change nothing.

    def run_slots_free(self) -> int:
        """Return how many more runs may start under ``MAX_CONCURRENT_RUNS``; paused runs keep their place, and runs
        that are there as tasks of others take none."""
        counted = (run for run in self.runs.values() if not run.is_inside)
        active = len(self.unreadable) + sum(run.state is not RunState.QUEUED for run in counted)
        return max(0, self.settings.max_runs - active)

    def held_back(self, paused: Collection[str] = ()) -> HeldBack:
        """Return the queued runs that can't start now and need not be read, and those that are to be read because they
        are to be stopped.

        :param paused: ids of pipelines none of whose runs starts.
        """
        stopping = (run.id for run in self.runs.values() if run.is_cancelling)
        wanted = tuple(run_id for run_id in self.unread_children if run_id not in self.runs)
        return replace(self.held_runs.left_out(self.passed.runs, stopping, paused), wanted=wanted)

    def knows_run(self, run_id: str) -> bool:
        return run_id in self.runs

    def holds_attempt(self, attempt_id: str) -> bool:
        """Say whether the attempt's row need not be read to answer for it."""
        return attempt_id in self.attempts or attempt_id in self.ended or attempt_id in self.left_alone

    def is_granted(self, attempt: AttemptRecord) -> bool:
        """Say, after the commit, whether a grant may still be sent: a later event of the same batch may have ended the
        attempt, or wants it cancelled."""
        present = self.attempts.get(attempt.id)
        return (
            present is not None
            and present.state is AttemptState.RUNNING
            and not present.cancel
            and (present.worker_id, present.nonce) == (attempt.worker_id, attempt.nonce)
        )

    def plan_of(self, run_id: str) -> Plan:
        return self.runs[run_id].shape.plan

    def planned(self, attempt: AttemptRecord) -> PlannedTask:
        """Return the task that the attempt executes."""
        return self.tasks[attempt.task_run_id].planned

    def task_of(self, attempt: AttemptRecord) -> tuple[str, str, str]:
        """Return the run's id, its tenant and the task's name."""
        node = self.tasks[attempt.task_run_id]
        return node.run.id, node.run.tenant_id, node.name

    def reservations(self) -> tuple[Reservation, ...]:
        return tuple(self.ledger.reservations.values())

    def desired(self, worker_id: str) -> Desired:
        """Say what this worker is to bring about, by its latest heartbeat and the present state."""
        return desired_of(self, worker_id)

    def next_due(self, now: float) -> float | None:
        """Return the seconds until time alone makes something happen: 0.0 for at once, ``None`` for nothing."""
        return next_due(self, now)

    def waiting(self) -> dict[tuple[str, str], int]:
        """Count the task runs that are not over by state and reason."""
        found: Counter[tuple[str, str]] = Counter()
        for run in self.runs.values():
            if run.state is not RunState.QUEUED:
                found.update((str(t.state), t.reason) for t in run.tasks if t.state not in TASK_TERMINAL)
        return dict(found)
