"""What a map goes over: lists, ranges, grids, samples and zips, the same each time, and never too many."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SweepError
from orchestrator.sweep import items, over_problems

BILLION = {"grid": {name: list(range(1000)) for name in "abc"}}


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ([1, "a", None, {"x": 1}], [1, "a", None, {"x": 1}]),
        ([], []),
        ({"range": 3}, [0, 1, 2]),
        ({"range": 0}, []),
        ({"range": [2, 5]}, [2, 3, 4]),
        ({"range": [0, 10, 4]}, [0, 4, 8]),
        ({"range": [10, 0, -3]}, [10, 7, 4, 1]),
        ({"range": [5, 1]}, []),
        ({"range": [3.0]}, [0, 1, 2]),
        (
            {"grid": {"b": [1, 2], "a": ["x", "y"]}},
            [{"a": "x", "b": 1}, {"a": "x", "b": 2}, {"a": "y", "b": 1}, {"a": "y", "b": 2}],
        ),
        ({"grid": {"a": [1], "b": []}}, []),
        ({"zip": {"a": [1, 2], "b": ["x", "y"]}}, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    ],
)
def test_the_items_are_built(over: Any, expected: list[Any]) -> None:
    assert items(over) == expected


def test_samples_are_the_same_on_every_host_and_release() -> None:
    over = {
        "random": {
            "lr": {"low": 0.0001, "high": 1, "log": True},
            "depth": {"low": 1, "high": 6, "integer": True},
            "kind": ["a", "b"],
            "share": {"low": -1, "high": 1},
        },
        "samples": 3,
        "seed": 7,
    }
    found = items(over)
    assert [(item["depth"], item["kind"]) for item in found] == [(4, "b"), (1, "a"), (3, "b")]
    assert [item["lr"] for item in found] == pytest.approx(
        [0.028096243875530936, 0.00010653445676223189, 0.12179795452135]
    )
    assert items(json.loads(json.dumps(over))) == found
    assert items({**over, "seed": 8}) != found
    alone = items({**over, "random": {"lr": over["random"]["lr"]}})  # type: ignore[index]
    assert [item["lr"] for item in alone] == [item["lr"] for item in found], "another name beside it changes nothing"


@given(st.integers(0, 10**6), st.floats(1e-6, 10), st.floats(0, 10), st.booleans(), st.booleans())
def test_samples_stay_in_their_spread(seed: int, low: float, width: float, log: bool, integer: bool) -> None:
    if integer:
        low, width = float(math.ceil(low)), float(math.floor(width))
    spread = {"low": low, "high": low + width, "log": log, "integer": integer}
    for item in items({"random": {"x": spread}, "samples": 20, "seed": seed}):
        assert low <= item["x"] <= low + width
        assert isinstance(item["x"], int) == integer


def test_every_whole_number_of_a_spread_is_drawn() -> None:
    drawn = items({"random": {"x": {"low": 1, "high": 4, "integer": True}}, "samples": 200})
    assert {item["x"] for item in drawn} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("over", "pointer", "words"),
    [
        (3, "", '{"range": n}'),
        (None, "", "not over null"),
        ("text", "", "not over a text"),
        (float("nan"), "", "a number"),
        ({}, "", "exactly one of"),
        ({"grid": {"a": [1]}, "zip": {"a": [1]}}, "", "2 of them"),
        ({"gird": {"a": [1]}}, "", "exactly one of"),
        ({"grid": {"a": [1]}, "samples": 3}, "/samples", "no field 'samples'"),
        ({"range": [1, 2, 0]}, "/range/2", "not 0"),
        ({"range": [1, 2, 3, 4]}, "/range", "[start, stop"),
        ({"range": []}, "/range", "[start, stop"),
        ({"range": 1.5}, "/range", "whole numbers"),
        ({"range": True}, "/range", "whole numbers"),
        ({"grid": {}}, "/grid", "0 names"),
        ({"grid": [1]}, "/grid", "not a list"),
        ({"grid": {"a/b": 3}}, "/grid/a~1b", "give a list"),
        ({"zip": {"a": [1], "b": [1, 2]}}, "/zip", "different lengths"),
        ({"random": {"a": [1]}}, "/samples", "missing"),
        ({"random": {"a": [1]}, "samples": 0}, "/samples", "from 1"),
        ({"random": {"a": [1]}, "samples": 1, "seed": "x"}, "/seed", "whole number"),
        ({"random": {"a": [1]}, "samples": 1, "sead": 1}, "/sead", "Did you mean 'seed'?"),
        ({"random": {"a": []}, "samples": 1}, "/random/a", "nothing to choose"),
        ({"random": {"a": {"low": 1}}, "samples": 1}, "/random/a/high", "missing"),
        ({"random": {"a": {"low": 2, "high": 1}}, "samples": 1}, "/random/a/high", "below"),
        ({"random": {"a": {"low": 0, "high": 1, "log": True}}, "samples": 1}, "/random/a/low", "above 0"),
        ({"random": {"a": {"low": 0.5, "high": 1, "integer": True}}, "samples": 1}, "/random/a/low", "whole number"),
        ({"random": {"a": {"low": 0, "high": 1, "log": 1}}, "samples": 1}, "/random/a/log", "true or false"),
        ({"random": {"a": {"low": 0, "high": 1e300}}, "samples": 1}, "/random/a/high", "2**53"),
        ({"random": {"a": {"low": 0, "hihg": 1}}, "samples": 1}, "/random/a/hihg", "Did you mean 'high'?"),
        (BILLION, "", "1000000000 items"),
        ({"range": 10**15}, "", "1000000000000000 items"),
        ({"range": [0, -(10**15), -1]}, "", "at most 10000"),
        ({"random": {"a": [1]}, "samples": 10**9}, "", "1000000000 items"),
    ],
)
def test_a_fault_is_told_at_its_place_at_save_and_when_it_runs(over: Any, pointer: str, words: str) -> None:
    with pytest.raises(SweepError) as caught:
        items(over)
    assert (caught.value.pointer, words in str(caught.value)) == (pointer, True), caught.value
    (problem,) = over_problems(over, 10_000, "/over")
    assert (problem.pointer, problem.message) == (f"/over{pointer}", str(caught.value))


def test_too_many_items_are_refused_before_any_is_built() -> None:
    began = time.process_time()
    with pytest.raises(SweepError, match="at most 10"):
        items(BILLION, 10)
    with pytest.raises(SweepError) as caught:
        items({"grid": {f"n{at}": list(range(1000)) for at in range(50)}})
    assert caught.value.too_many
    assert time.process_time() - began < 0.1
    assert len(items({"range": 10}, 10)) == 10


@pytest.mark.parametrize(
    "over",
    [
        "{{ params.list }}",
        {"grid": {"a": "{{ params.list }}", "b": [1, 2]}},
        {"zip": {"a": "{{ params.list }}", "b": [1, 2]}},
        {"range": "{{ params.n }}"},
        {"range": [0, "{{ params.n }}"]},
        {
            "random": {"a": {"low": "{{ params.low }}", "high": 1, "log": True}},
            "samples": "{{ params.n }}",
            "seed": "{{ params.s }}",
        },
    ],
)
def test_where_a_template_stands_nothing_is_known_yet(over: Any) -> None:
    assert over_problems(over, 3, "/over") == []
    with pytest.raises(SweepError):
        items(over)


def test_what_is_known_beside_a_template_is_checked() -> None:
    assert over_problems({"grid": {"a": "{{ params.list }}", "b": 3}}, 10, "")[0].pointer == "/grid/b"
    assert over_problems({"zip": {"a": "{{ params.x }}", "b": [1], "c": [1, 2]}}, 10, "")[0].pointer == "/zip"
    assert "at most 1 " in over_problems({"zip": {"a": "{{ params.x }}", "b": [1, 2]}}, 1, "")[0].message


FIELDS = ["range", "grid", "zip", "random", "samples", "seed", "low", "high", "log", "integer", "a"]

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("{{ params.x }}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(any_json)
def test_anything_is_a_list_of_items_or_refused_with_a_sentence(over: Any) -> None:
    over_problems(over, 100, "")
    found, refusal = [], "Not refused."
    try:
        found = items(over, 100)
    except SweepError as error:
        refusal = str(error)
    assert refusal.endswith((".", "?"))
    assert len(found) <= 100
