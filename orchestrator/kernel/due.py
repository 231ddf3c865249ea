"""When time alone makes something happen: how long the leader may sleep if nobody says anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.states import WORKER_ENDED, WorkerState

if TYPE_CHECKING:
    from orchestrator.kernel.index import Kernel


def next_due(kernel: Kernel, now: float) -> float | None:
    """Return the seconds until then: 0.0 for at once, ``None`` for nothing."""
    if kernel.expanding.is_due or kernel.evaluating.is_due or (kernel.waiting_lines.stirred and not kernel.redis_away):
        return 0.0
    due = min(_times(kernel), default=None)
    return None if due is None else max(0.0, due - now)


def _times(kernel: Kernel) -> Iterator[float]:
    if kernel.retries:
        yield kernel.retries[0][0]
    if (limit := kernel.timers.next_at()) is not None:
        yield limit
    if kernel.unclaimed:
        oldest = kernel.attempts[next(iter(kernel.unclaimed))]
        yield max(oldest.hinted_at, kernel.hints_from) + kernel.settings.redispatch
    if kernel.redis_away:
        return
    if kernel.deadlines:
        yield max(kernel.deadlines[0][0], kernel.trusted_from + kernel.settings.lease)
    if (ends := orphan_ends(kernel)) is not None:
        yield ends
    for worker in kernel.workers.values():
        if worker.state not in WORKER_ENDED:
            share = 0.5 if worker.state is WorkerState.ONLINE else 1.0
            ends = max(worker.seen_at, kernel.trusted_from) + share * kernel.settings.lease
            yield max(ends, kernel.breaker_until or ends)


def orphan_ends(kernel: Kernel) -> float | None:
    """Return when the oldest orphan is given up: never within a lease of becoming leader or of Redis' return."""
    if not kernel.orphans:
        return None
    orphaned_at = kernel.attempts[next(iter(kernel.orphans))].orphaned_at or 0.0
    return max(orphaned_at + kernel.settings.adopt_seconds, kernel.trusted_from + kernel.settings.lease)
