"""Reads a table or a query of a user's database in batches, through a server-side cursor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from operators.ingestion.plan import Plan
from operators.ingestion.sql import bound, opened_engine, select_statement
from orchestrator.operator import Json, OperatorFailure, TaskContext

if TYPE_CHECKING:
    import polars as pl
    import sqlalchemy as sa

BATCH_ROWS = 20_000


def read_database(context: TaskContext, plan: Plan) -> Iterator[pl.DataFrame]:
    """Yield the rows in frames; the first one is there, with its columns, even when there are no rows.

    The transaction is read-only where the database knows that (PostgreSQL).
    """
    assert plan.connection is not None
    done = 0
    with opened_engine(plan.connection) as engine, engine.connect() as connection:
        result = _execute(connection, plan)
        names = _unique_names(list(result.keys()))
        yield _frame(names, [])
        for rows in result.partitions(BATCH_ROWS):
            done += len(rows)
            context.log("rows read", rows=done)
            yield _frame(names, rows)


def look_database(_context: TaskContext, plan: Plan) -> Mapping[str, Json]:
    """Start the statement and take its columns; the rows are left."""
    assert plan.connection is not None
    with opened_engine(plan.connection) as engine, engine.connect() as connection:
        result = _execute(connection, plan)
        names = list(result.keys())
        result.close()
        return {"columns": names}


def _execute(connection: sa.Connection, plan: Plan) -> sa.CursorResult[Any]:
    if connection.dialect.name == "postgresql":
        connection = connection.execution_options(postgresql_readonly=True)
    connection = connection.execution_options(stream_results=True, max_row_buffer=BATCH_ROWS)
    statement = select_statement(*_table_or_query(plan))
    result = connection.execute(statement, bound(plan.option("query_parameters")))
    if not result.returns_rows:
        raise OperatorFailure("bad_query", f"The query on {plan.location} returns no rows; data_ingestion reads only.")
    return result


def _table_or_query(plan: Plan) -> tuple[str | None, str | None]:
    """The task's own choice replaces the connection's, so a connection with a table may still be queried."""
    own = plan.parameters.get("table"), plan.parameters.get("query")
    if any(own):
        return own
    options = plan.connection.options if plan.connection is not None else {}
    return options.get("table"), options.get("query")


def _unique_names(names: Sequence[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise OperatorFailure(
            "bad_query", f"The query returns several columns named {', '.join(repeated)}; give them aliases."
        )
    return list(names)


def _frame(names: Sequence[str], rows: Sequence[Any]) -> pl.DataFrame:
    import polars as pl

    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pl.DataFrame([_series(name, values) for name, values in zip(names, columns, strict=True)])


def _series(name: str, values: Sequence[Any]) -> pl.Series:
    import polars as pl

    first = next((value for value in values if value is not None), None)
    convert = _converter(first)
    if convert is not None:
        values = [None if value is None else convert(value) for value in values]
    if first is None:
        return pl.Series(name, values, dtype=pl.Null)
    return pl.Series(name, values, strict=not isinstance(first, (int, float, Decimal)))


def _converter(value: Any) -> Callable[[Any], Any] | None:
    """Return how values that polars has no type for are written; JSON columns stay JSON text."""
    if isinstance(value, UUID):
        return str
    if isinstance(value, (dict, list)):
        return lambda found: json.dumps(found, default=str, ensure_ascii=False)
    if isinstance(value, (memoryview, bytearray)):
        return bytes
    return None
