"""The operator ``data_validation`` on real files, and the contract of its rules."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from operators.data_validation import DataValidation
from operators.validation.checks import read_checks
from operators.validation.compile import run_checks
from operators.validation.port import RowRule, TableRule
from operators.validation.registry import load_rules
from orchestrator.operator import OperatorFailure, TaskContext
from orchestrator.testing import check_parameters, make_context, run_operator

pytestmark = pytest.mark.timeout(120)
NOW = datetime.now(UTC)


@pytest.fixture
def context(tmp_path: Path) -> TaskContext:
    return make_context(tmp_path)


def broken_rows(frame: pl.DataFrame, rule: Mapping[str, Any]) -> list[int]:
    """The numbers of the rows that break one rule."""
    checks, problems = read_checks([rule])
    assert problems == []
    row_rule = load_rules()[checks[0].rule]
    assert isinstance(row_rule, RowRule)
    expression = row_rule.broken(checks[0], checks[0].columns[0], frame.schema).fill_null(False)
    marked = frame.with_columns(broken=expression)["broken"]
    return [row for row, broken in enumerate(marked) if broken]


def verdict(frame: pl.DataFrame, rule: Mapping[str, Any]) -> bool:
    """Whether the table passes one rule."""
    checks, problems = read_checks([rule])
    assert problems == []
    return run_checks(frame.lazy(), checks, examples=0).results[0].passed


def report_of(context: TaskContext, message: str) -> Any:
    uri = message.rpartition("Report: ")[2]
    return json.loads(context.artifacts.get_bytes(uri, 10**6))


# --- rules ----------------------------------------------------------------------------------------------------------

NAN = float("nan")
COLUMNS: dict[str, list[Any]] = {
    "i": [1, 5, None, -3],
    "f": [1.0, NAN, None, 2.5],
    "s": ["a", "", None, "long text"],
    "n": ["1", " 2 ", "x", None],
    "d": [date(2026, 1, 1), None, date(2025, 1, 1), date(2027, 1, 1)],
    "t": [datetime(2026, 1, 1, tzinfo=UTC), None, datetime(2025, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)],
    "dt": ["2026-01-01", "2026-01-01T10:00:00Z", "2026-01-01 10:00:00", "yesterday"],
    "b": [True, False, None, True],
    "l": [[1], [], None, [1, 2, 3]],
    "e": [None, None, None, None],
}


@pytest.mark.parametrize(
    "rule, rows",
    [
        ({"rule": "not_null", "column": "i"}, [2]),
        ({"rule": "not_null", "column": "f"}, [1, 2]),
        ({"rule": "not_null", "column": "e"}, [0, 1, 2, 3]),
        ({"rule": "type", "column": "i", "type": "integer"}, []),
        ({"rule": "type", "column": "i", "type": "float"}, []),
        ({"rule": "type", "column": "f", "type": "integer"}, [1, 3]),
        ({"rule": "type", "column": "n", "type": "integer"}, [2]),
        ({"rule": "type", "column": "n", "type": "string"}, []),
        ({"rule": "type", "column": "i", "type": "string"}, [0, 1, 3]),
        ({"rule": "type", "column": "dt", "type": "datetime"}, [3]),
        ({"rule": "type", "column": "dt", "type": "date"}, [1, 2, 3]),
        ({"rule": "type", "column": "d", "type": "datetime"}, []),
        ({"rule": "type", "column": "e", "type": "date"}, []),
        ({"rule": "range", "column": "i", "min": 0}, [3]),
        ({"rule": "range", "column": "i", "min": 1, "max": 4}, [1, 3]),
        ({"rule": "range", "column": "i", "exclusive_min": 1, "exclusive_max": 5}, [0, 1, 3]),
        ({"rule": "range", "column": "f", "max": 2}, [1, 3]),
        ({"rule": "range", "column": "f", "min": 0}, [1]),
        ({"rule": "range", "column": "n", "min": 2}, [0, 2]),
        ({"rule": "range", "column": "s", "min": 0}, [0, 1, 3]),
        ({"rule": "range", "column": "b", "min": 0}, [0, 1, 3]),
        ({"rule": "range", "column": "d", "min": "2025-06-01", "max": "2026-06-01"}, [2, 3]),
        ({"rule": "range", "column": "t", "min": "2025-06-01", "max": "2026-01-01T01:00:00+01:00"}, [2, 3]),
        ({"rule": "range", "column": "dt", "min": "2026-01-01T05:00:00Z"}, [0, 3]),
        ({"rule": "range", "column": "e", "min": 0}, []),
        ({"rule": "set", "column": "i", "values": [1, 5]}, [3]),
        ({"rule": "set", "column": "s", "values": ["a", ""]}, [3]),
        ({"rule": "set", "column": "b", "values": [True]}, [1]),
        ({"rule": "set", "column": "d", "values": ["2026-01-01"]}, [2, 3]),
        ({"rule": "unique", "column": "b"}, [0, 3]),
        ({"rule": "unique", "column": "i"}, []),
        ({"rule": "unique", "column": "e"}, []),
        ({"rule": "length", "column": "s", "min": 1, "max": 5}, [1, 3]),
        ({"rule": "length", "column": "l", "min": 1, "max": 2}, [1, 3]),
        ({"rule": "length", "column": "i", "max": 1}, [3]),
        ({"rule": "pattern", "column": "s", "regex": "[a-z]+"}, [1, 3]),
        ({"rule": "pattern", "column": "n", "regex": "a|[0-9]"}, [1, 2]),
    ],
)
def test_a_row_rule_marks_exactly_the_rows_that_break_it(rule: dict[str, Any], rows: list[int]) -> None:
    frame = pl.DataFrame(COLUMNS, strict=False)
    assert broken_rows(frame, rule) == rows


@pytest.mark.parametrize(
    "rule, passes",
    [
        ({"rule": "row_count", "min": 4}, True),
        ({"rule": "row_count", "min": 5}, False),
        ({"rule": "row_count", "max": 3}, False),
        ({"rule": "schema", "fields": {"i": "integer", "d": "date", "s": "any"}}, True),
        ({"rule": "schema", "fields": {"i": "string"}}, False),
        ({"rule": "schema", "fields": {"missing": "any"}}, False),
        ({"rule": "schema", "fields": {"i": "any"}, "allow_extra": False}, False),
        ({"rule": "schema", "fields": {"f": "any", "i": "any"}, "ordered": True}, False),
        ({"rule": "schema", "fields": {"i": "any", "f": "any"}, "ordered": True}, True),
    ],
)
def test_a_table_rule_judges_the_whole_table(rule: dict[str, Any], passes: bool) -> None:
    assert verdict(pl.DataFrame(COLUMNS, strict=False), rule) is passes


@pytest.mark.parametrize(
    "newest, passes",
    [
        (NOW - timedelta(hours=1), True),
        (NOW - timedelta(hours=3), False),
        ((NOW - timedelta(hours=1)).astimezone(UTC).replace(tzinfo=None), True),
        ((NOW - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"), True),
        ((NOW - timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M:%S"), False),
        ((NOW - timedelta(days=3)).date(), False),
        (None, False),
        (7, False),
    ],
    # A time in a name would differ between the processes that run the tests.
    ids=["aware", "aware old", "naive UTC", "text", "text old", "date", "nothing", "number"],
)
def test_freshness_judges_the_newest_value(newest: Any, passes: bool) -> None:
    older = None if newest is None else newest if isinstance(newest, (str, int)) else newest - timedelta(days=30)
    frame = pl.DataFrame({"at": [older, newest, None]})
    assert verdict(frame, {"rule": "freshness", "column": "at", "max_age_hours": 2}) is passes


def test_every_rule_has_a_summary_and_described_settings_and_is_tested_here() -> None:
    rules = load_rules()
    assert set(rules) == {
        "not_null", "type", "range", "set", "unique", "length", "pattern", "row_count", "schema", "freshness",
    }  # fmt: skip
    for rule in rules.values():
        assert rule.summary.endswith(".")
        assert isinstance(rule, (RowRule, TableRule))
        for schema in rule.properties.values():
            Draft202012Validator.check_schema(schema)
            assert schema["description"]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.none() | st.floats(allow_infinity=True) | st.integers(-5, 5).map(float), max_size=30),
    low=st.integers(-5, 5),
    high=st.integers(-5, 5),
)
def test_error_rows_are_those_that_break_at_least_one_error_rule(
    values: list[float | None], low: int, high: int
) -> None:
    frame = pl.DataFrame({"x": values}, schema={"x": pl.Float64})
    rules = [
        {"rule": "not_null", "column": "x"},
        {"rule": "range", "column": "x", "min": low},
        {"rule": "range", "column": "x", "max": high, "severity": "warning"},
    ]
    findings = run_checks(frame.lazy(), read_checks(rules)[0], examples=3)
    missing = [value is None or math.isnan(value) for value in values]
    low_ones = [value is not None and not value >= low for value in values]
    high_ones = [value is not None and not value <= high for value in values]
    assert findings.rows == len(values)
    assert [result.violations for result in findings.results] == [sum(missing), sum(low_ones), sum(high_ones)]
    assert findings.error_rows == sum(a or b for a, b in zip(missing, low_ones, strict=True))


# --- how rules are written ------------------------------------------------------------------------------------------


def test_both_shapes_of_rules_mean_the_same() -> None:
    listed = [
        {"rule": "row_count", "min": 1},
        {"rule": "not_null", "column": "age"},
        {"rule": "type", "column": "age", "type": "integer"},
        {"rule": "range", "column": "age", "min": 0, "severity": "warning"},
        {"rule": "set", "column": "country", "values": ["DE", "FR"]},
    ]
    by_column = {
        "columns": {
            "age": {
                "not_null": True, "unique": False, "type": "integer", "range": {"min": 0, "severity": "warning"},
            },
            "country": {"set": ["DE", "FR"]},
        },
        "row_count": {"min": 1},
    }  # fmt: skip
    assert check_parameters(DataValidation, {"validation_rules": by_column}) == []
    assert read_checks(by_column) == read_checks(listed)
    assert [check.name for check in read_checks(listed)[0]] == [
        "row_count", "not_null(age)", "type(age)", "range(age)", "set(country)",
    ]  # fmt: skip


def test_no_rules_in_any_spelling_are_no_rules() -> None:
    spellings: list[Any] = [{}, [], None, {"columns": {}}]
    for written in spellings:
        assert read_checks(written) == ([], [])


@pytest.mark.parametrize(
    "rules, pointer",
    [
        ([{"rule": "nothing", "column": "a"}], "/validation_rules"),
        ([{"rule": "not_null"}], "/validation_rules/0/column"),
        ([{"rule": "row_count", "column": "a", "min": 1}], "/validation_rules/0/column"),
        ([{"rule": "row_count"}], "/validation_rules/0"),
        ([{"rule": "range", "column": "a"}], "/validation_rules/0"),
        ([{"rule": "range", "column": "a", "min": "soon"}], "/validation_rules/0/min"),
        ([{"rule": "range", "column": "a", "min": 0, "max": "2026-01-01"}], "/validation_rules/0"),
        ([{"rule": "length", "column": "a", "min": "x"}], "/validation_rules/0/min"),
        ([{"rule": "pattern", "column": "a", "regex": "("}], "/validation_rules/0/regex"),
        ([{"rule": "not_null", "column": "a", "min": 1}], "/validation_rules/0"),
        ([{"rule": "type", "column": "a", "type": "number"}], "/validation_rules"),
        ({"columns": {"a": {"range": True}}}, "/validation_rules/columns/a/range"),
        ({"columns": {"a": {"row_count": {"min": 1}}}}, "/validation_rules"),
        ({"not_null": True}, "/validation_rules"),
        ("no_rules", "/validation_rules"),
    ],
)
def test_a_rule_that_is_written_wrongly_is_found_before_anything_runs(rules: Any, pointer: str) -> None:
    assert pointer in [found for found, _ in check_parameters(DataValidation, {"validation_rules": rules})]


# --- the operator ---------------------------------------------------------------------------------------------------


def test_a_dataset_that_keeps_its_rules_is_passed_on_unchanged(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_text("age,country\n1,DE\n2,FR\n")
    rules = [{"rule": "not_null", "column": "age"}, {"rule": "set", "column": "country", "values": ["DE", "FR"]}]
    outputs = run_operator(DataValidation, context, {"input_path": "x.csv", "validation_rules": rules})
    assert outputs["dataset"]["uri"] == "x.csv"
    assert (outputs["dataset"]["rows"], outputs["dataset"]["format"]) == (2, "csv")
    report = json.loads(context.artifacts.get_bytes(outputs["report"]["uri"], 10**6))
    assert report["passed"] is True
    assert [rule["name"] for rule in report["rules"]] == ["not_null(age)", "set(country)"]


def test_the_description_of_an_upstream_dataset_is_kept(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    stored = context.artifacts.put_bytes("tenant/run/ingest/1/dataset", b"a\n1\n")
    upstream = {"dataset": {"uri": stored.uri, "format": "csv", "fingerprint": "sha256:upstream"}}
    context = make_context(tmp_path, upstream_outputs={"ingest": upstream})
    dataset = run_operator(DataValidation, context, {"input_path": stored.uri})["dataset"]
    assert (dataset["fingerprint"], dataset["format"], dataset["rows"]) == ("sha256:upstream", "csv", 1)


def test_too_many_bad_rows_fail_the_task_with_a_report_and_the_worst_rules(
    context: TaskContext, tmp_path: Path
) -> None:
    rows = "".join(f"{n},{'' if n < 10 else n},{'XX' if n < 3 else 'DE'}\n" for n in range(100))
    (tmp_path / "data" / "x.csv").write_text("id,age,country\n" + rows)
    rules = [
        {"rule": "set", "column": "country", "values": ["DE"]},
        {"rule": "not_null", "column": "age"},
        {"rule": "range", "column": "id", "max": 50, "severity": "warning"},
    ]
    parameters = {"input_path": "x.csv", "validation_rules": rules, "max_error_rate": 0.05, "examples": 2}
    with pytest.raises(OperatorFailure) as caught:
        run_operator(DataValidation, context, parameters)
    assert (caught.value.reason, caught.value.retryable) == ("validation_failed", False)
    assert "10 of 100 rows have errors (10.00 %, allowed 5 %). not_null(age): 10 of 100 rows" in caught.value.message
    report = report_of(context, caught.value.message)
    assert (report["passed"], report["error_rows"], report["error_rate"]) == (False, 10, 0.1)
    assert [rule["violations"] for rule in report["rules"]] == [3, 10, 49]
    assert report["rules"][0]["examples"] == ["XX", "XX"]
    within = run_operator(DataValidation, context, {**parameters, "max_error_rate": 0.1})["report"]
    assert within["failed_rules"] == ["set(country)", "not_null(age)"]
    assert within["warnings"] == ["range(id)"]


def test_a_rule_about_the_table_or_a_missing_column_fails_whatever_the_error_rate(
    context: TaskContext, tmp_path: Path
) -> None:
    (tmp_path / "data" / "x.csv").write_text("a\n1\n")
    for rule, words in (
        ({"rule": "row_count", "min": 2}, "at least 2 wanted"),
        ({"rule": "not_null", "column": "b"}, "there is no column b"),
    ):
        parameters = {"input_path": "x.csv", "validation_rules": [rule], "max_error_rate": 1}
        with pytest.raises(OperatorFailure, match=words):
            run_operator(DataValidation, context, parameters)
        softened = {**parameters, "validation_rules": [{**rule, "severity": "warning"}]}
        assert len(run_operator(DataValidation, context, softened)["report"]["warnings"]) == 1


def test_a_csv_column_with_a_stray_text_far_down_is_judged_row_by_row(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_text("age\n" + "30\n" * 20_000 + "unknown\n" + "31\n" * 79)
    rules = {"columns": {"age": {"type": "integer", "range": {"min": 0, "max": 120}}}}
    parameters = {"input_path": "x.csv", "validation_rules": rules, "max_error_rate": 0.001}
    report = run_operator(DataValidation, context, parameters)["report"]
    assert (report["rows"], report["error_rows"]) == (20_080, 1)


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.parquet"])
def test_every_format_is_validated(context: TaskContext, tmp_path: Path, name: str) -> None:
    frame = pl.DataFrame({"a": [1, 2, 2], "b": ["x", None, "z"]})
    path = tmp_path / "data" / name
    writers: dict[str, Callable[[Path], object]] = {
        "x.csv": frame.write_csv, "x.json": frame.write_ndjson, "x.parquet": frame.write_parquet,
    }  # fmt: skip
    writers[name](path)
    rules = [{"rule": "unique", "column": "a"}, {"rule": "not_null", "column": "b"}]
    report = run_operator(
        DataValidation, context, {"input_path": name, "validation_rules": rules, "max_error_rate": 1}
    )["report"]
    assert (report["rows"], report["error_rows"], report["error_rate"]) == (3, 2, 2 / 3)


def test_a_table_without_rows_has_no_errors(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_text("a,b\n")
    rules = [{"rule": "not_null", "column": "a"}, {"rule": "unique", "columns": ["a", "b"]}]
    report = run_operator(DataValidation, context, {"input_path": "x.csv", "validation_rules": rules})["report"]
    assert (report["rows"], report["error_rate"]) == (0, 0.0)


@pytest.mark.parametrize(
    "parameters, reason",
    [
        ({"input_path": "nothing.csv"}, "not_found"),
        ({"input_path": "no-suffix"}, "bad_parameters"),
        ({"input_path": "../x.csv"}, "forbidden_path"),
        ({"input_path": "artifact://tenant/nothing", "format": "csv"}, "artifact_missing"),
        ({"input_path": "artifact://another/dataset", "format": "csv"}, "forbidden_path"),
        ({"input_path": "broken.parquet"}, "bad_data"),
        (
            {"input_path": "x.csv", "validation_rules": [{"rule": "pattern", "column": "a", "regex": "(?=x)"}]},
            "bad_parameters",
        ),
    ],
)
def test_what_can_not_be_validated_is_explained(
    context: TaskContext, tmp_path: Path, parameters: dict[str, Any], reason: str
) -> None:
    (tmp_path / "data" / "x.csv").write_text("a\n1\n")
    (tmp_path / "data" / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(OperatorFailure) as caught:
        run_operator(DataValidation, context, parameters)
    assert caught.value.reason == reason


def test_a_dry_run_names_the_columns_that_rules_miss(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_text("a\n1\n")
    parameters = {"input_path": "x.csv", "validation_rules": {"columns": {"a": {"not_null": True}}}}
    assert DataValidation().dry_run(context, parameters) == {
        "columns": [{"name": "a", "type": "integer"}], "rules": ["not_null(a)"],
    }  # fmt: skip
    wrong = {"input_path": "x.csv", "validation_rules": {"columns": {"b": {"not_null": True}}}}
    with pytest.raises(OperatorFailure, match="no columns b"):
        DataValidation().dry_run(context, wrong)
    assert list(context.artifacts.list()) == []


# --- pandera --------------------------------------------------------------------------------------------------------

PANDERA: dict[str, Any] = {
    "columns": {
        "a": {"dtype": "integer", "checks": {"in_range": [0, 10], "isin": {"allowed_values": [1, 2]}}},
        "b": {"dtype": "string", "nullable": True, "unique": True, "checks": {"str_matches": "[a-z]"}},
    },
    "strict": True,
}
PANDERA["columns"]["a"]["checks"]["in_range"] = {"min_value": 0, "max_value": 10}


def test_a_pandera_schema_is_checked_together_with_the_rules(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_text("a,b\n1,x\n2,y\n50,z\n,w\n")
    parameters: dict[str, Any] = {
        "input_path": "x.csv", "pandera_schema": PANDERA, "max_error_rate": 0.5,
        "validation_rules": [{"rule": "range", "column": "a", "max": 40}],
    }  # fmt: skip
    report = run_operator(DataValidation, context, parameters)["report"]
    assert (report["error_rows"], report["rows"]) == (2, 4), "rows 3 (twice) and 4 count once each"
    with pytest.raises(OperatorFailure, match="pandera") as caught:
        run_operator(DataValidation, context, {**parameters, "max_error_rate": 0.1})
    names = [rule["name"] for rule in report_of(context, caught.value.message)["rules"]]
    assert "range(a)" in names
    assert any(name.startswith("pandera in_range") and name.endswith("(a)") for name in names)


def test_a_pandera_schema_that_the_table_does_not_have_fails_whatever_the_rate(
    context: TaskContext, tmp_path: Path
) -> None:
    (tmp_path / "data" / "x.csv").write_text("a\n1\n")
    parameters = {"input_path": "x.csv", "pandera_schema": PANDERA, "max_error_rate": 1}
    with pytest.raises(OperatorFailure, match="column_in_dataframe"):
        run_operator(DataValidation, context, parameters)


@pytest.mark.parametrize(
    "schema",
    [
        {"columns": {"a": {"checks": {"__init__": 1}}}},
        {"columns": {"a": {"checks": {"register_check_method": 1}}}},
        {"columns": {"a": {"dtype": "__import__('os')"}}},
        {"columns": {"a": {"parsers": []}}},
        {"schema_type": "polars_dataframe", "columns": {}},
    ],
)
def test_a_pandera_schema_can_name_nothing_but_the_listed_checks(schema: dict[str, Any]) -> None:
    assert check_parameters(DataValidation, {"pandera_schema": schema})


def test_a_check_with_wrong_arguments_is_explained(context: TaskContext, tmp_path: Path) -> None:
    (tmp_path / "data" / "x.csv").write_text("a\n1\n")
    schema = {"columns": {"a": {"checks": {"in_range": {"nonsense": 1}}}}}
    with pytest.raises(OperatorFailure, match="in_range") as caught:
        run_operator(DataValidation, context, {"input_path": "x.csv", "pandera_schema": schema})
    assert caught.value.reason == "bad_parameters"
