"""The rule ``set``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from operators.tables.formats import type_name
from operators.validation.port import Check, RowRule, Schema
from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl


class OneOf(RowRule):
    """Values are among those listed."""

    name: ClassVar[str] = "set"
    summary: ClassVar[str] = "A row breaks it when its value is none of `values`."
    properties: ClassVar[Mapping[str, Json]] = {
        "values": {
            "type": "array",
            "minItems": 1,
            "maxItems": 10_000,
            "items": {"type": ["string", "number", "boolean"]},
            "description": "The values allowed.",
        },
    }
    required = ("values",)

    def broken(self, check: Check, column: str, schema: Schema) -> pl.Expr:
        """Return the rows with another value; a value is compared as text unless the column is numeric."""
        import polars as pl

        values = check.settings["values"]
        kind = type_name(schema[column])
        value = pl.col(column)
        if kind in ("integer", "float", "decimal"):
            allowed: list[Json] = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
            known = value.cast(pl.Float64).is_in(allowed)
        elif kind == "boolean":
            known = value.is_in([v for v in values if isinstance(v, bool)])
        elif kind in ("string", "date"):
            known = value.cast(pl.String).is_in([v if isinstance(v, str) else str(v).lower() for v in values])
        else:
            return value.is_not_null()
        return value.is_not_null() & ~known
