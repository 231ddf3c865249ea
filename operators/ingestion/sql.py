"""Opens a user's database with SQLAlchemy, and says its errors as operator failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.config import normalise_database_url
from orchestrator.operator import Connection, OperatorFailure

if TYPE_CHECKING:
    import sqlalchemy as sa


@contextmanager
def opened_engine(connection: Connection) -> Iterator[sa.Engine]:
    """Yield an engine for the connection's URL and close its connections afterwards.

    :raises OperatorFailure: the URL can't be used, or a statement in the block failed.
    """
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    url = connection.url
    if url.partition("://")[0] in ("postgres", "postgresql"):
        url = normalise_database_url(url)
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise OperatorFailure(
            "bad_connection",
            f"The URL of connection {connection.name!r} can't be used ({type(error).__name__}); expected a "
            "SQLAlchemy URL whose driver is installed on the worker.",
        ) from error
    try:
        yield engine
    except DBAPIError as error:
        raise _failure(error, connection.name) from error
    except SQLAlchemyError as error:
        raise OperatorFailure("bad_query", f"Connection {connection.name!r}: {error}"[:500]) from error
    finally:
        engine.dispose()


def _failure(error: Any, name: str) -> OperatorFailure:
    from sqlalchemy.exc import DataError, IntegrityError, NotSupportedError, OperationalError, ProgrammingError

    text = next((line for line in str(error.orig).splitlines() if line.strip()), type(error).__name__)[:400]
    sqlite_says_so = type(error.orig).__module__ == "sqlite3" and ("no such" in text or "syntax error" in text)
    if isinstance(error, (ProgrammingError, NotSupportedError)) or sqlite_says_so:
        return OperatorFailure("bad_query", f"Connection {name!r} refuses the statement: {text}")
    if isinstance(error, (IntegrityError, DataError)):
        return OperatorFailure("bad_data", f"Connection {name!r} refuses the data: {text}")
    retryable = isinstance(error, OperationalError) or bool(error.connection_invalidated)
    return OperatorFailure("unreachable", f"Connection {name!r} failed: {text}", retryable=retryable)


def named_table(text: str, *columns: Any) -> sa.TableClause:
    """Return a table construct for ``table`` or ``schema.table``; names are quoted by SQLAlchemy."""
    import sqlalchemy as sa

    schema, _, name = text.rpartition(".")
    return sa.table(name, *columns, schema=schema or None)


def select_statement(table: str | None, query: str | None) -> sa.Executable:
    """Return the statement to read with.

    :raises OperatorFailure: neither or both are given.
    """
    import sqlalchemy as sa

    if bool(table) == bool(query):
        raise OperatorFailure(
            "bad_parameters", "Set either `table` or `query`, in the task or in the options of its connection."
        )
    if query:
        return sa.text(query)
    return sa.select(sa.literal_column("*")).select_from(named_table(table or ""))


def bound(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the values for the placeholders (``:name``) of a query."""
    return dict(parameters or {})
