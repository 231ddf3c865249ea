"""Loads a dataset into a named connection: a table of a database in one transaction, or one object of a bucket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operators.ingestion.plan import scheme_type
from operators.ingestion.sql import named_table, opened_engine
from operators.tables.formats import type_name
from orchestrator import s3_objects
from orchestrator.operator import Connection, Json, OperatorFailure, TaskContext
from orchestrator.reach import is_below

if TYPE_CHECKING:
    import polars as pl
    import sqlalchemy as sa

    from operators.tables.reading import Table

BATCH_ROWS = 5_000
LEDGER = "pipeline_orchestrator_loads"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to, and how."""

    connection: Connection
    table: str
    mode: str
    """``replace``: the table then holds these rows only; ``append``: they are added, once per run, task and content."""


def choose_destination(connection: Connection, parameters: Mapping[str, Json]) -> Destination:
    """Read the parameters that concern the destination.

    :raises OperatorFailure: the connection can't be written to, or names no table.
    """
    kind = scheme_type(connection.url)
    if kind not in ("database", "s3"):
        raise OperatorFailure(
            "bad_parameters",
            f"Connection {connection.name!r} can't be a destination: only databases and s3:// are; files go to "
            "`output_path`.",
        )
    table = parameters.get("destination_table") or connection.options.get("table") or ""
    if kind == "database" and not table:
        raise OperatorFailure(
            "bad_parameters",
            f"Name the table to load into: set `destination_table`, or `table` in the options of {connection.name!r}.",
        )
    mode = parameters.get("if_exists") or connection.options.get("if_exists") or "replace"
    return Destination(connection, table, mode)


def load_dataset(
    context: TaskContext, destination: Destination, table: Table, path: Path, format: str, fingerprint: str
) -> Mapping[str, Json]:
    """Write the dataset; on any error nothing of it stays, and a repeated attempt doubles nothing.

    :param path: the dataset's file, for an object store.
    :raises OperatorFailure: the destination refuses or does not answer.
    """
    if scheme_type(destination.connection.url) == "s3":
        uri = _object_uri(context, destination, format)
        s3_objects.upload(context, path, uri, destination.connection)
        return {"connection": destination.connection.name, "uri": uri, "rows": table.rows, "mode": "replace"}
    rows = _load_table(context, destination, table, fingerprint)
    return {
        "connection": destination.connection.name,
        "table": destination.table,
        "rows": rows,
        "mode": destination.mode,
    }


def look_destination(destination: Destination) -> Mapping[str, Json]:
    """Check that the database answers, and say whether the table is there. A bucket is only named."""
    import sqlalchemy as sa

    if scheme_type(destination.connection.url) == "s3":
        return {"connection": destination.connection.name}
    with opened_engine(destination.connection) as engine, engine.connect() as connection:
        exists = sa.inspect(connection).has_table(*_split(destination.table))
    return {"connection": destination.connection.name, "table": destination.table, "table_exists": exists}


def _object_uri(context: TaskContext, destination: Destination, format: str) -> str:
    """Name the object; with no name given, by run and task, so that attempts of one task write the same one."""
    folder = destination.connection.url.rstrip("/")
    name = destination.table or f"{context.run_id}/{context.task}.{format}"
    uri = f"{folder}/{name}"
    if not is_below(uri, destination.connection.url):
        raise OperatorFailure(
            "forbidden_address", f"{uri} does not lie below the URL of {destination.connection.name!r}; mend its name."
        )
    return uri


def _load_table(context: TaskContext, destination: Destination, table: Table, fingerprint: str) -> int:
    import sqlalchemy as sa

    if not table.schema:
        raise OperatorFailure("bad_data", "The dataset has no columns, so there is nothing to load.")
    with opened_engine(destination.connection) as engine, engine.begin() as connection:
        target = _target(connection, destination, table.schema)
        if destination.mode == "append" and not _enter_ledger(connection, context, destination, fingerprint):
            context.log("already loaded by an earlier attempt", table=destination.table)
            return 0
        if destination.mode == "replace":
            connection.execute(sa.delete(target))
        done = 0
        for frame in _batches(table.frame):
            connection.execute(sa.insert(target), frame.to_dicts())
            done += frame.height
            context.progress(0.5 + 0.5 * done / max(table.rows, 1), f"loaded {done:,} rows")
        return done


def _target(connection: sa.Connection, destination: Destination, schema: Mapping[str, pl.DataType]) -> sa.TableClause:
    """Return the table, created where it is missing; where it is there its columns must hold ours."""
    import sqlalchemy as sa

    name, owner = _split(destination.table)
    if not sa.inspect(connection).has_table(name, owner):
        columns = [sa.Column(column, _sql_type(column, dtype)) for column, dtype in schema.items()]
        sa.Table(name, sa.MetaData(), *columns, schema=owner).create(connection)
    elif destination.mode == "fail":
        raise OperatorFailure(
            "conflict", f"Table {destination.table} exists already in {destination.connection.name!r}; set `if_exists`."
        )
    else:
        present = {column["name"] for column in sa.inspect(connection).get_columns(name, owner)}
        if missing := [column for column in schema if column not in present]:
            raise OperatorFailure(
                "bad_data", f"Table {destination.table} lacks the columns {', '.join(missing[:20])} of the dataset."
            )
    return named_table(destination.table, *(sa.column(column, _sql_type(column, t)) for column, t in schema.items()))


def _enter_ledger(connection: sa.Connection, context: TaskContext, destination: Destination, fingerprint: str) -> bool:
    """Note the load in the transaction that makes it; ``False`` when an earlier attempt has committed the same."""
    import sqlalchemy as sa

    ledger = sa.Table(
        LEDGER,
        sa.MetaData(),
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("task", sa.String(255), primary_key=True),
        sa.Column("target", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(80), primary_key=True),
        schema=_split(destination.table)[1],
    )
    ledger.create(connection, checkfirst=True)
    key = {
        "run_id": context.run_id, "task": context.task, "target": destination.table, "fingerprint": fingerprint,
    }  # fmt: skip
    known = connection.execute(sa.select(ledger.c.run_id).filter_by(**key)).first()
    if known is None:
        connection.execute(sa.insert(ledger), key)
    return known is None


def _batches(frame: pl.LazyFrame) -> Any:
    return frame.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True)


def _split(table: str) -> tuple[str, str | None]:
    owner, _, name = table.rpartition(".")
    return name, owner or None


def _sql_type(column: str, dtype: pl.DataType) -> sa.types.TypeEngine[Any]:
    import sqlalchemy as sa

    word = type_name(dtype)
    kinds: Mapping[str, sa.types.TypeEngine[Any]] = {
        "integer": sa.BigInteger(),
        "float": sa.Double(),
        "decimal": sa.Numeric(),
        "string": sa.Text(),
        "null": sa.Text(),
        "boolean": sa.Boolean(),
        "date": sa.Date(),
        "datetime": sa.DateTime(timezone=getattr(dtype, "time_zone", None) is not None),
        "time": sa.Time(),
        "duration": sa.Interval(),
        "binary": sa.LargeBinary(),
        "list": sa.JSON(),
        "object": sa.JSON(),
    }
    if word not in kinds:
        raise OperatorFailure(
            "bad_data", f"Column {column!r} has the type {dtype}, which can't be loaded into a database."
        )
    return kinds[word]
