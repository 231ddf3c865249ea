"""The one Celery task: a hint that names an attempt. Its slot is a thread that waits (DESIGN §6)."""

from __future__ import annotations

from collections.abc import Callable

NAME = "orchestrator.attempt"

_take: list[Callable[[str, int], None]] = []
"""The agent's way to follow a hint; there is one per worker process, and none elsewhere."""


def attach(take: Callable[[str, int], None]) -> None:
    """Have hints followed by this agent."""
    _take[:] = [take]


def attempt(attempt: str, seq: int) -> None:
    """Follow a hint. What it says is not authenticated: only a grant starts anything."""
    if _take and isinstance(seq, int):
        _take[0](attempt, seq)
