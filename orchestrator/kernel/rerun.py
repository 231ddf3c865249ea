"""Rerun: a run that is over starts again in place; the chosen tasks and all below them as a new generation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.events import Command, EndedRun
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.nodes import RunNode
from orchestrator.kernel.shape import Shape
from orchestrator.records import TaskRunRecord
from orchestrator.states import RERUN_OF_FAILED, RUN_TERMINAL


def rerun(changes: Changes, command: Command) -> str:
    """Start a run again that is over.

    - The tasks that ``from`` chooses and everything downstream of them wait anew, with a fresh budget of retries; their
      attempts go on being counted. All others keep their states and outputs, which count for the trigger rules below.
    - The run goes back into the queue and is started when there is a place for it, like any other.
    - Asked twice, it starts again once: the second command finds it active, or names a generation that has passed.
    """
    run = changes.kernel.runs.get(command.run_id or "")
    if run is not None:
        return f"Refused: run {run.id} is {run.state}; cancel it or wait for its end before it is run again."
    if command.ended is None or command.ended.run.state not in RUN_TERMINAL:
        return f"Refused: there is no run {command.run_id} that is over."
    ended = command.ended
    if why := _why_not(changes, command, ended):
        return f"Refused: {why}"
    chosen = _chosen(command.payload.get("from", "failed"), ended)
    if not chosen:
        return f"Refused: no task of run {ended.run.id} has failed; name tasks, or run all of them again."
    return _start_again(changes, command, ended, chosen)


def _why_not(changes: Changes, command: Command, ended: EndedRun) -> str:
    """Return why this run can't start again as it was asked for."""
    run = ended.run
    wanted = command.payload.get("generation", run.generation)
    # The rows were read before this batch was decided: the run may have started and ended again in between.
    if wanted != run.generation or run.generation < changes.kernel.closed.get(run.id, 0):
        return f"run {run.id} has been started again since its generation {wanted} ended."
    if ended.unreadable:
        return f"the plan of run {run.id} can't be read, so nothing of it can start. {ended.unreadable}"
    names = {task.name for task in ended.plan.tasks}
    wanted_names = command.payload.get("from", "failed")
    unknown = [] if isinstance(wanted_names, str) else [name for name in wanted_names if name not in names]
    return f"run {run.id} has no task {', '.join(map(repr, unknown))}." if unknown else ""


def _chosen(wanted: Any, ended: EndedRun) -> list[TaskRunRecord]:
    if wanted == "all":
        return list(ended.tasks)
    if wanted == "failed":
        return [task for task in ended.tasks if task.state in RERUN_OF_FAILED]
    return [task for task in ended.tasks if task.name in wanted]


def _start_again(changes: Changes, command: Command, ended: EndedRun, chosen: Iterable[TaskRunRecord]) -> str:
    run = changes.kernel.adopt_run(ended.run, ended.tasks, ended.plan, changes.now)
    positions = with_descendants(run.shape, (run.shape.position[task.name] for task in chosen))
    if not changes.reopen(run, [run.root.tasks[at] for at in positions], command.actor):
        changes.kernel.drop_run(run)
        return f"Refused: run {run.id} is {run.state}."
    return _told(run, len(positions))


def with_descendants(shape: Shape, chosen: Iterable[int]) -> list[int]:
    """Return these positions and those of everything downstream of them, in the plan's order."""
    found = set[int]()
    open_positions = list(chosen)
    while open_positions:
        at = open_positions.pop()
        if at not in found:
            found.add(at)
            open_positions.extend(shape.downstream[at])
    return sorted(found)


def _told(run: RunNode, count: int) -> str:
    return (
        f"Run {run.id} starts again as its generation {run.generation}: {count} of its {len(run.tasks)} tasks; it is "
        "queued."
    )
