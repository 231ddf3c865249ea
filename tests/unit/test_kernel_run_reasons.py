"""What a run that has failed says of it: the task that has made it fail, not one whose failure was handled."""

from __future__ import annotations

from orchestrator.records import Outcome
from orchestrator.states import AttemptState, RunState
from tests.unit.kernel_driver import task
from tests.unit.written_driver import BAD, Written, mapped

OTHER = Outcome(AttemptState.FAILED, "no_such_column", retryable=False)


def ended(driver: Written) -> tuple[RunState, str, str]:
    run = driver.store.runs["r1"]
    return run.state, run.reason, run.message


def test_it_names_the_task_that_has_failed_and_its_reason() -> None:
    driver = Written()
    driver.worker()
    driver.run(task("a"), task("b", "a"))
    driver.finish("a", outcome=BAD)
    assert ended(driver) == (RunState.FAILED, "bad_data", "Task a has failed (bad_data).")


def test_a_failure_that_was_handled_is_not_what_it_names() -> None:
    driver = Written()
    driver.worker()
    driver.run(task("a"), task("mend", "a", rule="one_failed"), task("b"))
    driver.finish("a", outcome=BAD)
    driver.finish("mend")
    driver.finish("b", outcome=OTHER)
    assert ended(driver) == (RunState.FAILED, "no_such_column", "Task b has failed (no_such_column).")


def test_of_a_map_it_names_the_index() -> None:
    driver = Written()
    driver.worker()
    driver.run(mapped("m", over=[1, 2]), task("z", "m"))
    driver.finish("m[0]")
    driver.finish("m[1]", outcome=BAD)
    assert ended(driver) == (RunState.FAILED, "bad_data", "Task m[1] has failed (bad_data).")


def test_a_run_that_fails_because_one_task_was_cancelled_says_so() -> None:
    driver = Written()
    driver.worker()
    driver.run(task("a"), task("b"))
    driver.ask("cancel", task="a", reason="wrong data")
    driver.finish("b")
    assert ended(driver) == (RunState.FAILED, "cancelled", "Task a was cancelled.")
