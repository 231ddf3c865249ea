"""How long a request waited for a thread before anybody looked at it: the server says it, the application judges it."""

from __future__ import annotations

import threading

_here = threading.local()


def note(seconds: float) -> None:
    """Note how long the request waited that this thread begins with."""
    _here.seconds = seconds


def waited() -> float:
    """Return how long the request of this thread has waited; 0 under a server that does not say."""
    return float(getattr(_here, "seconds", 0.0))
