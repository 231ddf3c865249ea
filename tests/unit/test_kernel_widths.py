"""How wide a run may become: bounds on what is expanded at once and in all, in parts that a round can take."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.effects import CreateTasks, StartChild
from orchestrator.events import Tick
from orchestrator.kernel import expanding
from orchestrator.records import ApprovalPlan, ChildPlan, Plan, PlannedTask
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import GIB, task
from tests.unit.written_driver import Written, mapped, repeated

F, P, R = TaskState.FAILED, TaskState.PENDING, TaskState.RUNNING


def started(*tasks: PlannedTask, **fields: Any) -> Written:
    driver = Written()
    driver.worker(cpu=64_000, memory=64 * GIB, slots=64)
    driver.run(*tasks, **fields)
    return driver


def made(driver: Written) -> int:
    return sum(len(effect.tasks) for effect in driver.all_of(CreateTasks))


def test_a_wide_map_of_a_group_fails_before_any_of_it_is_made() -> None:
    body = tuple(task(f"t{n}") for n in range(5))
    driver = started(mapped("wide", over={"range": 2001}, max_size=10_000, body=body))
    assert driver.told("wide") == (F, "too_many_items")
    assert "2001 items for 5 tasks each, which makes 10005 task runs; at most 10000" in driver.row("wide").message
    assert not made(driver)
    assert driver.run_state() is RunState.FAILED


def test_a_run_has_only_so_many_task_runs_however_they_are_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MAX_TASK_RUNS", 12)
    inner = mapped("inner", over="{{ params.inner }}")
    driver = started(mapped("outer", over=[0, 1, 2], body=(inner,)), parameters={"inner": [1, 2, 3]})
    assert driver.told("outer[0].inner") == (R, "mapped")
    assert driver.told("outer[2].inner") == (F, "too_many_items")
    assert "has 10 task runs and would have 13; at most 12" in driver.row("outer[2].inner").message
    assert len(driver.rows_of()) == 10


def test_rounds_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MAX_TASK_RUNS", 3)
    driver = started(repeated("again", until="False", most=10))
    driver.finish("again[0]")
    assert driver.told("again") == (R, "repeating")
    driver.finish("again[1]")
    assert driver.told("again") == (F, "too_many_items")
    assert driver.run_state() is RunState.FAILED


def test_a_rerun_of_a_run_that_is_full_uses_its_rows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MAX_TASK_RUNS", 3)
    driver = started(mapped("train", over=[1, 2]))
    driver.finish("train[0]")
    driver.finish("train[1]")
    assert driver.again("all").startswith("Run r1 starts again")
    assert driver.queued() == ["train[0]", "train[1]"]


def test_large_items_fail_the_map_before_they_are_written_for_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_CHARACTERS", 1000)
    grid = {"grid": {"text": ["x" * 300], "n": [1, 2, 3, 4]}}
    assert started(mapped("one", over={"grid": {"text": ["x" * 300], "n": [1, 2]}})).told("one") == (R, "mapped")
    assert started(mapped("one", over=grid)).told("one") == (F, "too_many_items")
    assert started(mapped("one", over=[1, 2, 3, 4], key=f"{{{{ map.item }}}}{'y' * 300}")).told("one")[0] is F


def test_what_is_expanded_in_one_round_is_bounded_and_the_rest_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_IN_ROUND", 4)
    maps = [mapped(f"m{n}", over=[1, 2, 3]) for n in range(3)]
    driver = started(*maps, repeated("again", until="True", most=2))
    assert made(driver) == 3
    assert driver.told("m1") == (P, "expansion")
    assert driver.kernel.next_due(driver.now) == 0.0
    for expected in (6, 10):
        driver.now += 0.1
        driver.feed(Tick())
        assert made(driver) == expected
    assert [driver.told(name)[0] for name in ("m0", "m1", "m2", "again")] == [R, R, R, R]
    assert driver.kernel.next_due(driver.now) != 0.0


def rounds(driver: Written, count: int = 1) -> None:
    for _ in range(count):
        driver.now += 0.1
        driver.feed(Tick())


def test_what_is_worked_out_in_one_round_is_bounded_in_characters_and_the_rest_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expanding, "MOST_CHARACTERS", 1000)
    text = {"s": "x" * 400}
    asks = [
        PlannedTask(f"ask{n}", "approval", approval=ApprovalPlan(message="{{ params.s }}" + str(n))) for n in range(3)
    ]
    driver = started(
        mapped("m0", over=["{{ params.s }}"]), mapped("m1", over=["{{ params.s }}"]), *asks, parameters=text
    )
    told = [driver.told(name) for name in ("m0", "m1", "ask0", "ask1", "ask2")]
    assert told == [(R, "mapped"), (R, "mapped"), (P, "expansion"), (P, "expansion"), (P, "expansion")]
    driver.take_over()
    rounds(driver, 3)
    assert [driver.told(f"ask{n}") for n in range(3)] == [(TaskState.WAITING, "approval")] * 3
    assert driver.kernel.next_due(driver.now) != 0.0


def test_parameters_of_sub_runs_count_for_longer_than_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_CHARACTERS", 4000)
    calls = [
        PlannedTask(f"c{n}", "pipeline", child=ChildPlan("other", parameters={"z": "{{ params.s }}"})) for n in range(4)
    ]
    driver = Written()
    driver.worker()
    driver.store.pipelines["other"] = Plan((task("x"),))
    driver.run(*calls, parameters={"s": "x" * 400})
    assert len(driver.all_of(StartChild)) == 2
    assert driver.told("c2") == (P, "expansion")
    rounds(driver)
    assert len(driver.all_of(StartChild)) == 4
    # A leader who finds all of them asked for and not made asks again in parts too.
    driver = Written()
    driver.makes_children = False
    driver.store.pipelines["other"] = Plan((task("x"),))
    driver.run(*calls, parameters={"s": "x" * 400})
    rounds(driver)
    assert len(driver.asked) == 4
    driver.take_over()
    assert len(driver.asked) == 2
    rounds(driver)
    assert len(driver.asked) == 4


def test_parameters_of_a_sub_run_that_are_too_large_fail_the_task_that_it_is() -> None:
    call = PlannedTask("c", "pipeline", child=ChildPlan("other", parameters={"z": ["{{ params.s }}"] * 2}))
    driver = started(call, parameters={"s": "x" * 60_000})
    assert driver.told("c") == (F, "template")
    assert "more than 65536 characters" in driver.row("c").message


def test_nested_maps_are_expanded_round_by_round_and_a_take_over_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_IN_ROUND", 5)
    driver = started(mapped("outer", over=[0, 1, 2, 3], max_parallel=2, body=(mapped("inner", over=[1, 2]),)))
    assert made(driver) == 4
    driver.take_over()
    assert made(driver) == 8
    for _ in range(20):
        driver.now += 0.1
        driver.feed(Tick())
        for name in driver.queued():
            driver.finish(name)
    assert driver.run_state() is RunState.SUCCESS
    assert made(driver) == 12


def test_rounds_of_repeats_that_come_at_once_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_IN_ROUND", 1)
    driver = started(*(repeated(f"r{n}", until="repeat.index == 1", most=3) for n in range(2)))
    for _ in range(10):
        driver.now += 0.1
        driver.feed(Tick())
        for name in driver.queued():
            driver.finish(name)
    assert driver.run_state() is RunState.SUCCESS
    assert made(driver) == 4


def test_a_map_that_waits_to_be_expanded_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_IN_ROUND", 1)
    driver = started(mapped("m0", over=[1]), mapped("m1", over=[1]))
    driver.ask("cancel")
    driver.now += 0.1
    driver.feed(Tick())
    assert driver.told("m1")[0] is TaskState.CANCELLED
    assert made(driver) == 1
