"""Limits in time: a task that waits too long to be claimed, a task or a run that takes too long altogether."""

from __future__ import annotations

from orchestrator.kernel.changes import Changes
from orchestrator.kernel.nodes import DEADLINE, RUN_DEADLINE, TaskNode
from orchestrator.kernel.outcomes import follow, next_try
from orchestrator.kernel.stopping import Stop, stop_run, stop_task
from orchestrator.kernel.timers import MAX_QUEUED, TASK_DEADLINE
from orchestrator.kernel.unclaimed import expire
from orchestrator.records import Outcome
from orchestrator.states import TASK_TERMINAL, AttemptState, RunState, TaskState

LOOK_AGAIN = 1.0
"""Seconds after which a limit is looked at again that has passed while what was sent in time could not be heard."""


def fire_limits(changes: Changes, unread_for: float, claims_waiting: bool) -> None:
    """Do what follows where a limit has passed.

    Nobody is stopped whose end in time may lie unread, and nothing is taken back whose claim may.

    :param unread_for: reports that were sent so many seconds ago may still lie unread.
    """
    kernel = changes.kernel
    is_deaf = kernel.redis_away or unread_for > LOOK_AGAIN
    for kind, id_ in list(kernel.timers.fire(changes.now)):
        if kind == TASK_DEADLINE and (node := kernel.tasks.get(id_)) is not None:
            if is_deaf and node.attempt_id is not None:
                kernel.timers.set(kind, id_, changes.now + LOOK_AGAIN)
            else:
                _end_late_task(changes, node)
        elif kind == MAX_QUEUED and (node := kernel.tasks.get(id_)) is not None:
            if node.state is TaskState.QUEUED and (is_deaf or claims_waiting):
                kernel.timers.set(kind, id_, changes.now + LOOK_AGAIN)
            else:
                _end_wait(changes, node)
        elif kind == RUN_DEADLINE and id_ in kernel.runs:
            _end_late_run(changes, id_)
        else:
            # A service may be asked again, or a key has its next turn.
            kernel.waiting_lines.unblock()


def _end_late_task(changes: Changes, node: TaskNode) -> None:
    """Stop what runs of it, with its grace; then it ends failed, and is not tried again."""
    message = f"It was not over {node.planned.deadline:g} s after it was first ready."
    stop_task(changes, node, Stop(DEADLINE, message, cause="timer"))


def _end_late_run(changes: Changes, run_id: str) -> None:
    """Stop all that is open of it; then it ends failed. What only tears down still was done in time."""
    run = changes.kernel.runs[run_id]
    is_at_work = any(node.state not in TASK_TERMINAL and not node.is_teardown for node in run.tasks)
    if run.state in (RunState.RUNNING, RunState.PAUSED) and is_at_work:
        message = f"It was not over {run.shape.plan.deadline:g} s after it was started."
        stop_run(changes, run, Stop(RUN_DEADLINE, message, cause="timer"), of_tasks=RUN_DEADLINE)


def _end_wait(changes: Changes, node: TaskNode) -> None:
    """Count the wait as a failed try. A paused run waits for a person, and its tasks begin to wait when it goes on."""
    kernel = changes.kernel
    if node.state not in (TaskState.READY, TaskState.QUEUED) or (node.state is TaskState.READY and not node.dispatches):
        # Another limit that has passed at the same moment has stopped it, or its run is paused.
        return
    attempt = kernel.attempts.get(node.attempt_id or "")
    where = "nobody has claimed it" if attempt is not None else f"it was not sent out ({node.reason or 'waiting'})"
    message = f"It was ready for {node.planned.max_queued:g} s and {where}."
    if attempt is not None and not expire(changes, attempt, "timer", MAX_QUEUED):
        return
    outcome = Outcome(AttemptState.FAILED, MAX_QUEUED, message)
    follow(changes, node, "timer", next_try(changes, node, outcome, attempt), attempt)
