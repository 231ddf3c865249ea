"""What the architecture allows, written down a second time: the checker's own tables of transitions and charges.

The product's (``orchestrator/states.py``, ``orchestrator/retry.py``) are not asked: a wrong row there would be right
for both. The tables are of what the scenarios' tasks do, so they are narrower than the product's, which knows of
containers, waits and caches too. A scenario that goes further adds its rows here, with the sentence of the
architecture at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tests.chaos.history import Event

Arrows = Mapping[str, tuple[str, ...]]

RUN: Arrows = {
    "scheduled": ("queued", "cancelled"),
    "queued": ("running", "failed", "cancelled"),
    "running": ("paused", "cancelling", "success", "failed", "cancelled"),
    "paused": ("running", "cancelling", "cancelled"),
    "cancelling": ("cancelled",),
}
TASK_RUN: Arrows = {
    "pending": ("ready", "upstream_failed", "skipped", "cancelled"),
    "ready": ("queued", "cancelled"),
    "queued": ("running", "ready", "failed", "cancelled"),
    "running": ("success", "failed", "skipped", "retry_wait", "ready", "cancelling", "cancelled"),
    "retry_wait": ("ready", "cancelled"),
    "cancelling": ("cancelled",),
}
ATTEMPT: Arrows = {
    "dispatched": ("running", "expired"),
    "running": ("succeeded", "failed", "timed_out", "cancelled", "preempted", "lost"),
}
WORKER: Arrows = {
    "online": ("suspect", "lost", "draining", "drained"),
    "suspect": ("online", "lost", "draining", "drained"),
    "draining": ("online", "lost", "drained"),
    # One that was frozen or cut off speaks again; its attempts stay lost.
    "lost": ("online", "draining", "drained"),
}
RESERVATION: Arrows = {"held": ("released",)}
ARROWS: Mapping[str, Arrows] = {
    "run": RUN,
    "task_run": TASK_RUN,
    "attempt": ATTEMPT,
    "worker": WORKER,
    "reservation": RESERVATION,
}

FIRST_STATES: Mapping[str, frozenset[str]] = {
    "run": frozenset({"queued", "scheduled"}),
    "attempt": frozenset({"dispatched"}),
    "worker": frozenset({"online", "draining"}),
    "host": frozenset({"resized"}),
}
"""In which states things first appear; a task run begins as a row, ``pending``."""

RUN_ENDED = frozenset({"success", "failed", "cancelled"})
TASK_ENDED = frozenset({"success", "failed", "upstream_failed", "skipped", "cancelled"})
ATTEMPT_ENDED = frozenset({"succeeded", "failed", "timed_out", "cancelled", "preempted", "lost", "expired"})

REOPENED: Mapping[str, tuple[frozenset[str], str]] = {
    "run": (RUN_ENDED, "queued"),
    "task_run": (TASK_ENDED, "pending"),
}
"""What a rerun, and nothing else, leads out of, and where to."""

NEVER_BEGAN = frozenset({"never_started", "gpu_busy", "fork_failed", "worker_left"})
"""Reasons of a lost attempt of which nothing has run: neither the task nor its runner can be blamed (ADR 6)."""

Charge = Literal["failure", "loss", "nobody"]


def is_allowed(event: Event) -> bool:
    """Say whether something may go this way; into what it begins with, too."""
    if event.before is None:
        return event.after in FIRST_STATES.get(event.entity, ())
    if event.before == event.after:
        return event.entity == "attempt" and event.cause == "moved"
    if event.after in ARROWS.get(event.entity, {}).get(event.before, ()):
        return True
    left, entered = REOPENED.get(event.entity, (frozenset[str](), ""))
    return event.before in left and event.after == entered and event.cause == "rerun"


def charge_of(event: Event) -> Charge:
    """Say to whose account the end of an attempt goes: the task's retries, its losses to infrastructure, or neither.

    Of a cancel that reached the task run first nobody is asked; the caller knows.
    """
    match event.after:
        case "succeeded" | "expired" | "preempted":
            return "nobody"
        case "lost":
            return "nobody" if event.reason in NEVER_BEGAN else "loss"
        case "cancelled":
            return "loss"  # nobody has cancelled its task run, so something else has killed it
    # Out of memory is the task's own: it asked for less than it took.
    blames_infrastructure = bool(event.detail.get("infrastructure")) and event.reason != "oom"
    return "loss" if blames_infrastructure else "failure"
