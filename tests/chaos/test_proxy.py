"""The proxy does to a link what it says: an echo server behind it, and plain sockets before it."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.chaos.proxy import Proxies, Proxy


class Echo:
    """Answers every piece with the same bytes, and remembers what it got."""

    def __init__(self) -> None:
        self.heard = b""
        self.closed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(one)
            threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def _serve(self, one: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(65536):
                self.heard += piece
                one.sendall(piece)
        self.closed += 1
        one.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    proxies = Proxies()
    yield proxies.add("link", lambda: echo.port)
    proxies.close()


def _connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5.0)


def _ask(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    answer = b""
    while len(answer) < len(text):
        piece = client.recv(65536)
        assert piece, "closed before the whole answer"
        answer += piece
    return answer


def _until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def _is_silent(client: socket.socket, seconds: float = 0.3) -> bool:
    client.settimeout(seconds)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5.0)
    return False


def test_bytes_pass_in_both_directions(proxy: Proxy) -> None:
    with _connect(proxy) as client:
        assert _ask(client, b"hello") == b"hello"
        large = bytes(range(256)) * 4096
        threading.Thread(target=client.sendall, args=(large,)).start()
        received = b""
        while len(received) < len(large):
            received += client.recv(65536)
        assert received == large


def test_a_close_of_one_side_reaches_the_other(proxy: Proxy, echo: Echo) -> None:
    with _connect(proxy) as client:
        _ask(client, b"x")
    _until(lambda: echo.closed == 1)
    assert proxy.open_connections == 0


def test_swallowed_bytes_vanish_while_the_connection_stays_up(proxy: Proxy, echo: Echo) -> None:
    with _connect(proxy) as client:
        _ask(client, b"before")
        proxy.swallow()
        client.sendall(b"lost")
        assert _is_silent(client)
        assert echo.heard == b"before"
        assert proxy.swallowed == 4
        with _connect(proxy) as another:
            another.sendall(b"lost too")
            assert _is_silent(another)
        assert echo.heard == b"before"


def test_a_connection_that_lost_bytes_stays_deaf_and_a_new_one_works(proxy: Proxy) -> None:
    with _connect(proxy) as holed, _connect(proxy) as idle:
        _ask(idle, b"a")
        _ask(holed, b"b")
        proxy.swallow()
        holed.sendall(b"lost")
        _until(lambda: proxy.swallowed == 4)
        proxy.pass_on()
        holed.sendall(b"more")
        assert _is_silent(holed), "a stream with a hole was delivered"
        assert _ask(idle, b"nothing of this one was lost") == b"nothing of this one was lost"
        with _connect(proxy) as fresh:
            assert _ask(fresh, b"c") == b"c"


def test_one_direction_alone_can_be_swallowed(proxy: Proxy, echo: Echo) -> None:
    with _connect(proxy) as client:
        _ask(client, b"before ")
        proxy.swallow("down")
        client.sendall(b"heard, answer lost")
        assert _is_silent(client)
        assert echo.heard == b"before heard, answer lost"
    proxy.pass_on()
    proxy.swallow("up")
    with _connect(proxy) as client:
        client.sendall(b"never heard")
        assert _is_silent(client)
    assert b"never" not in echo.heard


def test_the_end_of_a_swallowed_connection_is_told_only_when_the_link_is_back(proxy: Proxy, echo: Echo) -> None:
    client = _connect(proxy)
    _ask(client, b"x")
    proxy.swallow()
    client.close()
    time.sleep(0.2)
    assert echo.closed == 0, "a close went through a link that loses everything"
    proxy.pass_on()
    _until(lambda: echo.closed == 1)
    assert proxy.open_connections == 0


def test_held_bytes_and_ends_are_delivered_when_the_link_is_back(proxy: Proxy, echo: Echo) -> None:
    client = _connect(proxy)
    _ask(client, b"a")
    proxy.hold()
    client.sendall(b"later")
    assert _is_silent(client)
    assert echo.heard == b"a"
    proxy.pass_on()
    assert client.recv(5) == b"later"
    proxy.hold("up")
    client.close()
    time.sleep(0.2)
    assert echo.closed == 0
    proxy.pass_on()
    _until(lambda: echo.closed == 1)


def test_a_cut_link_resets_what_is_open_and_refuses_what_is_new(proxy: Proxy) -> None:
    with _connect(proxy) as client:
        _ask(client, b"x")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError) as caught:
        _connect(proxy)
    assert caught.value.errno == errno.ECONNREFUSED
    proxy.pass_on()
    with _connect(proxy) as client:
        assert _ask(client, b"again") == b"again"


def test_a_delayed_link_answers_late(proxy: Proxy) -> None:
    proxy.delay(0.15)
    with _connect(proxy) as client:
        began = time.monotonic()
        _ask(client, b"x")
        assert time.monotonic() - began >= 0.3


def test_a_throttled_link_is_as_slow_as_it_says(proxy: Proxy) -> None:
    proxy.throttle(10_000, "up")
    with _connect(proxy) as client:
        began = time.monotonic()
        _ask(client, b"x" * 4_000)
        assert time.monotonic() - began >= 0.39


def test_a_server_that_is_down_resets_the_client(proxy: Proxy, echo: Echo) -> None:
    echo.close()

    def hear() -> None:
        # The reset may come before connecting has returned.
        with _connect(proxy) as client:
            _until(lambda: proxy.accepted == 1 and proxy.open_connections == 0)
            client.recv(1)

    with pytest.raises(ConnectionResetError):
        hear()
