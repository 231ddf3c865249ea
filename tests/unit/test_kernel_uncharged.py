"""Ends that killed nothing: charged to nobody, tried again after a moment, rather elsewhere, never in a hot loop."""

from __future__ import annotations

import pytest

from orchestrator.effects import Count
from orchestrator.records import Outcome
from orchestrator.states import AttemptState, TaskState
from tests.unit.kernel_driver import Driver, task

GPU_BUSY = Outcome(AttemptState.LOST, "gpu_busy", "Device gpu-0 is used by process 7.", infrastructure=True)
DIED = Outcome(AttemptState.FAILED, "runner_died", infrastructure=True)


def beat_for(driver: Driver, seconds: float, every: float = 5.0) -> None:
    """Let time pass while all workers speak."""
    until = driver.now + seconds
    while driver.now < until:
        driver.now += every
        for worker_id in list(driver.beats):
            driver.beat(worker_id)
    driver.tick()


def uncharged(driver: Driver) -> list[str]:
    return [count.detail for count in driver.all_of(Count) if count.what == "uncharged"]


def test_a_granted_attempt_is_not_given_up_while_its_grant_could_still_start_it() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.claim("a")
    for _ in range(58):
        driver.now += 0.5
        driver.beat()
    assert driver.state("a") is TaskState.RUNNING
    beat_for(driver, 2, every=0.5)
    assert driver.state("a") is TaskState.RETRY_WAIT


def test_a_grant_that_is_sent_again_lives_from_then() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.claim("a")
    beat_for(driver, 25)
    driver.claim("a")
    beat_for(driver, 25)
    assert driver.state("a") is TaskState.RUNNING
    beat_for(driver, 10)
    assert driver.state("a") is TaskState.RETRY_WAIT


def test_what_never_started_is_charged_to_nobody_and_goes_again_after_a_moment() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    attempt = driver.attempt("a")
    driver.claim("a")
    beat_for(driver, 35)
    assert driver.last(attempt.id).reason == "never_started"
    changes = driver.last("r1.a").changes
    assert (changes["failures"], changes["losses"], changes["retry_at"]) == (0, 0, ("in", 1.0))
    assert "charged to nobody" in driver.reason("a")[1]
    assert len(uncharged(driver)) == 1
    driver.beat("w1")
    driver.tick(after=1)
    assert driver.dispatched() == ["a"]


def test_an_uncharged_loop_slows_down_and_never_becomes_poison() -> None:
    driver = Driver(lease=1e6)
    driver.worker()
    driver.run(task("a"))
    delays = []
    for _ in range(9):
        driver.start("a")
        driver.end("a", GPU_BUSY)
        delays.append(driver.last("r1.a").changes["retry_at"][1])
        driver.tick(after=delays[-1])
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert driver.kernel.tasks["r1.a"].losses == 0
    assert len(uncharged(driver)) == 9


@pytest.mark.parametrize("outcome", [GPU_BUSY, DIED])
def test_the_next_try_goes_to_another_worker_if_one_can_take_it(outcome: Outcome) -> None:
    driver = Driver()
    driver.worker("w1", host="a", cpu=1000)
    driver.run(task("a"))
    driver.worker("w2", host="b", cpu=8000)
    driver.start("a")
    driver.end("a", outcome)
    driver.tick(after=1)
    assert driver.attempt("a").worker_id == "w2"
    assert driver.attempt("a").direct, "else the worker that has just lost it could take the pool's hint again"


def test_the_next_try_goes_to_the_same_worker_if_no_other_can_take_it() -> None:
    driver = Driver()
    driver.worker("w1")
    driver.worker("w2", host="b", cpu=500)
    driver.run(task("a"))
    driver.start("a")
    driver.end("a", DIED)
    assert driver.attempt("a").worker_id == "w1"


def test_a_failure_of_the_tasks_own_says_nothing_against_its_worker() -> None:
    driver = Driver()
    driver.worker("w1", host="a", cpu=1000)
    driver.run(task("a"))
    driver.worker("w2", host="b", cpu=8000)
    driver.start("a")
    driver.end("a", Outcome(AttemptState.FAILED, "exception"))
    driver.tick(after=10)
    assert driver.attempt("a").worker_id == "w1"


def test_a_task_can_not_escape_its_budget_by_a_word() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.start("a")
    driver.end("a", Outcome(AttemptState.FAILED, "gpu_busy"))
    assert driver.last("r1.a").changes["failures"] == 1


def test_a_dispatch_that_nobody_claimed_does_not_slow_the_next_try_down() -> None:
    driver = Driver(lease=1e6)
    driver.worker("w1")
    driver.run(task("a"))
    for _ in range(5):
        driver.command("drain", worker_id="w1")
        assert driver.state("a") is TaskState.READY, "its attempt has expired"
        driver.command("undrain", worker_id="w1")
    assert driver.attempt("a").number == 6
    driver.start("a")
    driver.end("a", GPU_BUSY)
    assert driver.last("r1.a").changes["retry_at"] == ("in", 1.0)
