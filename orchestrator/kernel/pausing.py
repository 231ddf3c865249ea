"""Pausing a run and letting it go on, each with the runs inside of it."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.effects import Annotate
from orchestrator.events import Command
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.nodes import RUN_PAUSED, RunNode, TaskNode
from orchestrator.states import TASK_TERMINAL, Entity, RunState, TaskState


def pause(changes: Changes, command: Command) -> str:
    """Let nothing new of a run start; one that is paused because of the run around it is paused for its own sake now,
    and stays so when that one goes on."""
    run = changes.kernel.runs.get(command.run_id or "")
    if run is not None and run.state is RunState.PAUSED and run.paused_with_parent:
        run.paused_with_parent = False
        changes.emit(Annotate(Entity.RUN, run.id, run.state, {"paused_with_parent": False}))
        return f"Run {run.id} is paused, and stays so when the run around it goes on."
    if run is not None and run.state is RunState.PAUSED:
        return f"Nothing to do: run {run.id} is paused already."
    if run is None or run.state is not RunState.RUNNING:
        return f"Refused: run {command.run_id} is not running, so it can't be paused."
    _pause(changes, run, command.actor)
    changes.kernel.waiting_lines.unblock()
    return f"Run {run.id} is paused; tasks that are running go on."


def resume(changes: Changes, command: Command) -> str:
    """Let a paused run go on, and those inside of it that were paused with it."""
    run = changes.kernel.runs.get(command.run_id or "")
    if run is not None and run.state is RunState.RUNNING:
        return f"Nothing to do: run {run.id} is not paused; it goes on."
    if run is None or run.state is not RunState.PAUSED:
        return f"Refused: run {command.run_id} is not paused."
    _go_on(changes, run, command.actor)
    return f"Run {run.id} goes on."


def pause_with_parent(changes: Changes, run: RunNode, parent: TaskNode) -> None:
    """A run starts, the run around which was paused since it was asked for: it is paused too."""
    if parent.run.state is RunState.PAUSED and parent.state not in TASK_TERMINAL:
        _pause(changes, run, "scheduler", parent=parent.run)


def _pause(changes: Changes, run: RunNode, actor: str, *, parent: RunNode | None = None) -> None:
    if run.state is RunState.RUNNING:
        run.paused_with_parent = parent is not None
        message = "" if parent is None else f"Run {parent.id}, which it is inside of, is paused."
        columns = {"paused_with_parent": run.paused_with_parent}
        changes.run(run, RunState.PAUSED, "pause", reason="paused", message=message, actor=actor, columns=columns)
        for node in run.tasks:
            if node.state is TaskState.READY:
                _take_out_of_line(changes, node)
    for child in _runs_inside(changes, run):
        _pause(changes, child, actor, parent=run)


def _take_out_of_line(changes: Changes, node: TaskNode) -> None:
    changes.explain(node, RUN_PAUSED, f"Run {node.run.id} is paused; resume it.")
    changes.step_aside(node)
    if node.ask is not None:
        # Else the room held for it would be held as long as the pause lasts.
        changes.kernel.ledger.drop_hold(node.ask)
    # Its place in the line is none any more: when the run goes on it may have to wait for something else.
    changes.kernel.waiting_lines.drop(node)


def _go_on(changes: Changes, run: RunNode, actor: str) -> None:
    run.paused_with_parent = False
    changes.run(run, RunState.RUNNING, "resume", actor=actor, columns={"paused_with_parent": False})
    for node in run.tasks:
        if node.state is TaskState.READY:
            changes.wait_anew(node)
        elif node.state is TaskState.PENDING and node.reason == RUN_PAUSED:
            changes.kernel.unsettled.append(node)
    go_on_inside(changes, run, actor)


def go_on_inside(changes: Changes, run: RunNode, actor: str) -> None:
    """Let the runs go on that were paused with this one, which is paused no more."""
    for child in _runs_inside(changes, run):
        if child.state is RunState.PAUSED and child.paused_with_parent:
            _go_on(changes, child, actor)


def _runs_inside(changes: Changes, run: RunNode) -> Iterator[RunNode]:
    """Yield the runs under way that tasks of this one wait for; those it has only started are on their own."""
    for node in run.tasks:
        if node.child_run_id is not None and node.state not in TASK_TERMINAL:
            child = changes.kernel.runs.get(node.child_run_id)
            if child is not None:
                yield child
