"""``model_training`` on real tables: every algorithm, the gate, clear errors, and a file that is safe to read."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from operators.model_training import ModelTraining
from operators.training.frameworks._sklearn_file import read_model, write_model
from operators.training.frameworks._sklearn_parameters import ESTIMATORS, Estimator
from orchestrator.operator import OperatorFailure, TaskContext
from orchestrator.testing import check_parameters, make_context, run_operator

MANAGED = frozenset({"random_state", "n_jobs", "verbose", "verbose_interval", "warm_start", "copy_x", "copy_X"})
"""Set by the operator: from ``seed``, from the cores of the task, or of no use to a user."""

WITHHELD = frozenset(
    {
        "monotonic_cst", "interaction_cst", "categorical_features", "means_init", "precisions_init", "weights_init",
        "metric_params", "probability", "penalty", "scoring", "decision_function_shape", "break_ties", "max_fun",
    }
)  # fmt: skip
"""Not offered: they name columns of the prepared matrix, are deprecated, or change what the model answers."""

SMALL: Mapping[str, Mapping[str, Any]] = {
    "random_forest": {"n_estimators": 15},
    "gradient_boosting": {"n_estimators": 30},
    "neural_network": {"max_iter": 200, "solver": "lbfgs", "hidden_layer_sizes": [8]},
    "kmeans": {"n_clusters": 2},
    "dbscan": {"eps": 0.35},
    "gaussian_mixture": {"n_components": 2},
}


def make_frame(rows: int = 160) -> pl.DataFrame:
    """Two separable classes, with a text column, a boolean, missing values, an identifier and a date."""
    generator = np.random.default_rng(7)
    label = np.arange(rows) % 2
    width = generator.normal(label * 3.0, 1.0)
    return pl.DataFrame(
        {
            "width": [None if i % 17 == 0 else float(value) for i, value in enumerate(width)],
            "height": generator.normal(-label * 2.0, 1.0),
            "colour": [["red", "green", None][i % 3] for i in range(rows)],
            "sealed": [bool(i % 5) for i in range(rows)],
            "serial": [f"serial-{i}" for i in range(rows)],
            "made": pl.Series([f"2026-01-{i % 28 + 1:02d}" for i in range(rows)]).str.to_date(),
            "target": [("good", "bad")[value] for value in label],
            "price": 10 * width + generator.normal(0, 1, rows),
        }
    )


def write_frame(tmp_path: Path, frame: pl.DataFrame, name: str = "parts.parquet") -> str:
    """Put the frame into the data root of the context; return its user path."""
    path = tmp_path / "data" / name
    path.parent.mkdir(exist_ok=True)
    writers: dict[str, Callable[[Path], None]] = {
        ".csv": frame.write_csv, ".json": frame.write_ndjson, ".parquet": frame.write_parquet,
    }  # fmt: skip
    writers[path.suffix](path)
    return name


def train(context: TaskContext, **parameters: Any) -> Mapping[str, Any]:
    return run_operator(ModelTraining, context, parameters)


def parameters_for(model_type: str, algorithm: str) -> dict[str, Any]:
    target = {"classification": "target", "regression": "price"}.get(model_type)
    features = ["width", "height", "colour", "sealed"] if target else ["width", "height"]
    found = {"model_type": model_type, "algorithm": algorithm, "features": features,
             "hyperparameters": SMALL.get(algorithm, {})}  # fmt: skip
    return found | ({"target": target} if target else {})


@pytest.mark.parametrize(("model_type", "algorithm"), list(ESTIMATORS))
def test_every_algorithm_trains_stores_and_is_read_back(model_type: str, algorithm: str, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    path = write_frame(tmp_path, make_frame())
    outputs = train(context, training_data_path=path, **parameters_for(model_type, algorithm))
    model = outputs["model"]
    pipeline, card = read_model(context.artifacts.local_path(model["uri"], tmp_path), digest=model["digest"])
    assert card["metrics"] == model["metrics"]
    assert card["signature"] == model["signature"]
    assert card["data_fingerprint"] == "sha256:" + hashlib.sha256((tmp_path / "data" / path).read_bytes()).hexdigest()
    least = {"classification": ("accuracy", 0.85), "regression": ("r2", 0.5), "clustering": ("clusters", 2)}[model_type]
    assert model["metrics"][least[0]] >= least[1]
    if algorithm != "dbscan":
        rows = make_frame().select(parameters_for(model_type, algorithm)["features"])
        assert len(pipeline.predict(rows.with_columns(pl.selectors.boolean().cast(pl.Float64)))) == rows.height


@pytest.mark.parametrize(("model_type", "algorithm"), [("classification", "random_forest"), ("regression", "svm")])
def test_the_same_data_and_seed_give_the_same_digest_in_another_process(
    model_type: str, algorithm: str, tmp_path: Path
) -> None:
    write_frame(tmp_path, make_frame())
    parameters = {"training_data_path": "parts.parquet", **parameters_for(model_type, algorithm)}
    code = (
        "import json, sys, pathlib; from orchestrator.testing import make_context;"
        "from operators.model_training import ModelTraining;"
        "outputs = ModelTraining().run(make_context(pathlib.Path(sys.argv[1])), json.loads(sys.argv[2]));"
        "print('digest', outputs['model']['digest'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), json.dumps(parameters)], capture_output=True, text=True, check=True
    )
    here = train(make_context(tmp_path), **parameters)["model"]["digest"]
    assert done.stdout.split()[-1] == here
    assert train(make_context(tmp_path), **parameters, seed=1)["model"]["digest"] != here


def test_each_format_gives_the_same_model(tmp_path: Path) -> None:
    frame = make_frame().drop("made")
    context = make_context(tmp_path)
    paths = [write_frame(tmp_path, frame, name) for name in ("parts.csv", "parts.json", "parts.parquet")]
    (tmp_path / "data" / "array.json").write_text(json.dumps(frame.to_dicts()))
    models = [train(context, training_data_path=path, features=["height"])["model"] for path in [*paths, "array.json"]]
    assert all(model["metrics"] == models[0]["metrics"] for model in models)
    assert all(model["signature"] == models[0]["signature"] for model in models)


def test_the_defaults_are_a_random_forest_that_classifies_the_target_column(tmp_path: Path) -> None:
    outputs = train(make_context(tmp_path), training_data_path=write_frame(tmp_path, make_frame().drop("price")))
    model = outputs["model"]
    assert (model["model_type"], model["algorithm"], model["framework"]) == (
        "classification", "random_forest", "scikit_learn",
    )  # fmt: skip
    assert model["signature"]["output"] == {"name": "target", "type": "string", "classes": ["bad", "good"]}
    assert [one["name"] for one in model["signature"]["inputs"]] == ["width", "height", "colour", "sealed"]
    assert (outputs["rows_trained"], outputs["rows_tested"]) == (128, 32)
    assert [note.split("'")[1] for note in outputs["notes"]] == ["serial", "made"]


def test_a_column_named_label_is_the_target_when_there_is_no_target(tmp_path: Path) -> None:
    frame = make_frame().rename({"target": "label"})
    outputs = train(make_context(tmp_path), training_data_path=write_frame(tmp_path, frame))
    assert outputs["model"]["signature"]["output"]["name"] == "label"


def test_an_upstream_dataset_brings_its_format_and_fingerprint(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    path = tmp_path / "data" / write_frame(tmp_path, make_frame())
    stored = context.artifacts.put_file(f"{context.tenant_id}/run/ingest/1/dataset", path)
    dataset = {"uri": stored.uri, "format": "parquet", "fingerprint": stored.fingerprint, "rows": 160}
    context.upstream_outputs = {"ingest": {"dataset": dataset}}
    outputs = train(context, training_data_path=stored.uri)
    assert outputs["model"]["data_fingerprint"] == stored.fingerprint


def test_progress_is_reported_while_a_forest_grows(tmp_path: Path) -> None:
    class Watched(TaskContext):
        """A context that remembers its progress."""

        def progress(self, fraction: float, message: str = "") -> None:
            seen.append((fraction, message))

    seen: list[tuple[float, str]] = []
    plain = make_context(tmp_path)
    context = Watched(**{field.name: getattr(plain, field.name) for field in fields(TaskContext) if field.init})
    path = write_frame(tmp_path, make_frame())
    train(context, training_data_path=path, hyperparameters={"n_estimators": 25}, cross_validation=3)
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len([message for _, message in seen if "of 25 trees" in message]) == 10
    assert len([message for _, message in seen if "of 3" in message]) == 3


def test_a_forest_grown_in_steps_is_the_forest_grown_at_once(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    context = make_context(tmp_path)
    frame = make_frame().with_columns(pl.col("width").fill_null(0.0))
    outputs = train(
        context, training_data_path=write_frame(tmp_path, frame), features=["width", "height"], split={"test_size": 0}
    )
    digest = outputs["model"]["digest"]
    pipeline, _ = read_model(context.artifacts.local_path(outputs["model"]["uri"], tmp_path), digest=digest)
    matrix = frame.select("width", "height").to_numpy()
    at_once = RandomForestClassifier(100, random_state=0).fit(matrix, np.array(frame["target"].to_list(), dtype=object))
    assert (pipeline[-1].predict_proba(matrix) == at_once.predict_proba(matrix)).all()


def test_the_gate_refuses_a_model_and_is_not_retried(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    with pytest.raises(OperatorFailure, match=r"accuracy is 0\.\d{4}, below min_accuracy 1") as caught:
        train(context, training_data_path=write_frame(tmp_path, make_frame()), features=["colour"], min_accuracy=1)
    assert (caught.value.reason, caught.value.retryable) == ("quality_gate", False)
    assert list(context.artifacts.list()) == []


def test_the_gate_uses_the_cross_validated_mean_when_all_rows_are_trained_on(tmp_path: Path) -> None:
    path = write_frame(tmp_path, make_frame())
    both = {"training_data_path": path, "split": {"test_size": 0}, "cross_validation": 4}
    outputs = train(make_context(tmp_path), **both, min_accuracy=0.8)
    assert outputs["rows_tested"] == 0
    assert outputs["cross_validation"]["accuracy"]["mean"] >= 0.8
    with pytest.raises(OperatorFailure, match="accuracy is"):
        train(make_context(tmp_path / "second"), **both | {"training_data_path": write_frame(tmp_path / "second",
              make_frame())}, min_accuracy=1)  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"target": "wdith"}, "The target 'wdith' is no column; there are width, height"),
        ({"features": ["width", "depth"]}, "The features depth are no columns; there are width"),
        ({"features": ["made"]}, "hold neither numbers, booleans nor text: made"),
        ({"target": "price"}, "holds fractions"),
        ({"target": "target", "model_type": "regression"}, "regression needs numbers"),
        ({"target": "sealed", "features": ["limitless"]}, "infinite values: limitless"),
        ({"target": "constant"}, "one value only"),
        ({"hyperparameters": {"class_weight": {"ugly": 2}}}, "class_weight names ugly; the classes are bad, good"),
        (
            {"algorithm": "linear", "hyperparameters": {"solver": "newton-cg", "l1_ratio": 1.0}},
            "linear can't be fitted",
        ),
    ],
)
def test_a_table_that_can_not_be_used_is_explained(
    parameters: Mapping[str, Any], sentence: str, tmp_path: Path
) -> None:
    frame = make_frame().with_columns(limitless=pl.lit(float("inf")), constant=pl.lit("same"))
    parameters = {"features": ["width", "height"], **parameters}
    with pytest.raises(OperatorFailure, match=sentence) as caught:
        train(make_context(tmp_path), training_data_path=write_frame(tmp_path, frame), **parameters)
    assert caught.value.reason == "bad_data"
    assert not caught.value.retryable


def test_a_table_without_target_names_its_columns(tmp_path: Path) -> None:
    path = write_frame(tmp_path, make_frame().drop("target"))
    with pytest.raises(OperatorFailure, match=r"No column is named 'target' or 'label'.*width, height"):
        train(make_context(tmp_path), training_data_path=path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("absent.csv", "not_found"), ("../secret.csv", "forbidden_path"),
     ("artifact://other/run/t/1/x.csv", "forbidden_path"),
     ("artifact://tenant/run/t/1/x.csv", "artifact_missing"), ("empty.csv", "bad_data"), ("noise.parquet", "bad_data"),
     ("unknown", "bad_parameters")],
)  # fmt: skip
def test_a_path_that_leads_nowhere_has_its_reason(path: str, reason: str, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    for name, content in (("empty.csv", b""), ("noise.parquet", b"\x00\xff" * 50), ("unknown", b"a,b\n1,2\n")):
        (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(OperatorFailure) as caught:
        train(context, training_data_path=path)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("parameters", "pointer", "sentence"),
    [
        ({"hyperparameters": {"n_trees": 5}}, "/hyperparameters/n_trees", "has no hyperparameter 'n_trees'"),
        ({"hyperparameters": {"n_estimators": "many"}}, "/hyperparameters/n_estimators", "a whole number ≥ 1"),
        ({"hyperparameters": {"random_state": 1}}, "/hyperparameters/random_state", "'seed'"),
        ({"hyperparameters": {"n_jobs": 8}}, "/hyperparameters/n_jobs", "cores"),
        ({"algorithm": "gradient_boosting", "hyperparameters": {"n_estimators": 5, "max_iter": 5}},
         "/hyperparameters/n_estimators", "another name of 'max_iter'"),
        ({"model_type": "clustering", "algorithm": "svm"}, "/algorithm", "choose kmeans, dbscan, gaussian_mixture"),
        ({"algorithm": "kmeans"}, "/algorithm", "is no algorithm for classification"),
        ({"algorithm": "magic"}, "/algorithm", "not one of"),
        ({"metrics": ["r2"]}, "/metrics/0", "is no metric for classification"),
        ({"model_type": "regression", "split": {"stratify": True}}, "/split/stratify", "Only classification"),
        ({"model_type": "clustering", "min_accuracy": 0.5}, "/min_accuracy", "no right answer"),
        ({"split": {"test_size": 0}, "min_accuracy": 0.5}, "/min_accuracy", "Nothing is left to measure it on"),
        ({"target": "a", "features": ["a", "b"]}, "/features", "can't be a feature too"),
        ({"split": {"test_size": 1}}, "/split/test_size", "1"),
        ({"epochs": 5}, "", "epochs"),
    ],
)  # fmt: skip
def test_a_wrong_definition_is_refused_when_it_is_saved(
    parameters: Mapping[str, Any], pointer: str, sentence: str
) -> None:
    found = check_parameters(ModelTraining, parameters)
    assert [place for place, _ in found] == [pointer]
    assert sentence in found[0][1]


def test_saving_a_definition_imports_no_library_for_data_or_models() -> None:
    code = (
        "import sys; from operators.model_training import ModelTraining;"
        "ModelTraining.problems({'hyperparameters': {'n_estimators': 5}});"
        "sys.exit(', '.join({'sklearn', 'numpy', 'polars', 'scipy', 'skops'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("entry", ESTIMATORS.values(), ids=lambda entry: entry.class_name)
def test_the_static_table_of_hyperparameters_is_that_of_the_estimator(entry: Estimator) -> None:
    estimator = _estimator_of(entry)
    offered = set(entry.parameters)
    assert not offered & (MANAGED | WITHHELD)
    assert offered == set(estimator.get_params()) - MANAGED - WITHHELD
    for name, schema in entry.parameters.items():
        for sample in _samples(schema):
            candidate = _estimator_of(entry).set_params(**{name: sample})
            candidate._validate_params()
    assert set(entry.aliases.values()) <= offered


def test_the_file_refuses_another_digest_foreign_types_and_nodes_that_run_code(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    card = {"model_type": "classification", "algorithm": "linear"}
    path = tmp_path / "model.skops"
    rows, labels = np.arange(8.0).reshape(-1, 1), np.arange(8) % 2
    write_model(path, LogisticRegression().fit(rows, labels), card)
    with pytest.raises(OperatorFailure, match="it is another file"):
        read_model(path, digest="sha256:" + "0" * 64)
    assert read_model(path, digest=_digest(path))[0].predict(rows).shape == (8,)
    write_model(path, SVC().fit(rows, labels), card)
    with pytest.raises(OperatorFailure, match=r"holds sklearn\.svm\._classes\.SVC, which its algorithm doesn't need"):
        read_model(path, digest=_digest(path))
    forged = {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "content": "os.system"}
    _write_forged(path, card, forged)
    with pytest.raises(OperatorFailure, match=r"holds os\.system, the node FunctionNode"):
        read_model(path, digest=_digest(path))
    path.write_bytes(b"no archive")
    with pytest.raises(OperatorFailure, match="is no model file of this operator"):
        read_model(path, digest=_digest(path))


def test_a_dry_run_reads_the_columns_and_trains_nothing(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    path = write_frame(tmp_path, make_frame())
    found = ModelTraining().dry_run(context, {"training_data_path": path, "features": ["width"]})
    assert found["rows"] == 160
    assert found["signature"] == [{"name": "width", "type": "number"}]
    assert list(context.artifacts.list()) == []


def _estimator_of(entry: Estimator) -> Any:
    import importlib

    return getattr(importlib.import_module(entry.module), entry.class_name)()


def _samples(schema: Mapping[str, Any]) -> list[Any]:
    """Return values at the edges of what the schema allows."""
    if "anyOf" in schema:
        return [sample for part in schema["anyOf"] for sample in _samples(part)]
    if "enum" in schema:
        return list(schema["enum"])
    kind = schema["type"]
    plain: dict[str, list[Any]] = {
        "null": [None],
        "boolean": [True, False],
        "array": [[3], [3, 2]],
        "object": [{"a": 1.5}],
    }
    if kind in plain:
        return plain[kind]
    low = schema.get("minimum", schema.get("exclusiveMinimum", -5))
    high = schema.get("maximum", schema.get("exclusiveMaximum", max(low, 1) + 9))
    if kind == "integer":
        return [low, high]
    ends = [schema[key] for key in ("minimum", "maximum") if key in schema]
    return [low + (high - low) / 3, *map(float, ends)]


def _digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _write_forged(path: Path, card: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("model.json", json.dumps(card))
        archive.writestr("schema.json", json.dumps({**schema, "protocol": 2, "_skops_version": "0.16.0"}))
    path.write_bytes(sink.getvalue())


def test_another_framework_is_one_file_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import operators.training.frameworks as package
    from operators.training.framework import load_frameworks

    text = (
        "from operators.training.frameworks.scikit_learn import ScikitLearn\n"
        "class Mine(ScikitLearn):\n    name = 'mine'\n    file_suffix = '.mine'\n"
    )
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert list(load_frameworks()) == ["mine", "scikit_learn"]
