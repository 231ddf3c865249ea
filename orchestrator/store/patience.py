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
from typing import ClassVar, NamedTuple

import psycopg2
from psycopg2 import extensions

from orchestrator.circuit import Circuit

_FOR_EVER = float("inf")
EVIDENCE = 1.0
"""Seconds without a connection that speak of the server; less may only be what was left of a request's allowance."""


class Silence(psycopg2.OperationalError):
    """PostgreSQL did not answer in time; the driver has closed the connection."""

    speaks_of_server = True
    """Whether an answer was due; else all that was up is the time that the thread had."""


class BoundedConnection(extensions.connection):
    """A connection on which nothing waits for ever."""

    connect_limit: ClassVar[float]
    answer_limit: ClassVar[float]
    statement_limit: ClassVar[float]
    circuit: ClassVar[Circuit | None]


def bounded(
    connect: float, answer: float, circuit: Circuit | None = None, *, statement: float = 0.0
) -> type[BoundedConnection]:
    """Return a connection factory for the driver.

    :param connect: seconds to wait for a connection, all its round trips together.
    :param answer: seconds to wait for the answer to a statement or a commit; 0 is for ever.
    :param circuit: is told of silences that speak of the server.
    :param statement: seconds after which the server itself ends a statement; 0 is never.
    """
    extensions.set_wait_callback(_wait)
    limits = {"connect_limit": connect, "answer_limit": answer, "statement_limit": statement, "circuit": circuit}
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
def at_most(seconds: float) -> Iterator[float]:
    """Let this thread wait so long at most within the block, and count it against what it is allowed in all.

    Yields the seconds that it may wait, which are fewer when less is left of its allowance.
    """
    allowed = _thread.left
    given = seconds if allowed is None else min(seconds, allowed)
    _thread.left = given
    try:
        yield given
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
    # Before the first poll: after it the driver no longer says that it is connecting.
    wait = _wait_of(connection)
    state = connection.poll()
    if state == extensions.POLL_OK:
        return
    began = time.monotonic()
    try:
        while state != extensions.POLL_OK:
            if not _is_ready(connection, state, wait.limit - (time.monotonic() - began)):
                raise _silence(wait)
            state = connection.poll()
    finally:
        spend(time.monotonic() - began)


def _silence(wait: _Wait) -> Silence:
    silence = Silence(f"no answer within {max(wait.limit, 0.0):.1f} s")
    silence.speaks_of_server = wait.limit >= wait.evidence
    if silence.speaks_of_server and wait.circuit is not None:
        wait.circuit.silent()
    return silence


def _is_ready(connection: extensions.connection, state: int, seconds: float) -> bool:
    """Wait until the socket lets the driver go on; say whether it did in time."""
    if seconds <= 0:
        return False
    # The socket may be another one at each step: a name can have several addresses.
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
    return bool(watch.poll(None if seconds == _FOR_EVER else seconds * 1000))


class _Wait(NamedTuple):
    limit: float
    evidence: float = _FOR_EVER
    """Seconds after which an answer was due: less may be one slow statement's, or all that a request had left."""
    circuit: Circuit | None = None


def _wait_of(connection: extensions.connection) -> _Wait:
    if not isinstance(connection, BoundedConnection):
        return _Wait(_FOR_EVER)
    if connection.status == extensions.STATUS_SETUP:
        own, evidence = connection.connect_limit or _FOR_EVER, EVIDENCE
    else:
        own = connection.answer_limit or _FOR_EVER
        # Halfway from where the server would have ended the statement, for that answer needs its time too.
        evidence = (connection.statement_limit + own) / 2 if connection.statement_limit else own
    left = _thread.left
    return _Wait(own if left is None else min(own, left), evidence, connection.circuit)
