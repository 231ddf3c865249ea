"""Gives every wait for PostgreSQL a deadline of our own (docs/adr/0007).

No setting of libpq ends the wait for a link that swallows bytes while something on the way still acknowledges them. So
the driver is run in its cooperative mode: it hands each wait to :func:`_wait`, which watches the socket and the clock.
That mode belongs to the process; connections that were not made by :func:`bounded` wait as they always did.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import psycopg2
from psycopg2 import extensions

from orchestrator.circuit import Circuit

_EVIDENCE = 1.0
"""Seconds of silence that speak of the server; less may only be what was left of a request's allowance."""


class Silence(psycopg2.OperationalError):
    """PostgreSQL did not answer in time; the driver has closed the connection."""


class BoundedConnection(extensions.connection):
    """A connection on which nothing waits for ever."""

    connect_limit: ClassVar[float]
    answer_limit: ClassVar[float]
    circuit: ClassVar[Circuit | None]


def bounded(connect: float, answer: float, circuit: Circuit | None) -> type[BoundedConnection]:
    """Return a connection factory for the driver.

    :param connect: seconds to wait for a connection, all its round trips together.
    :param answer: seconds to wait for the answer to a statement or a commit; 0 is for ever.
    :param circuit: is told of silences.
    """
    extensions.set_wait_callback(_wait)
    limits = {"connect_limit": connect, "answer_limit": answer, "circuit": circuit}
    return type("BoundedConnection", (BoundedConnection,), limits)


class _Thread(threading.local):
    left: float | None = None


_thread = _Thread()


def allow(seconds: float | None) -> None:
    """Let this thread wait for PostgreSQL so long in all, from now on; ``None`` lifts the limit.

    Only waiting counts: what the thread computes in between takes nothing away.
    """
    _thread.left = seconds


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Let this thread wait so long at most within the block, and count it against what it is allowed in all."""
    allowed = _thread.left
    given = seconds if allowed is None else min(seconds, allowed)
    _thread.left = given
    try:
        yield
    finally:
        _thread.left = None if allowed is None else allowed - (given - (_thread.left or 0.0))


def has_patience_left() -> bool:
    """Say whether this thread may still wait."""
    return _thread.left is None or _thread.left > 0


def spend(seconds: float) -> None:
    """Count this as waiting."""
    if _thread.left is not None:
        _thread.left -= seconds


def _wait(connection: extensions.connection) -> None:
    """Wait until the driver's present step is done; it closes the connection when this raises.

    :raises Silence: the time is up.
    """
    state = connection.poll()
    if state == extensions.POLL_OK:
        return
    limit, circuit = _limit(connection)
    began = time.monotonic()
    try:
        while state != extensions.POLL_OK:
            if not _is_ready(connection, state, limit - (time.monotonic() - began)):
                if circuit is not None and limit >= _EVIDENCE:
                    circuit.silent()
                raise Silence(f"no answer within {max(limit, 0.0):.1f} s")
            state = connection.poll()
    finally:
        spend(time.monotonic() - began)


def _is_ready(connection: extensions.connection, state: int, seconds: float) -> bool:
    """Wait until the socket lets the driver go on; say whether it did in time."""
    if seconds <= 0:
        return False
    # The socket may be another one at each step: a name can have several addresses.
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
    return bool(watch.poll(None if seconds == float("inf") else seconds * 1000))


def _limit(connection: extensions.connection) -> tuple[float, Circuit | None]:
    if not isinstance(connection, BoundedConnection):
        return float("inf"), None
    own = connection.connect_limit if connection.status == extensions.STATUS_SETUP else connection.answer_limit
    limit = own or float("inf")
    return (limit if _thread.left is None else min(limit, _thread.left)), connection.circuit
