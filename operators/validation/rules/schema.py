"""The rule ``schema``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from operators.tables.formats import TYPE_NAMES, type_name
from operators.validation.port import Check, Schema, TableRule, Verdict
from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl


class SchemaMatch(TableRule):
    """The table has these columns, of these types."""

    name: ClassVar[str] = "schema"
    summary: ClassVar[str] = (
        "The table breaks it when a column is missing, of another type, or (if asked) not expected."
    )
    needs_columns = False
    properties: ClassVar[Mapping[str, Json]] = {
        "fields": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"enum": [*TYPE_NAMES, "any"]},
            "description": "Type by name of column; `any` asks only that it is there.",
        },
        "allow_extra": {"type": "boolean", "description": "Whether other columns may be there. Default: true."},
        "ordered": {"type": "boolean", "description": "Whether the columns must come in this order. Default: false."},
    }
    required = ("fields",)

    def measures(self, check: Check, schema: Schema) -> Mapping[str, pl.Expr]:
        """Measure nothing: the schema decides."""
        return {}

    def judge(self, check: Check, schema: Schema, measured: Mapping[str, Json]) -> Verdict:
        """List every difference."""
        wanted: Mapping[str, str] = check.settings["fields"]
        faults = [f"{name} is missing" for name in wanted if name not in schema]
        for name, kind in wanted.items():
            present = type_name(schema[name]) if name in schema else kind
            if kind not in ("any", present):
                faults.append(f"{name} is {present}, not {kind}")
        if check.settings.get("allow_extra") is False:
            faults += [f"{name} is not expected" for name in schema if name not in wanted]
        if check.settings.get("ordered") and [n for n in schema if n in wanted] != [n for n in wanted if n in schema]:
            faults.append("the columns come in another order")
        return Verdict(not faults, faults[:50], "; ".join(faults[:5]) or "as expected")
