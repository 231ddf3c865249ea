"""Connections to PostgreSQL that never wait for ever, and the translation of the driver's errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg2
from psycopg2.extensions import new_array_type, new_type, register_type
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from orchestrator.circuit import Circuit
from orchestrator.config import normalise_database_url
from orchestrator.errors import ConfigurationError, StoreUnavailable
from orchestrator.store.patience import Silence, at_most, bounded, has_patience_left, spend
from orchestrator.store.refusals import READ_ONLY, explain, is_away, speaks_of_server, sqlstate

MINIMUM_VERSION = 12


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a session may wait, in seconds; 0 is no limit."""

    connect: float = 3.0
    pool: float = 2.0
    statement: float = 5.0
    """PostgreSQL itself ends a statement that takes longer; the connection stays good."""
    answer: float = 6.0
    """Silence after which we close the connection: above ``statement``, so that it speaks of the link."""
    lock: float = 2.0
    idle_in_transaction: float = 10.0


SCHEDULER_LIMITS = Limits(idle_in_transaction=3.0)
"""A frozen leader holds its lease row against a take-over for at most this long (DESIGN §4, I9)."""

LEASE_LIMITS = Limits(connect=2.0, statement=2.0, answer=2.5, idle_in_transaction=3.0)
"""A renewal that finds its connection dead leaves time for another one within the life of the lease."""

MIGRATION_LIMITS = Limits(statement=0.0, answer=0.0, lock=0.5, idle_in_transaction=0.0)
"""Behind a migration that waits for a table's lock everybody else waits too, with the patience of the API (1 s)."""

LONGEST_PING = 0.7
"""Seconds a kept connection has to answer before it is used; then all are given up and a new one is made."""


def create_store_engine(
    database_url: str,
    *,
    pool_size: int = 5,
    application: str = "orchestrator",
    limits: Limits | None = None,
    circuit: Circuit | None = None,
) -> Engine:
    """Return an engine whose every wait is bounded; it connects on first use.

    Errors that mean "PostgreSQL can't do it now" (silence, connection, pool, statement and lock timeouts, a full disk,
    a server that only reads) are raised as :class:`StoreUnavailable` with the driver's error as cause, everything else
    as SQLAlchemy raises it.

    :param circuit: where many threads share the engine: after a silence only one at a time asks again.
    :raises ConfigurationError: not a PostgreSQL URL.
    """
    try:
        url = normalise_database_url(database_url)
    except ValueError as error:
        raise ConfigurationError(f"DATABASE_URL: {error}.") from error
    bounds = limits or Limits()
    engine = create_engine(
        url,
        # A class of its own, for the pool makes itself anew when it is disposed of.
        poolclass=type("_Pool", (_BoundedPool,), {"circuit": circuit}),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=bounds.pool,
        pool_use_lifo=True,
        # Nothing here is an hstore, and to look for that type would be one more answer that a new connection waits for.
        use_native_hstore=False,
        connect_args=_connect_arguments(application, bounds, circuit),
    )
    event.listen(engine, "handle_error", _translate)
    event.listen(engine, "connect", _read_ids_as_text)
    event.listen(engine, "checkout", _ping)
    return engine


def check_version(connection: Connection) -> None:
    """Refuse a server that is too old.

    :raises ConfigurationError: names the version found and the one needed.
    """
    number = int(connection.execute(text("SHOW server_version_num")).scalar_one())
    if number < MINIMUM_VERSION * 10_000:
        raise ConfigurationError(
            f"PostgreSQL {number // 10_000} is too old: version {MINIMUM_VERSION} or newer is needed. Upgrade the "
            "server, or point DATABASE_URL at another one."
        )


@contextmanager
def unanswered_is_unavailable() -> Iterator[None]:
    """Raise a commit's or roll-back's lost connection as :class:`StoreUnavailable` too."""
    try:
        yield
    except PoolTimeout as error:
        raise _unavailable(error) from error
    except DBAPIError as error:
        if is_away(error.orig):
            raise _unavailable(error) from error
        raise


def _connect_arguments(application: str, limits: Limits, circuit: Circuit | None) -> dict[str, Any]:
    sessions = {
        "statement_timeout": limits.statement,
        "lock_timeout": limits.lock,
        "idle_in_transaction_session_timeout": limits.idle_in_transaction,
    }
    options = " ".join(f"-c {name}={round(seconds * 1000)}" for name, seconds in sessions.items())
    return {
        "connection_factory": bounded(limits.connect, limits.answer, circuit, statement=limits.statement),
        "application_name": application,
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "options": f"{options} -c timezone=UTC",
    }


_UUID_OID, _UUID_ARRAY_OID = 2950, 2951
_ID_AS_TEXT = new_type((_UUID_OID,), "ID_AS_TEXT", lambda value, _cursor: value)
_IDS_AS_TEXT = new_array_type((_UUID_ARRAY_OID,), "IDS_AS_TEXT", _ID_AS_TEXT)


def _read_ids_as_text(connection: Any, _record: object) -> None:
    """Return ids as text, as the records have them, from plain SQL as well as from the tables."""
    register_type(_ID_AS_TEXT, connection)
    register_type(_IDS_AS_TEXT, connection)


def _ping(connection: Any, _record: object, _proxy: object) -> None:
    """Have a dead connection replaced before it is used; the pool's own ping would wait as long as a statement may."""
    given = LONGEST_PING
    try:
        with at_most(LONGEST_PING) as given, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("SELECT 1")
            connection.autocommit = False
    except psycopg2.Error as error:
        if isinstance(error, Silence) and given < LONGEST_PING:
            # It had less time than a healthy one may need; that says nothing of the others.
            raise _unavailable(error) from error
        # What ended one (a restart, a link that went silent) ended the others too.
        raise InvalidatePoolError("The connection does not answer any more.") from error


class _BoundedPool(QueuePool):
    """A queue pool that says "unavailable" when no connection came free in time, or when it is no use to ask."""

    circuit: ClassVar[Circuit | None] = None

    def connect(self) -> PoolProxiedConnection:
        if not has_patience_left():
            raise StoreUnavailable("PostgreSQL has taken all the time that this request had.")
        if self.circuit is not None and self.circuit.refuses():
            raise StoreUnavailable("PostgreSQL did not answer a moment ago; it is not asked again yet.")
        connection = self._within_time()
        if self.circuit is not None:
            self.circuit.answered()
        return connection

    def _within_time(self) -> PoolProxiedConnection:
        began = time.monotonic()
        try:
            return super().connect()
        except PoolTimeout as error:
            spend(time.monotonic() - began)
            raise _unavailable(error) from error
        except InvalidRequestError as error:
            # A kept connection was dead, and so was the new one in its place: the pool tries no third.
            raise _unavailable(error) from error


def _translate(context: ExceptionContext) -> BaseException | None:
    """Replace the driver's "not now" errors."""
    error = context.sqlalchemy_exception
    if error is None:
        return None
    if context.is_disconnect or is_away(context.original_exception):
        if sqlstate(context.original_exception) == READ_ONLY:
            # The server was demoted. The name may lead to its successor by now: look again.
            context.is_disconnect = True
        if isinstance(context.original_exception, Silence) and not context.original_exception.speaks_of_server:
            context.invalidate_pool_on_disconnect = False
        return _unavailable(error)
    return None


def _unavailable(error: Exception) -> StoreUnavailable:
    original = error.orig if isinstance(error, DBAPIError) else error
    lines = str(original).strip().splitlines()
    said = lines[0] if lines else type(original).__name__
    return StoreUnavailable(
        f"PostgreSQL did not answer in time or refused ({said}); try again.",
        explanation=explain(original),
        speaks_of_server=speaks_of_server(original),
    )
