"""Two values are the same where JSON says so, at any depth."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.documents import is_same_json


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (0, False, False),
        ([1], [True], False),
        ([1, [2]], [1, [2.0]], True),
        ({"a": {"b": [0]}}, {"a": {"b": [False]}}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ([1, 2], [1], False),
        ("1", 1, False),
        (None, False, False),
        (None, None, True),
        ([], {}, False),
    ],
)
def test_values_are_compared_as_json(one: Any, other: Any, same: bool) -> None:
    assert is_same_json(one, other) is same
    assert is_same_json(other, one) is same
