"""TCP proxies that break links on demand: half open, one way, cut, slow; switched while connections are open.

What a wire can do to two processes, a proxy between them can do. All proxies of a site share one thread.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

LOOPBACK = "127.0.0.1"
PIECE = 65536

Direction = Literal["both", "up", "down"]
"""``up`` is from the client to the server, ``down`` the way back."""
Kind = Literal["pass", "swallow", "hold", "cut", "delay", "throttle"]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Mode:
    """What a proxy does to bytes now."""

    kind: Kind = "pass"
    direction: Direction = "both"
    amount: float = 0.0
    """Seconds of ``delay``, bytes per second of ``throttle``."""

    def concerns(self, way: Direction) -> bool:
        """Say whether bytes that go this way are treated so."""
        return self.direction in ("both", way)


@dataclass(slots=True, eq=False)
class Connection:
    """One connection through a proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    is_deaf: bool = False
    """Bytes of it were swallowed: a stream with a hole is no stream, so nothing of it ever passes again."""
    has_lost_end: bool = False
    """One side has closed it, and the other one was not told."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """Send RST to both sides."""
        for writer in (self.client, self.server):
            if writer is not None:
                _reset(writer)


class Proxy:
    """One link. Made by :class:`Proxies`; its methods may be called from any thread and return once they hold.

    :param upstream: where the server listens now; asked at every new connection.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, upstream: Callable[[], int]) -> None:
        self.name = name
        self.accepted = 0
        """Connections so far."""
        self.swallowed = 0
        """Bytes so far."""
        self._loop = loop
        self._upstream = upstream
        self._mode = Mode()
        self._free = asyncio.Event()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        # Bound for good and never listening: while the listener is closed the port refuses, and stays ours.
        self._anchor = _bound(0)
        self.port = int(self._anchor.getsockname()[1])

    @property
    def mode(self) -> Mode:
        """What it does now."""
        return self._mode

    @property
    def open_connections(self) -> int:
        """Connections that at least one side believes in."""
        return len(self._connections)

    def pass_on(self) -> None:
        """Behave like a wire again. Connections that lost bytes stay deaf; those that lost an end are reset."""
        self._set(Mode())

    def swallow(self, direction: Direction = "both") -> None:
        """Lose all bytes and closes while TCP stays up (half open); one direction alone is a one-way partition.

        New connections are accepted and lost in the same way.
        """
        self._set(Mode("swallow", direction))

    def hold(self, direction: Direction = "both") -> None:
        """Keep bytes back, to be delivered by :meth:`pass_on`: a partition that heals, as TCP re-sends what it lost."""
        self._set(Mode("hold", direction))

    def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        self._set(Mode("cut"))

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Deliver every piece this much later; pieces that come close together wait up to twice as long."""
        self._set(Mode("delay", direction, seconds))

    def throttle(self, bytes_per_second: float, direction: Direction = "both") -> None:
        """Let this much through per connection."""
        self._set(Mode("throttle", direction, bytes_per_second))

    def reset_all(self) -> None:
        """Reset all connections, once; new ones work."""
        self._call(self._reset_connections())

    def _set(self, mode: Mode) -> None:
        self._call(self._change(mode))

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    # In the loop's thread

    async def open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=_bound(self.port), limit=PIECE)

    async def close(self) -> None:
        await self._shut()
        await self._reset_connections()
        self._anchor.close()

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _change(self, mode: Mode) -> None:
        before, self._mode = self._mode, mode
        self._free.set()  # those that wait look at the new mode
        self._free = asyncio.Event()
        if mode.kind == "cut":
            await self._shut()
            await self._reset_connections()
        else:
            await self.open()
        if before.kind == "swallow" and mode.kind != "swallow":
            for connection in [one for one in self._connections if one.has_lost_end]:
                self._forget(connection)

    async def _reset_connections(self) -> None:
        for connection in list(self._connections):
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        connection.reset()
        self._connections.discard(connection)
        for task in connection.tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        connection = Connection(writer)
        self._connections.add(connection)
        if self._loses("up"):
            # The server never hears of it.
            connection.is_deaf = True
            connection.tasks = [asyncio.ensure_future(self._carry(connection, "up", reader, None))]
            return
        try:
            from_server, connection.server = await asyncio.open_connection(LOOPBACK, self._upstream(), limit=PIECE)
        except OSError:
            self._forget(connection)
            return
        connection.tasks = [
            asyncio.ensure_future(self._carry(connection, "up", reader, connection.server)),
            asyncio.ensure_future(self._carry(connection, "down", from_server, writer)),
        ]

    def _loses(self, way: Direction) -> bool:
        return self._mode.kind == "swallow" and self._mode.concerns(way)

    async def _carry(
        self, connection: Connection, way: Direction, source: asyncio.StreamReader, sink: asyncio.StreamWriter | None
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(PIECE):
                await self._deliver(connection, way, piece, sink)
        await self._wait_while_held(way)
        if connection.is_deaf or self._loses(way):
            connection.has_lost_end = True
            if connection.server is None or all(
                task.done() or task is asyncio.current_task() for task in connection.tasks
            ):
                self._forget(connection)
            return
        await self._close(connection)

    async def _deliver(
        self, connection: Connection, way: Direction, piece: bytes, sink: asyncio.StreamWriter | None
    ) -> None:
        await self._wait_while_held(way)
        if connection.is_deaf or sink is None or self._loses(way):
            connection.is_deaf = True
            self.swallowed += len(piece)
            return
        if self._mode.concerns(way):
            if self._mode.kind == "delay":
                await asyncio.sleep(self._mode.amount)
            elif self._mode.kind == "throttle":
                await asyncio.sleep(len(piece) / self._mode.amount)
        sink.write(piece)
        await sink.drain()

    async def _wait_while_held(self, way: Direction) -> None:
        while self._mode.kind == "hold" and self._mode.concerns(way):
            await self._free.wait()

    async def _close(self, connection: Connection) -> None:
        """Pass the end of one side on to the other, after what was written before it."""
        for writer in (connection.client, connection.server):
            if writer is not None:
                writer.close()
        self._connections.discard(connection)
        for task in connection.tasks:
            if task is not asyncio.current_task():
                task.cancel()


class Proxies:
    """The thread that carries the bytes of all links."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._all: dict[str, Proxy] = {}

    def __getitem__(self, name: str) -> Proxy:
        return self._all[name]

    def add(self, name: str, upstream: Callable[[], int]) -> Proxy:
        """Open a link to the port that ``upstream`` names."""

        async def make() -> Proxy:
            proxy = Proxy(name, self._loop, upstream)
            await proxy.open()
            return proxy

        self._all[name] = self._run(make())
        return self._all[name]

    def named(self, prefix: str) -> list[Proxy]:
        """Return the links whose names begin so."""
        return [proxy for name, proxy in self._all.items() if name.startswith(prefix)]

    def heal(self) -> None:
        """Have all links pass again."""
        for proxy in self._all.values():
            proxy.pass_on()

    def close(self) -> None:
        """Reset everything and end the thread."""

        async def end() -> None:
            for proxy in self._all.values():
                await proxy.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((LOOPBACK, port))
    return bound


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
