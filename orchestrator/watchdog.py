"""Ends the process when one of its loops stands still: no client time-out catches every half-open connection."""

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
    """When a loop last came by."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self.beats = 0

    def beat(self) -> None:
        """Say that the loop is alive."""
        self._at = self._clock()
        self.beats += 1

    def age(self) -> float:
        """Return the seconds since the last beat."""
        return self._clock() - self._at


class Standstill:
    """For how long a pulse has stood still, counted in the looks of whoever watches it.

    Not by the clock: a process that was frozen (SIGSTOP, a suspended machine) was not stuck, and its loop is to have
    its chance after the thaw.
    """

    def __init__(self, pulse: Pulse, *, longest_gap: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._pulse = pulse
        self._longest_gap = longest_gap
        self._clock = clock
        self._beats = pulse.beats
        self._looked_at = clock()
        self.seconds = 0.0

    def look(self) -> float:
        """Count the time since the last look, at most ``longest_gap`` of it; return how long it stands still now."""
        now = self._clock()
        gap = min(now - self._looked_at, self._longest_gap)
        self._looked_at = now
        self.seconds = self.seconds + gap if self._pulse.beats == self._beats else 0.0
        self._beats = self._pulse.beats
        return self.seconds

    def forgive(self) -> None:
        """Count from nought again."""
        self.seconds = 0.0


class Watchdog(threading.Thread):
    """Watches a pulse. A supervisor (the one-host command, compose, Kubernetes) starts the process again."""

    def __init__(self, pulse: Pulse, *, limit: float = LIMIT, end: Callable[[int], object] = os._exit) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._limit = limit
        self._interval = min(1.0, limit / 4)
        self._standstill = Standstill(pulse, longest_gap=2 * self._interval)
        self._end = end
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(self._interval):
            if (seconds := self._standstill.look()) > self._limit:
                log.critical("main_loop_stuck", seconds=round(seconds), exit_status=EXIT_STATUS)
                self._end(EXIT_STATUS)
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join()
