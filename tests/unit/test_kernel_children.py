"""Runs that are tasks: made, ended, refused, cancelled with the task, and found again by a new leader."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.effects import StartChild
from orchestrator.events import ReconcileDue, RunSubmitted, Tick
from orchestrator.kernel import Kernel, decide
from orchestrator.kernel.held_runs import HeldBack
from orchestrator.records import ChildPlan, Plan, PlannedTask
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import GIB, NO_JITTER, task
from tests.unit.written_driver import BAD, Written, gave, mapped


def child(name: str, *upstream: str, when: str = "", pipeline: str = "inner", **fields: object) -> PlannedTask:
    plan = ChildPlan(pipeline, **fields)  # type: ignore[arg-type]
    return PlannedTask(name, "pipeline", upstream, retry=NO_JITTER, when=when, child=plan)


def with_inner(*tasks: PlannedTask, **settings: int) -> Written:
    driver = Written(**settings)
    driver.worker(cpu=64_000, memory=64 * GIB, slots=64)
    driver.store.pipelines["inner"] = Plan(tasks or (task("a"), task("b", "a")))
    return driver


def inner_of(driver: Written, name: str = "sub") -> str:
    id_ = driver.row(name).child_run_id
    assert id_ is not None
    return id_


def test_a_run_is_made_for_the_task_and_its_end_ends_it() -> None:
    driver = with_inner()
    driver.run(child("sub"), task("next", "sub", when="tasks.sub.outputs.outputs.b.n == 2"))
    inner = inner_of(driver)
    assert driver.told("sub") == (TaskState.RUNNING, "child")
    assert driver.run_state(inner) is RunState.RUNNING
    driver.finish("a", run_id=inner)
    driver.take_over()
    driver.finish("b", run_id=inner, outcome=gave(n=2))
    assert driver.state("sub") is TaskState.SUCCESS
    assert driver.row("sub").outputs == {"run_id": inner, "state": "success", "outputs": {"b": {"n": 2}}}
    driver.take_over()
    assert driver.queued() == ["next"]


def test_a_run_whose_last_task_tears_down_leaves_what_was_done_before() -> None:
    inner = (task("up"), task("work", "up"), task("down", "work", teardown=True, setups=("up",)))
    driver = with_inner(*inner)
    driver.run(child("sub"), task("next", "sub", when="tasks.sub.outputs.outputs.work.n == 2"))
    for name in ("up", "work", "down"):
        driver.finish(name, run_id=inner_of(driver), outcome=gave(n=2))
    assert driver.row("sub").outputs == {"run_id": inner_of(driver), "state": "success", "outputs": {"work": {"n": 2}}}
    assert driver.queued() == ["next"]


def test_its_parameters_stand_over_those_of_the_run_where_it_inherits_them() -> None:
    for inherit, wanted in ((True, {"a": 1, "b": 2, "c": 3}), (False, {"b": 2, "c": 3})):
        driver = with_inner()
        plan = child("sub", parameters={"b": 2, "c": "{{ params.n }}"}, inherit=inherit)
        driver.run(plan, parameters={"a": 1, "b": 0, "n": 3})
        [asked] = driver.all_of(StartChild)
        assert {name: value for name, value in asked.parameters.items() if name != "n"} == wanted
        assert (asked.depth, asked.child.pipeline) == (1, "inner")


def test_a_run_that_fails_fails_the_task_and_says_which_and_why() -> None:
    driver = with_inner()
    driver.run(child("sub"))
    inner = inner_of(driver)
    driver.finish("a", run_id=inner, outcome=BAD)
    assert driver.told("sub") == (TaskState.FAILED, "child_failed")
    assert driver.row("sub").message == f"Run {inner} of pipeline inner ended as failed (bad_data)."


def test_a_run_that_can_not_be_made_fails_the_task() -> None:
    driver = with_inner()
    driver.run(child("sub", pipeline="nothing"))
    assert driver.told("sub") == (TaskState.FAILED, "child_refused")


def test_runs_that_are_tasks_take_no_place() -> None:
    driver = with_inner(max_runs=1)
    driver.run(child("sub"), child("other"))
    assert driver.run_state(inner_of(driver)) is RunState.RUNNING
    assert driver.run_state(inner_of(driver, "other")) is RunState.RUNNING
    assert driver.kernel.run_slots_free() == 0


def test_a_run_that_was_a_task_takes_a_place_when_it_runs_again_by_itself() -> None:
    driver = with_inner(max_runs=1)
    driver.run(child("sub"))
    inner = inner_of(driver)
    driver.finish("a", run_id=inner, outcome=BAD)
    driver.finish(*driver.queued(inner), run_id=inner)
    assert driver.run_state() is RunState.FAILED
    driver.run(task("other"), run_id="r2")
    driver.again(run_id=inner)
    assert driver.run_state(inner) is RunState.QUEUED
    driver.finish("other", run_id="r2")
    driver.feed(driver.submission(inner), Tick())
    assert driver.run_state(inner) is RunState.RUNNING
    assert driver.kernel.run_slots_free() == 0
    driver.take_over()
    assert driver.kernel.run_slots_free() == 0


def test_a_run_that_was_a_task_is_not_paused_with_the_one_it_is_no_task_of_any_more() -> None:
    driver = with_inner()
    driver.run(child("sub"), task("long"))
    inner = inner_of(driver)
    driver.finish("a", run_id=inner, outcome=BAD)
    driver.finish(*driver.queued(inner), run_id=inner)
    assert driver.run_state(inner) is RunState.FAILED
    driver.ask("pause")
    driver.again(run_id=inner)
    assert driver.run_state(inner) is RunState.RUNNING


def test_a_run_that_is_not_waited_for_lets_the_task_go_on_at_once() -> None:
    driver = with_inner()
    driver.run(child("sub", wait=False), task("next", "sub"))
    inner = inner_of(driver)
    assert driver.state("sub") is TaskState.SUCCESS
    assert driver.queued() == ["next"]
    driver.ask("cancel")
    assert driver.run_state(inner) is RunState.RUNNING


def test_a_cancel_cascades_and_waits_for_the_run_to_stop() -> None:
    driver = with_inner()
    driver.run(child("sub"))
    inner = inner_of(driver)
    driver.start_of("a", inner)
    driver.ask("cancel")
    assert driver.state("sub") is TaskState.CANCELLING
    assert driver.run_state(inner) is RunState.CANCELLING
    driver.take_over()
    driver.end_of("a", inner, BAD)
    assert driver.run_state(inner) is RunState.CANCELLED
    assert driver.run_state() is RunState.CANCELLED


def test_a_cancel_reaches_a_run_that_is_still_queued_in_the_rows() -> None:
    driver = with_inner()
    driver.run(task("first"), child("sub", "first"))
    attempt = driver.attempt("first")
    # The leader has asked for the run, and it was made and left queued: its pipeline is paused.
    driver.answers_children = False
    driver.finish("first")
    del attempt
    inner = inner_of(driver)
    assert driver.run_state(inner) is RunState.QUEUED
    driver.ask("cancel")
    assert driver.state("sub") is TaskState.CANCELLING
    driver.take_over()
    driver.feed(driver.submission(inner))
    assert driver.run_state(inner) is RunState.CANCELLED
    assert driver.run_state() is RunState.CANCELLED


def test_somebody_cancels_only_the_inner_run() -> None:
    driver = with_inner()
    driver.run(child("sub"))
    driver.ask("cancel", run_id=inner_of(driver))
    assert driver.told("sub") == (TaskState.FAILED, "child_cancelled")


def test_a_pipeline_that_runs_itself_ends_at_the_eighth_run() -> None:
    driver = with_inner(child("again"))
    driver.run(child("again"))
    assert max(run.depth for run in driver.store.runs.values()) == 8
    deepest = next(run.id for run in driver.store.runs.values() if run.depth == 8)
    assert driver.told("again", deepest) == (TaskState.FAILED, "too_deep")
    assert driver.run_state() is RunState.FAILED


def test_each_index_of_a_map_may_be_a_run() -> None:
    driver = with_inner(task("only"))
    driver.run(mapped("each", over=[1, 2], body=(child("sub", parameters={"n": "{{ map.item }}"}),)))
    assert [asked.parameters for asked in driver.all_of(StartChild)] == [{"n": 1}, {"n": 2}]
    for index in range(2):
        driver.finish("only", run_id=inner_of(driver, f"each[{index}].sub"))
    assert driver.run_state() is RunState.SUCCESS


def test_a_rerun_of_the_task_makes_another_run_and_the_end_of_the_first_is_nothing_to_it() -> None:
    driver = with_inner(task("only"))
    driver.run(child("sub"))
    first = inner_of(driver)
    driver.finish("only", run_id=first, outcome=BAD)
    driver.again()
    second = inner_of(driver)
    assert second != first
    driver.again(run_id=first)
    driver.finish("only", run_id=first)
    assert driver.state("sub") is TaskState.RUNNING
    driver.finish("only", run_id=second)
    assert driver.run_state() is RunState.SUCCESS


def test_a_run_is_taken_once_however_often_it_is_submitted() -> None:
    driver = with_inner()
    driver.run(child("sub"))
    inner = inner_of(driver)
    event = replace(driver.submission(inner), run=replace(driver.store.runs[inner], state=RunState.QUEUED))
    assert isinstance(event, RunSubmitted)
    assert decide(driver.kernel, event, driver.now) == []


def test_a_paused_run_starts_no_run_that_is_a_task_until_it_goes_on() -> None:
    driver = with_inner()
    driver.run(task("first"), child("sub", "first"), mapped("each", "first", over=[1], body=(child("one"),)))
    driver.ask("pause")
    driver.finish("first")
    for name in ("sub", "each[0].one"):
        assert driver.told(name) == (TaskState.PENDING, "run_paused")
    driver.take_over()
    assert not driver.all_of(StartChild)
    driver.ask("resume")
    for name in ("sub", "each[0].one"):
        assert driver.run_state(inner_of(driver, name)) is RunState.RUNNING


def test_a_run_that_ends_while_the_run_that_it_is_a_task_of_is_paused_ends_that_task() -> None:
    driver = with_inner(task("a"))
    driver.run(child("sub"), task("next", "sub"))
    driver.ask("pause")
    driver.finish("a", run_id=inner_of(driver))
    assert driver.state("sub") is TaskState.SUCCESS
    assert driver.told("next") == (TaskState.READY, "run_paused")


def test_a_run_that_tears_down_goes_on_when_its_paused_run_is_cancelled() -> None:
    driver = with_inner()
    driver.run(task("first"), replace(child("down", "first"), teardown=True))
    driver.finish("first")
    inner = inner_of(driver, "down")
    driver.start_of("a", inner)
    driver.ask("pause")
    driver.end_of("a", inner, gave())
    assert driver.run_state(inner) is RunState.PAUSED
    driver.ask("cancel")
    driver.finish("b", run_id=inner)
    assert (driver.run_state(inner), driver.run_state()) == (RunState.SUCCESS, RunState.CANCELLED)


def test_a_run_that_tears_down_starts_when_its_paused_run_is_cancelled() -> None:
    driver = with_inner()
    down = replace(child("down", "first"), teardown=True)
    driver.run(task("first"), down)
    driver.ask("pause")
    driver.finish("first")
    assert driver.told("down") == (TaskState.PENDING, "run_paused")
    driver.ask("cancel")
    inner = inner_of(driver, "down")
    driver.finish("a", "b", run_id=inner)
    assert driver.run_state(inner) is RunState.SUCCESS
    assert driver.run_state() is RunState.CANCELLED


def test_force_on_a_task_that_is_a_run_tears_nothing_down_in_there() -> None:
    for mode, after in (("graceful", TaskState.QUEUED), ("force", TaskState.CANCELLED)):
        driver = with_inner(task("up"), task("work", "up"), task("down", "work", teardown=True, setups=("up",)))
        driver.run(child("sub"), task("other"))
        inner = inner_of(driver)
        driver.finish("up", run_id=inner)
        driver.ask("cancel", task="sub", mode=mode)
        assert driver.state("down", inner) is after
        assert driver.run_state() is RunState.RUNNING
    assert driver.told("sub") == (TaskState.CANCELLED, "force_cancelled")


def test_a_run_that_waits_in_the_rows_for_its_place_is_read_when_its_task_is_cancelled() -> None:
    driver = with_inner()
    limited = Plan((task("only"),), max_active_runs=1)
    driver.store.pipelines["inner"] = limited
    driver.run(child("sub"), child("other"))
    waiting = inner_of(driver, "other")
    assert driver.run_state(waiting) is RunState.QUEUED
    assert driver.kernel.held_back().runs == (waiting,)
    driver.ask("cancel", task="other")
    assert driver.state("other") is TaskState.CANCELLING
    for _ in range(2):
        assert driver.kernel.held_back().wanted == (waiting,)
        driver.take_over()
    driver.feed(driver.submission(waiting))
    assert driver.state("other") is TaskState.CANCELLED
    assert driver.kernel.held_back() == HeldBack()


def test_a_run_that_was_asked_for_and_not_made_is_made_by_the_next_leader() -> None:
    driver = with_inner(task("only"))
    driver.makes_children = False
    driver.run(child("sub", parameters={"n": 1}), child("other"), parameters={"a": 2})
    asked = inner_of(driver)
    assert asked not in driver.store.runs
    driver.take_over()
    assert [(effect.child_run_id, effect.parameters) for effect in driver.asked] == [
        (asked, {"a": 2, "n": 1}),
        (inner_of(driver, "other"), {"a": 2}),
    ]
    driver.makes_children = True
    driver.tick()
    for name in ("sub", "other"):
        driver.finish("only", run_id=inner_of(driver, name))
    assert driver.run_state() is RunState.SUCCESS


def test_a_run_that_was_never_made_is_not_needed_to_cancel_its_task() -> None:
    for is_found_by_the_next_leader in (False, True):
        driver = with_inner()
        driver.makes_children = False
        driver.run(child("sub"))
        driver.ask("cancel")
        assert driver.state("sub") is TaskState.CANCELLING
        if is_found_by_the_next_leader:
            driver.take_over()
        driver.makes_children = True
        driver.tick()
        assert driver.told("sub") == (TaskState.CANCELLED, "run_cancelled")
        assert driver.run_state() is RunState.CANCELLED
        assert inner_of(driver) not in driver.store.runs


def left_alone(driver: Written, run_id: str = "r1") -> None:
    """Another leader takes over that can't read the plan of this run."""
    rows = driver.store.snapshot(driver.now)
    driver.kernel = Kernel(driver.settings, driver.now)
    others = tuple(run for run in rows.runs if run.id != run_id)
    tasks = tuple(row for row in rows.task_runs if row.run_id != run_id)
    driver.kernel.load(replace(rows, runs=others, task_runs=tasks, unreadable={run_id: "newer"}), driver.now)
    driver.store.left_alone = {run_id}
    driver.feed(ReconcileDue())


def test_a_run_that_ended_while_the_run_around_it_was_left_alone_ends_its_task() -> None:
    for outcome, wanted in ((gave(n=2), RunState.SUCCESS), (BAD, RunState.FAILED)):
        driver = with_inner(task("a"))
        driver.run(child("sub"), task("next", "sub", when="tasks.sub.outputs.outputs.a.n == 2"))
        inner = inner_of(driver)
        left_alone(driver)
        driver.finish("a", run_id=inner, outcome=outcome)
        assert driver.run_state(inner) is wanted
        assert driver.state("sub") is TaskState.RUNNING
        driver.take_over()
        if wanted is RunState.SUCCESS:
            assert driver.queued() == ["next"]
        else:
            assert driver.told("sub") == (TaskState.FAILED, "child_failed")
            assert driver.run_state() is RunState.FAILED


def test_a_task_that_was_being_cancelled_while_its_run_was_left_alone_ends() -> None:
    driver = with_inner(task("a"))
    driver.run(child("sub"))
    inner = inner_of(driver)
    driver.start_of("a", inner)
    driver.ask("cancel")
    left_alone(driver)
    driver.end_of("a", inner, BAD)
    driver.take_over()
    assert driver.run_state() is RunState.CANCELLED


def test_a_task_that_does_not_wait_for_its_run_goes_on_though_its_run_was_left_alone() -> None:
    for has_ended in (False, True):
        driver = with_inner(task("a"))
        driver.answers_children = False
        driver.run(child("sub", wait=False), task("next", "sub"))
        inner = inner_of(driver)
        left_alone(driver)
        driver.feed(driver.submission(inner), Tick())
        if has_ended:
            driver.finish("a", run_id=inner, outcome=BAD)
        driver.take_over()
        assert driver.state("sub") is TaskState.SUCCESS
        assert driver.queued() == ["next"]


def test_a_pause_holds_what_is_inside_of_the_run_and_ends_with_it() -> None:
    driver = with_inner(child("deep", pipeline="deepest"), task("a"), task("b", "a"))
    driver.store.pipelines["deepest"] = Plan((task("x"), task("y", "x")))
    driver.run(child("sub"))
    inner = inner_of(driver)
    deepest = driver.row("deep", inner).child_run_id
    assert deepest is not None
    driver.start_of("a", inner)
    driver.ask("pause")
    assert [driver.run_state(id_) for id_ in ("r1", inner, deepest)] == [RunState.PAUSED] * 3
    driver.end_of("a", inner, gave())
    driver.finish("x", run_id=deepest)
    assert driver.told("b", inner) == driver.told("y", deepest) == (TaskState.READY, "run_paused")
    driver.take_over()
    driver.ask("resume")
    assert [driver.run_state(id_) for id_ in ("r1", inner, deepest)] == [RunState.RUNNING] * 3
    assert (driver.queued(inner), driver.queued(deepest)) == (["b"], ["y"])


@pytest.mark.parametrize("first", ["the inner", "the outer"])
def test_a_run_that_a_person_has_paused_does_not_go_on_with_the_one_around_it(first: str) -> None:
    driver = with_inner()
    driver.run(child("sub"))
    inner = inner_of(driver)
    for run_id in (inner, "r1") if first == "the inner" else ("r1", inner):
        assert "is paused" in driver.ask("pause", run_id=run_id)
    driver.take_over()
    driver.ask("resume")
    assert (driver.run_state(), driver.run_state(inner)) == (RunState.RUNNING, RunState.PAUSED)
    driver.ask("resume", run_id=inner)
    assert driver.run_state(inner) is RunState.RUNNING


def test_a_run_inside_of_a_paused_one_can_be_let_go_on_by_itself() -> None:
    driver = with_inner()
    driver.run(child("sub"))
    inner = inner_of(driver)
    driver.ask("pause")
    driver.ask("resume", run_id=inner)
    assert (driver.run_state(), driver.run_state(inner)) == (RunState.PAUSED, RunState.RUNNING)
    driver.finish("a", "b", run_id=inner)
    assert driver.run_state() is RunState.SUCCESS


def test_a_run_that_is_not_waited_for_is_not_paused_with_the_one_that_has_started_it() -> None:
    driver = with_inner()
    driver.run(child("sub", wait=False), task("next", "sub"))
    inner = inner_of(driver)
    driver.ask("pause")
    assert driver.run_state(inner) is RunState.RUNNING


def test_a_run_that_could_not_start_before_its_outer_run_was_paused_starts_paused() -> None:
    driver = with_inner()
    driver.store.pipelines["inner"] = Plan((task("a"),), max_active_runs=1)
    driver.run(child("one"), child("two"))
    first, second = inner_of(driver, "one"), inner_of(driver, "two")
    assert driver.run_state(second) is RunState.QUEUED
    driver.start_of("a", first)
    driver.ask("pause")
    driver.end_of("a", first, gave())
    driver.feed(driver.submission(second), Tick())
    assert (driver.run_state(second), driver.queued(second)) == (RunState.PAUSED, [])
    driver.ask("resume")
    assert driver.queued(second) == ["a"]


def test_cancelling_a_paused_run_ends_what_was_paused_with_it() -> None:
    driver = with_inner()
    driver.run(child("sub"))
    inner = inner_of(driver)
    driver.ask("pause")
    driver.ask("cancel")
    assert (driver.run_state(), driver.run_state(inner)) == (RunState.CANCELLED, RunState.CANCELLED)
