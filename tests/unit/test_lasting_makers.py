"""Wide records that are made quickly are the records that calling their class makes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any

import pytest

from orchestrator.lasting import maker_of
from orchestrator.records import PlannedTask, Resources
from orchestrator.spec import TaskSpec


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TaskSpec, {"name": "a"}),
        (TaskSpec, {"name": "a", "operator": "b", "parameters": {"x": 1}, "retry": {"on": []}}),
        (PlannedTask, {"name": "a", "operator": "b", "resources": Resources(1, 2)}),
    ],
)
def test_a_record_made_quickly_is_like_any_other(kind: type[Any], values: dict[str, object]) -> None:
    made: Any = maker_of(kind)(**values)
    called = kind(**values)
    assert type(made) is kind
    assert made == called
    assert repr(made) == repr(called)
    with pytest.raises(FrozenInstanceError):
        made.name = "other"


def test_what_it_is_not_given_is_its_own() -> None:
    make = maker_of(TaskSpec)
    assert make(name="a").parameters is not make(name="b").parameters
    with pytest.raises(TypeError, match="name"):
        make(operator="b")
    with pytest.raises(TypeError, match="colour"):
        make(name="a", colour="red")


def test_a_record_that_does_more_than_keep_its_values_is_refused() -> None:
    @dataclass(frozen=True, slots=True)
    class Checked:
        values: list[int] = field(default_factory=list)

        def __post_init__(self) -> None:
            raise AssertionError

    with pytest.raises(TypeError, match="Checked does more than keep"):
        maker_of(Checked)
