"""The port between ``model_training`` and a machine-learning framework, and the search for its adapters."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.operator import Json

if TYPE_CHECKING:
    import polars as pl

    from operators.training.unfinished import Unfinished


Array = Any
"""A numpy array. ``Any``, because numpy is imported only while training."""

Progress = Callable[[float, str], None]
"""Called with a fraction from 0 to 1 and a word about what is being done."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to fit. ``hyperparameters`` have passed :meth:`Framework.hyperparameter_problems`."""

    model_type: str
    algorithm: str
    hyperparameters: Mapping[str, Json]
    seed: int
    threads: int


class FittedModel(ABC):
    """A model after fitting, with its preprocessing: it takes the columns of the table it was fitted on."""

    @abstractmethod
    def predict(self, features: pl.DataFrame) -> Array:
        """Return one label or number per row."""

    @abstractmethod
    def probabilities(self, features: pl.DataFrame) -> Array | None:
        """Return rows × classes in the order of :meth:`classes`; ``None`` if the algorithm has none."""

    @abstractmethod
    def classes(self) -> Sequence[Json]:
        """Return the labels of a classifier, else an empty sequence."""

    @abstractmethod
    def clusters(self, features: pl.DataFrame) -> tuple[Array, Array]:
        """Return the rows as the algorithm saw them and their cluster labels (-1: none); ``features`` as fitted."""

    @abstractmethod
    def save(self, path: Path, card: Mapping[str, Json]) -> None:
        """Write one file that can be read without running code from it; ``card`` describes the model."""


class Framework(ABC):
    """One machine-learning framework. Its file must import without the framework itself."""

    name: ClassVar[str]
    file_suffix: ClassVar[str]
    algorithms: ClassVar[Mapping[str, tuple[str, ...]]]
    """Algorithms by model type; the first is the default of the type."""

    @abstractmethod
    def hyperparameter_problems(
        self, model_type: str, algorithm: str, hyperparameters: Mapping[str, Json]
    ) -> list[tuple[str, str]]:
        """Return ``(pointer inside hyperparameters, sentence)`` for what the algorithm would refuse."""

    @abstractmethod
    def fit(
        self,
        job: Job,
        features: pl.DataFrame,
        target: Array | None,
        progress: Progress,
        unfinished: Unfinished | None = None,
    ) -> FittedModel:
        """Fit and return the model; the same job on the same rows gives the same model.

        :param unfinished: where a fit that grows in steps keeps what it has, and finds what an earlier attempt kept;
            the model is the same as without.
        :param features: number columns are ``Float64`` (missing: null), the others ``String``.
        :param target: ``None`` for clustering.
        :raises ValueError: the framework refuses these rows or this combination of hyperparameters.
        """


def load_frameworks() -> Mapping[str, Framework]:
    """Return every adapter of ``operators/training/frameworks`` by name."""
    package = importlib.import_module("operators.training.frameworks")
    found: dict[str, Framework] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for _, value in inspect.getmembers(loaded, inspect.isclass):
            if issubclass(value, Framework) and not inspect.isabstract(value) and value.__module__ == loaded.__name__:
                found[value.name] = value()
    return dict(sorted(found.items()))
