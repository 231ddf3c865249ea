"""Conditions, what handles a failure, and teardown tasks."""

from __future__ import annotations

import pytest

from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import BAD, gave, mapped


def test_a_condition_is_tested_after_the_rule_is_met_and_skips_where_it_is_false() -> None:
    driver = started(
        task("check"),
        task("train", "check", when="tasks.check.outputs.rows > 100"),
        task("clean", "check", when="tasks.check.outputs.rows <= 100"),
    )
    assert driver.state("train") is TaskState.PENDING
    driver.finish("check", outcome=gave(rows=7))
    assert driver.told("train") == (TaskState.SKIPPED, "condition")
    assert driver.row("train").message == "Its condition is not met: tasks.check.outputs.rows > 100"
    assert driver.queued() == ["clean"]


def test_a_condition_over_parameters_decides_at_the_start() -> None:
    driver = started(task("a", when="params.full"), task("b", when="not params.full"), parameters={"full": False})
    assert driver.queued() == ["b"]


def test_a_condition_that_can_not_be_worked_out_fails_the_task() -> None:
    driver = started(task("a", when="params.n / 0 > 1"), parameters={"n": 1})
    assert driver.told("a") == (TaskState.FAILED, "condition_error")
    assert "params.n / 0 > 1" in driver.row("a").message


def test_a_path_that_leads_nowhere_is_null_in_a_condition() -> None:
    driver = started(task("a", when="params.nothing is null"))
    assert driver.queued() == ["a"]


def test_a_new_leader_tests_conditions_on_the_outputs_of_before() -> None:
    driver = started(task("a"), task("b", "a"), task("c", "b", when="tasks.a.outputs.n == 3"))
    driver.finish("a", outcome=gave(n=3))
    driver.take_over()
    driver.finish("b")
    assert driver.queued() == ["c"]


def test_the_seeds_branch_validation_then_training_or_clean_up() -> None:
    driver = started(
        task("validate"),
        task("train", "validate", rule="all_done", when="tasks.validate.state == 'success'"),
        task("clean", "validate", rule="all_done", when="tasks.validate.state == 'failed'"),
    )
    driver.finish("validate", outcome=BAD)
    assert driver.told("train") == (TaskState.SKIPPED, "condition")
    driver.finish("clean")
    assert driver.run_state() is RunState.SUCCESS, "who asks for its state and succeeds has handled the failure"


def test_all_done_without_such_a_condition_handles_nothing() -> None:
    driver = started(task("validate"), task("clean", "validate", rule="all_done"))
    driver.finish("validate", outcome=BAD)
    driver.finish("clean")
    assert driver.run_state() is RunState.FAILED


@pytest.mark.parametrize("setups", [("up",), ()])
def test_a_teardown_runs_when_its_set_up_has_and_decides_nothing(setups: tuple[str, ...]) -> None:
    driver = started(task("up"), task("work", "up"), task("down", "up", "work", teardown=True, setups=setups))
    driver.finish("up")
    driver.finish("work", outcome=BAD)
    assert driver.queued() == ["down"]
    driver.finish("down", outcome=BAD)
    assert driver.run_state() is RunState.FAILED


def test_a_failed_teardown_leaves_the_run_a_success_and_is_no_leaf() -> None:
    driver = started(task("up"), task("down", "up", teardown=True, setups=("up",)))
    driver.finish("up")
    driver.finish("down", outcome=BAD)
    assert driver.run_state() is RunState.SUCCESS
    driver = started(task("up"), task("down", "up", teardown=True))
    driver.finish("up", outcome=BAD)
    driver.finish("down")
    assert driver.run_state() is RunState.FAILED


def test_a_teardown_whose_set_up_never_ran_is_skipped() -> None:
    driver = started(
        task("first"), task("up", "first"), task("down", "up", teardown=True, setups=("up",)), task("end", "first")
    )
    driver.finish("first", outcome=BAD)
    assert driver.told("down") == (TaskState.SKIPPED, "setup_not_run")


def test_a_teardown_runs_while_its_run_is_being_cancelled_also_under_a_new_leader() -> None:
    driver = started(task("up"), task("work", "up"), task("down", "work", teardown=True, setups=("up",)))
    driver.finish("up")
    driver.ask("cancel")
    assert driver.states() == {
        "up": TaskState.SUCCESS,
        "work": TaskState.CANCELLED,
        "down": TaskState.QUEUED,
    }
    driver.take_over()
    driver.finish("down")
    assert driver.run_state() is RunState.CANCELLED


def test_a_forced_cancel_leaves_no_teardown() -> None:
    driver = started(task("up"), task("work", "up"), task("down", "work", teardown=True, setups=("up",)))
    driver.finish("up")
    driver.ask("cancel", mode="force")
    assert driver.state("down") is TaskState.CANCELLED
    assert driver.run_state() is RunState.CANCELLED
    driver = started(task("up"), task("down", "up", teardown=True))
    driver.ask("cancel")
    assert driver.queued() == ["down"]
    driver.ask("cancel", mode="force")
    assert driver.run_state() is RunState.CANCELLED


def test_a_cancel_of_a_paused_run_lets_its_teardown_go() -> None:
    driver = started(task("up"), task("down", "up", teardown=True))
    driver.ask("pause")
    driver.finish("up")
    assert driver.told("down") == (TaskState.READY, "run_paused")
    driver.ask("cancel")
    assert driver.queued() == ["down"]


def test_a_teardown_inside_of_an_index_runs_when_the_map_is_cancelled_but_not_where_it_never_started() -> None:
    body = (task("up"), task("work", "up"), task("down", "up", "work", teardown=True, setups=("up",)))
    driver = started(mapped("folds", over=[1, 2], max_parallel=1, body=body))
    driver.finish("folds[0].up")
    driver.ask("cancel", task="folds")
    assert driver.state("folds") is TaskState.CANCELLING
    assert driver.queued() == ["folds[0].down"]
    assert driver.state("folds[1].down") is TaskState.CANCELLED
    driver.take_over()
    driver.finish("folds[0].down")
    assert driver.state("folds") is TaskState.CANCELLED


def test_a_map_that_tears_down_expands_while_its_run_is_being_cancelled() -> None:
    driver = started(task("up"), mapped("down", "up", over=[1, 2], max_parallel=1, teardown=True))
    driver.finish("up", outcome=BAD)
    driver.ask("cancel")
    assert driver.state("down") is TaskState.RUNNING
    driver.finish("down[0]")
    driver.finish("down[1]")
    assert driver.run_state() is RunState.CANCELLED


def test_a_set_up_that_did_not_run_this_time_is_not_torn_down_again() -> None:
    driver = started(task("first"), task("up", "first"), task("down", "up", teardown=True, setups=("up",)))
    driver.finish("first", "up", "down")
    driver.again("all")
    driver.finish("first", outcome=BAD)
    assert driver.told("up") == (TaskState.UPSTREAM_FAILED, "all_success")
    assert driver.told("down") == (TaskState.SKIPPED, "setup_not_run")


@pytest.mark.parametrize(("met", "state"), [("failed", RunState.SUCCESS), ("success", RunState.FAILED)])
@pytest.mark.parametrize("is_group", [False, True])
def test_a_failure_is_handled_by_a_task_inside_of_a_map_that_asks_for_its_state(
    met: str, state: RunState, is_group: bool
) -> None:
    asks = task("handler", when=f"tasks.load.state == '{met}' and map.item > 0")
    body = (asks, task("other")) if is_group else (asks,)
    driver = started(task("load"), mapped("handler", "load", over=[0, 1], rule="all_done", body=body))
    driver.finish("load", outcome=BAD)
    while queued := driver.queued():
        driver.finish(*queued)
    assert driver.run_state() is state
    driver.take_over()


def test_a_failure_in_an_index_is_handled_by_a_task_inside_of_a_map_there() -> None:
    asks = task("asks", when="tasks.load.state == 'failed'")
    inner = mapped("inner", "load", over=[1], rule="all_done", body=(task("up"), asks))
    driver = started(mapped("outer", over=[1, 2], body=(task("load"), inner)))
    driver.finish("outer[0].load", "outer[1].load", outcome=BAD)
    driver.finish("outer[0].inner[0].up", "outer[0].inner[0].asks", "outer[1].inner[0].asks")
    driver.take_over()
    driver.finish("outer[1].inner[0].up", outcome=BAD)
    assert driver.row("outer").message.startswith("1 of 2 indices succeeded, 1 failed")
