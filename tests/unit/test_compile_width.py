"""A definition whose maps can only fail, because they make too many task runs, is refused when it is saved."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_compile import task
from tests.unit.test_compile_shapes import faults


def mapped(name: str, items: Any, *body: Any, **fields: Any) -> dict[str, Any]:
    map_ = {"over": items if isinstance(items, str) else {"range": items}, "max_size": 10_000}
    return {"name": name, "map": map_, "tasks": list(body), **fields} if body else task(name, "script", map=map_)


def scripts(count: int) -> list[Any]:
    return [task(f"t{n}", "script") for n in range(count)]


@pytest.mark.parametrize(
    ("tasks", "pointer", "words"),
    [
        ([mapped("m", 10_000, *scripts(2))], "/tasks/0/map/over", "10000 items for 2 tasks each, which makes 20000"),
        ([mapped("m", 100, mapped("n", 200, mapped("o", 2)), task("t", "script"))], "/tasks/0/map/over", "makes 60201"),
        ([mapped("m", 10, mapped("n", 3000, *scripts(4)))], "/tasks/0/tasks/0/map/over", "which makes 12000"),
        (
            [mapped("m", 300, {"name": "r", "repeat": {"until": "True", "max": 2}, "tasks": [mapped("n", 100)]})],
            "/tasks/0/map/over",
            "makes 30601",
        ),
    ],
)
def test_too_many_task_runs_are_told(tasks: list[Any], pointer: str, words: str) -> None:
    assert words in faults(*tasks)[pointer]


@pytest.mark.parametrize(
    "tasks",
    [
        [mapped("m", 10_000)],
        [mapped("m", 2000, *scripts(5))],
        [mapped("m", 10_000), mapped("n", 10_000), mapped("o", 10_000)],
        [mapped("m", 100, mapped("n", "{{ params.inner }}"), task("t", "script"))],
        [mapped("m", 100, {**mapped("n", 1000), "when": "map.index == 0"}, task("t", "script"))],
    ],
)
def test_what_may_fit_is_left_to_the_run(tasks: list[Any]) -> None:
    assert faults(*tasks, parameters={"inner": [1, 2]}) == {}
