"""Whether a task has begun is a fact that its row keeps: no word that a script or a container gives changes it."""

from __future__ import annotations

import pytest

from orchestrator.records import ApprovalPlan, Outcome, PlannedTask
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
