"""Works out what a definition asks of people's values: conditions, templates, what a map goes over, its keys.

What goes wrong there is the fault of one task, also what nobody foresaw: it fails that task. An exception that left
``decide`` would stop the leader, and whoever leads next would come to the same values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from orchestrator.effects import Fault
from orchestrator.errors import OrchestratorError
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.guarded import FORESEEN, INTERNAL_ERROR, Unforeseen, guarded
from orchestrator.kernel.nodes import TaskNode
from orchestrator.states import TaskState

T = TypeVar("T")


def work_out(
    changes: Changes,
    node: TaskNode,
    work: Callable[[], T],
    reason: str | Callable[[OrchestratorError], str],
    cause: str = "upstream",
) -> T | None:
    """Return what the work for a task comes to; ``None``: to nothing, and the task has failed.

    :param reason: the task's, for an error that such values may end in.
    """
    try:
        return guarded(work)
    except FORESEEN as error:
        why = reason if isinstance(reason, str) else reason(error)
        changes.task(node, TaskState.FAILED, cause, reason=why, message=str(error), durable=True)
    except Unforeseen as error:
        tell_fault(changes, error.trace, node.run.id, node.name)
        changes.task(node, TaskState.FAILED, cause, reason=INTERNAL_ERROR, message=str(error), durable=True)
    return None


def tell_fault(changes: Changes, trace: str, run_id: str, task: str = "") -> None:
    """Let the log and the counters know of a fault of ours."""
    changes.count(INTERNAL_ERROR, f"task {task} of run {run_id}" if task else f"run {run_id}")
    changes.emit(Fault(run_id, task, trace))
