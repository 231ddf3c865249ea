"""Ends the process when its main loop stands still: no client time-out catches every half-open connection."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from orchestrator.logs import get_logger

log = get_logger(__name__)

LIMIT = 30.0
EXIT_STATUS = 70


class Pulse:
    """When the main loop last came by."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()

    def beat(self) -> None:
        """Say that the main loop is alive."""
        self._at = self._clock()

    def age(self) -> float:
        """Return the seconds since the last beat."""
        return self._clock() - self._at


class Watchdog(threading.Thread):
    """Watches a pulse. A supervisor (the one-host command, compose, Kubernetes) starts the process again."""

    def __init__(self, pulse: Pulse, *, limit: float = LIMIT, end: Callable[[int], object] = os._exit) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._pulse = pulse
        self._limit = limit
        self._end = end
        self._stopped = threading.Event()

    def run(self) -> None:
        interval = min(1.0, self._limit / 4)
        while not self._stopped.wait(interval):
            if (age := self._pulse.age()) > self._limit:
                log.critical("main_loop_stuck", seconds=round(age), exit_status=EXIT_STATUS)
                self._end(EXIT_STATUS)
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join()
