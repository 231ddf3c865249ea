"""The rule ``unique``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from operators.validation.port import Check, RowRule, Schema

if TYPE_CHECKING:
    import polars as pl


class Unique(RowRule):
    """No value comes twice; with several columns each of them is judged by itself."""

    name: ClassVar[str] = "unique"
    summary: ClassVar[str] = (
        "A row breaks it when another row has the same value in the column; rows without one do not."
    )

    def broken(self, check: Check, column: str, schema: Schema) -> pl.Expr:
        """Return every row of each group of equals."""
        import polars as pl

        return pl.col(column).is_not_null() & pl.col(column).is_duplicated()
