"""Connections to PostgreSQL that never wait for ever, and the translation of the driver's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg2.extensions import new_array_type, new_type, register_type
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from orchestrator.config import normalise_database_url
from orchestrator.errors import ConfigurationError, StoreUnavailable

MINIMUM_VERSION = 12


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a session may wait, in seconds; 0 is no limit."""

    connect: float = 3.0
    pool: float = 2.0
    statement: float = 5.0
    lock: float = 2.0
    idle_in_transaction: float = 10.0


SCHEDULER_LIMITS = Limits(idle_in_transaction=3.0)
"""A frozen leader holds its lease row against a take-over for at most this long (DESIGN §4, I9)."""

MIGRATION_LIMITS = Limits(statement=0.0, lock=30.0, idle_in_transaction=0.0)


def create_store_engine(
    database_url: str, *, pool_size: int = 5, application: str = "orchestrator", limits: Limits | None = None
) -> Engine:
    """Return an engine whose every wait is bounded; it connects on first use.

    Errors that mean "PostgreSQL does not answer" (connection, pool, statement and lock timeouts) are raised as
    :class:`StoreUnavailable` with the driver's error as cause, everything else as SQLAlchemy raises it.

    :raises ConfigurationError: not a PostgreSQL URL.
    """
    try:
        url = normalise_database_url(database_url)
    except ValueError as error:
        raise ConfigurationError(f"DATABASE_URL: {error}.") from error
    bounds = limits or Limits()
    engine = create_engine(
        url,
        poolclass=_BoundedPool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=bounds.pool,
        pool_pre_ping=True,
        pool_use_lifo=True,
        connect_args=_connect_arguments(application, bounds),
    )
    event.listen(engine, "handle_error", _translate)
    event.listen(engine, "connect", _read_ids_as_text)
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
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise _unavailable(error) from error


def _connect_arguments(application: str, limits: Limits) -> dict[str, Any]:
    sessions = {
        "statement_timeout": limits.statement,
        "lock_timeout": limits.lock,
        "idle_in_transaction_session_timeout": limits.idle_in_transaction,
    }
    options = " ".join(f"-c {name}={round(seconds * 1000)}" for name, seconds in sessions.items())
    return {
        "connect_timeout": max(2, round(limits.connect)),
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


class _BoundedPool(QueuePool):
    """A queue pool that says "unavailable" when no connection came free in time."""

    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except PoolTimeout as error:
            raise _unavailable(error) from error


def _translate(context: ExceptionContext) -> BaseException | None:
    """Replace the driver's "no answer" errors; a pre-ping's own errors stay, for the pool acts on them."""
    error = context.sqlalchemy_exception
    if context.is_pre_ping or error is None:
        return None
    if context.is_disconnect or isinstance(error, (OperationalError, InterfaceError)):
        return _unavailable(error)
    return None


def _unavailable(error: Exception) -> StoreUnavailable:
    original = error.orig if isinstance(error, DBAPIError) else error
    lines = str(original).strip().splitlines()
    said = lines[0] if lines else type(original).__name__
    return StoreUnavailable(f"PostgreSQL did not answer in time or refused ({said}); try again.")
