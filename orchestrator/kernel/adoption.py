"""Adoption: an attempt that outlives its worker is an orphan until another worker of its host shows it and keeps it.

Its reservation stays charged all along (I13); its keeper answers for it as for its own, and its outcome still names the
incarnation that ran it. What nobody adopts in time is lost.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.effects import Annotate
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.due import orphan_ends
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.outcomes import holds_token, lose
from orchestrator.records import AttemptRecord, Heartbeat, WorkerRecord
from orchestrator.states import WORKER_ENDED, AttemptState, Entity, TaskState

ADOPTED = "adopted"


def give_up(changes: Changes, attempt: AttemptRecord, cause: str, reason: str, message: str) -> None:
    """An attempt's worker is gone, and nobody knows what became of its tree: it is lost, or waits to be adopted."""
    if not changes.kernel.planned(attempt).is_adoptable:
        lose(changes, attempt, cause, reason, message)
    elif attempt.orphaned_at is None:
        changes.count("orphaned", f"attempt {attempt.id}: {reason}")
        changes.note_attempt(attempt, {"orphaned_at": ("in", 0.0)}, orphaned_at=changes.now, missed_by=0)
        limit = changes.kernel.settings.adopt_seconds
        _tell(
            changes,
            attempt,
            reason,
            f"{message} The task may well go on: another worker of its host has {limit:g} s to take it over.",
        )


def take_over(changes: Changes, heartbeat: Heartbeat, worker: WorkerRecord) -> None:
    """Let the worker keep the attempts it shows that another one of its host has run, if they can be adopted.

    - Only under the attempt's own token, and only on its host; whatever ran there before a new boot is lost already.
    - The other one need not have been missed yet: who shows the token has found the tree.
    - The incarnation that ran it takes back an orphan; while a keeper has it, its last heartbeat may just come late.
    """
    kernel = changes.kernel
    for attempt_id, token in heartbeat.running.items():
        attempt = kernel.attempts.get(attempt_id)
        if attempt is None or attempt.state is not AttemptState.RUNNING or not holds_token(attempt, token):
            continue
        is_orphan = attempt.orphaned_at is not None
        if worker.id in {attempt.owner_id, attempt.worker_id} and not is_orphan:
            continue
        if can_keep(kernel, attempt, worker):
            _keep(changes, attempt, worker)


def can_keep(kernel: Kernel, attempt: AttemptRecord, worker: WorkerRecord) -> bool:
    """Say whether the worker could have found the attempt's tree on its host, and may answer for it."""
    is_there = attempt.host_id == worker.host_id and worker.state not in WORKER_ENDED
    return is_there and kernel.planned(attempt).is_adoptable


def _keep(changes: Changes, attempt: AttemptRecord, worker: WorkerRecord) -> None:
    keeper = "" if worker.id == attempt.worker_id else worker.id
    kept = changes.note_attempt(
        attempt,
        {"keeper_id": keeper, "orphaned_at": None},
        keeper_id=keeper,
        orphaned_at=None,
        missed_by=0,
    )
    reservation = changes.kernel.ledger.reservations.get(attempt.id)
    if reservation is not None and reservation.worker_id != worker.id:
        # Its slots may then be over: the tree is there, whatever the worker had room for.
        changes.reserve(replace(reservation, worker_id=worker.id))
        changes.kernel.waiting_lines.unblock()
    changes.count(ADOPTED, f"attempt {attempt.id} by worker {worker.id}")
    if keeper:
        _tell(changes, kept, ADOPTED, f"Worker {worker.name or worker.id} of the same host has taken it over.")
    else:
        _tell(changes, kept, "", "")


def _tell(changes: Changes, attempt: AttemptRecord, reason: str, message: str) -> None:
    """Say in the task run what it waits for; one that is being cancelled keeps its reason."""
    node = changes.kernel.tasks[attempt.task_run_id]
    if node.state is TaskState.CANCELLING:
        changes.emit(Annotate(Entity.TASK_RUN, node.id, node.state, {"message": message}))
    else:
        changes.explain(node, reason, message)


def expire_orphans(changes: Changes, read_until: float) -> None:
    """Give up the orphans that nobody has adopted in time; not while we could not hear of it.

    :param read_until: reports that were sent later may still lie unread.
    """
    kernel = changes.kernel
    while (ends := orphan_ends(kernel)) is not None and ends <= read_until:
        lose(
            changes,
            kernel.attempts[next(iter(kernel.orphans))],
            "timer",
            "worker_lost",
            "Its worker was lost, and no other worker of its host has taken it over within "
            f"{kernel.settings.adopt_seconds:g} s.",
        )
