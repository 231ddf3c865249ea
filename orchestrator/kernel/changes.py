"""The one place where states change: each change is checked against the table, applied to the index and recorded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.effects import Annotate, Transition
from orchestrator.kernel.ledgered import Ledgered
from orchestrator.kernel.nodes import RUN_PAUSED, WAITS_FOR_ITS_HOST, RunNode, TaskNode
from orchestrator.kernel.scopes import SUPERSEDED, note_host, recount
from orchestrator.kernel.services import note_end
from orchestrator.kernel.timers import set_timers
from orchestrator.records import AttemptRecord, WorkerRecord
from orchestrator.states import (
    ATTEMPT_TERMINAL,
    MARKS,
    RUN_TERMINAL,
    TASK_TERMINAL,
    AnyState,
    AttemptState,
    Entity,
    RunState,
    TaskState,
    WorkerState,
    is_allowed,
    is_reopening,
)

NONE: Mapping[str, Any] = {}
NONE_CUT: Mapping[TaskNode, int] = {}
NOT_YET = ("attempt_id", "retry_at", "local_to", "deadline_at", "child_run_id", "wait_token", "outputs")
ZERO: Mapping[str, Any] = {"failures": 0, "losses": 0, "cache_key": "", "superseded": False}
AS_IT_BEGAN: Mapping[str, Any] = {**ZERO, **dict.fromkeys(NOT_YET)}
"""Of a task run that has not begun; the number of its attempts goes on."""


class Changes(Ledgered):
    """What one event changes: the effects so far, and the index kept in step with them."""

    __slots__ = ()

    def run(
        self,
        run: RunNode,
        after: RunState,
        cause: str,
        *,
        reason: str = "",
        message: str = "",
        actor: str = "scheduler",
        columns: Mapping[str, Any] = NONE,
    ) -> bool:
        """Change the run's state; one that is over leaves the index. ``columns`` are the row's."""
        before = run.state
        if self._is_refused(Entity.RUN, run.id, before, after):
            return False
        if before is RunState.CANCELLING:
            message = message or run.stopped_because
        run.stopped_because = message if after is RunState.CANCELLING else ""
        why = (cause, reason, message, actor, run.id)
        self.emit(Transition(Entity.RUN, run.id, before, after, *why, changes=columns, durable=True))
        run.state, run.reason = after, reason
        if after in RUN_TERMINAL:
            self.kernel.close_run(run)
            if run.parent_task_run_id is not None:
                self.kernel.returned.append(run)
        return True

    def task(
        self,
        node: TaskNode,
        after: TaskState,
        cause: str,
        *,
        reason: str = "",
        message: str = "",
        actor: str = "scheduler",
        durable: bool = False,
        retry_in: float | None = None,
        row: Mapping[str, Any] = NONE,
        **columns: Any,
    ) -> bool:
        """Change the task run's state with further columns (``attempts``, ``failures``, ``losses``, ``attempt_id``,
        ``local_to``), count it at its downstreams when it ends, and queue it up when it is ready. ``row`` are columns
        that the index does not keep."""
        before = node.state
        if self._is_refused(Entity.TASK_RUN, node.id, before, after):
            return False
        if after is TaskState.READY and node.run.state is RunState.PAUSED:
            reason = RUN_PAUSED
        for name, value in columns.items():
            setattr(node, name, value)
        node.retry_at = None
        if retry_in is not None:
            columns["retry_at"] = ("in", retry_in)
        columns |= {**self._note_times(node, after), **row}
        if before is TaskState.CANCELLING:
            message = message or node.stopped_because
        node.stopped_because = (
            message.removesuffix(WAITS_FOR_ITS_HOST).rstrip() if after is TaskState.CANCELLING else ""
        )
        why = (cause, reason, message, actor, node.run.id, node.name)
        self.emit(Transition(Entity.TASK_RUN, node.id, before, after, *why, changes=columns, durable=durable))
        node.state, node.reason = after, reason
        node.begun |= after not in TASK_TERMINAL
        if before is TaskState.PENDING and after in TASK_TERMINAL and not node.resumed:
            self._leave_nothing_inside(node)
        self._place(node, before, retry_in)
        set_timers(self.kernel.timers, node, self.now)
        return True

    def _place(self, node: TaskNode, before: TaskState, retry_in: float | None) -> None:
        """Put a task run where its new state wants it: into a line, under a timer, or away."""
        after = node.state
        if before is TaskState.READY and node.ask is not None:
            if self.kernel.ledger.drop_hold(node.ask):
                self.kernel.waiting_lines.unblock()
            node.ask = None
        if after is TaskState.READY and node.dispatches:
            self.kernel.line_up(node, self.now)
        elif after is TaskState.READY:
            self.step_aside(node)
        elif after is TaskState.RETRY_WAIT or retry_in is not None:
            self.kernel.set_retry(node, self.now + (retry_in or 0.0))
        elif after in TASK_TERMINAL:
            self._count_at_downstreams(node)
            self.step_aside(node)
            self.kernel.unread_children.pop(node.child_run_id or "", None)

    def _note_times(self, node: TaskNode, after: TaskState) -> dict[str, Any]:
        """Note since when it waits to be claimed and, when it is first ready, until when it has time; returns what of
        it the row is told besides the time of the change."""
        planned, columns = node.planned, dict[str, Any]()
        if node.state is TaskState.PENDING and after not in TASK_TERMINAL and planned.deadline is not None:
            node.deadline_at = self.now + planned.deadline
            columns["deadline_at"] = ("in", planned.deadline)
        if after is TaskState.WAITING and node.state is TaskState.PENDING:
            # It is never ready nor running, and its row is to say that it has begun.
            columns["ready_at"] = ("in", 0.0)
        if after is TaskState.READY:
            if node.state is not TaskState.QUEUED or node.ready_since is None:
                node.ready_since = self.now
            elif planned.max_queued is not None:
                # It was dispatched and nobody has claimed it: it has waited all along.
                columns["ready_at"] = ("in", node.ready_since - self.now)
        return columns

    def wait_anew(self, node: TaskNode) -> None:
        """Let a ready task whose run goes on wait for its place again; the time of the pause does not count."""
        self.kernel.line_up(node, self.now)
        node.ready_since = self.now
        if node.planned.max_queued is not None:
            self.emit(Annotate(Entity.TASK_RUN, node.id, node.state, {"ready_at": ("in", 0.0)}))
            set_timers(self.kernel.timers, node, self.now)

    def step_aside(self, node: TaskNode) -> None:
        """A task has ended, or does not go on for now: those that waited for it, because it works on the same, ask for
        its outputs if it has succeeded, else one of them takes its place."""
        if node.planned.cache is None:
            return
        is_done = node.state is TaskState.SUCCESS
        for follower in self.kernel.flights.leave(node, has_left_outputs=is_done):
            if is_done:
                self.kernel.waiting_lines.drop(follower)
                self.kernel.flights.ask(follower)
            else:
                self.kernel.line_up(follower, self.now)

    def reopen(
        self,
        run: RunNode,
        nodes: Sequence[TaskNode],
        actor: str,
        *,
        cause: str = "rerun",
        resumed: Collection[TaskNode] = (),
        cut: Mapping[TaskNode, int] = NONE_CUT,
        message: str = "",
    ) -> bool:
        """Start a run again that is over: it waits for its place, these of its task runs for their upstreams, each as
        its next generation. The states of the others are counted as they stand.

        :param resumed: containers among them that go on with what is inside of them; the others expand anew.
        :param cut: repeats among these, with the first of their rounds that count no more.
        """
        may = all(is_reopening(Entity.TASK_RUN, node.state, TaskState.PENDING) for node in nodes)
        if not (may and is_reopening(Entity.RUN, run.state, RunState.QUEUED)):
            self.count("refused_transition", f"{Entity.RUN} {run.id}: {run.state} → {RunState.QUEUED} by a {cause}")
            return False
        self.look_anew(nodes, actor, resumed, cause)
        for node, first in cut.items():
            self.set_aside(node, f"An earlier round of {node.name} runs again.", first)
        run.generation += 1
        message = message or f"{len(nodes)} of its {len(run.tasks)} tasks are run again"
        columns = {"generation": run.generation, "runs_below": 0, "started_at": None, "ended_at": None}
        before, run.state, run.reason = run.state, RunState.QUEUED, cause
        why = (cause, run.reason, f"{message}, as generation {run.generation}.", actor, run.id)
        self.emit(Transition(Entity.RUN, run.id, before, run.state, *why, changes=columns, durable=True))
        recount(run)
        return True

    def look_anew(
        self, nodes: Iterable[TaskNode], actor: str, resumed: Collection[TaskNode] = (), cause: str = "mark"
    ) -> None:
        """Let these task runs wait for their upstreams again. Counters are left as they are."""
        for node in nodes:
            self.renew(node, TaskState.PENDING, cause, actor=actor, resumed=node in resumed)

    def set_aside(self, node: TaskNode, message: str, first: int = 0) -> None:
        """Let what a container has expanded into count no more, from this index or round on. Nothing of it may be open;
        its rows are used again where they fit."""
        inside = node.inside
        for scope in [] if inside is None else inside.scopes[first:]:
            for task in scope.tasks:
                task.superseded, task.reason = True, SUPERSEDED
                columns = {"superseded": True, "reason": SUPERSEDED, "message": message}
                self.emit(Annotate(Entity.TASK_RUN, task.id, task.state, columns))
        if inside is not None:
            inside.former.update((scope.index, scope) for scope in inside.scopes[first:])
            del inside.scopes[first:]

    def _leave_nothing_inside(self, node: TaskNode) -> None:
        """A container was to expand anew and is settled without: what an earlier generation has left is not its own."""
        if node.inside is not None and node.inside.scopes and not node.inside.open:
            self.set_aside(node, f"{node.name} was settled anew without it.")
            node.inside.clear_counts()
            node.inside.hosts.clear()

    def renew(
        self,
        node: TaskNode,
        after: TaskState,
        cause: str,
        *,
        actor: str = "scheduler",
        reason: str = "",
        message: str = "",
        resumed: bool = False,
        awaits_turn: bool = False,
        row: Mapping[str, Any] = NONE,
    ) -> bool:
        """Bring a task run back to where it began, save for the number of its attempts; or to what a person marks it
        as. One that was over is its next generation then. Its neighbours' counters are left as they are.

        :param resumed: a container goes on with what is inside of it, instead of expanding anew.
        :param awaits_turn: its index waits for its turn; a mark changes nothing of that.
        """
        before, went_on = node.state, node.resumed
        is_over = before in TASK_TERMINAL
        if not (is_reopening(Entity.TASK_RUN, before, after) or (cause == "mark" and after in MARKS)):
            return not self._is_refused(Entity.TASK_RUN, node.id, before, after)
        columns: dict[str, Any] = {"generation": node.generation + is_over, **AS_IT_BEGAN, "resumed": resumed}
        columns["awaits_turn"] = awaits_turn or (cause == "mark" and node.awaits_turn)
        for name, value in columns.items():
            setattr(node, name, value)
        node.keep(None)
        columns |= dict.fromkeys(("cached_from", "cache_detail", "ready_at", "queued_at", "started_at"))
        columns["ended_at"] = None if after is TaskState.PENDING else ("in", 0.0)
        node.state, node.reason, node.begun = after, reason, node.begun and after is not TaskState.PENDING
        if node.begun:
            # What a person says of it undoes nothing of it. How long it took is not told by a mark.
            columns["ready_at"] = ("in", 0.0)
        if before is TaskState.READY:
            self.kernel.waiting_lines.drop(node)
        why = (cause, reason, message, actor, node.run.id, node.name)
        changes = {**columns, **row}
        self.emit(Transition(Entity.TASK_RUN, node.id, before, after, *why, changes=changes, durable=True))
        if after in TASK_TERMINAL:
            self.step_aside(node)
            if not is_over and not went_on:
                self._leave_nothing_inside(node)
        set_timers(self.kernel.timers, node, self.now)
        return True

    def attempt(
        self,
        attempt: AttemptRecord,
        after: AttemptState,
        cause: str,
        *,
        reason: str = "",
        message: str = "",
        actor: str = "scheduler",
        durable: bool = False,
        columns: Mapping[str, Any] = NONE,
        **fields: Any,
    ) -> AttemptRecord | None:
        """Change the attempt's state; ``fields`` are the record's, ``columns`` the row's. ``None`` when refused."""
        if self._is_refused(Entity.ATTEMPT, attempt.id, attempt.state, after):
            return None
        node = self.kernel.tasks[attempt.task_run_id]
        why = (cause, reason, message, actor, node.run.id, node.name, attempt.token, columns, durable)
        self.emit(Transition(Entity.ATTEMPT, attempt.id, attempt.state, after, *why))
        changed = replace(attempt, state=after, **fields)
        self.kernel.keep_attempt(changed, reason)
        if after in ATTEMPT_TERMINAL and node.planned.connections:
            note_end(self, node, changed, reason)
        return changed

    def note_attempt(self, attempt: AttemptRecord, columns: Mapping[str, Any], **fields: Any) -> AttemptRecord:
        """Change columns of a live attempt whose state stays."""
        self.emit(Annotate(Entity.ATTEMPT, attempt.id, attempt.state, columns))
        changed = replace(attempt, **fields)
        self.kernel.keep_attempt(changed)
        return changed

    def worker(
        self, worker: WorkerRecord, after: WorkerState, cause: str, *, reason: str = "", actor: str = "scheduler"
    ) -> WorkerRecord:
        """Change the worker's state; what it could take may be another matter now."""
        if worker.state is after or self._is_refused(Entity.WORKER, worker.id, worker.state, after):
            return worker
        # One that was given up and speaks again has not ended after all.
        columns = {"ended_at": None} if worker.state is WorkerState.LOST and after is not WorkerState.DRAINED else NONE
        self.emit(
            Transition(Entity.WORKER, worker.id, worker.state, after, cause, reason, actor=actor, changes=columns)
        )
        changed = replace(worker, state=after)
        self.kernel.admit(changed)
        self.kernel.waiting_lines.unblock()
        return changed

    def _count_at_downstreams(self, node: TaskNode) -> None:
        scope, run, kernel = node.scope, node.run, self.kernel
        scope.open -= 1
        run.open -= 1
        around = scope
        while around.owner is not None and around.owner.inside is not None:
            around.owner.inside.open -= 1
            if around.owner.inside.open == 0:
                kernel.advancing[around.owner.id] = around.owner
            around = around.owner.scope
        if scope.open == 0 and scope.owner is not None:
            kernel.ended_scopes.append(scope)
        for position in scope.shape.downstream[node.position]:
            child = scope.tasks[position]
            child.count(node.state)
            kernel.unsettled.append(child)
        note_host(node)
        if run.open == 0:
            kernel.finishing[run.id] = run

    def _is_refused(self, entity: Entity, entity_id: str, before: AnyState, after: AnyState) -> bool:
        if is_allowed(entity, before, after):
            return False
        self.count("refused_transition", f"{entity} {entity_id}: {before} → {after}")
        return True
