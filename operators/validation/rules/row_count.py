"""The rule ``row_count``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from operators.validation.port import Check, Schema, TableRule, Verdict
from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl


class RowCount(TableRule):
    """The table has a number of rows."""

    name: ClassVar[str] = "row_count"
    summary: ClassVar[str] = "The table breaks it when it has fewer or more rows."
    needs_columns = False
    properties: ClassVar[Mapping[str, Json]] = {
        "min": {"type": "integer", "minimum": 0, "description": "Least number of rows."},
        "max": {"type": "integer", "minimum": 0, "description": "Greatest number of rows."},
    }

    @classmethod
    def problems(cls, settings: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Ask for a bound."""
        return [] if {"min", "max"} & set(settings) else [("", "Give min, max or both.")]

    def measures(self, check: Check, schema: Schema) -> Mapping[str, pl.Expr]:
        """Count rows."""
        import polars as pl

        return {"rows": pl.len()}

    def judge(self, check: Check, schema: Schema, measured: Mapping[str, Json]) -> Verdict:
        """Compare with the bounds."""
        rows = int(measured["rows"])
        least, most = check.settings.get("min", 0), check.settings.get("max")
        passed = rows >= least and (most is None or rows <= most)
        wanted = f"at least {least:,}" if most is None else f"between {least:,} and {most:,}"
        return Verdict(passed, rows, f"{rows:,} rows; {wanted} wanted")
