"""Writes the examples' data sets from the copies that ship with scikit-learn: `python examples/export_data.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
from sklearn.datasets import load_breast_cancer, load_digits

DATA = Path(__file__).parent / "data"


def breast_cancer() -> pl.DataFrame:
    """Return 569 biopsies: 30 measurements of cell nuclei and the diagnosis."""
    source = load_breast_cancer()
    names = [name.replace(" ", "_") for name in source.feature_names]
    diagnosis = [str(source.target_names[code]) for code in source.target]
    return pl.DataFrame(source.data, schema=names).with_columns(pl.Series("diagnosis", diagnosis))


def digits() -> pl.DataFrame:
    """Return 1797 hand-written digits: 8 × 8 pixels of 0 to 16, and the digit."""
    source = load_digits()
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    pixels = pl.DataFrame(source.data, schema=names).cast(pl.UInt8)
    return pixels.with_columns(pl.Series("digit", source.target, dtype=pl.UInt8))


def export(folder: Path) -> None:
    """Write ``breast_cancer.csv`` and ``digits.parquet`` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    breast_cancer().write_csv(folder / "breast_cancer.csv")
    digits().write_parquet(folder / "digits.parquet", compression="zstd", compression_level=19)


if __name__ == "__main__":
    export(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
