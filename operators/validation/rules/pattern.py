"""The rule ``pattern``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from operators.validation.port import Check, RowRule, Schema
from orchestrator.operator import Json, OperatorFailure

if TYPE_CHECKING:
    import polars as pl


class Pattern(RowRule):
    """Texts match a regular expression, as a whole. polars' expressions take linear time, whatever the user writes."""

    name: ClassVar[str] = "pattern"
    summary: ClassVar[str] = "A row breaks it when its value, as text, does not match `regex` from start to end."
    properties: ClassVar[Mapping[str, Json]] = {
        "regex": {
            "type": "string",
            "minLength": 1,
            "maxLength": 1000,
            "description": "Regular expression without look-around and back-references; it must match the whole value.",
        },
    }
    required = ("regex",)

    @classmethod
    def problems(cls, settings: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Refuse what is no expression. What Python takes and polars does not is said when the task runs."""
        try:
            re.compile(settings["regex"])
        except re.error as error:
            return [("/regex", f"This is no regular expression: {error}.")]
        return []

    def broken(self, check: Check, column: str, schema: Schema) -> pl.Expr:
        """Return the rows that do not match."""
        import polars as pl

        whole = f"^(?:{check.settings['regex']})$"
        try:
            pl.Series([""]).str.contains(whole)
        except pl.exceptions.ComputeError as error:
            raise OperatorFailure(
                "bad_parameters",
                f"Rule {check.name}: the regular expression uses what this engine lacks: {error}"[:500],
            ) from error
        text = pl.col(column).cast(pl.String)
        return text.is_not_null() & ~text.str.contains(whole)
