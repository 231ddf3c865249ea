"""Clients that keep a connection and say nothing: they make room for others, those that are idle for longest first."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from gunicorn.config import Config

from api.server import SPARE_DESCRIPTORS, Threads
from tests.integration.api_site import ApiSite
from tests.integration.test_api_overload import Server
from tests.integration.test_scheduler import until

pytestmark = pytest.mark.timeout(120)

CONNECTIONS = 8
THREADS = 2
KEPT_ALIVE = CONNECTIONS - THREADS
"""As many as gunicorn keeps alive of them."""
WITHIN = 20.0
"""Seconds; far more than it takes, and far less than the 75 for which idle clients are kept."""
SOON = 4.0
"""Seconds; gunicorn's own worker has a thread wait for a silent client for five."""


@pytest.fixture
def server(api: ApiSite, tmp_path: Path) -> Iterator[Server]:
    limits = ("--worker-connections", str(CONNECTIONS), "--keep-alive", "75")
    server = Server(api, tmp_path, THREADS, options=limits)
    try:
        server.wait_until_alive()
        # Those who asked whether it lives have gone; until the server has noticed, they count among its clients.
        until(lambda: not clients_of(server))
        yield server
    finally:
        server.stop()


def clients_of(server: Server) -> int:
    """Return how many connections of clients the server holds, those included that the client has closed."""
    port = urlsplit(server.url).port
    master = psutil.Process(server.process.pid)
    found = [one for process in (master, *master.children()) for one in process.net_connections("tcp")]
    return sum(bool(one.raddr) and one.laddr.port == port for one in found)


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((str(address.hostname), address.port or 0), timeout=WITHIN)


def ask(client: socket.socket) -> str:
    """Send one request over an open connection, and return the head of the answer."""
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
    received = b""
    while not received.endswith(b'{"status":"ok"}\n'):
        piece = client.recv(4096)
        assert piece, f"closed after {received!r}"
        received += piece
    return received.partition(b"\r\n\r\n")[0].decode().lower()


def is_closed(client: socket.socket, seconds: float = 0.5) -> bool:
    """Say whether the server closes it; one that it keeps says nothing for so long."""
    client.settimeout(seconds)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_idle_clients_keep_nobody_out(server: Server) -> None:
    with ExitStack() as stack:
        kept = [stack.enter_context(connect(server)) for _ in range(KEPT_ALIVE)]
        for client in kept:
            assert "connection: keep-alive" in ask(client)
        # They say nothing at all.
        silent = [stack.enter_context(connect(server)) for _ in range(CONNECTIONS)]
        began = time.monotonic()
        for _ in range(3):
            assert requests.get(f"{server.url}/healthz", timeout=WITHIN).status_code == 200
        took = time.monotonic() - began
        print(f"three answers after {took:.2f} s beside {CONNECTIONS} idle clients")
        assert took < SOON, "silent clients hold threads"
        assert any(map(is_closed, kept[:THREADS])), "the one that was idle for longest made room"
        assert not is_closed(silent[-1])
        assert ask(silent[-1]), "one that came late has its turn"


def test_a_server_that_stops_does_not_wait_for_silent_clients(server: Server) -> None:
    with connect(server) as silent:
        assert server.is_alive()
        server.process.terminate()
        assert is_closed(silent, WITHIN)
        assert server.process.wait(timeout=WITHIN) == 0


def test_who_is_served_or_was_served_last_keeps_its_connection(server: Server) -> None:
    with ExitStack() as stack:
        kept = [stack.enter_context(connect(server)) for _ in range(KEPT_ALIVE)]
        for client in kept:
            ask(client)
        ask(kept[0])
        others = [stack.enter_context(connect(server)) for _ in range(THREADS)]
        for client in others:
            ask(client)
        # Two threads may come back from two clients in the other order than these were answered.
        assert any(map(is_closed, kept[1 : 1 + THREADS])), "the one that was idle for longest made room"
        assert ask(kept[0])


def test_clients_never_take_all_the_files_that_the_process_may_have_open() -> None:
    app = SimpleNamespace(cfg=Config())
    app.cfg.set("threads", 64)

    def most(descriptors: int) -> tuple[int, int]:
        with patch("api.server.resource.getrlimit", return_value=(descriptors, descriptors)):
            worker = Threads(1, 1, [], app, 30, app.cfg, None)
        worker.tmp.close()
        return worker.worker_connections, worker.max_keepalived

    assert most(20_000) == (1000, 936)
    assert most(1024) == (1024 - SPARE_DESCRIPTORS, 1024 - SPARE_DESCRIPTORS - 64)
    assert most(100) == (65, 1)
