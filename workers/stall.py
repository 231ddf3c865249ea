"""Notices that this worker's own loops stand still, and ends the process: who supervises it starts it again.

The pulse of the agent: without it the lease is lost anyway, so the process ends whatever runs. Celery's consumer: a
worker that is deaf takes nothing more, but what runs goes on, so it ends only when that costs no running tree.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from orchestrator.logs import get_logger
from orchestrator.watchdog import EXIT_STATUS, Pulse, Standstill

log = get_logger(__name__)

LIMIT = 30.0
REDIS_LIMIT = 120.0
"""Of the pulse while it asks Redis: each wait there is bounded, but a name server that is away takes long, thrice."""
REDIS_STEADY_SECONDS = 60.0
"""Celery may sleep for half a minute between two tries to connect, so it is deaf only when Redis has long been back."""
INTERVAL = 1.0
REPEAT_SECONDS = 60.0


class Stall(threading.Thread):
    """Watches both loops from a thread of its own, which touches nothing that could hang.

    :param pulse: beaten by the agent's pulse.
    :param consumer: beaten by Celery's consumer, in its own loop.
    :param is_asking: whether the pulse waits for Redis.
    :param redis_steady: seconds since which every call of the agent has been answered.
    :param may_end: whether no running tree would die with this process.
    """

    def __init__(
        self,
        pulse: Pulse,
        consumer: Pulse,
        *,
        is_asking: Callable[[], bool],
        redis_steady: Callable[[], float],
        may_end: Callable[[], bool],
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="stall", daemon=True)
        self._pulse = Standstill(pulse, longest_gap=2 * INTERVAL, clock=clock)
        self._consumer = Standstill(consumer, longest_gap=2 * INTERVAL, clock=clock)
        self._is_asking = is_asking
        self._redis_steady = redis_steady
        self._may_end = may_end
        self._end = end
        self._clock = clock
        self._said_at: float | None = None
        self._ended = threading.Event()
        self._minds_consumer = True
        self.is_deaf = False
        """Whether Celery's consumer stands still: nothing is to be planned onto this worker."""

    def run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.look()

    def look(self) -> None:
        """Look once."""
        if (seconds := self._pulse.look()) > (REDIS_LIMIT if self._is_asking() else LIMIT):
            log.critical("pulse_stuck", seconds=round(seconds), exit_status=EXIT_STATUS)
            self._end(EXIT_STATUS)
        seconds = self._consumer.look()
        if not self._minds_consumer or self._redis_steady() < REDIS_STEADY_SECONDS:
            self._consumer.forgive()
            seconds = 0.0
        self.is_deaf = seconds > LIMIT
        if not self.is_deaf:
            self._said_at = None
        elif self._may_end():
            log.critical("consumer_stuck", seconds=round(seconds), exit_status=EXIT_STATUS)
            self._end(EXIT_STATUS)
        elif self._said_at is None or self._clock() - self._said_at >= REPEAT_SECONDS:
            self._said_at = self._clock()
            log.error("consumer_stuck", seconds=round(seconds), why="It is not ended yet: tasks run that would die.")

    def spare_consumer(self) -> None:
        """Watch the consumer no longer: the worker leaves, and its loop has ended."""
        self._minds_consumer = False

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()
