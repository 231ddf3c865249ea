"""A service outside of the system, as far as tasks see one: an HTTP server that answers what a test tells it to."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

ROWS = b"a,b\n1,2\n"
LONGEST_HOLD = 600.0
"""Seconds for which a request is held at most: a test that fails must not hang."""


class OutsideService:
    """Usable as a context manager.

    :ivar asked: monotonic seconds of each request, by path.
    """

    def __init__(self) -> None:
        self.asked: dict[str, list[float]] = defaultdict(list)
        self._answers: dict[str, list[tuple[int, Mapping[str, str]]]] = defaultdict(list)
        self._always: dict[str, int] = {}
        self._held: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._held:
            self.let_go(path)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, status: int, **headers: str) -> None:
        """Give this answer once, after those that were told before; then it is rows of CSV again."""
        with self._lock:
            self._answers[path].append((status, {name.replace("_", "-"): value for name, value in headers.items()}))

    def answer_always(self, path: str, status: int) -> None:
        """Give this answer until told otherwise; with 200 it is rows of CSV."""
        self._always[path] = status

    def hold(self, path: str) -> None:
        """Give no answer until :meth:`let_go`."""
        self._held[path] = threading.Event()

    def let_go(self, path: str) -> None:
        """Give the answers that were held back."""
        self._held[path].set()

    def _next(self, path: str) -> tuple[int, Mapping[str, str]]:
        with self._lock:
            self.asked[path].append(time.monotonic())
            return self._answers[path].pop(0) if self._answers[path] else (self._always.get(path, 200), {})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers = service._next(self.path)
                if (held := service._held.get(self.path)) is not None:
                    held.wait(LONGEST_HOLD)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(ROWS)))
                self.end_headers()
                self.wfile.write(ROWS)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: what was asked is in ``asked``."""

        return Handler
