"""``best_of``: which of several results is handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from operators.best_of import BestOf
from orchestrator.operator import OperatorFailure
from orchestrator.testing import check_parameters, make_context, run_operator

TRAINED = [
    {"model": {"uri": "artifact://tenant/r/train@0/1/m", "metrics": {"accuracy": 0.7}}, "seconds": 9},
    None,
    {"model": {"uri": "artifact://tenant/r/train@2/1/m", "metrics": {"accuracy": 0.9}}, "seconds": 3},
    {"model": {"uri": "artifact://tenant/r/train@3/1/m", "metrics": {"accuracy": 0.9}}, "seconds": 3.5},
    {"rows": 3},
]


def best(tmp_path: Path, **parameters: Any) -> dict[str, Any]:
    return dict(run_operator(BestOf, make_context(tmp_path), {"results": TRAINED, **parameters}))


def test_the_largest_number_wins_and_of_equals_the_first(tmp_path: Path) -> None:
    found = best(tmp_path, metric="model.metrics.accuracy")
    assert (found["index"], found["value"], found["result"]) == (2, 0.9, TRAINED[2])


def test_the_smallest_number_wins_when_it_is_asked_for(tmp_path: Path) -> None:
    assert best(tmp_path, metric="seconds", mode="min")["index"] == 2
    assert best(tmp_path, metric="model.metrics.accuracy", mode="min")["index"] == 0


def test_what_the_best_result_holds_is_handed_on_to_tasks_downstream(tmp_path: Path) -> None:
    found = best(tmp_path, metric="seconds", produces=["model"])
    assert (found["index"], found["model"]) == (0, TRAINED[0]["model"])  # type: ignore[index]
    with pytest.raises(OperatorFailure, match="no dataset"):
        best(tmp_path, metric="seconds", produces=["model", "dataset"])


@pytest.mark.parametrize("metric", ["model.metrics.f1", "model.uri", "model", "seconds.x", "..", "rows.0"])
def test_none_left_is_a_failure_that_says_where_was_looked(tmp_path: Path, metric: str) -> None:
    with pytest.raises(OperatorFailure) as caught:
        best(tmp_path, metric=metric)
    assert (caught.value.reason, caught.value.retryable) == ("no_result", False)
    assert repr(metric) in caught.value.message


def test_truth_values_and_no_results_are_no_numbers(tmp_path: Path) -> None:
    for results in ([], [None, None], [{"a": True}, {"a": "7"}]):
        with pytest.raises(OperatorFailure, match="None of the"):
            best(tmp_path, results=results, metric="a")
    lists = [{"losses": [3, 1]}, {"losses": [2, 5]}]
    assert best(tmp_path, results=lists, metric="losses.1")["index"] == 1


def test_results_and_metric_have_to_be_given() -> None:
    assert len(check_parameters(BestOf, {})) == 2
    assert check_parameters(BestOf, {"results": "x", "metric": "a"})
