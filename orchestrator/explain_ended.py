"""How what is over has ended, as a sentence. Pure: worked out from what the rows say."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.explain import RunFacts
from orchestrator.states import TASK_TERMINAL, RunState, TaskState


def ending_of_run(run: RunFacts, tasks: Mapping[str, int]) -> str:
    """Return how a run that is over has ended, as a sentence; empty for one that is not.

    :param tasks: how many of its own tasks are in which state.
    """
    counted = ", ".join(f"{number} {state}" for state, number in sorted(tasks.items()))
    if run.state is RunState.SUCCESS:
        return f"All tasks that decide it have succeeded or were skipped: {counted}."
    if run.state is RunState.CANCELLED:
        return run.message or "It was cancelled."
    if run.state is RunState.FAILED:
        return f"{run.message or 'It has failed.'} Its tasks: {counted}."
    return ""


_ENDINGS: Mapping[TaskState, str] = {
    TaskState.SUCCESS: "It has succeeded.",
    TaskState.FAILED: "It has failed.",
    TaskState.UPSTREAM_FAILED: "It was not run, for what is upstream of it has failed.",
    TaskState.SKIPPED: "It was skipped.",
    TaskState.CANCELLED: "It was cancelled.",
}


def ending_of_task(state: TaskState, message: str) -> str:
    """Return how a task run that is over has ended, as a sentence; empty for one that is not.

    :param message: what its row says.
    """
    return message or _ENDINGS[state] if state in TASK_TERMINAL else ""
