"""A training that was stopped goes on from what it has kept, to the same model as one that was not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from operators.model_training import ModelTraining
from orchestrator.artifacts import LocalArtifacts
from orchestrator.errors import StoreUnavailable
from orchestrator.operator import OperatorFailure, TaskContext
from orchestrator.testing import check_parameters, make_context, run_operator

pytestmark = pytest.mark.timeout(120)


class Stopped(BaseException):
    """As the death of its process, a stop leaves no time to clear up."""


class Site:
    """One task whose attempts share a data root and an artifact store."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tmp_path = tmp_path
        self.monkeypatch = monkeypatch
        self.store = LocalArtifacts(tmp_path / "shared", scope="shared")
        self.attempts = 0
        generator = np.random.default_rng(3)
        label = np.arange(240) % 3
        columns = {f"c{n}": generator.normal(label * (n % 3), 1.0) for n in range(4)}
        self.frame = pl.DataFrame({**columns, "kind": [("a", "b", "c")[value] for value in label], "target": label})

    def train(self, stop_at: str = "", **parameters: Any) -> Mapping[str, Any]:
        """Run the next attempt; it is stopped when it reports what ``stop_at`` says."""
        self.attempts += 1
        place = self.tmp_path / str(self.attempts)
        context = make_context(place, artifacts=self.store, attempt_number=self.attempts)
        self.frame.write_parquet(place / "data" / "x.parquet")

        def progress(self: TaskContext, fraction: float, message: str = "") -> None:
            if stop_at and stop_at in message:
                raise Stopped

        self.monkeypatch.setattr(TaskContext, "progress", progress)
        told = {"training_data_path": "x.parquet", "checkpoint_seconds": 0, **parameters}
        if not stop_at:
            return run_operator(ModelTraining, context, told)
        with pytest.raises(Stopped):
            ModelTraining().run(context, told)
        return {}

    @property
    def kept(self) -> list[str]:
        return [key.rpartition("/")[2] for key in self.store.list("checkpoints")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


@pytest.mark.parametrize("model_type", ["classification", "regression"])
def test_a_forest_goes_on_from_its_trees_to_the_same_model(
    site: Site, capsys: pytest.CaptureFixture[str], model_type: str
) -> None:
    job: dict[str, Any] = {
        "model_type": model_type,
        "algorithm": "random_forest",
        "features": ["c0", "c1", "kind"],
        "hyperparameters": {"n_estimators": 40},
        "seed": 5,
    }
    whole = site.train(**job)
    site.train("12 of 40 trees", **job)
    site.train("28 of 40 trees", **job)
    assert site.kept == ["1.000003"]
    capsys.readouterr()
    assert site.train(**job)["model"]["digest"] == whole["model"]["digest"]
    assert "Going on from 24 of 40 trees." in capsys.readouterr().out
    assert site.kept == []


def test_folds_that_are_measured_are_not_measured_again(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    job: dict[str, Any] = {"algorithm": "linear", "cross_validation": 5}
    whole = site.train(**job)
    site.train("fold 4 of 5", **job)
    capsys.readouterr()
    assert site.train(**job)["cross_validation"] == whole["cross_validation"]
    assert "Going on after 4 of 5 folds." in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"seed": 6}, {"hyperparameters": {"n_estimators": 40, "max_depth": 2}}, {}])
def test_what_was_kept_of_another_training_is_not_gone_on_from(
    site: Site, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    job: dict[str, Any] = {"hyperparameters": {"n_estimators": 40}, "split": {"test_size": 0}}
    site.train("20 of 40 trees", **job)
    if not change:
        site.frame = site.frame.with_columns(pl.col("c0") + 1)
    anew = site.train(**{**job, **change})
    assert "is of another training" in capsys.readouterr().out
    assert site.train(**{**job, **change})["model"]["digest"] == anew["model"]["digest"]


def test_what_can_not_be_read_is_not_gone_on_from(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.store.put_bytes("checkpoints/tenant/run/task/1.000000", b"no model")
    assert site.train(hyperparameters={"n_estimators": 10})["rows_trained"]
    assert "can't be used" in capsys.readouterr().out


def test_that_nothing_can_be_kept_stops_no_training(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(key: str, path: Path, **options: Any) -> None:
        raise StoreUnavailable("The store is full.")

    site.store.put_file = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreUnavailable, match="full"):  # of the model itself
        site.train(hyperparameters={"n_estimators": 10})
    assert capsys.readouterr().out.count("Could not keep") == 9


def test_a_store_that_can_not_tell_what_was_kept_is_waited_for(site: Site) -> None:
    def refuse(prefix: str = "") -> None:
        raise StoreUnavailable("The store does not answer.")

    site.store.list = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(OperatorFailure) as caught:
        site.train()
    assert (caught.value.reason, caught.value.retryable) == ("store_unavailable", True)


def test_nothing_is_kept_of_what_is_done_within_the_interval(site: Site) -> None:
    site.train("8 of 10 trees", hyperparameters={"n_estimators": 10}, checkpoint_seconds=3600)
    assert site.kept == []
    assert check_parameters(ModelTraining, {"checkpoint_seconds": -1})
