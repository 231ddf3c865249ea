"""Rerun: a run that is over starts again in place; the chosen tasks and all below them as a new generation."""

from __future__ import annotations

from typing import Any

from orchestrator.events import Command, EndedRun
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.choosing import tasks_named, to_run_again
from orchestrator.kernel.nodes import RunNode
from orchestrator.states import RUN_TERMINAL


def rerun(changes: Changes, command: Command) -> str:
    """Start a run again that is over.

    - The tasks that ``from`` chooses and everything downstream of them wait anew, with a fresh budget of retries; their
      attempts go on being counted. All others keep their states and outputs, which count for the trigger rules below.
    - Of a map single indices may be chosen (``choosing.to_run_again``).
    - The run goes back into the queue and is started when there is a place for it, like any other.
    - Asked twice, it starts again once: the second command finds it active, or names a generation that has passed.
    """
    run = changes.kernel.runs.get(command.run_id or "")
    if run is not None:
        return f"Refused: run {run.id} is {run.state}; cancel it or wait for its end before it is run again."
    if command.ended is None or command.ended.run.state not in RUN_TERMINAL:
        return f"Refused: there is no run {command.run_id} that is over."
    if why := _why_not(changes, command, command.ended):
        return f"Refused: {why}"
    return _start_again(changes, command, command.ended)


def _why_not(changes: Changes, command: Command, ended: EndedRun) -> str:
    """Return why this run can't start again as it was asked for."""
    run = ended.run
    wanted = command.payload.get("generation", run.generation)
    # The rows were read before this batch was decided: the run may have started and ended again in between.
    if wanted != run.generation or run.generation < changes.kernel.closed.get(run.id, 0):
        return f"run {run.id} has been started again since its generation {wanted} ended."
    if ended.unreadable:
        return f"the plan of run {run.id} can't be read, so nothing of it can start. {ended.unreadable}"
    return ""


def _start_again(changes: Changes, command: Command, ended: EndedRun) -> str:
    wanted = command.payload.get("from", "failed")
    run = changes.kernel.adopt_run(ended.run, ended.tasks, ended.plan, changes.now)
    refused = _unknown(run, wanted)
    choice = to_run_again(run, wanted)
    if not refused and not choice.nodes:
        refused = f"no task of run {run.id} has failed; name tasks, or run all of them again."
    elif not refused and not changes.reopen(run, choice.nodes, command.actor, resumed=choice.resumed, cut=choice.cut):
        refused = f"run {run.id} is {run.state}."
    if refused:
        changes.kernel.drop_run(run)
        return f"Refused: {refused}"
    return (
        f"Run {run.id} starts again as its generation {run.generation}: {len(choice.nodes)} of its {len(run.tasks)} "
        "tasks; it is queued."
    )


def _unknown(run: RunNode, wanted: Any) -> str:
    unknown = [] if isinstance(wanted, str) else [name for name in wanted if not tasks_named(run, name)]
    return f"run {run.id} has no task {', '.join(map(repr, unknown))}." if unknown else ""
