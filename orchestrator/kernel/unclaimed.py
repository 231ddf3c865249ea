"""What nobody has claimed yet can be taken back: it is charged to nobody, and its task is queued up again."""

from __future__ import annotations

from orchestrator.kernel.changes import Changes
from orchestrator.records import AttemptRecord
from orchestrator.states import AttemptState, TaskState


def expire(changes: Changes, attempt: AttemptRecord, cause: str, reason: str, actor: str = "scheduler") -> bool:
    """Take a dispatched attempt back before anybody was granted it."""
    if changes.attempt(attempt, AttemptState.EXPIRED, cause, reason=reason, actor=actor, durable=True) is None:
        return False
    changes.release(attempt.id)
    return True


def plan_anew(changes: Changes, attempt: AttemptRecord, cause: str, reason: str) -> None:
    """Take a dispatched attempt back and queue its task up again."""
    if expire(changes, attempt, cause, reason):
        node = changes.kernel.tasks[attempt.task_run_id]
        changes.task(node, TaskState.READY, cause, reason=reason, attempt_id=None)


def take_back(changes: Changes, worker_id: str, cause: str, reason: str, *, direct_only: bool = False) -> None:
    """Plan anew whatever is planned for the worker and not claimed.

    :param direct_only: only what no other worker was told of.
    """
    kernel = changes.kernel
    for attempt_id in sorted(kernel.ledger.by_worker.get(worker_id, ())):
        attempt = kernel.attempts.get(attempt_id)
        if attempt is None or attempt.state is not AttemptState.DISPATCHED:
            continue
        if attempt.direct or not direct_only:
            plan_anew(changes, attempt, cause, reason)
