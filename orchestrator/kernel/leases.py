"""Time passes: silent workers become suspect, then lost, never all at once; retries fall due; deadlines pass."""

from __future__ import annotations

import heapq
import math

from orchestrator.events import RedisAway, RedisBack
from orchestrator.kernel.adoption import expire_orphans
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.dispatch import hint_again
from orchestrator.kernel.hearing import trusted_again
from orchestrator.kernel.incarnations import end_worker
from orchestrator.kernel.outcomes import lose
from orchestrator.kernel.unclaimed import take_back
from orchestrator.kernel.waking import wake
from orchestrator.records import WorkerRecord
from orchestrator.states import WORKER_ENDED, AttemptState, WorkerState

SHARE_AT_ONCE = 0.5
"""Above this share of the live workers, mass expiry is held (I11)."""
SHARE_PER_LEASE = 0.1
"""And afterwards at most this share per lease, one worker at least."""
FORGET_AFTER = 100
"""Leases after which a lost or drained worker is forgotten; a heartbeat would make it known again. What a host held
whose workers are all forgotten is given back (``reconcile``)."""


def watch_leases(changes: Changes) -> None:
    """Count the silence of every worker, on our own clock and only while we can read Redis."""
    kernel = changes.kernel
    if kernel.redis_away:
        return
    lease, expired, silent, live = kernel.settings.lease, [], [], 0
    for worker in list(kernel.workers.values()):
        if worker.state in WORKER_ENDED:
            if changes.now - worker.seen_at > FORGET_AFTER * lease:
                kernel.forget_worker(worker.id)
            continue
        live += 1
        silence = changes.now - max(worker.seen_at, kernel.trusted_from)
        if silence > lease / 2:
            silent.append(worker)
        if silence > lease:
            expired.append(worker)
        elif silence > lease / 2 and worker.state is WorkerState.ONLINE:
            changes.worker(worker, WorkerState.SUSPECT, "lease", reason="silent")
            # It may have died as soon as they were sent, and nobody else would ask for them until they are sent again.
            take_back(changes, worker.id, "lease", "worker_silent", direct_only=True)
    for worker in _admitted_by_breaker(changes, expired, silent, live):
        end_worker(
            changes,
            worker,
            WorkerState.LOST,
            "lease",
            "worker_lost",
            f"Worker {worker.name or worker.id} has been silent for {lease:g} s.",
            is_dead=False,
        )


def _admitted_by_breaker(
    changes: Changes, expired: list[WorkerRecord], silent: list[WorkerRecord], live: int
) -> list[WorkerRecord]:
    """Return those that may be given up now.

    If more than half are silent when the first expires (three incarnations at least, or more than 100 attempts; on
    more than one host, for one host does die at once), the fault is more likely ours than theirs: hold one more lease,
    then give up a tenth per lease until nobody is silent any more, though they are soon fewer than half. The silent are
    counted, not the expired: heartbeats are spread over an interval, so that leases never end at one moment. And an
    absence of Redis ends nothing: after it nobody counts as silent for a while, but they have not spoken either.
    """
    kernel = changes.kernel
    attempts = sum(len(kernel.grants.get(worker.id, ())) for worker in silent)
    are_many = len(silent) >= 3 or attempts > 100
    is_one_host = len({worker.host_id for worker in silent}) < 2
    is_mass = bool(expired) and len(silent) > SHARE_AT_ONCE * live and are_many and not is_one_host
    if not kernel.settings.breaker or not (silent or _are_some_unheard(changes)):
        kernel.breaker_until = None
        return expired
    if kernel.breaker_until is None:
        if not is_mass:
            return expired
        changes.count("breaker", f"{len(silent)} of {live} workers are silent; held for {kernel.settings.lease:g} s")
        kernel.breaker_until = changes.now + kernel.settings.lease
        return []
    # To its end, though some have spoken again: the others are about to.
    if changes.now < kernel.breaker_until:
        return []
    if expired:
        kernel.breaker_until = changes.now + kernel.settings.lease
    return sorted(expired, key=lambda worker: (worker.seen_at, worker.id))[: max(1, math.floor(live * SHARE_PER_LEASE))]


def _are_some_unheard(changes: Changes) -> bool:
    """Say whether a hold goes on because some have not spoken for half a lease, whatever of it we could have heard."""
    kernel = changes.kernel
    if kernel.breaker_until is None:
        return False
    since = changes.now - kernel.settings.lease / 2
    return any(worker.seen_at < since for worker in kernel.workers.values() if worker.state not in WORKER_ENDED)


def fire_timers(changes: Changes, unread_for: float = 0.0) -> None:
    """Make tasks ready whose delay is over; give attempts up that outlived every limit of theirs.

    :param unread_for: reports that were sent so many seconds ago may still lie unread.
    """
    kernel, now = changes.kernel, changes.now
    while kernel.retries and kernel.retries[0][0] <= now:
        due, task_run_id = heapq.heappop(kernel.retries)
        node = kernel.tasks.get(task_run_id)
        if node is not None and node.retry_at == due:
            node.retry_at = None
            wake(changes, node)
    if not kernel.redis_away:
        _give_up_overdue(changes, now - unread_for)
        expire_orphans(changes, now - unread_for)


def _give_up_overdue(changes: Changes, read_until: float) -> None:
    """Give up running attempts past their deadline; none whose report may lie unread or could not be sent, nor within a
    lease of becoming leader or of Redis' return."""
    kernel = changes.kernel
    if changes.now - kernel.trusted_from <= kernel.settings.lease:
        return
    while kernel.deadlines and kernel.deadlines[0][0] <= read_until:
        due, attempt_id = heapq.heappop(kernel.deadlines)
        attempt = kernel.attempts.get(attempt_id)
        if attempt is not None and attempt.state is AttemptState.RUNNING and attempt.deadline == due:
            lose(
                changes,
                attempt,
                "timer",
                "overdue",
                "It outlived its time limit and its grace, and its worker has not reported its end.",
            )


def redis_away(changes: Changes, event: RedisAway) -> None:
    """We hear nobody any more."""
    kernel = changes.kernel
    if not kernel.redis_away:
        kernel.redis_away = True
        kernel.away_since = changes.now if event.since is None else event.since


def redis_back(changes: Changes, event: RedisBack) -> None:
    """Redis answers again: silence counts as far as we could hear it. Unclaimed hints are sent again where they may be
    lost: all of them when Redis was reset, and after an absence too, for the last ones may not have arrived."""
    kernel = changes.kernel
    was_away, kernel.redis_away = kernel.redis_away, False
    away_since = kernel.away_since if was_away else event.since
    if away_since is not None:
        kernel.trusted_from = trusted_again(kernel.trusted_from, away_since, changes.now, kernel.settings.lease)
    kernel.hints_from = changes.now
    if event.reset or was_away:
        for attempt_id in list(kernel.unclaimed):
            hint_again(changes, kernel.attempts[attempt_id])
