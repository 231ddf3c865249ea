"""``decide``: what follows from an event. One line per kind of event; what each does stands in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.effects import Effect
from orchestrator.events import (
    CacheAnswered,
    ChildRefused,
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
from orchestrator.kernel.cache import answered, attend
from orchestrator.kernel.cancel import apply_command
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.children import refused
from orchestrator.kernel.claims import claim
from orchestrator.kernel.dispatch import dispatch, redispatch
from orchestrator.kernel.expanding import go_on
from orchestrator.kernel.heartbeats import see
from orchestrator.kernel.incarnations import leave
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.leases import fire_timers, redis_away, redis_back, watch_leases
from orchestrator.kernel.outcomes import ingest
from orchestrator.kernel.reconcile import reconcile
from orchestrator.kernel.settle import settle
from orchestrator.kernel.submit import submit
from orchestrator.kernel.time_limits import fire_limits


def decide(kernel: Kernel, event: Event, now: float) -> list[Effect]:
    """Apply one event to the kernel's index and return what is to be written and sent, in order.

    :param now: the leader's monotonic clock, in seconds; never goes back within one kernel.
    """
    changes = Changes(kernel, now)
    kernel.input_hosts.begin()
    _STEPS[type(event)](changes, event)
    settle(changes)
    if isinstance(event, Tick):
        _dispatch(changes)
    attend(changes)
    return changes.effects


def _dispatch(changes: Changes) -> None:
    """Send out what can be; what a gate has ended on the way is settled, and what follows is sent out too."""
    settled = -1
    while settled < len(changes.effects):
        dispatch(changes)
        settled = len(changes.effects)
        settle(changes)


def _tick(changes: Changes, event: Tick) -> None:
    go_on(changes)
    fire_timers(changes, event.unread_for)
    fire_limits(changes, event.unread_for, event.claims_waiting)
    watch_leases(changes)
    redispatch(changes, event.claims_waiting)


_STEPS: dict[type[Event], Callable[[Changes, Any], None]] = {
    RunSubmitted: submit,
    ClaimReceived: claim,
    OutcomeReceived: ingest,
    HeartbeatSeen: lambda changes, event: see(changes, event.heartbeat),
    WorkerLeft: lambda changes, event: leave(changes, event.worker_id),
    Command: apply_command,
    ChildRefused: refused,
    CacheAnswered: answered,
    Tick: _tick,
    RedisAway: redis_away,
    RedisBack: redis_back,
    ReconcileDue: lambda changes, _event: reconcile(changes),
}
