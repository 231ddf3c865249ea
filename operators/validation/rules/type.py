"""The rule ``type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from operators.tables.formats import type_name
from operators.validation.port import Check, RowRule, Schema
from operators.validation.texts import text_as
from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl

KINDS = ("integer", "float", "string", "boolean", "date", "datetime")
_WIDER = {("integer", "float"), ("decimal", "float"), ("date", "datetime")}


class Type(RowRule):
    """Values are of a type, or are texts that can be read as one (CSV has only texts)."""

    name: ClassVar[str] = "type"
    summary: ClassVar[str] = "A row breaks it when its value is not of the type and can't be read as one."
    properties: ClassVar[Mapping[str, Json]] = {
        "type": {"enum": list(KINDS), "description": "The type; an integer is also a float, a date also a datetime."},
    }
    required = ("type",)

    def broken(self, check: Check, column: str, schema: Schema) -> pl.Expr:
        """Return the rows with another kind of value; those without a value are the business of ``not_null``."""
        import polars as pl

        wanted, present = check.settings["type"], type_name(schema[column])
        value = pl.col(column)
        if present in (wanted, "null") or (present, wanted) in _WIDER:
            return pl.lit(False)
        if wanted == "integer" and present == "float":
            return value.is_not_null() & (~value.is_finite() | (value != value.round()))
        if present != "string":
            return value.is_not_null()
        return value.is_not_null() & text_as(wanted, value).is_null()
