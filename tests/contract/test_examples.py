"""The pipelines of `examples/`, task after task through their operators, as the scheduler would wire them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.operator import Operator, OperatorFailure
from orchestrator.paths import DataRoots
from orchestrator.registry import load_operators
from orchestrator.testing import check_parameters, make_context, run_operator

EXAMPLES = Path(__file__).parents[2] / "examples"
OPERATORS = load_operators([EXAMPLES / "operators"])


def read_tasks(name: str) -> dict[str, dict[str, Any]]:
    body = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    return {task["name"]: task for task in body["tasks"]}


def nearest(kind: str, task: str, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the nearest ancestor that produces this kind; several at one distance fail the test."""
    level: Sequence[str] = tasks[task].get("upstream_tasks", [])
    while level:
        found = [name for name in level if kind in _operator(tasks[name]).produces(tasks[name]["parameters"])]
        if found:
            assert len(found) == 1, f"{task} could take its {kind} from {found}"
            return found[0]
        level = sorted({parent for name in level for parent in tasks[name].get("upstream_tasks", [])})
    raise AssertionError(f"{task} has no ancestor that produces a {kind}")


def run_example(name: str, tmp_path: Path) -> tuple[dict[str, Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Run every task in order, inputs filled in from ancestors; return outputs by task, and the records."""
    tasks = read_tasks(name)
    outputs: dict[str, Mapping[str, Any]] = {}
    records: list[Mapping[str, Any]] = []
    graph = {task: set(spec.get("upstream_tasks", [])) for task, spec in tasks.items()}
    for task in TopologicalSorter(graph).static_order():
        spec, operator = tasks[task], _operator(tasks[task])
        workdir = tmp_path / f"work-{task}"
        workdir.mkdir()
        context = make_context(
            tmp_path, task=task, workdir=workdir, cpu=spec["cpu"], records=records, upstream_outputs=dict(outputs),
            roots=DataRoots({"data": tmp_path / "data", "examples": EXAMPLES / "data"}),
        )  # fmt: skip
        parameters = dict(spec["parameters"])
        for wanted in operator.active_inputs(parameters):
            if wanted.parameter not in parameters:
                source = nearest(wanted.kind, task, tasks)
                parameters[wanted.parameter] = outputs[source][wanted.kind]["uri"]
        outputs[task] = run_operator(operator, context, parameters)
    return outputs, records


def _operator(task: Mapping[str, Any]) -> type[Operator]:
    return OPERATORS[task["operator"]]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.json")), ids=lambda file: file.stem)
def test_every_example_has_valid_parameters_and_fits_a_laptop(file: Path) -> None:
    for task in read_tasks(file.stem).values():
        assert check_parameters(_operator(task), task["parameters"]) == []
        assert task["cpu"] <= 1.0
        assert task["memory_gb"] <= 1.0
        assert "gpu" not in task


def test_the_training_pipeline_ends_with_a_registered_model(tmp_path: Path) -> None:
    outputs, records = run_example("ml-training-pipeline", tmp_path)
    model = outputs["train-model"]["model"]
    assert model["metrics"]["accuracy"] >= 0.9
    assert model["data_fingerprint"] == outputs["ingest-data"]["dataset"]["fingerprint"]
    print(f"trained in {outputs['train-model']['seconds']:.1f} s")
    assert outputs["quality-gate"]["passed"] is True
    assert outputs["validate-data"]["report"]["warnings"]
    [record] = records
    assert (record["name"], record["digest"]) == ("breast-cancer-diagnosis", model["digest"])
    assert record["lineage"]["dataset"]["task"] == "ingest-data"


def test_the_quality_gate_stops_a_model_that_is_not_good_enough(tmp_path: Path) -> None:
    task = read_tasks("ml-training-pipeline")["quality-gate"]
    metrics = {"recall": 0.85, "roc_auc": 0.99}
    context = make_context(tmp_path, upstream_outputs={"train-model": {"model": {"metrics": metrics}}})
    with pytest.raises(OperatorFailure, match=r"recall is 0\.850, at least 0\.9 is asked\.") as caught:
        run_operator(_operator(task), context, task["parameters"])
    assert (caught.value.reason, caught.value.retryable) == ("quality_gate", False)


def test_the_ab_test_registers_the_better_model(tmp_path: Path) -> None:
    outputs, records = run_example("ab-testing", tmp_path)
    compared = outputs["compare-models"]
    better = max(compared["scores"], key=lambda task: compared["scores"][task])
    assert compared["winner"] == better
    assert records[0]["digest"] == outputs[better]["model"]["digest"]
    assert records[0]["lineage"]["model_task"] == better
    assert min(compared["scores"].values()) >= 0.95


def test_the_third_party_operator_guards_the_training(tmp_path: Path) -> None:
    outputs, _ = run_example("custom-operator", tmp_path)
    assert 0 < outputs["check-drift"]["report"]["worst_index"] < 0.25
    assert outputs["train-model"]["model"]["metrics"]["accuracy"] >= 0.9


def test_the_third_party_operator_sees_that_the_biopsies_changed_over_time(tmp_path: Path) -> None:
    context = make_context(tmp_path, roots=DataRoots({"examples": EXAMPLES / "data"}))
    with pytest.raises(OperatorFailure, match="worst_concave_points has drifted") as caught:
        run_operator(OPERATORS["drift_check"], context, {"input_path": "examples:breast_cancer.csv"})
    assert caught.value.reason == "drift"
    found = context.artifacts.get_bytes(next(f"artifact://{key}" for key in context.artifacts.list()), 100_000)
    assert len(json.loads(found)) == 30


def test_the_data_is_what_the_committed_script_exports(tmp_path: Path) -> None:
    import importlib.util

    import polars as pl

    spec = importlib.util.spec_from_file_location("export_data", EXAMPLES / "export_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.export(tmp_path)
    assert (tmp_path / "breast_cancer.csv").read_bytes() == (EXAMPLES / "data" / "breast_cancer.csv").read_bytes()
    assert pl.read_parquet(tmp_path / "digits.parquet").equals(pl.read_parquet(EXAMPLES / "data" / "digits.parquet"))
