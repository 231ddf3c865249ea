"""Stopping what is under way: by a person's cancel, because its time is up, or because another takes its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.effects import Annotate
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.containers import begin
from orchestrator.kernel.inside import Inside
from orchestrator.kernel.nodes import FORCED, WAITS_FOR_ITS_HOST, RunNode, Scope, TaskNode
from orchestrator.kernel.pausing import go_on_inside
from orchestrator.kernel.unclaimed import expire
from orchestrator.records import AttemptRecord
from orchestrator.states import TASK_TERMINAL, AttemptState, Entity, RunState, TaskState

OPEN_WITHOUT_ATTEMPT = frozenset({TaskState.PENDING, TaskState.READY, TaskState.RETRY_WAIT, TaskState.WAITING})
AROUND = "container_ended"
"""Cause of what is stopped because of the container around it, which has ended without deciding anything."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Why something is stopped, and how."""

    reason: str
    """Of what is stopped itself; :data:`nodes.DEADLINE` and :data:`nodes.RUN_DEADLINE` make it end failed."""
    message: str = ""
    cause: str = "cancel"
    actor: str = "scheduler"
    grace: float | None = None
    """Seconds between TERM and KILL; ``None``: the task's own."""

    @property
    def is_forced(self) -> bool:
        """Whether everything is killed at once, teardown tasks too."""
        return self.reason == FORCED


def stop_run(changes: Changes, run: RunNode, stop: Stop, *, of_tasks: str = "run_cancelled") -> None:
    """Stop all of a run that is not over, but for what tears down, unless it is forced; one that has not started ends
    at once.

    A run that is being stopped already keeps its reason, save that it may be forced now; then it ends cancelled.

    :param of_tasks: the reason of its task runs.
    """
    inner = Stop(of_tasks, f"Its run is stopped. {stop.message}".rstrip(), stop.cause, stop.actor, stop.grace)
    if run.state is RunState.QUEUED:
        _stop_scope(changes, run.root, inner, spare=False)
        changes.run(
            run, run.stopped_as(stop.reason), stop.cause, reason=stop.reason, message=stop.message, actor=stop.actor
        )
        return
    was_paused = run.state is RunState.PAUSED
    _stop_admitting(changes, run, stop)
    _stop_scope(changes, run.root, inner, spare=not run.is_forced)
    for node in run.tasks:
        if was_paused and node.state is TaskState.READY:
            # What tears down has left its line for the pause, and may go now.
            changes.kernel.line_up(node, changes.now)
        elif was_paused and node.state is TaskState.PENDING:
            changes.kernel.unsettled.append(node)
    if was_paused:
        # What tears down may be a run.
        go_on_inside(changes, run, stop.actor)
    if run.open == 0:
        changes.kernel.finishing[run.id] = run


def _stop_admitting(changes: Changes, run: RunNode, stop: Stop) -> None:
    """Bring the run to where only what tears down may still be sent out, or nothing at all."""
    if not run.is_cancelling:
        changes.run(run, RunState.CANCELLING, stop.cause, reason=stop.reason, message=stop.message, actor=stop.actor)
    elif stop.is_forced and not run.is_forced:
        run.reason, run.stopped_because = stop.reason, stop.message
        changes.emit(Annotate(Entity.RUN, run.id, run.state, {"reason": stop.reason, "message": stop.message}))


def stop_task(changes: Changes, node: TaskNode, stop: Stop, *, spare: bool = True) -> None:
    """Stop a task run that is not over: at once if nothing of it can run, else as soon as its tree is dead, or what is
    inside of it is over, or the run that it is.

    :param spare: let the teardown tasks inside of it run.
    """
    attempt = changes.kernel.attempts.get(node.attempt_id or "")
    if node.state in OPEN_WITHOUT_ATTEMPT:
        _end(changes, node, stop)
        if node.inside is not None:
            # It waited to go on with what it had expanded into before.
            stop_inside(changes, node, stop, spare=spare)
            _count_what_still_ends(changes, node.inside)
    elif attempt is not None and attempt.state is AttemptState.DISPATCHED:
        if expire(changes, attempt, stop.cause, stop.reason, stop.actor):
            _end(changes, node, stop, attempt_id=None)
    elif attempt is not None:
        if node.state is TaskState.RUNNING:
            _change(changes, node, TaskState.CANCELLING, stop, WAITS_FOR_ITS_HOST if attempt.orphaned_at else "")
        _stop_attempt(changes, attempt, stop)
    elif node.body is not None:
        _stop_container(changes, node, stop, spare=spare)
    elif node.planned.child is not None:
        if node.state is TaskState.RUNNING:
            _change(changes, node, TaskState.CANCELLING, stop, "")
        _stop_child(changes, node, stop)


def _stop_child(changes: Changes, node: TaskNode, stop: Stop) -> None:
    child = changes.kernel.runs.get(node.child_run_id or "")
    if child is not None:
        stop_run(changes, child, stop_of_child(node, stop))
    elif node.child_run_id is not None:
        # It is still queued in the rows, maybe held back: it is stopped as soon as it is read.
        changes.kernel.unread_children[node.child_run_id] = node


def _stop_container(changes: Changes, node: TaskNode, stop: Stop, *, spare: bool) -> None:
    inside = node.inside
    if inside is None or not inside.open:
        if node.state is TaskState.RUNNING:
            _end(changes, node, stop)
        return
    if node.state is TaskState.RUNNING:
        _change(changes, node, TaskState.CANCELLING, stop, "")
    stop_inside(changes, node, stop, spare=spare)


def stop_inside(changes: Changes, node: TaskNode, stop: Stop, *, spare: bool = True) -> None:
    """Stop what is open inside of a container; it is stopped because of that one, whatever the reason of that."""
    is_late = node.stopped_as(stop.reason) is TaskState.FAILED
    inner = Stop(
        "cancelled" if is_late else stop.reason,
        f"{node.name} around it is stopped. {stop.message}".rstrip() if is_late else stop.message,
        cause=stop.cause,
        actor=stop.actor,
        grace=stop.grace,
    )
    for scope in [] if node.inside is None or not node.inside.open else list(node.inside.scopes):
        _stop_scope(changes, scope, inner, spare=spare)


def _stop_scope(changes: Changes, scope: Scope, stop: Stop, *, spare: bool) -> None:
    """Stop what is open in a scope, and in the containers there that are over already: the indices that were left when
    one of them was decided still run."""
    for task in scope.tasks:
        if task.state not in TASK_TERMINAL:
            if not (spare and task.tears_down):
                stop_task(changes, task, stop, spare=spare)
        elif task.inside is not None:
            stop_inside(changes, task, stop, spare=spare)


def stop_left_inside(changes: Changes, node: TaskNode) -> bool:
    """Stop what is open inside of a container that has ended without deciding anything; says whether there was any."""
    if not node.has_ended_undecided or node.inside is None or not _goes_on(node.inside):
        return False
    message = f"{node.name} around it is {node.state}."
    stop_inside(changes, node, Stop(node.reason or "cancelled", message, cause=AROUND), spare=False)
    _count_what_still_ends(changes, node.inside)
    return True


def _goes_on(inside: Inside) -> bool:
    """Say whether anything in there is open that is not being stopped."""
    if not inside.open:
        return False
    for task in (task for scope in inside.scopes for task in scope.tasks):
        if task.state not in TASK_TERMINAL:
            if task.state is not TaskState.CANCELLING:
                return True
        elif task.inside is not None and _goes_on(task.inside):
            return True
    return False


def _count_what_still_ends(changes: Changes, inside: Inside) -> None:
    """Count the indices as started in which something is being stopped: as long as their container was pending none
    was."""
    for scope in inside.scopes:
        if scope.open and not scope.is_started:
            begin(changes, scope)


def stop_of_child(node: TaskNode, stop: Stop | None = None) -> Stop:
    """Return how the run is stopped that a task is: forced if the task is, or the run around it."""
    message = f"Task {node.name} of run {node.run.id} is cancelled."
    is_forced = node.run.is_forced or FORCED in (node.reason, stop and stop.reason)
    reason = FORCED if is_forced else "cancelled"
    if stop is None:
        return Stop(reason, message, grace=0.0 if is_forced else None)
    return Stop(reason, message, stop.cause, stop.actor, stop.grace)


def _end(changes: Changes, node: TaskNode, stop: Stop, **columns: Any) -> None:
    _change(changes, node, node.stopped_as(stop.reason), stop, "", **columns)


def _change(changes: Changes, node: TaskNode, after: TaskState, stop: Stop, also: str, **columns: Any) -> None:
    message = f"{stop.message} {also}".strip()
    changes.task(
        node, after, stop.cause, reason=stop.reason, message=message, actor=stop.actor, durable=True, **columns
    )


def _stop_attempt(changes: Changes, attempt: AttemptRecord, stop: Stop) -> None:
    """Tell its worker, with every heartbeat from now on; a grace that is given again can only become shorter."""
    columns: dict[str, Any] = {} if attempt.cancel else {"cancel": True}
    known = attempt.cancel_grace if attempt.cancel else None
    if stop.grace is not None and (not attempt.cancel or stop.grace < _grace_of(changes, attempt)):
        known = columns["cancel_grace"] = stop.grace
    if columns:
        changes.note_attempt(attempt, columns, cancel=True, cancel_grace=known)


def _grace_of(changes: Changes, attempt: AttemptRecord) -> float:
    return changes.kernel.planned(attempt).grace if attempt.cancel_grace is None else attempt.cancel_grace
