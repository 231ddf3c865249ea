"""The one place where states change: each change is checked against the table, applied to the index and recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.effects import (
    Annotate,
    Count,
    Effect,
    Release,
    Reserve,
    Transition,
)
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.nodes import RunNode, TaskNode
from orchestrator.kernel.scopes import note_host, recount
from orchestrator.records import AttemptRecord, Reservation, WorkerRecord
from orchestrator.states import (
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


class Changes:
    """What one event changes: the effects so far, and the index kept in step with them."""

    __slots__ = ("effects", "kernel", "now")

    def __init__(self, kernel: Kernel, now: float) -> None:
        self.kernel = kernel
        self.now = now
        self.effects: list[Effect] = []

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def count(self, what: str, detail: str = "") -> None:
        self.effects.append(Count(what, detail))

    def run(
        self,
        run: RunNode,
        after: RunState,
        cause: str,
        *,
        reason: str = "",
        message: str = "",
        actor: str = "scheduler",
    ) -> bool:
        """Change the run's state; one that is over leaves the index."""
        if self._is_refused(Entity.RUN, run.id, run.state, after):
            return False
        self.emit(Transition(Entity.RUN, run.id, run.state, after, cause, reason, message, actor, run.id, durable=True))
        run.state, run.reason = after, reason
        if after in RUN_TERMINAL:
            self.kernel.close_run(run)
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
        **columns: Any,
    ) -> bool:
        """Change the task run's state with further columns (``attempts``, ``failures``, ``losses``, ``attempt_id``,
        ``local_to``), count it at its downstreams when it ends, and queue it up when it is ready."""
        before = node.state
        if self._is_refused(Entity.TASK_RUN, node.id, before, after):
            return False
        if after is TaskState.READY and node.run.state is RunState.PAUSED:
            reason = "run_paused"
        for name, value in columns.items():
            setattr(node, name, value)
        if retry_in is not None:
            columns["retry_at"] = ("in", retry_in)
        self.emit(
            Transition(
                Entity.TASK_RUN,
                node.id,
                before,
                after,
                cause,
                reason,
                message,
                actor,
                node.run.id,
                node.name,
                None,
                columns,
                durable,
            )
        )
        node.state, node.reason = after, reason
        if before is TaskState.READY and node.ask is not None:
            if self.kernel.ledger.drop_hold(node.ask):
                self.kernel.waiting_lines.unblock()
            node.ask = None
        if after is TaskState.READY:
            self.kernel.line_up(node, self.now)
        elif after is TaskState.RETRY_WAIT:
            self.kernel.set_retry(node, self.now + (retry_in or 0.0))
        elif after in TASK_TERMINAL:
            self._count_at_downstreams(node)
        return True

    def reopen(self, run: RunNode, nodes: Sequence[TaskNode], actor: str) -> bool:
        """Start a run again that is over: it waits for its place, these of its tasks for their upstreams, each as its
        next generation. The states of the others are counted as they stand."""
        may = all(is_reopening(Entity.TASK_RUN, node.state, TaskState.PENDING) for node in nodes)
        if not (may and nodes and is_reopening(Entity.RUN, run.state, RunState.QUEUED)):
            self.count("refused_transition", f"{Entity.RUN} {run.id}: {run.state} → {RunState.QUEUED} by a rerun")
            return False
        for node in nodes:
            self._reopen_task(node, actor)
        run.generation += 1
        message = f"{len(nodes)} of its {len(run.tasks)} tasks are run again, as generation {run.generation}."
        columns = {"generation": run.generation, "started_at": None, "ended_at": None}
        before, run.state, run.reason = run.state, RunState.QUEUED, "rerun"
        self.emit(
            Transition(
                Entity.RUN,
                run.id,
                before,
                run.state,
                "rerun",
                run.reason,
                message,
                actor,
                run.id,
                changes=columns,
                durable=True,
            )
        )
        recount(run)
        return True

    def _reopen_task(self, node: TaskNode, actor: str) -> None:
        """Bring a task run back to where it began, save for the number of its attempts."""
        columns: dict[str, Any] = {
            "generation": node.generation + 1,
            "failures": 0,
            "losses": 0,
            "attempt_id": None,
            "retry_at": None,
            "local_to": None,
        }
        for name, value in columns.items():
            setattr(node, name, value)
        columns |= {"outputs": None, **dict.fromkeys(("ready_at", "queued_at", "started_at", "ended_at"))}
        before, node.state, node.reason = node.state, TaskState.PENDING, ""
        self.emit(
            Transition(
                Entity.TASK_RUN,
                node.id,
                before,
                node.state,
                "rerun",
                actor=actor,
                run_id=node.run.id,
                task=node.name,
                changes=columns,
                durable=True,
            )
        )

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
        self.emit(
            Transition(
                Entity.ATTEMPT,
                attempt.id,
                attempt.state,
                after,
                cause,
                reason,
                message,
                actor,
                node.run.id,
                node.name,
                attempt.token,
                columns,
                durable,
            )
        )
        changed = replace(attempt, state=after, **fields)
        self.kernel.keep_attempt(changed, reason)
        return changed

    def note_attempt(self, attempt: AttemptRecord, columns: Mapping[str, Any], **fields: Any) -> AttemptRecord:
        """Change columns of a live attempt whose state stays."""
        self.emit(Annotate(Entity.ATTEMPT, attempt.id, attempt.state, columns))
        changed = replace(attempt, **fields)
        self.kernel.keep_attempt(changed)
        return changed

    def explain(self, node: TaskNode, reason: str, message: str) -> None:
        """Say what a task waits for, if that is not said already."""
        if node.reason != reason:
            node.reason = reason
            self.emit(Annotate(Entity.TASK_RUN, node.id, node.state, {"reason": reason, "message": message}))

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

    def reserve(self, reservation: Reservation) -> None:
        """Charge the attempt to a worker and its host; the audit is told of every move."""
        kernel = self.kernel
        before = kernel.ledger.reservations.get(reservation.attempt_id)
        kernel.ledger.take(reservation)
        attempt = kernel.attempts.get(reservation.attempt_id)
        if before is None or attempt is None or _place_of(before) == _place_of(reservation):
            self.emit(Reserve(reservation))
        else:
            self.emit(Reserve(reservation, attempt, kernel.tasks[attempt.task_run_id].name))

    def release(self, attempt_id: str) -> None:
        """Give back what the attempt holds, if anything; others may be waiting for it."""
        self.kernel.buried_at.pop(attempt_id, None)
        held = self.kernel.ledger.release(attempt_id)
        if held is not None:
            self.emit(Release(attempt_id, held if held.zombie else None))
            self.kernel.waiting_lines.unblock()

    def bury(self, attempt: AttemptRecord) -> None:
        """Keep what the attempt holds charged to its host until the host confirms that its tree is dead: the tree of
        the incarnation that ran it, whoever has adopted it."""
        zombie = self.kernel.ledger.bury(attempt.id)
        if zombie is not None:
            if zombie.worker_id != attempt.worker_id:
                zombie = replace(zombie, worker_id=attempt.worker_id)
                self.kernel.ledger.take(zombie)
            self.emit(Reserve(zombie))
            self.kernel.waiting_lines.unblock()

    def _count_at_downstreams(self, node: TaskNode) -> None:
        scope, run, kernel = node.scope, node.run, self.kernel
        scope.open -= 1
        run.open -= 1
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


def _place_of(reservation: Reservation) -> tuple[str, str, tuple[str, ...]]:
    return (reservation.host_id, reservation.worker_id, reservation.devices)
