"""The contract of the operator port, run on every operator the registry finds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from orchestrator.operator import Input, Operator
from orchestrator.registry import load_operators
from orchestrator.testing import check_parameters, make_context

OPERATORS = load_operators()
SEED_TASKS: list[tuple[str, dict[str, Any]]] = [
    ("data_ingestion", {"source_type": "s3", "source_path": "s3://data/training-data.csv"}),
    ("data_ingestion", {"source": "database"}),
    ("data_ingestion", {"destination": "warehouse"}),
    (
        "data_ingestion",
        {"source_type": "local", "source_path": "path/to/data", "output_path": "path/to/output", "format": "csv"},
    ),
    ("data_validation", {"max_error_rate": 0.05}),
    ("data_validation", {"validation_rules": {}}),
    ("data_validation", {"input_path": "path/to/data", "validation_rules": {}, "max_error_rate": 0.05}),
    (
        "model_training",
        {
            "model_type": "classification", "algorithm": "random_forest",
            "hyperparameters": {"n_estimators": 100, "max_depth": 10},
        },
    ),
    ("model_training", {}),
    (
        "model_training",
        {
            "model_type": "classification", "algorithm": "random_forest", "hyperparameters": {},
            "training_data_path": "path/to/training/data", "min_accuracy": 0.8,
        },
    ),
    ("model_registration", {}),
    ("model_registration", {"registry_url": "http://model-registry:8000", "model_name": "customer-churn-v1"}),
    (
        "model_registration",
        {
            "model_name": "fraud-detection-v1", "model_version": "1.0.0", "description": "Model description",
            "tags": ["production", "fraud", "ml"],
        },
    ),
    ("custom_script", {"script_type": "python", "script_content": "# Data transformation logic"}),
    ("custom_script", {"script_content": "# Model validation logic"}),
    ("wait_for", {"file": "incoming/day.csv", "interval_seconds": 5}),
    ("wait_for", {"http": {"url": "https://example.org/jobs/7", "path": "state", "equals": "done"}}),
    ("best_of", {"results": [{"loss": 0.5}, None], "metric": "loss", "mode": "min"}),
]  # fmt: skip
HEAVY = (
    "polars", "pyarrow", "pandas", "numpy", "scipy", "sklearn", "skops", "joblib", "torch", "pandera", "obstore",
    "sqlalchemy", "psycopg2", "requests", "urllib3", "boto3", "flask", "celery", "redis",
)  # fmt: skip

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=sorted(OPERATORS))
def operator(request: pytest.FixtureRequest) -> type[Operator]:
    return OPERATORS[request.param]


def closed_objects(schema: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every subschema that lists properties, with its place."""
    if "properties" in schema:
        yield where or "/", schema
    for key in ("properties", "$defs", "patternProperties"):
        for name, part in schema.get(key, {}).items():
            if isinstance(part, Mapping):
                yield from closed_objects(part, f"{where}/{key}/{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from closed_objects(schema[key], f"{where}/{key}")
    for key in ("anyOf", "oneOf", "allOf"):
        for index, part in enumerate(schema.get(key, [])):
            yield from closed_objects(part, f"{where}/{key}/{index}")


def test_all_operators_of_the_product_are_found() -> None:
    seed = {"data_ingestion", "data_validation", "model_training", "model_registration", "custom_script"}
    assert seed | {"wait_for", "best_of"} <= set(OPERATORS)


def test_an_operator_says_its_name_and_a_sentence(operator: type[Operator]) -> None:
    assert operator.name.isidentifier()
    assert operator.summary.endswith(".")
    assert operator.__doc__


def test_schemas_are_json_schema_2020_12(operator: type[Operator]) -> None:
    for schema in (operator.parameters_schema, operator.outputs_schema):
        Draft202012Validator.check_schema(dict(schema))
        assert schema["type"] == "object"
        json.dumps(schema, allow_nan=False)


def test_unknown_parameters_are_refused_everywhere(operator: type[Operator]) -> None:
    for where, part in closed_objects(operator.parameters_schema):
        assert part.get("additionalProperties") is False, f"{where} takes anything"
    assert check_parameters(operator, {"no_such_parameter": 1})


def test_every_parameter_and_output_is_described(operator: type[Operator]) -> None:
    for schema in (operator.parameters_schema, operator.outputs_schema):
        for where, part in closed_objects(schema):
            for name, described in part["properties"].items():
                assert described.get("description"), f"{where}/properties/{name} has no description"


def test_inputs_are_optional_parameters(operator: type[Operator]) -> None:
    for wanted in operator.inputs:
        assert isinstance(wanted, Input)
        assert wanted.parameter in operator.parameters_schema["properties"]
        assert wanted.parameter not in operator.parameters_schema.get("required", [])


@pytest.mark.parametrize("value", [None, 0, "", "x", [], {}, {"a": 1}, [None], -1, True, 1e308, "\x00", "../.."])
def test_class_methods_never_raise_whatever_the_parameters(operator: type[Operator], value: Any) -> None:
    """They are called by the API on what users send, as far as the schema lets it through."""
    for parameters in [{}, *({name: value} for name in operator.parameters_schema["properties"])]:
        if not list(Draft202012Validator(dict(operator.parameters_schema)).iter_errors(parameters)):
            assert all(len(problem) == 2 for problem in operator.problems(parameters))
        assert operator.produces(parameters) == set(operator.produces(parameters))
        assert all(isinstance(name, str) for name in operator.connection_names(parameters))
        assert set(operator.active_inputs(parameters)) <= set(operator.inputs)


@pytest.mark.parametrize("name, parameters", SEED_TASKS)
def test_the_parameters_of_the_seed_and_of_the_examples_are_accepted(name: str, parameters: dict[str, Any]) -> None:
    assert check_parameters(OPERATORS[name], parameters) == []


DRY_RUNS: dict[str, dict[str, Any]] = {
    "data_ingestion": {"source_path": "x.csv", "output_path": "out/y.csv"},
    "data_validation": {"input_path": "x.csv", "validation_rules": [{"rule": "not_null", "column": "a"}]},
    "model_training": {"training_data_path": "x.csv", "target_column": "label"},
    "custom_script": {"script_type": "bash", "script_content": "touch made"},
    "wait_for": {"file": "not-there.csv", "timeout_seconds": 1},
}


@pytest.mark.parametrize("name", sorted(DRY_RUNS))
def test_a_dry_run_writes_nothing_and_returns_json(name: str, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    (tmp_path / "data" / "x.csv").write_text("a,b,label\n" + "".join(f"{n},{n % 7},{n % 2}\n" for n in range(100)))

    def everything() -> dict[Path, int]:
        """All but the work directory, which is private to the attempt and removed after it."""
        return {
            path: path.stat().st_mtime_ns
            for path in tmp_path.rglob("*")
            if context.workdir not in (path, *path.parents)
        }

    before = everything()
    found = OPERATORS[name]().dry_run(context, DRY_RUNS[name])
    json.dumps(found, allow_nan=False)
    assert everything() == before
    assert context.records == []


def test_importing_the_operators_imports_no_heavy_library() -> None:
    code = (
        "import sys; from orchestrator.registry import load_operators; load_operators(); "
        f"print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, timeout=60
    )
    assert done.stdout.split() == []
