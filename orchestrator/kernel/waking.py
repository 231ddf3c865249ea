"""A task's timer goes off: of a retry, of a wait, of the delay between two rounds."""

from __future__ import annotations

from orchestrator.kernel.changes import Changes
from orchestrator.kernel.nodes import TaskNode
from orchestrator.kernel.repeating import next_round
from orchestrator.kernel.waits import time_out
from orchestrator.states import TaskState


def wake(changes: Changes, node: TaskNode) -> None:
    """Let a task go on whose timer has gone off."""
    if node.state is TaskState.RETRY_WAIT:
        changes.task(node, TaskState.READY, "timer")
    elif node.state is TaskState.WAITING:
        time_out(changes, node)
    elif node.state is TaskState.RUNNING and node.planned.repeat is not None:
        next_round(changes, node)
