"""Rerun of runs with containers: one index, what failed, or the whole of it anew."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.effects import CreateTasks
from orchestrator.records import ChildPlan, Outcome, PlannedTask
from orchestrator.states import AttemptState, RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import BAD, Written, gave, mapped, repeated

S, F = TaskState.SUCCESS, TaskState.FAILED


def generations(driver: Written) -> dict[str, int]:
    return {row.name: row.generation for row in driver.rows_of()}


def with_one_broken_index() -> Written:
    driver = started(task("first"), mapped("train", "first", over={"range": 3}), task("report", "train"))
    driver.finish("first")
    driver.finish("train[0]", "train[2]")
    driver.finish("train[1]", outcome=BAD)
    assert driver.run_state() is RunState.FAILED
    return driver


def test_what_failed_runs_again_only_that_index_and_what_is_below_the_map() -> None:
    driver = with_one_broken_index()
    told = driver.again()
    assert "3 of its 6 tasks" in told
    assert driver.queued() == ["train[1]"]
    assert generations(driver) == {"first": 1, "train": 2, "report": 2, "train[0]": 1, "train[1]": 2, "train[2]": 1}
    assert driver.row("train").reason == "mapped"
    driver.take_over()
    driver.finish("train[1]")
    assert driver.queued() == ["report"]
    driver.finish("report")
    assert driver.run_state() is RunState.SUCCESS


def test_one_index_is_chosen_by_its_number_or_its_key() -> None:
    for name in ("train[1]", "train[lr=0.2]"):
        over = [{"lr": 0.1}, {"lr": 0.2}]
        driver = started(mapped("train", over=over, key="lr={{ map.item.lr }}"), task("report", "train"))
        driver.finish("train[0]", "train[1]", "report")
        driver.again([name])
        assert driver.queued() == ["train[1]"]
        driver.finish("train[1]")
        assert driver.queued() == ["report"]
    driver.finish("report")
    assert "no task 'train[7]'" in driver.again(["train[7]"])


def test_an_index_that_failed_again_fails_the_map_again() -> None:
    driver = with_one_broken_index()
    driver.again(["train[1]"])
    driver.finish("train[1]", outcome=BAD)
    assert driver.told("train") == (F, "index_failed")
    assert driver.run_state() is RunState.FAILED


def test_the_whole_map_expands_anew_with_the_same_names_and_what_is_too_much_counts_no_more() -> None:
    driver = started(task("list"), mapped("train", "list", over="{{ tasks.list.outputs.files }}"), task("end", "train"))
    driver.finish("list", outcome=gave(files=["a", "b", "c"]))
    driver.finish("train[0]", "train[1]", "train[2]", "end")
    driver.again(["list"])
    driver.take_over()
    driver.finish("list", outcome=gave(files=["x", "y"]))
    assert driver.queued() == ["train[0]", "train[1]"]
    assert [(row.item, row.generation) for row in driver.rows_of() if row.parent_id] == [("x", 2), ("y", 2), ("c", 1)]
    assert driver.told("train[2]") == (S, "superseded")
    driver.take_over()
    driver.finish("train[0]", "train[1]")
    assert driver.row("train").message.startswith("2 of 2 indices succeeded")
    driver.finish("end")
    assert driver.run_state() is RunState.SUCCESS
    driver.again(["list"])
    driver.finish("list", outcome=gave(files=["p", "q", "r", "s"]))
    assert generations(driver) == {
        "list": 3,
        "train": 3,
        "end": 3,
        "train[0]": 3,
        "train[1]": 3,
        "train[2]": 2,
        "train[3]": 1,
    }
    assert [len(made.tasks) for made in driver.all_of(CreateTasks)] == [3, 1]


def test_a_map_that_is_empty_now_supersedes_all_it_had() -> None:
    driver = started(task("list"), mapped("train", "list", over="{{ tasks.list.outputs.files }}"))
    driver.finish("list", outcome=gave(files=["a"]))
    driver.finish("train[0]")
    driver.again(["list"])
    driver.finish("list", outcome=gave(files=[]))
    assert driver.told("train[0]") == (S, "superseded")
    assert driver.run_state() is RunState.SUCCESS


def groups() -> PlannedTask:
    inner = mapped("fit", over="{{ map.item }}")
    return mapped("folds", over=[[1, 2], [3]], body=(inner, task("best", "fit")))


def test_an_index_of_an_inner_map_touches_only_what_is_below_it_there_and_outside() -> None:
    driver = started(groups(), task("report", "folds"))
    driver.finish("folds[0].fit[0]", "folds[0].fit[1]", "folds[1].fit[0]", "folds[0].best", "folds[1].best", "report")
    driver.again(["folds[0].fit[1]"])
    assert driver.queued() == ["folds[0].fit[1]"]
    driver.take_over()
    driver.finish("folds[0].fit[1]")
    driver.finish("folds[0].best")
    assert driver.queued() == ["report"]
    again = {name for name, generation in generations(driver).items() if generation == 2}
    assert again == {"folds", "folds[0].fit", "folds[0].fit[1]", "folds[0].best", "report"}


def test_a_whole_index_of_a_group_runs_again_with_its_inner_map_anew() -> None:
    driver = started(groups())
    driver.finish("folds[0].fit[0]", "folds[0].fit[1]", "folds[1].fit[0]", "folds[0].best", "folds[1].best")
    driver.again(["folds[0]"])
    assert driver.queued() == ["folds[0].fit[0]", "folds[0].fit[1]"]
    driver.finish("folds[0].fit[0]", "folds[0].fit[1]", "folds[0].best")
    assert driver.run_state() is RunState.SUCCESS
    assert driver.row("folds[1].best").generation == 1


def test_max_parallel_holds_in_a_rerun_too() -> None:
    driver = started(mapped("train", over={"range": 4}, max_parallel=1, success="any"), task("end", "train"))
    for index in range(4):
        driver.finish(f"train[{index}]", outcome=BAD)
    assert driver.run_state() is RunState.FAILED
    driver.again()
    assert driver.queued() == ["train[0]"]
    driver.finish("train[0]")
    assert driver.queued() == ["end", "train[1]"], "the rest runs on"


def test_indices_that_are_run_again_in_part_wait_for_their_turn_too() -> None:
    body = (task("up"), task("work", "up"))
    driver = started(mapped("folds", over=[1, 2, 3], max_parallel=1, success="min_count", least=3, body=body))
    for index in range(3):
        driver.finish(f"folds[{index}].up")
        driver.finish(f"folds[{index}].work", outcome=BAD)
    driver.again()
    assert driver.queued() == ["folds[0].work"]
    assert driver.told("folds[1].work") == (TaskState.PENDING, "max_parallel")
    driver.take_over()
    driver.finish("folds[0].work")
    assert driver.queued() == ["folds[1].work"]
    driver.finish("folds[1].work")
    driver.finish("folds[2].work")
    assert driver.run_state() is RunState.SUCCESS


def test_a_repeat_goes_on_from_its_failed_round_or_begins_anew() -> None:
    driver = started(repeated("tune", until="outputs.done", most=5))
    driver.finish("tune[0]", outcome=gave(done=False))
    driver.finish("tune[1]", outcome=BAD)
    driver.again()
    assert driver.queued() == ["tune[1]"]
    driver.finish("tune[1]", outcome=gave(done=True))
    assert driver.run_state() is RunState.SUCCESS
    driver.again("all")
    assert driver.queued() == ["tune[0]"]
    assert driver.told("tune[1]") == (S, "superseded")
    driver.take_over()
    driver.finish("tune[0]", outcome=gave(done=False))
    driver.finish("tune[1]", outcome=gave(done=True))
    assert (driver.run_state(), driver.row("tune[1]").generation) == (RunState.SUCCESS, 3)


def test_a_cancelled_map_goes_on_where_it_was_stopped() -> None:
    driver = started(mapped("train", over={"range": 3}, max_parallel=1))
    driver.finish("train[0]")
    driver.ask("cancel")
    driver.again()
    assert driver.queued() == ["train[1]"]
    driver.finish("train[1]")
    driver.finish("train[2]")
    assert driver.run_state() is RunState.SUCCESS


def test_the_reason_of_a_run_is_never_that_of_an_index_that_counts_no_more() -> None:
    files = "{{ tasks.list.outputs.files }}"
    driver = started(task("list"), mapped("test", over=[1]), mapped("train", "list", over=files))
    driver.finish("test[0]", outcome=BAD)
    driver.finish("list", outcome=gave(files=["a", "b"]))
    driver.finish("train[0]")
    driver.finish("train[1]", outcome=BAD)
    driver.again(["list", "test"])
    driver.finish("list", outcome=gave(files=["a"]))
    assert driver.told("train[1]") == (F, "superseded")
    driver.finish("train[0]")
    driver.finish("test[0]", outcome=Outcome(AttemptState.FAILED, "out_of_tune", retryable=False))
    assert driver.store.runs["r1"].reason == "out_of_tune"


def test_nor_is_it_that_of_a_task_inside_of_such_an_index() -> None:
    inner = mapped("fit", over=[1])
    folds = mapped("folds", "list", over="{{ tasks.list.outputs.files }}", body=(inner,))
    driver = started(task("list"), folds, task("end", "list"))
    driver.finish("list", outcome=gave(files=["a", "b"]))
    driver.finish("folds[0].fit[0]", "end")
    driver.finish("folds[1].fit[0]", outcome=BAD)
    driver.again(["list"])
    driver.finish("list", outcome=gave(files=["a"]))
    driver.finish("end")
    driver.finish("folds[0].fit[0]", outcome=Outcome(AttemptState.FAILED, "out_of_tune", retryable=False))
    assert driver.store.runs["r1"].reason == "out_of_tune"


def in_other_words(driver: Written, name: str) -> None:
    row = driver.row(name)
    driver.store.task_runs[row.id] = replace(row, reason="other words for people")


def test_what_is_told_to_people_does_not_decide_what_waits_for_its_turn() -> None:
    driver = started(mapped("train", over={"range": 3}, max_parallel=1))
    in_other_words(driver, "train[1]")
    driver.take_over()
    assert driver.queued() == ["train[0]"]
    driver.finish("train[0]")
    assert driver.queued() == ["train[1]"]
    driver.take_over()
    assert driver.queued() == ["train[1]"]


def test_what_is_told_to_people_does_not_decide_what_counts_no_more() -> None:
    driver = started(task("list"), mapped("train", "list", over="{{ tasks.list.outputs.files }}"), task("end", "train"))
    driver.finish("list", outcome=gave(files=["a", "b"]))
    driver.finish("train[0]")
    driver.finish("train[1]", outcome=BAD)
    driver.again(["list"])
    driver.finish("list", outcome=gave(files=["x"]))
    in_other_words(driver, "train[1]")
    driver.take_over()
    driver.finish("train[0]")
    assert driver.row("train").message.startswith("1 of 1 indices succeeded")


def test_an_index_that_has_begun_in_a_paused_run_has_its_place_under_a_new_leader() -> None:
    body = (task("call", child=ChildPlan("nothing")), task("then", "call"))
    over = "{{ tasks.list.outputs.files }}"
    driver = started(task("list"), mapped("folds", "list", over=over, body=body, max_parallel=1))
    driver.ask("pause")
    driver.finish("list", outcome=gave(files=[1, 2]))
    assert [driver.told(f"folds[{n}].call")[1] for n in range(2)] == ["run_paused", "max_parallel"]
    driver.take_over()
    begun = [driver.kernel.tasks[driver.row(f"folds[{n}].call").id].scope.is_started for n in range(2)]
    assert begun == [True, False]
    driver.ask("resume")
    assert [driver.state(f"folds[{n}].call") for n in range(2)] == [TaskState.FAILED, TaskState.FAILED]
