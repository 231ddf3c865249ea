"""Repeats: rounds one after the other, until, max, delays, and what is read of the round before."""

from __future__ import annotations

from orchestrator.records import PlannedTask
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import BAD, SKIP, gave, mapped, repeated


def test_a_body_runs_round_after_round_until_the_expression_is_true() -> None:
    driver = started(repeated("tune", until="outputs.loss < 0.1", most=5), task("next", "tune"))
    assert driver.queued() == ["tune[0]"]
    assert driver.told("tune") == (TaskState.RUNNING, "repeating")
    driver.finish("tune[0]", outcome=gave(loss=0.5))
    assert driver.queued() == ["tune[1]"]
    assert driver.row("tune").message == "round 2"
    driver.take_over()
    driver.finish("tune[1]", outcome=gave(loss=0.05))
    assert (driver.state("tune"), driver.row("tune").message) == (TaskState.SUCCESS, "Ended after round 2.")
    assert driver.queued() == ["next"]


def test_after_the_last_round_it_fails_or_succeeds_as_it_says() -> None:
    for on_max, after in (("fail", TaskState.FAILED), ("succeed", TaskState.SUCCESS)):
        driver = started(repeated("tune", until="false", most=2, on_max=on_max))
        driver.finish("tune[0]")
        driver.finish("tune[1]")
        assert driver.told("tune") == (after, "max_rounds")


def test_a_delay_between_rounds_holds_nothing_and_survives_a_change_of_leaders() -> None:
    driver = started(repeated("poll", until="repeat.index >= 1", most=9, delay=60.0))
    driver.finish("poll[0]")
    assert driver.told("poll") == (TaskState.RUNNING, "repeat_delay")
    assert not driver.held()
    driver.tick(after=50)
    driver.take_over()
    driver.tick(after=9)
    assert driver.queued() == []
    driver.tick(after=2)
    assert driver.queued() == ["poll[1]"]
    driver.take_over()
    driver.finish("poll[1]")
    assert driver.run_state() is RunState.SUCCESS


def test_it_may_be_cancelled_between_two_rounds() -> None:
    driver = started(repeated("poll", until="false", most=9, delay=60.0))
    driver.finish("poll[0]")
    driver.ask("cancel")
    assert driver.run_state() is RunState.CANCELLED
    driver.tick(after=100)
    assert len(driver.rows_of()) == 2


def test_a_failed_round_fails_it_and_a_skipped_one_skips_it() -> None:
    driver = started(repeated("tune", until="true", most=5))
    driver.finish("tune[0]", outcome=BAD)
    assert driver.told("tune") == (TaskState.FAILED, "round_failed")
    assert driver.row("tune").message == "Round 1 did not succeed: tune[0] failed (bad_data)."
    driver = started(repeated("tune", until="true", most=5))
    driver.finish("tune[0]", outcome=SKIP)
    assert driver.told("tune") == (TaskState.SKIPPED, "round_skipped")


def test_an_expression_that_can_not_be_worked_out_fails_it_with_a_sentence() -> None:
    driver = started(repeated("tune", until="outputs.loss / 0 > 1", most=5))
    driver.finish("tune[0]", outcome=gave(loss=1))
    assert driver.told("tune") == (TaskState.FAILED, "condition_error")
    assert driver.row("tune").message


def group() -> PlannedTask:
    body = (task("fit"), task("deep", "fit", when="repeat.previous.outputs.fit.n == 1"))
    return repeated("tune", until="tasks.fit.outputs.n >= 2", most=5, body=body)


def test_a_group_repeats_and_a_round_reads_what_the_one_before_has_left() -> None:
    driver = started(group(), mapped("over", "tune", over="{{ tasks.tune.outputs.fit.parts }}"))
    driver.finish("tune[0].fit", outcome=gave(n=1))
    assert driver.told("tune[0].deep") == (TaskState.SKIPPED, "condition"), "there is no round before the first"
    driver.take_over()
    driver.finish("tune[1].fit", outcome=gave(n=2, parts=["p", "q"]))
    assert driver.queued() == ["tune[1].deep"]
    driver.finish("tune[1].deep")
    assert [row.item for row in driver.rows_of() if row.name.startswith("over[")] == ["p", "q"]


def test_a_repeat_inside_of_a_map_has_rounds_of_its_own() -> None:
    inner = repeated("step", until="outputs.done", most=3)
    driver = started(mapped("seeds", over=[1, 2], body=(inner,)))
    driver.finish("seeds[1].step[0]", outcome=gave(done=False))
    driver.finish("seeds[0].step[0]", outcome=gave(done=True))
    assert driver.queued() == ["seeds[1].step[1]"]
    driver.take_over()
    driver.finish("seeds[1].step[1]", outcome=gave(done=True))
    assert driver.run_state() is RunState.SUCCESS
