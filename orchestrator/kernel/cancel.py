"""Commands of people: cancel a run or one task of it, pause, resume, drain a worker. Asking twice does no harm."""

from __future__ import annotations

from orchestrator.effects import CloseCommand
from orchestrator.events import Command
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.drain import drain, undrain
from orchestrator.kernel.nodes import RunNode, TaskNode
from orchestrator.kernel.rerun import rerun
from orchestrator.kernel.unclaimed import expire
from orchestrator.states import TASK_TERMINAL, AttemptState, RunState, TaskState

OPEN_WITHOUT_ATTEMPT = frozenset({TaskState.PENDING, TaskState.READY, TaskState.RETRY_WAIT, TaskState.WAITING})
WAITS_FOR_ITS_HOST = (
    "Its worker is lost and the task may live on: it ends when another worker of its host has stopped it or found it "
    "dead, or when it is given up."
)


def apply_command(changes: Changes, command: Command) -> None:
    """Apply one command and close it with a sentence."""
    kinds = {
        "cancel": _cancel,
        "pause": _pause,
        "resume": _resume,
        "rerun": rerun,
        "drain": drain,
        "undrain": undrain,
    }
    act = kinds.get(command.kind)
    result = act(changes, command) if act else f"Refused: there is no command {command.kind!r}."
    changes.emit(CloseCommand(command.id, result))


def _cancel(changes: Changes, command: Command) -> str:
    run = changes.kernel.runs.get(command.run_id or "")
    if run is None:
        return f"Nothing to cancel: run {command.run_id} has ended, or there is none."
    if command.task is None:
        return _cancel_run(changes, run, command)
    node = run.task_named(command.task)
    if node is None:
        return f"Refused: run {run.id} has no task {command.task!r}."
    if node.state in TASK_TERMINAL:
        return f"Nothing to cancel: task {command.task} of run {run.id} is {node.state} already."
    cancel_task(changes, node, command, "cancelled")
    return f"Task {command.task} of run {run.id} is {node.state}."


def _cancel_run(changes: Changes, run: RunNode, command: Command) -> str:
    if run.state is RunState.QUEUED:
        for node in run.tasks:
            cancel_task(changes, node, command, "run_cancelled")
        changes.run(run, RunState.CANCELLED, "cancel", reason="cancelled", actor=command.actor)
        return f"Run {run.id} is cancelled; it had not started."
    if not run.is_cancelling:
        changes.run(run, RunState.CANCELLING, "cancel", reason="cancelled", actor=command.actor)
    for node in run.tasks:
        if node.state not in TASK_TERMINAL:
            cancel_task(changes, node, command, "run_cancelled")
    if run.open == 0:
        changes.kernel.finishing[run.id] = run
    return f"Run {run.id} is being cancelled; {run.open} of its tasks still have to stop."


def cancel_task(changes: Changes, node: TaskNode, command: Command, reason: str) -> None:
    """Cancel a task run that is not over: at once if nothing of it can run, else as soon as its tree is dead."""
    kernel, actor = changes.kernel, command.actor
    attempt = kernel.attempts.get(node.attempt_id or "")
    if node.state in OPEN_WITHOUT_ATTEMPT:
        changes.task(node, TaskState.CANCELLED, "cancel", reason=reason, actor=actor, durable=True)
    elif attempt is not None and attempt.state is AttemptState.DISPATCHED:
        if expire(changes, attempt, "cancel", reason, actor):
            changes.task(node, TaskState.CANCELLED, "cancel", reason=reason, actor=actor, durable=True, attempt_id=None)
    elif attempt is not None:
        if node.state is TaskState.RUNNING:
            waits = "" if attempt.orphaned_at is None else WAITS_FOR_ITS_HOST
            changes.task(node, TaskState.CANCELLING, "cancel", reason=reason, message=waits, actor=actor, durable=True)
        grace = command.payload.get("grace")
        if isinstance(grace, (int, float)) and grace >= 0:
            kernel.cancel_grace[attempt.id] = float(grace)
        if not attempt.cancel:
            changes.note_attempt(attempt, {"cancel": True}, cancel=True)


def _pause(changes: Changes, command: Command) -> str:
    run = changes.kernel.runs.get(command.run_id or "")
    if run is None or run.state is not RunState.RUNNING:
        return f"Refused: run {command.run_id} is not running, so it can't be paused."
    changes.run(run, RunState.PAUSED, "pause", reason="paused", actor=command.actor)
    for node in run.tasks:
        if node.state is TaskState.READY:
            changes.explain(node, "run_paused", f"Run {run.id} is paused; resume it.")
            if node.ask is not None:
                # Else the room held for it would be held as long as the pause lasts.
                changes.kernel.ledger.drop_hold(node.ask)
    changes.kernel.waiting_lines.unblock()
    return f"Run {run.id} is paused; tasks that are running go on."


def _resume(changes: Changes, command: Command) -> str:
    run = changes.kernel.runs.get(command.run_id or "")
    if run is None or run.state is not RunState.PAUSED:
        return f"Refused: run {command.run_id} is not paused."
    changes.run(run, RunState.RUNNING, "resume", actor=command.actor)
    for node in run.tasks:
        if node.state is TaskState.READY:
            changes.kernel.line_up(node, changes.now)
    return f"Run {run.id} goes on."
