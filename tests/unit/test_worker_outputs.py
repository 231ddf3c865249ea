"""What an operator returns is JSON, small enough, and no deeper than what reads it can go."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.operator import OperatorFailure
from workers.outputs import read_outputs, read_records


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_outputs_are_read_as_json_values() -> None:
    assert read_outputs({"pair": (1, 2), "none": None}) == {"pair": [1, 2], "none": None}
    assert read_outputs({"a": deep(31)}) == {"a": deep(31)}


@pytest.mark.parametrize("levels", [32, 100, 900, 980, 990, 995, 100_000])
def test_outputs_and_records_that_are_nested_too_deep_are_refused(levels: int) -> None:
    with pytest.raises(OperatorFailure, match=r"outputs are (nested more than 32 deep|no JSON)") as caught:
        read_outputs({"a": deep(levels)})
    assert (caught.value.reason, caught.value.retryable) == ("bad_outputs", False)
    with pytest.raises(OperatorFailure, match=r"records are (nested more than 32 deep|no JSON)"):
        read_records([{"a": deep(levels)}])


def test_outputs_that_hold_themselves_are_refused() -> None:
    twice: list[Any] = []
    twice += [twice, twice]
    with pytest.raises(OperatorFailure, match="are no JSON"):
        read_outputs({"a": twice})
