"""Compiles all checks to one lazy query, so that the data are read once however many rules there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from operators.validation.port import Check, RowRule, Schema, TableRule, Verdict
from operators.validation.registry import load_rules
from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl

_MARK = "__check_"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found."""

    check: Check
    passed: bool
    violations: int
    """Rows that break it; 0 for a rule about the table."""
    whole: bool
    """Whether it is about the whole table (or its column is missing), so that no error rate excuses it."""
    message: str
    observed: Json = None
    examples: Sequence[Json] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    """What all checks found."""

    rows: int
    error_rows: int
    """Rows that break at least one check of severity ``error``."""
    results: Sequence[CheckResult]
    schema: Schema

    @property
    def error_rate(self) -> float:
        """``error_rows ÷ rows``; 0 for a table without rows."""
        return self.error_rows / self.rows if self.rows else 0.0


def run_checks(
    frame: pl.LazyFrame, checks: Sequence[Check], examples: int, marked_rows: Sequence[int] = ()
) -> Findings:
    """Run all checks in one pass.

    :param examples: how many offending values to keep per check.
    :param marked_rows: row numbers that count as errors for a reason outside of the checks.
    """
    import polars as pl

    schema = frame.collect_schema()
    possible = [check for check in checks if all(column in schema for column in check.columns)]
    rows = [check for check in possible if isinstance(load_rules()[check.rule], RowRule)]
    marks = {f"{_MARK}{index}": _broken(check, schema) for index, check in enumerate(rows)}
    errors = [name for name, check in zip(marks, rows, strict=True) if check.severity == "error"]
    wanted: dict[str, pl.Expr] = {"rows": pl.len()}
    if marked_rows:
        frame = frame.with_row_index(f"{_MARK}row")
        marks[f"{_MARK}marked"] = pl.col(f"{_MARK}row").is_in(pl.Series(marked_rows, dtype=pl.UInt32).implode())
        errors.append(f"{_MARK}marked")
    wanted["error_rows"] = pl.any_horizontal(errors).sum() if errors else pl.lit(0)
    for index, check in enumerate(rows):
        name = f"{_MARK}{index}"
        wanted[f"broken_{index}"] = pl.col(name).sum()
        if examples:
            wanted[f"examples_{index}"] = pl.col(check.columns[0]).filter(pl.col(name)).head(examples).implode()
    for index, check in enumerate(possible):
        for measure, expression in _measures(check, schema).items():
            wanted[f"measure_{index}_{measure}"] = expression
    values = _collect(frame.with_columns(**marks), wanted)
    found = {id(check): _row_result(check, index, values) for index, check in enumerate(rows)}
    for index, check in enumerate(possible):
        if id(check) not in found:
            found[id(check)] = _table_result(check, index, schema, values)
    results = [found.get(id(check)) or _missing(check, schema) for check in checks]
    return Findings(int(values["rows"]), int(values["error_rows"] or 0), results, schema)


def _collect(frame: pl.LazyFrame, wanted: Mapping[str, pl.Expr]) -> Mapping[str, Any]:
    return frame.select(**wanted).collect(engine="streaming").to_dicts()[0]


def _broken(check: Check, schema: Schema) -> pl.Expr:
    rule = load_rules()[check.rule]
    assert isinstance(rule, RowRule)
    return rule.broken(check, check.columns[0], schema).fill_null(False)


def _measures(check: Check, schema: Schema) -> Mapping[str, pl.Expr]:
    rule = load_rules()[check.rule]
    return rule.measures(check, schema) if isinstance(rule, TableRule) else {}


def _row_result(check: Check, index: int, values: Mapping[str, Any]) -> CheckResult:
    broken = int(values[f"broken_{index}"] or 0)
    rows = int(values["rows"])
    share = f"{broken:,} of {rows:,} rows ({100 * broken / rows:.2f} %)" if rows else "no rows"
    examples = [as_json(value) for value in values.get(f"examples_{index}") or []]
    return CheckResult(check, broken == 0, broken, whole=False, message=share, examples=examples)


def _table_result(check: Check, index: int, schema: Schema, values: Mapping[str, Any]) -> CheckResult:
    rule = load_rules()[check.rule]
    assert isinstance(rule, TableRule)
    prefix = f"measure_{index}_"
    measured = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    verdict: Verdict = rule.judge(check, schema, measured)
    return CheckResult(check, verdict.passed, 0, whole=True, message=verdict.message, observed=verdict.observed)


def _missing(check: Check, schema: Schema) -> CheckResult:
    absent = ", ".join(column for column in check.columns if column not in schema)
    return CheckResult(check, passed=False, violations=0, whole=True, message=f"there is no column {absent}")


def as_json(value: Any) -> Json:
    """Return an example as JSON; long texts are cut, as a report is to be read."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
