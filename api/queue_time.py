"""How long a request waited before anybody looked at it: the server says when it came, the application judges it."""

from __future__ import annotations

import threading
import time

LONGEST_QUEUE = 0.5
"""Seconds a request may have waited before it is worked on; then it is 503, which costs next to nothing, so that those
behind it are answered in time."""

_here = threading.local()


def note(seconds: float) -> None:
    """Note how long the request has waited by now that this thread begins with."""
    _here.came_at = time.monotonic() - seconds


def waited() -> float:
    """Return how long ago the request of this thread came; 0 under a server that does not say."""
    came_at: float | None = getattr(_here, "came_at", None)
    return 0.0 if came_at is None else time.monotonic() - came_at
