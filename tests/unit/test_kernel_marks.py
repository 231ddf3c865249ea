"""Marks: what a task run is to count as, and what is looked at anew because of it."""

from __future__ import annotations

import pytest

from orchestrator.effects import CloseCommand, Transition
from orchestrator.events import Command, EndedRun, ReconcileDue, Tick
from orchestrator.records import Outcome
from orchestrator.states import AttemptState, Entity, RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import BAD, Written, gave, mapped

S, F, U, K = TaskState.SUCCESS, TaskState.FAILED, TaskState.UPSTREAM_FAILED, TaskState.SKIPPED


def broken() -> Written:
    driver = started(task("a"), task("b", "a"), task("c", "b", when="tasks.a.outputs.n == 1"))
    driver.finish("a", outcome=BAD)
    assert driver.states() == {"a": F, "b": U, "c": U}
    return driver


def test_a_failed_task_marked_as_success_lets_the_run_go_on_from_there() -> None:
    driver = broken()
    told = driver.ask("mark", task="a", state="success", reason="done by hand", outputs={"n": 1})
    assert told == "Task a was marked as success; run r1 is queued as its generation 2, to be decided anew."
    row = driver.row("a")
    assert (row.state, row.reason, row.generation, row.outputs) == (S, "marked", 2, {"n": 1})
    assert row.message == "ann: done by hand"
    step = next(e for e in driver.of(Transition) if e.entity is Entity.TASK_RUN and e.task == "a")
    assert (step.cause, step.actor, step.before, step.durable) == ("mark", "ann", F, True)
    driver.feed(driver.submission())
    driver.tick()
    driver.finish("b")
    assert driver.queued() == ["c"], "its condition reads what was marked"
    driver.finish("c")
    assert driver.run_state() is RunState.SUCCESS


def test_a_marked_leaf_decides_the_run_anew() -> None:
    driver = started(task("a"), task("b"))
    driver.finish("a")
    driver.finish("b", outcome=BAD)
    driver.ask("mark", task="b", state="skipped")
    driver.feed(driver.submission())
    assert driver.run_state() is RunState.SUCCESS
    driver.ask("mark", task="a", state="failed", reason="wrong data")
    driver.feed(driver.submission())
    assert driver.run_state() is RunState.FAILED
    assert driver.row("a").generation == 2


def test_what_has_run_below_stays_as_it_is() -> None:
    driver = started(task("a"), task("b", "a", rule="all_done"), task("c", "b"))
    driver.finish("a", outcome=BAD)
    driver.finish("b")
    driver.finish("c")
    driver.ask("mark", task="a", state="success")
    driver.feed(driver.submission())
    assert (driver.run_state(), driver.row("b").generation) == (RunState.SUCCESS, 1)


def test_an_open_task_is_marked_without_a_new_generation() -> None:
    driver = started(task("a"), task("b", "a"), task("c", "b"))
    assert driver.ask("mark", task="b", state="success") == "Task b of run r1 is success."
    assert driver.row("b").generation == 1
    driver.take_over()
    assert driver.queued() == ["a", "c"]


def test_a_mark_while_the_run_is_under_way_settles_anew_what_it_had_settled() -> None:
    driver = started(task("a"), task("b", "a"), task("c", "b"), task("long"))
    driver.finish("a", outcome=BAD)
    assert driver.state("c") is U
    driver.ask("mark", task="a", state="success")
    assert driver.queued() == ["b", "long"]
    assert driver.state("c") is TaskState.PENDING
    driver.take_over()
    driver.finish("b", "c", "long")
    assert driver.run_state() is RunState.SUCCESS


def test_a_ready_task_that_is_marked_leaves_its_line() -> None:
    driver = started(task("a", cpu=64_000), task("b", cpu=64_000))
    assert driver.queued() == ["a"]
    driver.ask("mark", task="b", state="skipped")
    driver.finish("a")
    assert driver.run_state() is RunState.SUCCESS


def test_what_runs_can_not_be_marked_nor_what_is_not_there() -> None:
    driver = started(task("a"), mapped("m", over=[1, 2]))
    assert "cancel it or wait" in driver.ask("mark", task="a", state="success")
    assert "cancel it or wait" in driver.ask("mark", task="m", state="success")
    assert "'x' is no task" in driver.ask("mark", task="x", state="success")
    assert "not as 'cancelled'" in driver.ask("mark", task="a", state="cancelled")
    assert driver.ask("mark", task="a", state="success", run_id="other").startswith("Refused: there is no run other")
    driver.finish("a")
    assert driver.ask("mark", task="a", state="success").startswith("Nothing to do")


def test_a_marked_index_decides_its_map_anew() -> None:
    driver = started(mapped("train", over={"range": 3}), task("report", "train"))
    driver.finish("train[0]", "train[2]")
    driver.finish("train[1]", outcome=BAD)
    assert driver.states()["report"] is U
    driver.ask("mark", task="train[1]", state="success", outputs={"n": 1})
    driver.take_over()
    driver.feed(driver.submission())
    driver.tick()
    assert driver.state("train") is S
    assert [driver.row(f"train[{n}]").generation for n in range(3)] == [1, 2, 1]
    driver.finish("report")
    assert driver.run_state() is RunState.SUCCESS


def test_a_marked_index_decides_a_map_anew_while_the_run_is_under_way() -> None:
    body = (task("fit"), task("score", "fit"))
    driver = started(mapped("folds", over=[1, 2], body=body), task("report", "folds"), task("long"))
    driver.finish("folds[0].fit", "folds[0].score")
    driver.finish("folds[1].fit", outcome=BAD)
    assert (driver.state("folds"), driver.state("report")) == (F, U)
    driver.ask("mark", task="folds[1].fit", state="success")
    assert driver.state("folds") is TaskState.RUNNING
    assert driver.queued() == ["folds[1].score", "long"]
    driver.take_over()
    driver.finish("folds[1].score", outcome=gave())
    assert driver.queued() == ["long", "report"]


def test_a_run_that_was_started_again_in_between_is_not_marked() -> None:
    driver = broken()
    old = driver.submission()
    driver.again()
    driver.ask("cancel")
    ended = EndedRun(old.run, old.tasks, old.plan)
    driver.feed(Command(99, "mark", "ann", "r1", "a", payload={"state": "success"}, ended=ended))
    assert "started again in between" in driver.of(CloseCommand)[0].result


def test_a_container_is_marked_without_outputs_for_they_are_those_of_its_indices() -> None:
    driver = started(task("first"), mapped("train", "first", over=[1, 2]), task("end", "train", rule="none_failed"))
    said = driver.ask("mark", task="train", state="success", outputs={"n": 1})
    assert said == "Refused: the outputs of train are those of its indices or rounds; mark these."
    driver.ask("mark", task="train", state="success")
    assert driver.told("train") == (TaskState.SUCCESS, "marked")
    assert driver.queued() == ["end", "first"]


def test_a_mark_leaves_no_timer_of_a_limit_behind() -> None:
    driver = started(task("first"), task("work", deadline=60.0, max_queued=60.0), cpu=1000)
    assert {kind for kind, _ in driver.kernel.timers.all()} == {"deadline", "max_queued"}
    driver.ask("mark", task="work", state="skipped")
    assert driver.kernel.timers.all() == {}


def test_two_marks_one_after_the_other_let_the_run_be_decided_anew() -> None:
    driver = started(task("a"), task("b"), task("c"))
    driver.finish("a", "b", outcome=BAD)
    driver.finish("c")
    driver.ask("mark", task="a", state="success")
    driver.ask("mark", task="b", state="success")
    assert driver.run_state() is RunState.QUEUED, "nothing of it is open, and nobody has cancelled it"
    driver.feed(driver.submission(), Tick())
    assert driver.run_state() is RunState.SUCCESS


def test_marking_the_only_task_of_a_run_that_waits_for_its_place_does_not_cancel_the_run() -> None:
    driver = Written(max_runs=1)
    driver.worker()
    driver.run(task("long"), run_id="r0")
    driver.run(task("a"))
    driver.feed(driver.submission(hold=True))
    driver.ask("mark", task="a", state="success")
    driver.feed(ReconcileDue())
    assert driver.run_state() is RunState.QUEUED
    driver.finish("long", run_id="r0")
    driver.feed(driver.submission(), Tick())
    assert driver.run_state() is RunState.SUCCESS


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        (gave(files=[]), "empty"),
        (gave(files=7), "map"),
        (gave(), "template"),
        (gave(files=[1, 2, 3, 4]), "too_many_items"),
        (gave(files=[1, 1]), "map_key"),
    ],
)
def test_a_map_that_had_nothing_right_to_go_over_expands_when_its_upstream_is_marked(
    left: Outcome, reason: str
) -> None:
    over = mapped("fit", "list", over="{{ tasks.list.outputs.files }}", max_size=3, key="{{ map.item }}")
    driver = started(task("list"), over, task("report", "fit"), task("long"))
    driver.finish("list", outcome=left)
    assert driver.told("fit")[1] == reason
    driver.ask("mark", task="list", state="success", outputs={"files": [8, 9]})
    assert driver.queued() == ["fit[0]", "fit[1]", "long"]
    driver.take_over()
    driver.finish("fit[0]", "fit[1]", "report", "long")
    assert driver.run_state() is RunState.SUCCESS


def test_what_had_nothing_to_tear_down_is_looked_at_anew_when_its_set_up_is_marked() -> None:
    driver = started(
        task("first"),
        task("cluster", "first"),
        task("stop", "cluster", rule="all_done", teardown=True, setups=("cluster",)),
        task("long"),
    )
    driver.finish("first", outcome=BAD)
    assert driver.told("stop") == (K, "setup_not_run")
    driver.ask("mark", task="cluster", state="success", reason="made by hand")
    assert driver.queued() == ["long", "stop"]


def test_a_worker_may_give_such_a_reason_of_its_own_and_has_run_all_the_same() -> None:
    skipped = Outcome(AttemptState.SUCCEEDED, "empty", skipped=True)
    driver = started(task("list"), task("load", "list"), task("long"))
    driver.finish("list")
    driver.finish("load", outcome=skipped)
    driver.ask("mark", task="list", state="success", outputs={"n": 1})
    assert (driver.told("load"), driver.row("load").generation) == ((K, "empty"), 1)


# Marks in an index that waits for its turn


def three_folds() -> Written:
    body = (task("fit"), task("score", "fit"))
    return started(mapped("folds", over={"range": 3}, body=body, max_parallel=1))


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize("marked", ["folds[2].fit", "folds[2].score"])
def test_a_mark_in_an_index_that_waits_does_not_start_it(marked: str, takes_over: bool) -> None:
    driver = three_folds()
    driver.ask("mark", task=marked, state="success", outputs={})
    if takes_over:
        driver.take_over()
    assert driver.queued() == ["folds[0].fit"]
    other = "folds[2].score" if marked.endswith("fit") else "folds[2].fit"
    for index in range(2):
        driver.finish(f"folds[{index}].fit")
        assert driver.queued() == [f"folds[{index}].score"]
        driver.finish(f"folds[{index}].score")
    assert driver.queued() == [other]
    driver.take_over()
    driver.finish(other)
    assert driver.run_state() is RunState.SUCCESS


def test_all_of_an_index_that_waits_may_be_marked_and_the_others_go_on_in_turn() -> None:
    driver = three_folds()
    driver.ask("mark", task="folds[1].fit", state="failed")
    driver.ask("mark", task="folds[1].score", state="success")
    driver.take_over()
    assert driver.queued() == ["folds[0].fit"]
    driver.finish("folds[0].fit", "folds[0].score")
    assert driver.queued() == ["folds[2].fit"]


def test_a_cancel_in_an_index_that_waits_does_not_start_it_under_a_new_leader() -> None:
    body = (task("fit"), task("score", "fit", rule="all_done"))
    driver = started(mapped("folds", over={"range": 2}, body=body, max_parallel=1))
    driver.ask("cancel", task="folds[1].fit")
    driver.take_over()
    assert driver.queued() == ["folds[0].fit"]
    driver.finish("folds[0].fit", "folds[0].score")
    assert driver.queued() == ["folds[1].score"]
