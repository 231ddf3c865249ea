"""From when silence means anything: what we could not hear counts for nobody's death (docs/adr/0008)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.kernel.index import Kernel
from orchestrator.kernel.nodes import RUN_DEADLINE
from orchestrator.kernel.timers import MAX_QUEUED, TASK_DEADLINE
from orchestrator.states import WORKER_ENDED

DOUBT = 2.0
"""Seconds of trust that each second costs in which we could not hear."""


def trusted_again(trusted_from: float, deaf_from: float, now: float, lease: float) -> float:
    """Return from when silence counts after a time in which nobody could be heard.

    What we had heard until then, a lease at most, shrinks by twice that time: a moment costs a moment, and after half a
    lease or more a whole one must pass before anybody is given up.
    """
    trust = min(lease, max(0.0, deaf_from - trusted_from))
    return now - max(0.0, trust - DOUBT * max(0.0, now - deaf_from))


@dataclass(frozen=True, slots=True)
class Hearing:
    """What outlives a rebuild of the memory within a term: rebuilds never begin a lease anew nor end a hold, and timers
    go on by our own clock, whatever that of the database says meanwhile (I14)."""

    trusted_from: float
    heard_at: Mapping[str, float] = field(default_factory=dict)
    """When each worker was last heard."""
    deadlines: Mapping[str, float] = field(default_factory=dict)
    """Of running attempts."""
    retries: Mapping[str, float] = field(default_factory=dict)
    """Of task runs that wait for one."""
    limits: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """In time, of runs, tasks and dispatches, by kind and id."""
    drains: Mapping[str, float] = field(default_factory=dict)
    """When each worker that drains by command is to preempt what it still runs."""
    buried_at: Mapping[str, float] = field(default_factory=dict)
    """When the incarnation of each zombie was first seen not to show it."""
    breaker_until: float | None = None
    """While mass expiry is held."""

    @classmethod
    def of(cls, kernel: Kernel) -> Hearing:
        """Return what a memory that is about to be dropped has heard."""
        return cls(
            kernel.trusted_from,
            {worker.id: worker.seen_at for worker in kernel.workers.values()},
            {id_: attempt.deadline for id_, attempt in kernel.attempts.items() if attempt.deadline is not None},
            {id_: node.retry_at for id_, node in kernel.tasks.items() if node.retry_at is not None},
            kernel.timers.all(),
            drains={
                worker.id: worker.drain_until for worker in kernel.workers.values() if worker.drain_until is not None
            },
            buried_at=dict(kernel.buried_at),
            breaker_until=kernel.breaker_until,
        )

    def hand_to(self, kernel: Kernel, deaf_from: float, now: float) -> None:
        """Let a memory that was just loaded go on counting, after a time in which nobody could be heard."""
        kernel.trusted_from = trusted_again(self.trusted_from, deaf_from, now, kernel.settings.lease)
        kernel.breaker_until = self.breaker_until
        for worker_id, heard_at in self.heard_at.items():
            worker = kernel.workers.get(worker_id)
            if worker is not None and worker.state not in WORKER_ENDED:
                kernel.admit(replace(worker, seen_at=min(worker.seen_at, heard_at)))
        for worker_id, until in self.drains.items():
            worker = kernel.workers.get(worker_id)
            if worker is not None and worker.drain_until is not None:
                kernel.admit(replace(worker, drain_until=until))
        # What the rows call no zombie was buried by nobody: that transaction has failed.
        kernel.buried_at = {id_: at for id_, at in self.buried_at.items() if id_ in kernel.ledger.zombies}
        for task_run_id, retry_at in self.retries.items():
            node = kernel.tasks.get(task_run_id)
            if node is not None and node.retry_at is not None:
                kernel.set_retry(node, retry_at)
        self._hand_deadlines_to(kernel, now)
        self._hand_limits_to(kernel)

    def _hand_limits_to(self, kernel: Kernel) -> None:
        known = kernel.timers.all()
        for (kind, id_), at in self.limits.items():
            if (kind, id_) not in known:
                continue
            kernel.timers.set(kind, id_, at)
            if kind == RUN_DEADLINE:
                kernel.runs[id_].deadline_at = at
            elif kind == TASK_DEADLINE:
                kernel.tasks[id_].deadline_at = at
            elif kind == MAX_QUEUED and (longest := kernel.tasks[id_].planned.max_queued) is not None:
                kernel.tasks[id_].ready_since = at - longest

    def _hand_deadlines_to(self, kernel: Kernel, now: float) -> None:
        """A new leader counts the whole limit anew: it can't know whether the database's clock has jumped, workers keep
        the limit by themselves, and to give up what runs well would cost more than to wait for what does not."""
        for attempt in [attempt for attempt in kernel.attempts.values() if attempt.deadline is not None]:
            allowed = kernel.settings.allowed(kernel.planned(attempt))
            deadline = self.deadlines.get(attempt.id, None if allowed is None else now + allowed)
            kernel.keep_attempt(replace(attempt, deadline=None))
            kernel.keep_attempt(replace(attempt, deadline=deadline))
