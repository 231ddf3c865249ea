"""The rule ``not_null``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from operators.validation.port import Check, RowRule, Schema

if TYPE_CHECKING:
    import polars as pl


class NotNull(RowRule):
    """Every row has a value. NaN counts as none: that is how a missing number often arrives."""

    name: ClassVar[str] = "not_null"
    summary: ClassVar[str] = "A row breaks it when the column has no value there (null or NaN)."

    def broken(self, check: Check, column: str, schema: Schema) -> pl.Expr:
        """Return the rows without a value."""
        import polars as pl

        missing = pl.col(column).is_null()
        return missing | pl.col(column).is_nan().fill_null(False) if schema[column].is_float() else missing
