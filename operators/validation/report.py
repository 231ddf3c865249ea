"""The report of a validation, as the JSON artifact and as the sentence of a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from operators.tables.formats import describe_columns
from operators.validation.compile import CheckResult, Findings
from operators.validation.pandera_schema import PanderaFailure
from orchestrator.operator import Json


def build_report(
    findings: Findings, pandera: Sequence[PanderaFailure], max_error_rate: float, dataset_uri: str
) -> dict[str, Json]:
    """Return the report; ``passed`` is the verdict."""
    rules = [_entry(result, findings.rows) for result in findings.results]
    rules += [_pandera_entry(failure, findings.rows) for failure in pandera]
    whole = any(r.whole and not r.passed and r.check.severity == "error" for r in findings.results)
    whole = whole or any(not failure.rows for failure in pandera)
    return {
        "passed": not whole and findings.error_rate <= max_error_rate,
        "dataset": dataset_uri,
        "rows": findings.rows,
        "error_rows": findings.error_rows,
        "error_rate": findings.error_rate,
        "max_error_rate": max_error_rate,
        "columns": describe_columns(findings.schema),
        "rules": rules,
    }


def failure_message(report: Mapping[str, Json]) -> str:
    """Name the worst rules: those about the table first, then by share of rows."""
    failed = [rule for rule in report["rules"] if not rule["passed"] and rule["severity"] == "error"]
    failed.sort(key=lambda rule: (not rule["whole_table"], -rule["violations"]))
    worst = "; ".join(f"{rule['name']}: {rule['message']}" for rule in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    rate = (
        f"{report['error_rows']:,} of {report['rows']:,} rows have errors ({100 * report['error_rate']:.2f} %, allowed "
    )
    return f"{rate}{100 * report['max_error_rate']:g} %). {worst}{more}."


def failed_names(report: Mapping[str, Json], severity: str) -> list[str]:
    """Return the names of the rules of this severity that are broken."""
    return [rule["name"] for rule in report["rules"] if not rule["passed"] and rule["severity"] == severity]


def _entry(result: CheckResult, rows: int) -> dict[str, Json]:
    return {
        "name": result.check.name,
        "rule": result.check.rule,
        "columns": list(result.check.columns),
        "severity": result.check.severity,
        "passed": result.passed,
        "whole_table": result.whole,
        "violations": result.violations,
        "violation_rate": result.violations / rows if rows else 0.0,
        "observed": result.observed,
        "examples": list(result.examples),
        "message": result.message,
    }


def _pandera_entry(failure: PanderaFailure, rows: int) -> dict[str, Json]:
    broken = len(set(failure.rows))
    return {
        "name": f"pandera {failure.name}" + (f" ({failure.column})" if failure.column else ""),
        "rule": "pandera",
        "columns": [failure.column] if failure.column else [],
        "severity": "error",
        "passed": False,
        "whole_table": not failure.rows,
        "violations": broken,
        "violation_rate": broken / rows if rows else 0.0,
        "observed": None,
        "examples": list(failure.examples),
        "message": f"{broken:,} of {rows:,} rows" if failure.rows else f"found {list(failure.examples)}",
    }
