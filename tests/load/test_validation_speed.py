"""How long a million rows take under five rules, in both formats that people bring; run with ``-m load -s``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from operators.data_validation import DataValidation
from orchestrator.testing import make_context, run_operator

pytestmark = [pytest.mark.load, pytest.mark.timeout(300)]

ROWS = 1_000_000
RULES: list[dict[str, Any]] = [
    {"rule": "not_null", "column": "id"},
    {"rule": "unique", "column": "id"},
    {"rule": "range", "column": "amount", "min": 0, "max": 1000},
    {"rule": "set", "column": "country", "values": ["AT", "CH", "DE", "FR"]},
    {"rule": "pattern", "column": "email", "regex": r"[a-z0-9]+@[a-z]+\.example"},
]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_million_rows_under_five_rules(tmp_path: Path, format: str) -> None:
    context = make_context(tmp_path)
    number = pl.int_range(ROWS, eager=True)
    frame = pl.DataFrame(
        {
            "id": number,
            # One row in a thousand breaks this rule, so that examples are collected too.
            "amount": pl.select(pl.when(number % 1000 == 7).then(-1.0).otherwise(number % 1000)).to_series(),
            "country": pl.select(pl.lit(pl.Series(["AT", "CH", "DE", "FR"])).gather(number % 4)).to_series(),
            "email": pl.select(pl.format("user{}@mail.example", number)).to_series(),
        }
    )
    file = tmp_path / "data" / f"big.{format}"
    frame.write_csv(file) if format == "csv" else frame.write_parquet(file)
    began = time.perf_counter()
    outputs = run_operator(
        DataValidation, context, {"input_path": file.name, "validation_rules": RULES, "max_error_rate": 0.01}
    )
    seconds = time.perf_counter() - began
    print(f"\n{ROWS:,} rows of {format}, {len(RULES)} rules: {seconds:.2f} s, {ROWS / seconds:,.0f} rows/s")
    assert outputs["report"]["error_rate"] == pytest.approx(0.001)
    # 1 s on two cores of 2026; far above that is a mistake in the rules, not a slow machine.
    assert seconds < 30
