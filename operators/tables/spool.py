"""Collects frames whose columns may differ, on disk, and gives them back as one table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


class Spool:
    """Frames kept as Parquet files in a folder of the work directory.

    What a column is, is known only at the last record: a batch without any value of it says nothing, a later one may
    hold a fraction. So every batch is stored as it is and the union is formed when all are there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._parts: list[Path] = []
        self.rows = 0

    def extend(self, frames: Iterable[pl.DataFrame]) -> None:
        """Add frames until they end."""
        for frame in frames:
            self.add(frame)

    def add(self, frame: pl.DataFrame) -> None:
        """Add one frame; an empty one counts for its columns."""
        part = self._folder / f"part-{len(self._parts):06d}.parquet"
        frame.write_parquet(part, compression="lz4", statistics=False)
        self._parts.append(part)
        self.rows += frame.height

    def table(self) -> pl.LazyFrame:
        """Return the union: columns in order of appearance, missing ones null, types widened to hold all values.

        :raises polars.exceptions.PolarsError: a column holds, say, lists in one batch and numbers in another.
        """
        import polars as pl

        if not self._parts:
            return pl.LazyFrame()
        return pl.concat([pl.scan_parquet(part) for part in self._parts], how="diagonal_relaxed")
