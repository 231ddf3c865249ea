"""How many unfinished runs a tenant may have: what is accepted is kept until it ends, so it must not grow for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy import Connection
from werkzeug.exceptions import TooManyRequests

from orchestrator.store.run_requests import count_unfinished

_FRESH_SECONDS = 1.0
"""A count is good for this long, with what this process has let in since. Several processes may exceed the limit by
what the others let in meanwhile."""
_RETRY_SECONDS = 5


class Backlog:
    """Lets new runs in while there is room; safe for many threads.

    :param most: unfinished runs per tenant.
    :param clock: monotonic seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[float, int]] = {}

    def let_in(self, connection: Connection, tenant_id: str) -> None:
        """Count one more run, or one that is to start again.

        :raises TooManyRequests: the tenant has as many as it may.
        """
        now = self._clock()
        with self._lock:
            at, count = self._counts.get(tenant_id, (float("-inf"), 0))
        if now - at >= _FRESH_SECONDS:
            at, count = now, count_unfinished(connection, tenant_id, self._most)
        with self._lock:
            known_at, known = self._counts.get(tenant_id, (float("-inf"), 0))
            if known_at >= at:
                at, count = known_at, max(count, known)
            self._counts[tenant_id] = (at, count + (count < self._most))
        if count >= self._most:
            raise TooManyRequests(
                f"{self._most} runs have not ended yet, and no more are kept waiting (MAX_QUEUED_RUNS). Wait for some "
                "to end, or cancel some.",
                retry_after=_RETRY_SECONDS,
            )
