"""What the API wants of Redis: waking the leader and the progress of running attempts. All of it may be away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.circuit import Circuit
from orchestrator.errors import StoreUnavailable
from orchestrator.wire.keys import Keys
from orchestrator.wire.progress import Progress, read_progress
from orchestrator.wire.redis import connect, redis_errors
from orchestrator.wire.stream import wake

_TIMEOUT = 1.0
_FULL_AT = 0.95
_HOLD_SECONDS = 2.0
"""After a failure Redis is asked by one request in this time, so that they do not each wait for it."""


@dataclass(frozen=True, slots=True)
class RedisFacts:
    version: str
    milliseconds: float
    waiting_reports: int
    """Entries of the event stream that the leader has not yet acknowledged."""
    waiting_log_chunks: int
    is_full: bool
    """It takes nothing in any more, or will not soon (``maxmemory``)."""


class LiveWire:
    """The API's end of the wire; safe for many threads."""

    def __init__(self, redis_url: str, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = connect(redis_url, timeout=_TIMEOUT, retries=0)
        self._keys = Keys(namespace)
        self.circuit = Circuit(_HOLD_SECONDS, clock)
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
        if not attempt_ids:
            return {}
        try:
            with self._asking():
                return read_progress(self._client, self._keys, attempt_ids)
        except StoreUnavailable:
            return {}

    def facts(self) -> RedisFacts:
        """Ask Redis how it is.

        :raises StoreUnavailable: no answer within about a second, or none a moment ago.
        """
        began = time.perf_counter()
        with self._asking(), redis_errors("asking for its health"):
            self._client.ping()
            took = time.perf_counter() - began
            server: Any = self._client.info("server")
            memory: Any = self._client.info("memory")
            events, logs = self._client.xlen(self._keys.events), self._client.xlen(self._keys.logs)
        return RedisFacts(
            version=str(server.get("redis_version", "")),
            milliseconds=round(took * 1000, 2),
            waiting_reports=int(str(events)),
            waiting_log_chunks=int(str(logs)),
            is_full=_is_full(memory),
        )

    def close(self) -> None:
        """End the thread and close the connections."""
        self._ending = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._client.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Ask Redis unless somebody has just found it silent.

        :raises StoreUnavailable: it is better not asked now.
        """
        if self.circuit.refuses():
            raise StoreUnavailable("Redis did not answer a moment ago; it is not asked again yet.")
        try:
            yield
        except StoreUnavailable:
            self.circuit.silent()
            raise
        self.circuit.answered()

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


def _is_full(memory: Mapping[str, Any]) -> bool:
    """Say whether there is a limit, and whether it is reached. With an eviction policy there is always room."""
    most = int(memory.get("maxmemory", 0))
    keeps = memory.get("maxmemory_policy", "noeviction") == "noeviction"
    return keeps and 0 < most * _FULL_AT <= int(memory.get("used_memory", 0))
