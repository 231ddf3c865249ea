"""Remembers that a server was silent, so that not every caller waits for it: one asks, the others are refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Circuit:
    """Safe for many threads.

    :param hold: seconds after a silence in which nobody asks; then one caller does, and the next after as long again.
    :param clock: monotonic seconds.
    """

    def __init__(self, hold: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._hold = hold
        self._clock = clock
        self._lock = threading.Lock()
        self._open_until: float | None = None

    def refuses(self) -> bool:
        """Say whether the server is better not asked now; ``False`` after a silence lets this one caller find out."""
        with self._lock:
            if self._open_until is None:
                return False
            now = self._clock()
            if now < self._open_until:
                return True
            self._open_until = now + self._hold
            return False

    def silent(self) -> None:
        """Note that the server did not answer."""
        with self._lock:
            self._open_until = self._clock() + self._hold

    def answered(self) -> None:
        """Note that it did."""
        with self._lock:
            self._open_until = None
