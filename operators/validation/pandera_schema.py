"""Checks users' pandera schemas, written as JSON: names come from fixed lists, so no code comes from the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from operators.validation.compile import as_json
from orchestrator.operator import Json, OperatorFailure

if TYPE_CHECKING:
    import polars as pl

CHECKS = (
    "equal_to", "not_equal_to", "greater_than", "greater_than_or_equal_to", "less_than", "less_than_or_equal_to",
    "in_range", "isin", "notin", "str_matches", "str_contains", "str_startswith", "str_endswith", "str_length",
)  # fmt: skip
"""pandera's built-in checks; its own reader would take any attribute of the class ``Check``."""

DTYPES = {
    "integer": "Int64",
    "float": "Float64",
    "string": "String",
    "boolean": "Boolean",
    "date": "Date",
    "datetime": "Datetime",
}

SCHEMA: Mapping[str, Json] = {
    "type": "object",
    "description": "A pandera DataFrameSchema as JSON, besides validation_rules. The dataset must fit in memory. "
    "Needs the extra `validation`.",
    "additionalProperties": False,
    "required": ["columns"],
    "properties": {
        "columns": {
            "type": "object",
            "description": "pandera Column by name.",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "dtype": {"enum": list(DTYPES), "description": "Type of the column."},
                    "nullable": {"type": "boolean", "description": "Whether values may be missing. Default: false."},
                    "unique": {"type": "boolean", "description": "Whether values must differ. Default: false."},
                    "required": {"type": "boolean", "description": "Whether the column must be there. Default: true."},
                    "coerce": {"type": "boolean", "description": "Whether to convert first. Default: false."},
                    "checks": {
                        "type": "object",
                        "description": "pandera's built-in checks: {name: value, list of values, or named arguments}.",
                        "additionalProperties": False,
                        "properties": {name: {"description": f"Arguments of Check.{name}."} for name in CHECKS},
                    },
                },
            },
        },
        "strict": {"type": "boolean", "description": "Whether other columns are refused. Default: false."},
        "ordered": {"type": "boolean", "description": "Whether the columns must come in this order. Default: false."},
        "unique": {
            "type": "array", "items": {"type": "string"}, "description": "Columns that must be unique together.",
        },
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PanderaFailure:
    """One check of the schema that the data break."""

    name: str
    column: str | None
    rows: Sequence[int]
    """Numbers of the rows that break it; none when it is about the whole column or table."""
    examples: Sequence[Json]


def pandera_failures(frame: pl.DataFrame, written: Mapping[str, Json], examples: int) -> list[PanderaFailure]:
    """Validate and return what fails.

    :raises OperatorFailure: pandera is not installed, or a check does not take these arguments.
    """
    try:
        import pandera.polars as pandera
    except ImportError as error:
        raise OperatorFailure(
            "missing_library",
            "`pandera_schema` needs pandera on the worker: install pipeline-orchestrator[validation].",
        ) from error
    schema = _build(pandera, written)
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        return _grouped(error.failure_cases, examples)
    except pandera.errors.SchemaDefinitionError as error:
        raise OperatorFailure("bad_parameters", f"`pandera_schema` is no schema: {error}"[:500]) from error
    return []


def _build(pandera: Any, written: Mapping[str, Json]) -> Any:
    import polars as pl

    columns = {}
    for name, column in written["columns"].items():
        dtype = getattr(pl, DTYPES[column["dtype"]]) if "dtype" in column else None
        options = {key: column[key] for key in ("nullable", "unique", "required", "coerce") if key in column}
        checks = [_check(pandera, name, check, value) for check, value in column.get("checks", {}).items()]
        columns[name] = pandera.Column(dtype, checks=checks, **options)
    options = {key: written[key] for key in ("strict", "ordered", "unique") if key in written}
    return pandera.DataFrameSchema(columns, **options)


def _check(pandera: Any, column: str, name: str, value: Json) -> Any:
    assert name in CHECKS, "the JSON Schema has refused other names"
    build = getattr(pandera.Check, name)
    try:
        return build(**value) if isinstance(value, dict) else build(value)
    except (TypeError, ValueError) as error:
        raise OperatorFailure(
            "bad_parameters", f"`pandera_schema`: check {name} of column {column!r} does not take {value!r}: {error}"
        ) from error


def _grouped(cases: pl.DataFrame, examples: int) -> list[PanderaFailure]:
    groups: dict[tuple[str, str | None], tuple[list[int], list[Json]]] = {}
    for case in cases.iter_rows(named=True):
        rows, values = groups.setdefault((case["check"], case["column"]), ([], []))
        if case["index"] is not None:
            rows.append(case["index"])
        if len(values) < examples:
            values.append(as_json(case["failure_case"]))
    return [PanderaFailure(check, column, rows, values) for (check, column), (rows, values) in groups.items()]
