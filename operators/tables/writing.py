"""Writes a lazy table to a file of the work directory, streaming."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from operators.tables.failures import explained
from operators.tables.formats import type_name
from orchestrator.operator import OperatorFailure

if TYPE_CHECKING:
    import polars as pl

_UNWRITABLE = {"csv": {"list", "object", "binary", "other"}, "json": {"binary", "other"}, "parquet": {"other"}}
ROW_GROUP = 100_000


def write_table(frame: pl.LazyFrame, path: Path, format: str) -> None:
    """Write the table: CSV with a header, JSON as one object per line, Parquet with zstd.

    :raises OperatorFailure: reason ``bad_data``: a column's type has no place in the format.
    """
    with explained(path.name):
        schema = frame.collect_schema()
        for name, dtype in schema.items():
            if type_name(dtype) in _UNWRITABLE[format]:
                better = "json or parquet" if format == "csv" else "parquet"
                raise OperatorFailure(
                    "bad_data",
                    f"Column {name!r} holds {type_name(dtype)} values, which {format} can't hold; set `output_format` "
                    f"to {better}.",
                )
        if not schema and format != "parquet":
            path.touch()
        elif format == "csv":
            frame.sink_csv(path, engine="streaming")
        elif format == "json":
            frame.sink_ndjson(path, engine="streaming")
        else:
            frame.sink_parquet(path, engine="streaming", row_group_size=ROW_GROUP)
