"""Splits, cross-validation and metrics: how good a model is on rows it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from operators.training.framework import Array, FittedModel, Framework, Job, Progress
from operators.training.table import Table
from operators.training.unfinished import Unfinished

if TYPE_CHECKING:
    import polars as pl

METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "log_loss"),
    "regression": ("r2", "mae", "rmse", "mape"),
    "clustering": ("silhouette", "calinski_harabasz", "davies_bouldin"),
}
"""Metrics by model type. Precision, recall and F1 are means over the classes; ROC AUC is one against the rest."""

ACCURACY: Mapping[str, str] = {"classification": "accuracy", "regression": "r2"}
"""What ``min_accuracy`` is compared with."""

_SILHOUETTE_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers to fit on and to test on; ``test`` is empty when everything is fitted on."""

    train: Array
    test: Array
    stratified: bool


def split_rows(table: Table, test_size: float, stratify: bool, seed: int) -> Split:
    """Divide the rows at random; ``stratify`` keeps the classes' shares where every class has at least two rows."""
    import numpy as np

    rows = np.arange(table.features.height)
    if test_size == 0:
        return Split(rows, rows[:0], False)
    from sklearn.model_selection import train_test_split

    stratified = stratify and table.target is not None and _least_frequent(table.target) > 1
    labels = table.target if stratified else None
    train, test = train_test_split(rows, test_size=test_size, random_state=seed, stratify=labels)
    return Split(np.sort(train), np.sort(test), stratified)


def cross_validate(
    framework: Framework,
    job: Job,
    table: Table,
    rows: Array,
    folds: int,
    metrics: Sequence[str],
    progress: Progress,
    unfinished: Unfinished,
) -> Mapping[str, Mapping[str, float]]:
    """Return mean and standard deviation of each metric over the folds of ``rows``; those that an earlier attempt has
    measured are not measured again."""
    import numpy as np
    from sklearn.model_selection import KFold, StratifiedKFold

    target = table.target[rows] if table.target is not None else None
    stratified = job.model_type == "classification" and _least_frequent(target) >= folds
    splitter = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=job.seed)
    done = unfinished.folds()
    if done:
        unfinished.log(f"Going on after {len(done)} of {folds} folds.")
    for number, (train, test) in enumerate(splitter.split(rows, target if stratified else None), start=1):
        if number > len(done):
            model = fit_rows(framework, job, table, rows[train], _silent)
            done.append(measure(model, job.model_type, table, rows[test], metrics))
            if unfinished.is_due():
                unfinished.keep_folds(done)
        progress(number / folds, f"fold {number} of {folds}")
    scores: dict[str, list[float]] = {}
    for measured in done:
        for name, value in measured.items():
            scores.setdefault(name, []).append(value)
    return {name: {"mean": float(np.mean(values)), "std": float(np.std(values))} for name, values in scores.items()}


def _silent(_fraction: float, _message: str) -> None:
    """Drop the progress inside a fold; the folds are reported."""


def fit_rows(
    framework: Framework,
    job: Job,
    table: Table,
    rows: Array,
    progress: Progress,
    unfinished: Unfinished | None = None,
) -> FittedModel:
    """Fit on these rows of the table."""
    target = table.target[rows] if table.target is not None else None
    return framework.fit(job, table.features[rows], target, progress, unfinished)


def measure(model: FittedModel, model_type: str, table: Table, rows: Array, metrics: Sequence[str]) -> dict[str, float]:
    """Return those of ``metrics`` that can be computed on these rows (an SVM has no log loss, one class no ROC AUC)."""
    features = table.features[rows]
    if model_type == "clustering":
        found = _clustering(model, features, metrics)
    elif model_type == "regression":
        found = _regression(table.target[rows] if table.target is not None else None, model.predict(features), metrics)
    else:
        found = _classification(model, features, table.target[rows] if table.target is not None else None, metrics)
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _classification(
    model: FittedModel, features: pl.DataFrame, truth: Array, metrics: Sequence[str]
) -> dict[str, float]:
    from sklearn import metrics as scores

    predicted = model.predict(features)
    averaged = {"average": "macro", "zero_division": 0}
    formulas: dict[str, Callable[[], float]] = {
        "accuracy": lambda: scores.accuracy_score(truth, predicted),
        "balanced_accuracy": lambda: scores.recall_score(truth, predicted, labels=sorted(set(truth)), **averaged),
        "precision": lambda: scores.precision_score(truth, predicted, **averaged),
        "recall": lambda: scores.recall_score(truth, predicted, **averaged),
        "f1": lambda: scores.f1_score(truth, predicted, **averaged),
    }
    found = {name: formulas[name]() for name in metrics if name in formulas}
    if {"roc_auc", "log_loss"} & set(metrics):
        found |= _from_probabilities(model, features, truth, metrics)
    return found


def _from_probabilities(
    model: FittedModel, features: pl.DataFrame, truth: Array, metrics: Sequence[str]
) -> dict[str, float]:
    from sklearn import metrics as scores

    shares = model.probabilities(features)
    classes = list(model.classes())
    present = set(truth.tolist())
    if shares is None or not present <= set(classes):
        return {}
    found: dict[str, float] = {}
    if "log_loss" in metrics:
        found["log_loss"] = scores.log_loss(truth, shares, labels=classes)
    if "roc_auc" in metrics and len(present) == len(classes):
        if len(classes) == 2:
            found["roc_auc"] = scores.roc_auc_score(truth == classes[1], shares[:, 1])
        else:
            found["roc_auc"] = scores.roc_auc_score(truth, shares, multi_class="ovr", labels=classes)
    return found


def _regression(truth: Array, predicted: Array, metrics: Sequence[str]) -> dict[str, float]:
    from sklearn import metrics as scores

    formulas: dict[str, Callable[[], float]] = {
        "mae": lambda: scores.mean_absolute_error(truth, predicted),
        "rmse": lambda: math.sqrt(scores.mean_squared_error(truth, predicted)),
        "mape": lambda: scores.mean_absolute_percentage_error(truth, predicted),
    }
    if len(truth) > 1:
        formulas["r2"] = lambda: scores.r2_score(truth, predicted)
    return {name: formulas[name]() for name in metrics if name in formulas}


def _clustering(model: FittedModel, features: pl.DataFrame, metrics: Sequence[str]) -> dict[str, float]:
    from sklearn import metrics as scores

    matrix, labels = model.clusters(features)
    inside = labels >= 0
    found = {"clusters": float(len(set(labels[inside].tolist()))), "noise": float(1 - inside.mean())}
    matrix, labels = matrix[inside], labels[inside]
    if not 2 <= found["clusters"] < len(labels):
        return found
    formulas: dict[str, Callable[[], float]] = {
        "calinski_harabasz": lambda: scores.calinski_harabasz_score(matrix, labels),
        "davies_bouldin": lambda: scores.davies_bouldin_score(matrix, labels),
    }
    found |= {name: formulas[name]() for name in metrics if name in formulas}
    if "silhouette" in metrics:
        found["silhouette"] = _silhouette(matrix, labels)
    return found


def _silhouette(matrix: Array, labels: Array) -> float:
    """Compute it on evenly spaced rows: it compares every row with every other."""
    import numpy as np
    from sklearn.metrics import silhouette_score

    chosen = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _SILHOUETTE_ROWS)).astype(int))
    kept = len(set(labels[chosen].tolist()))
    return float(silhouette_score(matrix[chosen], labels[chosen])) if 2 <= kept < len(chosen) else math.nan


def _least_frequent(target: Array) -> int:
    import numpy as np

    return int(np.unique(target.astype(str), return_counts=True)[1].min())
