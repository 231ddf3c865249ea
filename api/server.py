"""The worker class for gunicorn: its threads, but it says how long a request has waited, and idle clients make room.

``gunicorn --worker-class api.server.Threads …``. gunicorn puts requests for which no thread is free into a queue that
it never bounds: with more callers than it serves in two seconds, every answer would come too late to be of use (I15).
A request's time counts from when it reached this host, so the backlog of the listening socket is in it; gunicorn would
take one client from there at each turn of its loop, which on a busy machine are few. What came while the process was
being started has not waited for others, and counts from when it began to serve.
It also has a thread wait five seconds for the first word of each new client, and counts idle connections like any
other: some hundred clients that say nothing would keep all others out.
"""

from __future__ import annotations

import resource
import selectors
import socket
import struct
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from api import queue_time

SPARE_DESCRIPTORS = 200
"""Of those that the process may have open, for all but its clients: stores, files, what is written. With none left, the
next client would end the process."""
_MOST_ACCEPTED = 64
"""Clients taken in at one turn of the loop."""
_LAST_DATA_RECEIVED = 52
"""Where in Linux's ``struct tcp_info`` the milliseconds are since the last data came."""


class Threads(ThreadWorker):  # type: ignore[misc]
    """gunicorn's own threads worker, with a clock on its queue; who is silent takes no thread, and nobody's place."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.worker_connections: int
        threads = self.cfg.threads
        may_be_open = max(threads + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS)
        self.worker_connections = min(self.worker_connections, may_be_open)
        self.max_keepalived = self.worker_connections - threads
        self._serves_since = 0.0

    def run(self) -> None:
        self._serves_since = time.monotonic()
        super().run()

    def enqueue_req(self, conn: Any) -> None:
        if not (conn.initialized or conn.data_ready):
            self._await_first_word(conn)
            return
        # What was read ahead came with the request before it.
        is_new = not conn.initialized or conn.is_http2 or not conn.parser.unreader.buf.getvalue()
        came_at = time.monotonic() - (_silence(conn.sock) if is_new else 0.0)
        conn.queued_at = max(came_at, self._serves_since)
        super().enqueue_req(conn)

    def accept(self, listener: Any) -> None:
        for _ in range(_MOST_ACCEPTED):
            clients = self.nr_conns
            super().accept(listener)
            if self.nr_conns == clients or self.nr_conns >= self.worker_connections:
                return

    def _await_first_word(self, conn: Any) -> None:
        """Watch a new client as gunicorn watches one that has been silent for five seconds."""
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def handle(self, conn: Any) -> Any:
        queue_time.note(time.monotonic() - conn.queued_at)
        return super().handle(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(timeout)
        # Not where a client is accepted: what is closed there may be among the events that are still to be dispatched.
        while self.nr_conns >= self.worker_connections and self._close_longest_idle():
            pass

    def _cap_keepalive(self, deadline: float) -> None:
        """Stop waiting for the first word of a client, too, when the process is to end."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _close_longest_idle(self) -> bool:
        """Close the connection that has waited longest for its client's first or next request; say if there was one.

        Its client connects anew, as after ``--keep-alive``; one that is served, or waits for a thread, is not idle.
        """
        idle = [waiting for waiting in (self.keepalived_conns, self.pending_conns) if waiting]
        if not idle:
            return False
        conn = min(idle, key=lambda waiting: waiting[0].timeout).popleft()
        with suppress(OSError, KeyError, ValueError):  # it is not watched any more
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()
        return True


def _silence(connection: socket.socket) -> float:
    """Return for how many seconds nothing has come, where the system says so: that long ago came what is there now."""
    if sys.platform != "linux":
        return 0.0
    try:
        facts = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED + 4)
        (milliseconds,) = struct.unpack_from("=I", facts, _LAST_DATA_RECEIVED)
    except (OSError, struct.error):  # a socket that is none of TCP, or is closed
        return 0.0
    return float(milliseconds) / 1000
