"""The rule ``length``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from operators.tables.formats import type_name
from operators.validation.port import Check, RowRule, Schema
from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl


class Length(RowRule):
    """Texts have a number of characters, lists a number of elements."""

    name: ClassVar[str] = "length"
    summary: ClassVar[str] = "A row breaks it when its text (characters) or list (elements) is shorter or longer."
    properties: ClassVar[Mapping[str, Json]] = {
        "min": {"type": "integer", "minimum": 0, "description": "Least length allowed."},
        "max": {"type": "integer", "minimum": 0, "description": "Greatest length allowed."},
    }

    @classmethod
    def problems(cls, settings: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Ask for a bound."""
        return [] if {"min", "max"} & set(settings) else [("", "Give min, max or both.")]

    def broken(self, check: Check, column: str, schema: Schema) -> pl.Expr:
        """Return the rows of another length; numbers are measured as they are written."""
        import polars as pl

        kind = type_name(schema[column])
        if kind == "list":
            length = pl.col(column).list.len()
        elif kind == "object":
            return pl.col(column).is_not_null()
        else:
            length = pl.col(column).cast(pl.String).str.len_chars()
        broken = pl.lit(False)
        if "min" in check.settings:
            broken = broken | (length < check.settings["min"])
        if "max" in check.settings:
            broken = broken | (length > check.settings["max"])
        return broken
