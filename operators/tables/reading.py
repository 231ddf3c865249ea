"""Opens a file of any of the formats as a lazy table whose rows have been counted and whose types hold."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from operators.tables.failures import explained
from operators.tables.json_blocks import first_bad_line, json_blocks
from operators.tables.spool import Spool
from orchestrator.operator import Json, OperatorFailure

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")
INFERRED_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """How a CSV file is written; the default is ours."""

    separator: str = ","
    has_header: bool = True
    null_values: Sequence[str] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, Json] | None) -> CsvDialect:
        """Read the parameter ``csv``."""
        given = parameters or {}
        return cls(given.get("separator", ","), given.get("has_header", True), tuple(given.get("null_values", ())))


@dataclass(frozen=True, slots=True)
class Table:
    """A readable table."""

    frame: pl.LazyFrame
    rows: int
    schema: Mapping[str, pl.DataType]


def read_table(path: Path, format: str, workdir: Path, subject: str, dialect: CsvDialect | None = None) -> Table:
    """Read the whole file once, in bounded memory, and return it as a table.

    :param subject: what messages call the file.
    :raises OperatorFailure: reason ``bad_data``: it is not what its format says.
    """
    return use_table(path, format, workdir, subject, _counted, dialect)


def _counted(frame: pl.LazyFrame) -> Table:
    """Count rows with every column parsed: counting alone would not notice a broken cell."""
    import polars as pl

    schema = frame.collect_schema()
    if not schema:
        return Table(frame, 0, schema)
    counts = frame.select(
        pl.len().alias("rows"), *(pl.col(c).null_count().alias(f"n{i}") for i, c in enumerate(schema))
    )
    return Table(frame, int(counts.collect(engine="streaming")["rows"][0]), schema)


def use_table(
    path: Path,
    format: str,
    workdir: Path,
    subject: str,
    use: Callable[[pl.LazyFrame], T],
    dialect: CsvDialect | None = None,
) -> T:
    """Call ``use`` with the lazy table and return what it returns.

    ``use`` is called a second time when a CSV column turns out not to be what its first rows promised: then the types
    come from the whole file.

    :raises OperatorFailure: reason ``bad_data``.
    """
    import polars as pl

    with explained(subject):
        if format == "parquet":
            return use(pl.scan_parquet(path, glob=False))
        if format == "json":
            return use(_spooled_json(path, workdir / f"json-{secrets.token_hex(4)}", subject))
        try:
            return use(_scan_csv(path, dialect or CsvDialect(), INFERRED_ROWS))
        except pl.exceptions.ComputeError as error:
            if "could not parse" not in str(error):
                raise
        return use(_scan_csv(path, dialect or CsvDialect(), None))


def _scan_csv(path: Path, dialect: CsvDialect, inferred_rows: int | None) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_csv(
        path,
        glob=False,
        separator=dialect.separator,
        has_header=dialect.has_header,
        null_values=list(dialect.null_values) or None,
        infer_schema_length=inferred_rows,
        try_parse_dates=True,
    )


def _spooled_json(path: Path, folder: Path, subject: str) -> pl.LazyFrame:
    import polars as pl

    spool = Spool(folder)
    lines = 0
    for block in json_blocks(path, subject):
        try:
            spool.add(pl.read_ndjson(io.BytesIO(block), infer_schema_length=None))
        except pl.exceptions.PolarsError as error:
            bad = first_bad_line(block)
            if bad is None:
                raise
            raise OperatorFailure(
                "bad_data",
                f"{subject}: line {lines + bad[0]} is no JSON object ({bad[1]}). JSON here means an array of objects "
                "or one object per line.",
            ) from error
        lines += block.count(b"\n")
    return spool.table()
