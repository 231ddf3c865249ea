"""What the API wants of Redis: waking the leader and the progress of running attempts. All of it may be away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.errors import StoreUnavailable
from orchestrator.wire.keys import Keys
from orchestrator.wire.progress import Progress, read_progress
from orchestrator.wire.redis import connect, redis_errors
from orchestrator.wire.stream import wake

_TIMEOUT = 1.0
_HOLD_SECONDS = 5.0
"""After a failure Redis is not asked again for this long, so that requests do not each wait for it."""


@dataclass(frozen=True, slots=True)
class RedisFacts:
    version: str
    milliseconds: float
    waiting_reports: int
    """Entries of the event stream that the leader has not yet acknowledged."""
    waiting_log_chunks: int


class LiveWire:
    """The API's end of the wire; safe for many threads."""

    def __init__(self, redis_url: str, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = connect(redis_url, timeout=_TIMEOUT, retries=0)
        self._keys = Keys(namespace)
        self._clock = clock
        self._held_until = float("-inf")
        self._wanted = threading.Event()
        self._ending = False
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have the leader look at the rows now; returns at once, and losing it costs a second at most."""
        if self._thread is None:
            self._start_thread()
        self._wanted.set()

    def progress(self, attempt_ids: Sequence[str]) -> dict[str, Progress]:
        """Return the progress of these attempts; nothing while Redis is away."""
        if not attempt_ids or self._clock() < self._held_until:
            return {}
        try:
            return read_progress(self._client, self._keys, attempt_ids)
        except StoreUnavailable:
            self._held_until = self._clock() + _HOLD_SECONDS
            return {}

    def facts(self) -> RedisFacts:
        """Ask Redis how it is.

        :raises StoreUnavailable: no answer within about a second.
        """
        began = time.perf_counter()
        with redis_errors("asking for its health"):
            self._client.ping()
            took = time.perf_counter() - began
            server: object = self._client.info("server")
            events, logs = self._client.xlen(self._keys.events), self._client.xlen(self._keys.logs)
        version = str(server.get("redis_version", "")) if isinstance(server, dict) else ""
        return RedisFacts(version, round(took * 1000, 2), int(str(events)), int(str(logs)))

    def close(self) -> None:
        """End the thread and close the connections."""
        self._ending = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._client.close()

    def _start_thread(self) -> None:
        # Started by the first request, not at import: a server that forks afterwards would lose the thread.
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wake", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._ending:
                return
            try:
                wake(self._client, self._keys)
            except StoreUnavailable:
                continue
