"""Reads texts as numbers, dates and times the same way in every rule; what can't be read becomes null."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def text_as_datetime(text: pl.Expr) -> pl.Expr:
    """Read ISO 8601: a date, or a date and time with or without a zone; without one it is UTC."""
    import polars as pl

    plain = text.str.strip_chars().str.replace("^(.{10}) ", "${1}T").str.replace("[Zz]$", "+00:00")
    return pl.coalesce(
        plain.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC", strict=False),
        plain.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False).dt.replace_time_zone("UTC"),
        plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
    )


def text_as(kind: str, text: pl.Expr) -> pl.Expr:
    """Read texts as values of one of the types of the rule ``type``."""
    import polars as pl

    plain = text.str.strip_chars()
    if kind == "integer":
        return plain.cast(pl.Int64, strict=False)
    if kind == "float":
        return plain.cast(pl.Float64, strict=False)
    if kind == "boolean":
        return pl.when(plain.str.to_lowercase().is_in(["true", "false", "1", "0"])).then(True)
    if kind == "date":
        return plain.str.to_date("%Y-%m-%d", strict=False)
    return text_as_datetime(text)
