"""Commands of people, and what cancelling a run or one task of it does. Asking twice does no harm."""

from __future__ import annotations

from orchestrator.effects import CloseCommand
from orchestrator.events import Command
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.choosing import tasks_named
from orchestrator.kernel.drain import drain, undrain
from orchestrator.kernel.marks import mark
from orchestrator.kernel.nodes import FORCED, RunNode
from orchestrator.kernel.pausing import pause, resume
from orchestrator.kernel.rerun import rerun
from orchestrator.kernel.stopping import Stop, stop_inside, stop_run, stop_task
from orchestrator.kernel.waits import approve, reject, report_event
from orchestrator.states import TASK_TERMINAL, RunState


def apply_command(changes: Changes, command: Command) -> None:
    """Apply one command and close it with a sentence."""
    kinds = {
        "cancel": _cancel,
        "pause": pause,
        "resume": resume,
        "rerun": rerun,
        "mark": mark,
        "approve": approve,
        "reject": reject,
        "event": report_event,
        "drain": drain,
        "undrain": undrain,
    }
    act = kinds.get(command.kind)
    result = act(changes, command) if act else f"Refused: there is no command {command.kind!r}."
    changes.emit(CloseCommand(command.id, result))


def _cancel(changes: Changes, command: Command) -> str:
    """Stop a run, or one task of it. Asked again it changes nothing, save that the grace may become shorter."""
    run = changes.kernel.runs.get(command.run_id or "")
    if run is None:
        return f"Nothing to cancel: run {command.run_id} has ended, or there is none."
    stop = stop_of(command)
    if command.task is None:
        return _cancel_run(changes, run, stop)
    nodes = tasks_named(run, command.task)
    if not nodes:
        return f"Refused: run {run.id} has no task {command.task!r}."
    if all(node.state in TASK_TERMINAL and not (node.inside and node.inside.open) for node in nodes):
        return f"Nothing to cancel: task {command.task} of run {run.id} is {nodes[0].state} already."
    for node in nodes:
        if node.state not in TASK_TERMINAL:
            stop_task(changes, node, stop, spare=not stop.is_forced)
        else:
            # A map may be decided while some of its indices still run.
            stop_inside(changes, node, stop, spare=not stop.is_forced)
    return f"Task {command.task} of run {run.id} is {nodes[0].state}."


def stop_of(command: Command) -> Stop:
    """Read how a person wants it stopped: ``mode`` ``graceful`` or ``force``, ``grace_seconds`` and ``reason``."""
    said = command.payload.get("reason")
    has_said = isinstance(said, str) and said.strip()
    message = f"{command.actor}: {said}" if has_said else f"{command.actor} has cancelled it."
    if command.payload.get("mode") == "force":
        return Stop(FORCED, message, actor=command.actor, grace=0.0)
    grace = command.payload.get("grace_seconds")
    is_given = isinstance(grace, (int, float)) and not isinstance(grace, bool) and grace >= 0
    return Stop(
        "cancelled", message, actor=command.actor, grace=float(grace) if is_given and grace is not None else None
    )


def _cancel_run(changes: Changes, run: RunNode, stop: Stop) -> str:
    had_started = run.state is not RunState.QUEUED
    stop_run(changes, run, stop)
    if not had_started:
        return f"Run {run.id} is cancelled; it had not started."
    return f"Run {run.id} is being cancelled; {run.open} of its tasks still have to stop."
