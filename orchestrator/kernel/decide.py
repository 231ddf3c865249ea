"""``decide``: what follows from an event. One line per kind of event; what each does stands in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.effects import Effect
from orchestrator.events import (
    ClaimReceived,
    Command,
    Event,
    HeartbeatSeen,
    OutcomeReceived,
    ReconcileDue,
    RedisAway,
    RedisBack,
    RunSubmitted,
    Tick,
    WorkerLeft,
)
from orchestrator.kernel.cancel import apply_command
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.claims import claim
from orchestrator.kernel.dispatch import dispatch, redispatch
from orchestrator.kernel.heartbeats import see
from orchestrator.kernel.incarnations import leave
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.leases import fire_timers, redis_away, redis_back, watch_leases
from orchestrator.kernel.outcomes import ingest
from orchestrator.kernel.reconcile import reconcile
from orchestrator.kernel.settle import settle
from orchestrator.kernel.submit import submit


def decide(kernel: Kernel, event: Event, now: float) -> list[Effect]:
    """Apply one event to the kernel's index and return what is to be written and sent, in order.

    :param now: the leader's monotonic clock, in seconds; never goes back within one kernel.
    """
    changes = Changes(kernel, now)
    _STEPS[type(event)](changes, event)
    settle(changes)
    if isinstance(event, Tick):
        dispatch(changes)
    return changes.effects


def _tick(changes: Changes, event: Tick) -> None:
    fire_timers(changes, event.unread_for)
    watch_leases(changes)
    redispatch(changes, event.claims_waiting)


_STEPS: dict[type[Event], Callable[[Changes, Any], None]] = {
    RunSubmitted: submit,
    ClaimReceived: claim,
    OutcomeReceived: ingest,
    HeartbeatSeen: lambda changes, event: see(changes, event.heartbeat),
    WorkerLeft: lambda changes, event: leave(changes, event.worker_id),
    Command: apply_command,
    Tick: _tick,
    RedisAway: redis_away,
    RedisBack: redis_back,
    ReconcileDue: lambda changes, _event: reconcile(changes),
}
