"""The three formats of a dataset, and the words for the types of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl

FORMATS = ("csv", "json", "parquet")
SUFFIXES: Mapping[str, str] = {
    ".csv": "csv",
    ".json": "json",
    ".ndjson": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
TYPE_NAMES = (
    "integer", "float", "decimal", "string", "boolean", "date", "datetime", "time", "duration", "binary", "list",
    "object", "null", "other",
)  # fmt: skip

COLUMNS_SCHEMA: Mapping[str, Json] = {
    "type": "array",
    "description": "The columns, in order.",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "type"],
        "properties": {
            "name": {"type": "string", "description": "Name of the column."},
            "type": {"enum": list(TYPE_NAMES), "description": "Type of its values."},
        },
    },
}

DATASET_SCHEMA: Mapping[str, Json] = {
    "type": "object",
    "description": "The dataset that downstream tasks take as their input.",
    "additionalProperties": False,
    "required": ["uri", "format", "rows", "bytes", "fingerprint", "columns"],
    "properties": {
        "uri": {"type": "string", "description": "Where it lies: artifact://…, s3://… or <data root>:path."},
        "format": {"enum": list(FORMATS), "description": "csv, json (one object per line) or parquet."},
        "rows": {"type": "integer", "minimum": 0, "description": "Number of rows."},
        "bytes": {"type": "integer", "minimum": 0, "description": "Size of the file in bytes."},
        "fingerprint": {"type": "string", "description": "sha256:<hex> of the file's content."},
        "columns": COLUMNS_SCHEMA,
    },
}


def format_of_path(path: str) -> str | None:
    """Return the format that a path's suffix says, or ``None``."""
    _, dot, suffix = path.partition("?")[0].rpartition(".")
    return SUFFIXES.get(f".{suffix.lower()}") if dot else None


def describe_columns(schema: Mapping[str, pl.DataType]) -> list[dict[str, str]]:
    """Return ``[{name, type}]`` of a polars schema."""
    return [{"name": name, "type": type_name(dtype)} for name, dtype in schema.items()]


def type_name(dtype: pl.DataType) -> str:
    """Return our word for a polars type: widths and units are polars' own affair."""
    import polars as pl

    if dtype.is_integer():
        return "integer"
    if dtype.is_float():
        return "float"
    words: Iterable[tuple[type[pl.DataType], str]] = (
        (pl.Decimal, "decimal"),
        (pl.String, "string"),
        (pl.Categorical, "string"),
        (pl.Enum, "string"),
        (pl.Boolean, "boolean"),
        (pl.Date, "date"),
        (pl.Datetime, "datetime"),
        (pl.Time, "time"),
        (pl.Duration, "duration"),
        (pl.Binary, "binary"),
        (pl.List, "list"),
        (pl.Array, "list"),
        (pl.Struct, "object"),
        (pl.Null, "null"),
    )
    return next((word for kind, word in words if isinstance(dtype, kind)), "other")
