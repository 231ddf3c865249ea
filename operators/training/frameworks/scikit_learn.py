"""scikit-learn behind the framework port: a pipeline of imputing, encoding, scaling and one estimator."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from operators.training.framework import Array, FittedModel, Framework, Job, Progress
from operators.training.frameworks._sklearn_growth import Growth
from operators.training.frameworks._sklearn_parameters import ESTIMATORS, Estimator, hyperparameter_problems
from operators.training.unfinished import Unfinished
from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl

MAX_CATEGORIES = 50
"""Values of one text column that get a column of their own; the rarer ones share one."""


class SklearnModel(FittedModel):
    """A fitted pipeline; it also takes a pandas or polars table with the columns of its signature."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def predict(self, features: pl.DataFrame) -> Array:
        """Return the estimator's predictions."""
        return self.pipeline.predict(features)

    def probabilities(self, features: pl.DataFrame) -> Array | None:
        """Return probabilities; ``None`` for an SVM, which has none."""
        return self.pipeline.predict_proba(features) if hasattr(self.pipeline, "predict_proba") else None

    def classes(self) -> Sequence[Json]:
        """Return the classes in the order of the probabilities."""
        found = getattr(self.pipeline[-1], "classes_", None)
        return [] if found is None else list(found.tolist())

    def clusters(self, features: pl.DataFrame) -> tuple[Array, Array]:
        """Return the prepared matrix and the labels; DBSCAN labels only the rows it was fitted on."""
        matrix = self.pipeline[:-1].transform(features)
        labels = getattr(self.pipeline[-1], "labels_", None)
        return matrix, self.pipeline[-1].predict(matrix) if labels is None else labels

    def save(self, path: Path, card: Mapping[str, Json]) -> None:
        """Write a skops file (see :mod:`~operators.training.frameworks._sklearn_file`)."""
        from operators.training.frameworks._sklearn_file import write_model

        write_model(path, self.pipeline, card)


class ScikitLearn(Framework):
    """scikit-learn's estimators for all three model types."""

    name = "scikit_learn"
    file_suffix = ".skops"
    algorithms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "classification": ("random_forest", "svm", "neural_network", "gradient_boosting", "linear"),
        "regression": ("random_forest", "svm", "neural_network", "gradient_boosting", "linear"),
        "clustering": ("kmeans", "dbscan", "gaussian_mixture"),
    }

    def hyperparameter_problems(
        self, model_type: str, algorithm: str, hyperparameters: Mapping[str, Json]
    ) -> list[tuple[str, str]]:
        """Look the names and values up in the static table."""
        return hyperparameter_problems(model_type, algorithm, hyperparameters)

    def fit(
        self,
        job: Job,
        features: pl.DataFrame,
        target: Array | None,
        progress: Progress,
        unfinished: Unfinished | None = None,
    ) -> FittedModel:
        """Fit with at most ``job.threads`` threads; a forest grows in steps, reports each and keeps it where due."""
        from sklearn.pipeline import Pipeline
        from threadpoolctl import threadpool_limits

        entry = ESTIMATORS[job.model_type, job.algorithm]
        estimator = _estimator(entry, job, target)
        with threadpool_limits(limits=job.threads):
            preparation = _preparation(features, entry.scaled)
            if entry.grows_by:
                matrix = preparation.fit_transform(features)
                growth = Growth(job, entry.grows_by, preparation, estimator, unfinished)
                growth.grow(matrix, target, progress)
                return SklearnModel(growth.pipeline)
            if entry.target_scaled:
                estimator = _on_scaled_target(estimator)
            return SklearnModel(Pipeline([("prepare", preparation), ("model", estimator)]).fit(features, target))


def _estimator(entry: Estimator, job: Job, target: Array | None) -> Any:
    """Build the estimator with the job's hyperparameters, seed and threads, importing only its own module."""
    estimator = getattr(importlib.import_module(entry.module), entry.class_name)()
    known = estimator.get_params()
    values = {entry.aliases.get(name, name): value for name, value in job.hyperparameters.items()}
    for name, value in values.items():
        # JSON has one kind of number: 100.0 is a fine count of trees, but scikit-learn wants an int.
        if entry.parameters[name].get("type") == "integer":
            values[name] = int(value)
    if isinstance(values.get("class_weight"), Mapping):
        values["class_weight"] = _weights(values["class_weight"], target)
    managed = {"random_state": job.seed, "n_jobs": job.threads}
    # scikit-learn 1.8 made n_jobs of LogisticRegression a parameter without effect that warns when it is set.
    if entry.class_name == "LogisticRegression":
        del managed["n_jobs"]
    estimator.set_params(**values, **{name: value for name, value in managed.items() if name in known})
    return estimator


def _on_scaled_target(estimator: Any) -> Any:
    """Fit to the target at mean 0 and deviation 1: networks and SVMs start from there and stop before they arrive."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.preprocessing import StandardScaler

    return TransformedTargetRegressor(estimator, transformer=StandardScaler())


def _weights(given: Mapping[str, float], target: Array | None) -> dict[Any, float]:
    """Return the weights by label: keys of a JSON object are text, labels may be numbers."""
    labels = {str(label): label for label in ([] if target is None else set(target.tolist()))}
    if unknown := sorted(set(given) - set(labels)):
        raise ValueError(f"class_weight names {', '.join(unknown)}; the classes are {', '.join(sorted(labels))}")
    return {labels[name]: weight for name, weight in given.items()}


def _preparation(features: pl.DataFrame, scaled: bool) -> Any:
    """Return the step that turns columns into a matrix: medians for missing numbers, one column per category."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = [name for name, kind in features.schema.items() if kind.is_numeric()]
    texts = [name for name in features.columns if name not in numbers]
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    numeric = Pipeline([("impute", imputer), ("scale", StandardScaler())]) if scaled else imputer
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MAX_CATEGORIES, sparse_output=False)
    parts = [("numbers", numeric, numbers), ("texts", encoder, texts)]
    return ColumnTransformer([part for part in parts if part[2]], verbose_feature_names_out=False)
