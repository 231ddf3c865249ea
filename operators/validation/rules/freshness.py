"""The rule ``freshness``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from operators.tables.formats import type_name
from operators.validation.port import Check, Schema, TableRule, Verdict
from operators.validation.texts import text_as_datetime
from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl


class Freshness(TableRule):
    """The newest value of a column of dates or times is not too old."""

    name: ClassVar[str] = "freshness"
    summary: ClassVar[str] = "The table breaks it when the newest value of the column is older, or there is none."
    properties: ClassVar[Mapping[str, Json]] = {
        "max_age_hours": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "Greatest age of the newest value, by the worker's clock. Times without a zone are UTC.",
        },
    }
    required = ("max_age_hours",)

    def measures(self, check: Check, schema: Schema) -> Mapping[str, pl.Expr]:
        """Take the newest value, as seconds since 1970."""
        import polars as pl

        column = check.columns[0]
        value, kind = pl.col(column), type_name(schema[column])
        if kind == "string":
            value = text_as_datetime(value)
        elif kind == "date":
            value = value.cast(pl.Datetime("us"))
        elif kind != "datetime":
            return {"newest": pl.lit(None, dtype=pl.Int64)}
        return {"newest": value.max().dt.epoch("s")}

    def judge(self, check: Check, schema: Schema, measured: Mapping[str, Json]) -> Verdict:
        """Compare the age with the limit."""
        column, limit = check.columns[0], float(check.settings["max_age_hours"])
        if measured["newest"] is None:
            return Verdict(False, None, f"{column} holds no date or time")
        hours = (datetime.now(UTC).timestamp() - float(measured["newest"])) / 3600
        return Verdict(
            hours <= limit, round(hours, 3), f"the newest {column} is {hours:.1f} h old; {limit:g} h allowed"
        )
