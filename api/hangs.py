"""Ends the process when its threads hang: no request begins or ends while some are under way.

The server's own time-out does not see it: gunicorn's ``gthread`` worker reports from its main thread, which only
accepts and hands on. What remains unbounded is dead storage under the artifacts, and names that nobody resolves. A
client may take its time to send a body or to read an answer: while a request waits for that it isn't under way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Protocol

from orchestrator.logs import get_logger
from orchestrator.watchdog import EXIT_STATUS, LIMIT, Pulse, Standstill

log = get_logger(__name__)


class Hangs:
    """Watches the requests of this process; safe for many threads.

    :param limit: seconds; ``None`` never looks.
    """

    def __init__(self, limit: float | None = LIMIT, end: Callable[[int], object] = os._exit) -> None:
        self._limit = limit
        self._end = end
        self._pulse = Pulse()
        self._lock = threading.Lock()
        self._open = 0
        self._has_started = False

    def begun(self) -> None:
        """Note that a request has begun."""
        with self._lock:
            self._open += 1
            self._pulse.beat()
            # Started by the first request, not at import: a server that forks afterwards would lose the thread.
            must_start, self._has_started = self._limit is not None and not self._has_started, True
        if must_start:
            threading.Thread(target=self._watch, name="hangs", daemon=True).start()

    def ended(self) -> None:
        """Note that its answer is there; of a stream, that it begins. A client may take its time to read."""
        with self._lock:
            self._open -= 1
            self._pulse.beat()

    @contextmanager
    def waiting_for_client(self) -> Iterator[None]:
        """Do not count a request that has begun while this lasts."""
        self.ended()
        try:
            yield
        finally:
            with self._lock:
                self._open += 1
                self._pulse.beat()

    def _watch(self) -> None:
        limit = self._limit or LIMIT
        interval = min(1.0, limit / 4)
        standstill = Standstill(self._pulse, longest_gap=2 * interval)
        wait = threading.Event()
        while not wait.wait(interval):
            if standstill.look() <= limit:
                continue
            with self._lock:
                hanging = self._open
            if hanging <= 0:
                standstill.forgive()
                continue
            log.critical("requests_stuck", requests=hanging, seconds=round(standstill.seconds), exit_status=EXIT_STATUS)
            self._end(EXIT_STATUS)
            return


class Watch(Protocol):
    """Who must know when a request waits for its client."""

    def waiting_for_client(self) -> AbstractContextManager[None]:
        """Leave the request out of account while this lasts."""
        ...


class ClientsBody:
    """A request's body (``wsgi.input``) whose reader is not under way while the client has yet to send."""

    def __init__(self, stream: IO[bytes], watch: Watch) -> None:
        self._stream = stream
        self._watch = watch

    def read(self, size: int = -1) -> bytes:
        with self._watch.waiting_for_client():
            return self._stream.read(size)

    def readline(self, size: int = -1) -> bytes:
        with self._watch.waiting_for_client():
            return self._stream.readline(size)

    def readlines(self, hint: int = -1) -> list[bytes]:
        with self._watch.waiting_for_client():
            return self._stream.readlines(hint)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")
