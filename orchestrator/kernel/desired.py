"""What the leader wants of a worker: answered to each of its heartbeats until it is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.kernel.settings import Desired
from orchestrator.states import AttemptState

if TYPE_CHECKING:
    from orchestrator.kernel.index import Kernel


def desired_of(kernel: Kernel, worker_id: str) -> Desired:
    """Say what a worker is to bring about, by its latest heartbeat and the present state."""
    worker = kernel.workers.get(worker_id)
    cancel = []
    for attempt_id in kernel.grants.get(worker_id, ()):
        attempt = kernel.attempts[attempt_id]
        if attempt.cancel:
            grace = attempt.cancel_grace
            cancel.append((attempt_id, kernel.planned(attempt).grace if grace is None else grace))
    fence = tuple(
        attempt_id
        for attempt_id, token in kernel.shown.get(worker_id, {}).items()
        if attempt_id not in kernel.left_alone and not _may_run(kernel, worker_id, attempt_id, token)
    )
    if worker is None:
        return Desired(tuple(cancel), fence)
    confirm = tuple(
        (zombie.attempt_id, zombie.worker_id)
        for zombie in kernel.ledger.zombies_on(worker.host_id)
        if zombie.worker_id != worker_id
    )
    orphans = map(kernel.attempts.__getitem__, kernel.orphans)
    confirm += tuple(
        (orphan.id, orphan.worker_id)
        for orphan in orphans
        if orphan.host_id == worker.host_id and orphan.owner_id != worker_id
    )
    return Desired(tuple(cancel), fence, confirm, worker.draining, worker.drain_until)


def _may_run(kernel: Kernel, worker_id: str, attempt_id: str, token: str) -> bool:
    """Say whether the worker may have the attempt's tree: it answers for it; or the tree can be adopted and the
    worker is of its host, for then it is one and the same tree, whoever of two heartbeats was read first."""
    attempt = kernel.attempts.get(attempt_id)
    if attempt is None or attempt.state is not AttemptState.RUNNING or attempt.token != token:
        return False
    if attempt.owner_id == worker_id and attempt.orphaned_at is None:
        return True
    worker = kernel.workers.get(worker_id)
    return worker is not None and worker.host_id == attempt.host_id and kernel.planned(attempt).is_adoptable
