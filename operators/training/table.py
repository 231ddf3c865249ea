"""Reads a dataset into feature columns and a target, and says in words why one can't be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operators.tables.formats import FORMATS, format_of_path
from operators.training.framework import Array
from orchestrator.operator import Json, OperatorFailure

if TYPE_CHECKING:
    import polars as pl

TARGETS = ("target", "label")
_IDENTIFIER_SHARE = 0.5
_MAX_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Table:
    """What is trained on: rows without a target are gone already."""

    features: pl.DataFrame
    """Number columns as ``Float64``, the others as ``String``; missing values are null."""
    target: Array | None
    target_name: str
    signature: Sequence[Json]
    """``{name, type}`` per feature; type is number, boolean or string."""
    notes: Sequence[str]
    """Sentences about what was left out."""


def format_of(path: str, known: Json = None) -> str:
    """Return csv, json or parquet: what the producer said, else by the name.

    :raises OperatorFailure: ``bad_parameters``: neither tells.
    """
    found = known if known in FORMATS else format_of_path(path)
    if found is None:
        raise OperatorFailure(
            "bad_parameters", f"The format of {path} can't be told from its name; set 'format' to csv, json or parquet."
        )
    return str(found)


def read_frame(path: Path, file_format: str) -> pl.DataFrame:
    """Read all columns of a file.

    :raises OperatorFailure: ``bad_data``: the file is not of that format.
    """
    import polars as pl

    try:
        if file_format == "parquet":
            return pl.read_parquet(path)
        if file_format == "csv":
            try:
                return pl.read_csv(path, infer_schema_length=10_000)
            except pl.exceptions.ComputeError:
                # A column that looks like integers for 10,000 rows may hold text later: look at every row.
                return pl.read_csv(path, infer_schema_length=None)
        with path.open("rb") as content:
            is_array = content.read(4096).lstrip().startswith(b"[")
        if is_array:
            return pl.read_json(path, infer_schema_length=None)
        return pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0][:300]
        raise OperatorFailure("bad_data", f"{path.name} can't be read as {file_format}: {first}") from error


def make_table(frame: pl.DataFrame, model_type: str, target: str | None, features: Sequence[str] | None) -> Table:
    """Choose and convert the columns.

    :param target: default: the column named ``target``, else ``label``; for clustering none.
    :param features: default: every column of numbers, booleans or text save the target and identifiers.
    :raises OperatorFailure: ``bad_data``: a column is missing or can't be used; the sentence names the columns there.
    """
    name = _target_name(frame, model_type, target)
    notes: list[str] = []
    if name and model_type != "clustering":
        present = frame.drop_nulls(name)
        if present.height < frame.height:
            notes.append(f"{frame.height - present.height} rows without {name!r} were left out")
        frame = present
    if frame.height < 2:
        raise OperatorFailure("bad_data", f"The dataset has {frame.height} usable rows; training needs at least 2.")
    chosen = _explicit(frame, features, name) if features else _all_usable(frame, name, notes)
    signature = [{"name": column, "type": _kind(frame.schema[column])} for column in chosen]
    prepared = frame.select(_converted(column, frame.schema[column]) for column in chosen)
    _refuse_infinite(prepared)
    values = _target_values(frame.get_column(name), model_type) if name and model_type != "clustering" else None
    return Table(prepared, values, name if values is not None else "", signature, notes)


def _target_name(frame: pl.DataFrame, model_type: str, target: str | None) -> str:
    if target is not None:
        if target not in frame.columns:
            raise OperatorFailure("bad_data", f"The target {target!r} is no column; there are {_names(frame)}.")
        return target
    if model_type == "clustering":
        return ""
    for name in TARGETS:
        if name in frame.columns:
            return name
    raise OperatorFailure(
        "bad_data", f"No column is named 'target' or 'label'; set 'target' to one of {_names(frame)}."
    )


def _explicit(frame: pl.DataFrame, features: Sequence[str], target: str) -> list[str]:
    if missing := [name for name in features if name not in frame.columns]:
        raise OperatorFailure(
            "bad_data", f"The features {', '.join(missing)} are no columns; there are {_names(frame)}."
        )
    if unusable := [name for name in features if not _kind(frame.schema[name])]:
        kinds = ", ".join(f"{name} ({frame.schema[name]})" for name in unusable)
        raise OperatorFailure(
            "bad_data", f"These features hold neither numbers, booleans nor text: {kinds}. Convert them first."
        )
    return [name for name in features if name != target]


def _all_usable(frame: pl.DataFrame, target: str, notes: list[str]) -> list[str]:
    chosen: list[str] = []
    for name, kind in frame.schema.items():
        if name == target:
            continue
        if not _kind(kind):
            notes.append(f"column {name!r} was left out: {kind} is neither number, boolean nor text")
        elif _kind(kind) == "string" and _is_identifier(frame.get_column(name)):
            notes.append(f"column {name!r} was left out: nearly every row has its own text, as identifiers do")
        else:
            chosen.append(name)
    if not chosen:
        raise OperatorFailure("bad_data", f"No column can be a feature; there are {_names(frame)}.")
    return chosen


def _is_identifier(column: pl.Series) -> bool:
    return column.n_unique() > max(50, _IDENTIFIER_SHARE * len(column))


def _kind(kind: pl.DataType) -> str:
    import polars as pl

    if kind.is_numeric():
        return "number"
    if kind == pl.Boolean:
        return "boolean"
    return "string" if kind in (pl.String, pl.Categorical, pl.Enum) else ""


def _converted(name: str, kind: pl.DataType) -> pl.Expr:
    import polars as pl

    column = pl.col(name)
    if _kind(kind) == "string":
        return column.cast(pl.String)
    return column.cast(pl.Float64).fill_nan(None)


def _refuse_infinite(features: pl.DataFrame) -> None:
    from polars import selectors

    infinite = features.select(selectors.numeric().is_infinite().any())
    if bad := [name for name in infinite.columns if infinite.get_column(name).fill_null(False).item()]:
        raise OperatorFailure("bad_data", f"These columns hold infinite values: {', '.join(bad)}. Remove them first.")


def _target_values(column: pl.Series, model_type: str) -> Array:
    kind = _kind(column.dtype)
    if model_type == "regression":
        if kind not in {"number", "boolean"}:
            raise OperatorFailure(
                "bad_data", f"The target {column.name!r} holds {column.dtype}; regression needs numbers."
            )
        return _numbers(column)
    if not kind:
        raise OperatorFailure("bad_data", f"The target {column.name!r} holds {column.dtype}, which can't be a class.")
    if column.n_unique() > _MAX_CLASSES:
        raise OperatorFailure(
            "bad_data",
            f"The target {column.name!r} has {column.n_unique()} different values; that is no class. "
            "Name another target or set model_type to regression.",
        )
    if column.n_unique() < 2:
        raise OperatorFailure("bad_data", f"The target {column.name!r} has one value only; there is nothing to learn.")
    return _labels(column, kind)


def _labels(column: pl.Series, kind: str) -> Array:
    import numpy as np
    import polars as pl

    if kind == "string":
        return np.array(column.cast(pl.String).to_list(), dtype=object)
    if kind == "boolean" or column.dtype.is_integer():
        return column.cast(pl.Int64).to_numpy()
    values = _numbers(column)
    if (values == values.round()).all():
        return values.astype("int64")
    raise OperatorFailure(
        "bad_data",
        f"The target {column.name!r} holds fractions, which can't be classes; set model_type to regression.",
    )


def _numbers(column: pl.Series) -> Array:
    import numpy as np
    import polars as pl

    values: Any = column.cast(pl.Float64).to_numpy()
    if not np.isfinite(values).all():
        raise OperatorFailure("bad_data", f"The target {column.name!r} holds NaN or infinite values.")
    return values


def _names(frame: pl.DataFrame) -> str:
    names = list(frame.columns)
    return ", ".join(names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "")
