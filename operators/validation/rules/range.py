"""The rule ``range``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, ClassVar

from operators.tables.formats import type_name
from operators.validation.port import Check, RowRule, Schema
from operators.validation.texts import text_as, text_as_datetime
from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl

_BOUNDS = ("min", "max", "exclusive_min", "exclusive_max")


class Range(RowRule):
    """Values lie between bounds: numbers, or dates and times as ISO 8601."""

    name: ClassVar[str] = "range"
    summary: ClassVar[str] = (
        "A row breaks it when its value is outside the bounds, is NaN, or can't be compared with them."
    )
    properties: ClassVar[Mapping[str, Json]] = {
        "min": {
            "type": ["number", "string"],
            "description": "Least value allowed: a number, or a date or time as ISO 8601.",
        },
        "max": {"type": ["number", "string"], "description": "Greatest value allowed."},
        "exclusive_min": {"type": ["number", "string"], "description": "Values must be above this."},
        "exclusive_max": {"type": ["number", "string"], "description": "Values must be below this."},
    }

    @classmethod
    def problems(cls, settings: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Ask for a bound, and for texts that are dates."""
        given = {name: settings[name] for name in _BOUNDS if name in settings}
        if not given:
            return [("", f"Give at least one of {', '.join(_BOUNDS)}.")]
        found = [
            (f"/{name}", f"{value!r} is neither a number nor an ISO 8601 date or time.")
            for name, value in given.items()
            if isinstance(value, str) and _moment(value) is None
        ]
        if not found and len({isinstance(value, str) for value in given.values()}) > 1:
            found.append(("", "The bounds must be all numbers or all dates."))
        return found

    def broken(self, check: Check, column: str, schema: Schema) -> pl.Expr:
        """Return the rows outside; those without a value are the business of ``not_null``."""
        import polars as pl

        bounds = {name: check.settings[name] for name in _BOUNDS if name in check.settings}
        temporal = any(isinstance(value, str) for value in bounds.values())
        value = _comparable(column, schema, temporal)
        if value is None:
            return pl.col(column).is_not_null()
        limits = {name: _limit(bound, schema[column]) for name, bound in bounds.items()}
        outside = [_beyond(value, name, limit) for name, limit in limits.items()]
        broken = pl.any_horizontal(outside) | value.is_null()
        if not temporal and (schema[column].is_float() or type_name(schema[column]) == "string"):
            broken = broken | value.is_nan()
        return pl.col(column).is_not_null() & broken.fill_null(True)


def _comparable(column: str, schema: Schema, temporal: bool) -> pl.Expr | None:
    """Return the column in a form that can be compared with the bounds; ``None`` when it has none."""
    import polars as pl

    present = type_name(schema[column])
    value = pl.col(column)
    if temporal:
        if present == "string":
            return text_as_datetime(value)
        return value if present in ("date", "datetime") else None
    if present == "string":
        return text_as("float", value)
    return value if present in ("integer", "float", "decimal") else None


def _beyond(value: pl.Expr, bound: str, limit: pl.Expr) -> pl.Expr:
    if bound == "min":
        return value < limit
    if bound == "max":
        return value > limit
    return value <= limit if bound == "exclusive_min" else value >= limit


def _limit(bound: Json, dtype: pl.DataType) -> pl.Expr:
    import polars as pl

    if not isinstance(bound, str):
        return pl.lit(bound)
    moment = _moment(bound)
    assert moment is not None, "problems() has refused other texts"
    kind = type_name(dtype)
    if kind == "date":
        return pl.lit(moment).cast(pl.Datetime("us"))
    zone = getattr(dtype, "time_zone", None) if kind == "datetime" else "UTC"
    literal = pl.lit(moment).cast(pl.Datetime("us"))
    return literal.dt.replace_time_zone("UTC").dt.convert_time_zone(zone) if zone else literal


def _moment(text: str) -> datetime | None:
    """Return the moment in UTC without a zone; a text without a zone is UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            found = datetime.combine(date.fromisoformat(text), datetime.min.time())
        except ValueError:
            return None
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found
