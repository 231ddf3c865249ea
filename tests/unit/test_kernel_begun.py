"""Whether a task has begun is a fact that its row keeps: no word that a script or a container gives changes it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.kernel.nodes import TaskNode
from orchestrator.records import ApprovalPlan, ChildPlan, Outcome, Plan, PlannedTask
from orchestrator.states import AttemptState, TaskState
from tests.unit.kernel_driver import GIB, task
from tests.unit.written_driver import BAD, SKIP, Written, gave, mapped, repeated

WORDS_OF_THE_RULES = ("condition", "condition_error", "setup_not_run", "all_done", "all_skipped", "empty", "marked")


def started(*tasks: PlannedTask) -> Written:
    driver = Written()
    driver.worker(cpu=64_000, memory=64 * GIB, slots=64)
    driver.run(*tasks)
    return driver


def around(setup: PlannedTask) -> Written:
    """Start a run of a set-up, a task that works on it whatever became of it, and what tears it down."""
    return started(setup, task("work", "up", rule="all_done"), task("down", "work", teardown=True, setups=("up",)))


@pytest.mark.parametrize("word", WORDS_OF_THE_RULES)
@pytest.mark.parametrize("skips", [False, True])
def test_a_set_up_that_has_run_is_torn_down_whatever_word_its_script_ends_with(word: str, skips: bool) -> None:
    driver = around(task("up"))
    state = AttemptState.SUCCEEDED if skips else AttemptState.FAILED
    driver.finish("up", outcome=Outcome(state, word, skipped=skips, retryable=False))
    driver.take_over()
    driver.finish("work")
    assert driver.queued() == ["down"]


def test_a_loop_whose_end_can_not_be_worked_out_after_its_rounds_is_torn_down() -> None:
    driver = around(repeated("up", until="outputs.n > 1", most=5))
    driver.finish("up[0]", outcome=gave(n=0))
    driver.finish("up[1]", outcome=gave(n="no number"))
    assert driver.told("up") == (TaskState.FAILED, "condition_error")
    driver.take_over()
    driver.finish("work")
    assert driver.queued() == ["down"]


def test_a_map_whose_indices_have_run_and_skipped_themselves_is_torn_down() -> None:
    driver = around(mapped("up", over=[1, 2]))
    driver.finish("up[0]", "up[1]", outcome=SKIP)
    assert driver.told("up") == (TaskState.SKIPPED, "all_skipped")
    driver.take_over()
    driver.finish("work")
    assert driver.queued() == ["down"]


@pytest.mark.parametrize(
    ("up", "word"),
    [
        (task("up", when="1 > 2"), "condition"),
        (task("up", when="'a' > 2"), "condition_error"),
        (mapped("up", over=[]), "empty"),
        (mapped("up", over="{{ params.absent }}"), "template"),
    ],
)
def test_what_was_settled_before_it_began_is_not_torn_down(up: PlannedTask, word: str) -> None:
    driver = around(up)
    assert driver.told("up")[1] == word
    driver.take_over()
    driver.finish("work")
    assert driver.told("down") == (TaskState.SKIPPED, "setup_not_run")


@pytest.mark.parametrize("word", WORDS_OF_THE_RULES)
def test_a_mark_upstream_leaves_what_has_run_as_it_ended_whatever_word_it_gave(word: str) -> None:
    driver = started(task("a"), task("b", "a"))
    driver.finish("a")
    driver.finish("b", outcome=Outcome(AttemptState.SUCCEEDED, word, skipped=True))
    driver.ask("mark", task="a", state="success", outputs={"x": 1})
    driver.feed(driver.submission())
    assert driver.told("b") == (TaskState.SKIPPED, word)


def test_a_mark_upstream_does_not_run_a_map_again_that_has_skipped_itself() -> None:
    driver = started(task("a"), mapped("m", "a", over=[1, 2]))
    driver.finish("a")
    driver.finish("m[0]", "m[1]", outcome=SKIP)
    driver.ask("mark", task="a", state="success", outputs={"x": 1})
    driver.feed(driver.submission())
    assert driver.queued() == []
    assert driver.told("m") == (TaskState.SKIPPED, "all_skipped")


def test_a_mark_upstream_asks_nobody_again_who_has_rejected() -> None:
    driver = started(task("a"), PlannedTask("gate", "approval", ("a",), approval=ApprovalPlan("Go?")))
    driver.finish("a")
    driver.ask("reject", task="gate")
    driver.ask("mark", task="a", state="success", outputs={"x": 1})
    driver.feed(driver.submission())
    assert driver.told("gate")[0] is TaskState.FAILED


def test_what_runs_again_and_is_settled_then_has_not_begun() -> None:
    driver = started(task("a"), task("up", "a"), task("down", "up", teardown=True, setups=("up",)))
    driver.finish("a", "up", "down")
    driver.again(["a"])
    driver.finish("a", outcome=BAD)
    assert driver.told("down") == (TaskState.SKIPPED, "setup_not_run")


def of_a_run(driver: Written, name: str, outcome: Outcome) -> None:
    """Let a task end of the run that is a task of the first one."""
    (node,) = (node for node in driver.kernel.tasks.values() if node.name == name and node.run.id != "r1")
    driver.finish(name, run_id=node.run.id, outcome=outcome)


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize("state", ["skipped", "failed", "success"])
def test_a_set_up_that_is_a_run_is_torn_down_though_it_is_marked_after_its_end(state: str, takes_over: bool) -> None:
    driver = Written()
    driver.worker(cpu=64_000, memory=64 * GIB, slots=64)
    driver.store.pipelines["other"] = Plan((task("x"),))
    up = PlannedTask("up", "pipeline", child=ChildPlan("other"))
    driver.run(up, task("work"), task("down", "up", "work", teardown=True, setups=("up",)))
    of_a_run(driver, "x", BAD if state != "failed" else gave())
    assert driver.told("up")[0] is (TaskState.SUCCESS if state == "failed" else TaskState.FAILED)
    driver.ask("mark", task="up", state=state)
    if takes_over:
        driver.take_over()
    driver.finish("work")
    assert driver.queued() == ["down"]


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize(
    "up",
    [task("up"), mapped("up", over=[1]), PlannedTask("up", "approval", approval=ApprovalPlan("Go?"))],
    ids=["task", "map", "approval"],
)
def test_what_has_begun_is_torn_down_though_a_person_says_that_it_was_skipped(
    up: PlannedTask, takes_over: bool
) -> None:
    driver = started(up, task("work"), task("down", "up", "work", teardown=True, setups=("up",)))
    if up.approval is None:
        driver.finish("up[0]" if up.map else "up", outcome=BAD)
    driver.ask("mark", task="up", state="skipped")
    if takes_over:
        driver.take_over()
    driver.finish("work")
    assert driver.queued() == ["down"]


def test_what_is_marked_before_it_has_begun_is_not_torn_down() -> None:
    driver = started(task("a"), task("up", "a"), task("down", "a", "up", teardown=True, setups=("up",)))
    driver.ask("mark", task="up", state="skipped")
    driver.take_over()
    driver.finish("a")
    assert driver.told("down") == (TaskState.SKIPPED, "setup_not_run")


@pytest.mark.parametrize("up", [task("up", "a"), mapped("up", "a", over=[1, 2])], ids=["task", "map"])
def test_what_runs_again_and_is_cancelled_before_it_begins_is_not_torn_down_again(up: PlannedTask) -> None:
    driver = started(task("a"), up, task("work", "up"), task("down", "work", teardown=True, setups=("up",)))
    while queued := driver.queued():
        driver.finish(*queued)
    assert driver.told("down")[0] is TaskState.SUCCESS
    driver.again(["a"])
    driver.ask("cancel", task="up")
    driver.finish("a")
    assert driver.told("down") == (TaskState.SKIPPED, "setup_not_run")


def test_a_map_that_a_mark_lets_go_on_is_torn_down_though_it_is_cancelled_before_it_does() -> None:
    driver = started(mapped("up", over=[1]), task("work"), task("down", "up", "work", teardown=True, setups=("up",)))
    driver.finish("up[0]", outcome=BAD)
    driver.ask("pause")
    driver.ask("mark", task="up[0]", state="success")
    driver.ask("cancel")
    while queued := driver.queued():
        driver.finish(*queued)
    assert driver.told("down")[0] is TaskState.SUCCESS


@pytest.mark.parametrize("state", [TaskState.WAITING, TaskState.RUNNING, TaskState.RETRY_WAIT, TaskState.CANCELLING])
def test_what_is_under_way_has_begun_whatever_times_its_row_has(state: TaskState) -> None:
    driver = started(task("a"))
    node: TaskNode = driver.kernel.runs["r1"].root.tasks[0]
    record = replace(driver.row("a"), state=state, begun=False)
    assert TaskNode(record, node.scope, 0).begun
    assert not TaskNode(replace(record, state=TaskState.SKIPPED), node.scope, 0).begun
