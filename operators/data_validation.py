"""The operator ``data_validation``: a dataset passes only when it keeps its rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from operators.tables.formats import DATASET_SCHEMA, FORMATS, describe_columns
from operators.validation.checks import read_checks, rule_schema
from operators.validation.pandera_schema import SCHEMA as PANDERA
from orchestrator.inputs import fingerprint
from orchestrator.operator import Input, Json, Operator, OperatorFailure, TaskContext

if TYPE_CHECKING:
    from operators.tables.locate import LocatedDataset
    from operators.validation.compile import Findings
    from operators.validation.pandera_schema import PanderaFailure
    from operators.validation.port import Check


class DataValidation(Operator):
    """Check a dataset by rules, write a report, and pass the dataset on unchanged."""

    name: ClassVar[str] = "data_validation"
    summary: ClassVar[str] = (
        "Check a dataset by declarative rules; fail when too many rows break them. Leaves a report."
    )
    parameters_schema: ClassVar[Mapping[str, Json]] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "input_path": {
                "type": "string",
                "minLength": 1,
                "description": "The dataset: artifact://…, s3://…, or a data-root path. Default: that of the nearest "
                "upstream task.",
            },
            "format": {"enum": list(FORMATS), "description": "Its format. Default: as its task or its suffix says."},
            "validation_rules": rule_schema(),
            "max_error_rate": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Greatest share of rows that may break a rule of severity error. Default: 0.",
            },
            "pandera_schema": PANDERA,
            "examples": {
                "type": "integer",
                "minimum": 0,
                "maximum": 100,
                "description": "Offending values the report shows per rule. Default: 5.",
            },
        },
    }
    outputs_schema: ClassVar[Mapping[str, Json]] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "required": ["dataset", "report"],
        "properties": {
            "dataset": DATASET_SCHEMA,
            "report": {
                "type": "object",
                "description": "The verdict, and where the whole report lies.",
                "additionalProperties": False,
                "required": ["uri", "passed", "rows", "error_rows", "error_rate", "warnings"],
                "properties": {
                    "uri": {"type": "string", "description": "artifact://… of the report, a JSON object."},
                    "bytes": {"type": "integer", "description": "Its size."},
                    "fingerprint": {"type": "string", "description": "sha256:<hex> of it."},
                    "passed": {"type": "boolean", "description": "Whether the dataset passed."},
                    "rows": {"type": "integer", "description": "Rows checked."},
                    "error_rows": {"type": "integer", "description": "Rows that break a rule of severity error."},
                    "error_rate": {"type": "number", "description": "error_rows ÷ rows."},
                    "failed_rules": {
                        "type": "array", "items": {"type": "string"},
                        "description": "Rules of severity error that some rows break.",
                    },
                    "warnings": {
                        "type": "array", "items": {"type": "string"},
                        "description": "Rules of severity warning that are broken.",
                    },
                },
            },
        },
    }  # fmt: skip
    inputs: ClassVar[Sequence[Input]] = (Input("input_path", "dataset"),)

    @classmethod
    def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Return what is wrong with each rule's settings."""
        return read_checks(parameters.get("validation_rules"))[1]

    @classmethod
    def produces(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Return the dataset that is passed on, and the report."""
        return frozenset({"dataset", "report"})

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Check, write the report, then say whether the dataset passed."""
        from operators.tables.failures import explained
        from operators.tables.locate import locate_dataset
        from operators.validation.report import build_report, failed_names, failure_message

        with explained("The dataset"):
            dataset = locate_dataset(context, parameters["input_path"], parameters.get("format"))
            checks = read_checks(parameters.get("validation_rules"))[0]
            context.log("checking", uri=dataset.uri, rules=len(checks))
            findings, pandera = _check(context, dataset, checks, parameters)
            report = build_report(findings, pandera, float(parameters.get("max_error_rate", 0.0)), dataset.uri)
            text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False).encode()
            stored = context.artifacts.put_bytes(context.artifact_key("report.json"), text)
        _log_rules(context, report)
        if not report["passed"]:
            raise OperatorFailure("validation_failed", f"{failure_message(report)} Report: {stored.uri}")
        return {
            "dataset": _passed_on(dataset, findings),
            "report": {
                "uri": stored.uri,
                "bytes": stored.bytes,
                "fingerprint": stored.fingerprint,
                "passed": True,
                "rows": report["rows"],
                "error_rows": report["error_rows"],
                "error_rate": report["error_rate"],
                "failed_rules": failed_names(report, "error")[:200],
                "warnings": failed_names(report, "warning")[:200],
            },
        }

    def dry_run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Check that the dataset is there and has the columns that the rules name."""
        from operators.tables.failures import explained
        from operators.tables.locate import locate_dataset
        from operators.tables.reading import use_table

        with explained("The dataset"):
            dataset = locate_dataset(context, parameters["input_path"], parameters.get("format"))
            checks = read_checks(parameters.get("validation_rules"))[0]
            schema = use_table(
                dataset.path, dataset.format, context.workdir, dataset.uri, lambda frame: frame.collect_schema()
            )
        missing = sorted({column for check in checks for column in check.columns if column not in schema})
        if missing:
            raise OperatorFailure(
                "bad_parameters", f"{dataset.uri} has no columns {', '.join(missing)}; mend the rules."
            )
        return {"columns": describe_columns(schema), "rules": [check.name for check in checks]}


def _check(
    context: TaskContext, dataset: LocatedDataset, checks: Sequence[Check], parameters: Mapping[str, Json]
) -> tuple[Findings, list[PanderaFailure]]:
    from operators.tables.reading import use_table
    from operators.validation.compile import run_checks
    from operators.validation.pandera_schema import pandera_failures

    examples = int(parameters.get("examples", 5))
    written = parameters.get("pandera_schema")
    if written is None:
        findings = use_table(
            dataset.path,
            dataset.format,
            context.workdir,
            dataset.uri,
            lambda frame: run_checks(frame, checks, examples),
        )
        return findings, []
    whole = use_table(dataset.path, dataset.format, context.workdir, dataset.uri, lambda frame: frame.collect())
    failures = pandera_failures(whole, written, examples)
    marked = sorted({row for failure in failures for row in failure.rows})
    return run_checks(whole.lazy(), checks, examples, marked), failures


def _log_rules(context: TaskContext, report: Mapping[str, Json]) -> None:
    for rule in report["rules"]:
        verdict = "ok" if rule["passed"] else rule["severity"]
        context.log(f"{verdict:>7}  {rule['name']}: {rule['message']}")
    rate = f"{report['error_rate']:.4%}"
    context.log(
        "checked", rows=report["rows"], error_rows=report["error_rows"], error_rate=rate, passed=report["passed"]
    )


def _passed_on(dataset: LocatedDataset, findings: Findings) -> Mapping[str, Json]:
    """Return the dataset as its task described it; one from outside is described here."""
    return {
        "uri": dataset.uri,
        "format": dataset.format,
        "rows": findings.rows,
        "bytes": dataset.path.stat().st_size,
        "fingerprint": dataset.output.get("fingerprint") or fingerprint(dataset.path),
        "columns": describe_columns(findings.schema),
    }
