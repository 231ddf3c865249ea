"""``model_training``: fits a classifier, regressor or clustering on a dataset and leaves a model behind."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from operators.training.evaluation import ACCURACY, METRICS, Split, cross_validate, fit_rows, measure, split_rows
from operators.training.framework import FittedModel, Framework, Job, Progress
from operators.training.schemas import (
    DEFAULT_CHECKPOINT_SECONDS,
    DEFAULT_FRAMEWORK,
    DEFAULT_TEST_SIZE,
    FRAMEWORKS,
    MODEL_TYPES,
    OUTPUTS,
    PARAMETERS,
)
from operators.training.table import Table, format_of, make_table, read_frame
from operators.training.unfinished import Unfinished
from orchestrator.inputs import describe_output, fingerprint, local_file
from orchestrator.operator import Input, Json, Operator, OperatorFailure, TaskContext

if TYPE_CHECKING:
    import polars as pl

_UNDECIDING = frozenset({"checkpoint_seconds", "min_accuracy", "training_data_path"})
"""Parameters that change nothing in what is trained; the data are known by their fingerprint."""


class ModelTraining(Operator):
    """Reads the dataset, splits it, cross-validates if asked, fits, measures, checks the gate and stores the model.

    The stored model is the one that was measured: fitted on the training rows only.
    """

    name = "model_training"
    summary = "Trains a classification, regression or clustering model and stores it with its metrics."
    inputs = (Input("training_data_path", "dataset"),)
    parameters_schema: ClassVar[Mapping[str, Json]] = PARAMETERS
    outputs_schema: ClassVar[Mapping[str, Json]] = OUTPUTS

    @classmethod
    def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Check the combination of model type, algorithm, hyperparameters, metrics and gate."""
        model_type = parameters.get("model_type", "classification")
        framework = FRAMEWORKS.get(parameters.get("framework", DEFAULT_FRAMEWORK))
        if framework is None or model_type not in MODEL_TYPES:
            return []
        found = _algorithm_problems(framework, model_type, parameters)
        found += _evaluation_problems(model_type, parameters)
        if parameters.get("target") is not None and parameters.get("target") in (parameters.get("features") or ()):
            found.append(("/features", f"{parameters['target']!r} is the target; it can't be a feature too."))
        return found

    @classmethod
    def produces(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Always a model."""
        return frozenset({"model"})

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Train; see the class."""
        framework, job = _job(context, parameters)
        uri = parameters["training_data_path"]
        made = describe_output(context, "dataset", uri)
        path = local_file(context, uri)
        table = _read(path, format_of(uri, parameters.get("format") or made.get("format")), parameters)
        context.progress(0.1, "dataset read")
        rows, width = table.features.shape
        context.log("Dataset read.", rows=rows, features=width, target=table.target_name or "none")
        for note in table.notes:
            context.log(note)
        started = time.monotonic()
        data_fingerprint = made.get("fingerprint") or fingerprint(path)
        unfinished = _unfinished(context, parameters, data_fingerprint)
        with _explained(context, job):
            model, split, results = _train(context, framework, job, table, parameters, unfinished)
        seconds = time.monotonic() - started
        _check_gate(job.model_type, parameters, results)
        described = _describe(framework, job, table, model, results["metrics"], data_fingerprint)
        stored = _store(context, framework, model, described)
        context.progress(1.0, "model stored")
        context.log("Model stored.", **stored, **results["metrics"])
        return {
            "model": {**stored, **described},
            **({"cross_validation": results["cross_validation"]} if "cross_validation" in results else {}),
            "rows_trained": len(split.train),
            "rows_tested": len(split.test),
            "seconds": round(seconds, 3),
            "notes": list(table.notes),
        }

    def dry_run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Read the dataset and choose the columns, without training."""
        uri = parameters["training_data_path"]
        made = describe_output(context, "dataset", uri)
        path = local_file(context, uri)
        table = _read(path, format_of(uri, parameters.get("format") or made.get("format")), parameters)
        return {
            "rows": table.features.height,
            "target": table.target_name,
            "signature": list(table.signature),
            "notes": list(table.notes),
        }


def _algorithm_problems(framework: Framework, model_type: str, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
    offered = framework.algorithms.get(model_type, ())
    if not offered:
        return [("/model_type", f"{framework.name} has no {model_type}.")]
    algorithm = parameters.get("algorithm", offered[0])
    if algorithm not in offered:
        return [("/algorithm", f"{algorithm!r} is no algorithm for {model_type}; choose {', '.join(offered)}.")]
    hyperparameters = parameters.get("hyperparameters")
    if not isinstance(hyperparameters, Mapping):
        return []
    found = framework.hyperparameter_problems(model_type, algorithm, hyperparameters)
    return [(f"/hyperparameters{pointer}", sentence) for pointer, sentence in found]


def _evaluation_problems(model_type: str, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    known = METRICS[model_type]
    found.extend(
        (f"/metrics/{position}", f"{name!r} is no metric for {model_type}; choose {', '.join(known)}.")
        for position, name in enumerate(parameters.get("metrics") or ())
        if name not in known
    )
    split = parameters.get("split")
    split = split if isinstance(split, Mapping) else {}
    if model_type != "classification" and split.get("stratify"):
        found.append(("/split/stratify", f"Only classification has classes to stratify by, not {model_type}."))
    if model_type == "clustering":
        needless = [name for name in ("min_accuracy", "cross_validation") if name in parameters]
        found += [(f"/{name}", "Clustering has no right answer to compare with; leave this out.") for name in needless]
    elif "min_accuracy" in parameters and split.get("test_size") == 0 and "cross_validation" not in parameters:
        found.append(("/min_accuracy", "Nothing is left to measure it on; set split.test_size or cross_validation."))
    return found


def _job(context: TaskContext, parameters: Mapping[str, Json]) -> tuple[Framework, Job]:
    framework = FRAMEWORKS[parameters.get("framework", DEFAULT_FRAMEWORK)]
    model_type = parameters.get("model_type", "classification")
    job = Job(
        model_type=model_type,
        algorithm=parameters.get("algorithm", framework.algorithms[model_type][0]),
        hyperparameters=parameters.get("hyperparameters", {}),
        seed=int(parameters.get("seed", 0)),
        threads=max(1, int(context.cpu)),
    )
    return framework, job


def _read(path: Any, file_format: str, parameters: Mapping[str, Json]) -> Table:
    frame: pl.DataFrame = read_frame(path, file_format)
    model_type = parameters.get("model_type", "classification")
    return make_table(frame, model_type, parameters.get("target"), parameters.get("features"))


def _unfinished(context: TaskContext, parameters: Mapping[str, Json], data: str) -> Unfinished:
    """Return where the training is kept, under a digest of all that decides what it ends in."""
    deciding = {name: value for name, value in parameters.items() if name not in _UNDECIDING}
    text = json.dumps([deciding, data], sort_keys=True)
    every = float(parameters.get("checkpoint_seconds", DEFAULT_CHECKPOINT_SECONDS))
    return Unfinished(context, hashlib.sha256(text.encode()).hexdigest(), every)


def _train(
    context: TaskContext,
    framework: Framework,
    job: Job,
    table: Table,
    parameters: Mapping[str, Json],
    unfinished: Unfinished,
) -> tuple[FittedModel, Split, dict[str, Any]]:
    """Split, cross-validate if asked, fit, measure. Progress goes from 0.1 to 0.95."""
    wanted = parameters.get("metrics") or METRICS[job.model_type]
    options = parameters.get("split", {})
    clustering = job.model_type == "clustering"
    test_size = 0 if clustering else options.get("test_size", DEFAULT_TEST_SIZE)
    stratify = job.model_type == "classification" and options.get("stratify", True)
    split = split_rows(table, test_size, stratify, job.seed)
    results: dict[str, Any] = {}
    begin = 0.1
    if folds := parameters.get("cross_validation"):
        begin = 0.55
        part = _part(context, 0.1, begin)
        results["cross_validation"] = cross_validate(
            framework, job, table, split.train, int(folds), wanted, part, unfinished
        )
    context.progress(begin, f"fitting {job.algorithm} on {len(split.train)} rows")
    model = fit_rows(framework, job, table, split.train, _part(context, begin, 0.9), unfinished)
    context.progress(0.9, "measuring")
    measured_on = split.train if clustering else split.test
    results["metrics"] = measure(model, job.model_type, table, measured_on, wanted) if len(measured_on) else {}
    context.progress(0.95, "measured")
    return model, split, results


def _part(context: TaskContext, begin: float, end: float) -> Progress:
    return lambda fraction, message: context.progress(begin + (end - begin) * fraction, message)


@contextmanager
def _explained(context: TaskContext, job: Job) -> Iterator[None]:
    """Log a library's warnings, and turn its refusal into a failure that another try can't mend."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except ValueError as error:
            reason = "bad_parameters" if type(error).__name__ == "InvalidParameterError" else "bad_data"
            raise OperatorFailure(reason, f"{job.algorithm} can't be fitted: {error}") from error
        finally:
            for sentence in dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught):
                context.log(f"Warning: {sentence[:500]}")


def _check_gate(model_type: str, parameters: Mapping[str, Json], results: Mapping[str, Any]) -> None:
    """Refuse a model below ``min_accuracy``.

    :raises OperatorFailure: ``quality_gate``.
    """
    least = parameters.get("min_accuracy")
    if least is None:
        return
    name = ACCURACY[model_type]
    found = results["metrics"].get(name, results.get("cross_validation", {}).get(name, {}).get("mean"))
    if found is None or found < least:
        told = "could not be measured" if found is None else f"is {found:.4f}, below min_accuracy {least}"
        raise OperatorFailure("quality_gate", f"The model's {name} {told}; it is not stored.")


def _describe(
    framework: Framework, job: Job, table: Table, model: FittedModel, metrics: Mapping[str, float], data: str
) -> dict[str, Json]:
    """Return the card of the model: what is kept inside its file and told in the outputs."""
    classes = list(model.classes())
    kind = {"classification": "string" if classes and isinstance(classes[0], str) else "integer",
            "regression": "number", "clustering": "integer"}[job.model_type]  # fmt: skip
    output: dict[str, Json] = {"name": table.target_name or "cluster", "type": kind}
    if classes and len(classes) <= 100:
        output["classes"] = classes
    return {
        "framework": framework.name,
        "algorithm": job.algorithm,
        "model_type": job.model_type,
        "hyperparameters": dict(job.hyperparameters),
        "seed": job.seed,
        "metrics": dict(metrics),
        "signature": {"inputs": list(table.signature), "output": output},
        "data_fingerprint": data,
    }


def _store(context: TaskContext, framework: Framework, model: FittedModel, card: Mapping[str, Json]) -> dict[str, Json]:
    path = context.workdir / f"model{framework.file_suffix}"
    model.save(path, card)
    artifact = context.artifacts.put_file(context.artifact_key(path.name), path)
    return {"uri": artifact.uri, "digest": artifact.fingerprint, "bytes": artifact.bytes}
