"""Retry rules in the kernel: what the next try asks for, where it goes, and what is remembered for the next run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.effects import CreateAttempt, LearnMemory
from orchestrator.records import AttemptRecord, Outcome, PlannedTask, RetryPolicy, RetryRule, Usage
from orchestrator.states import AttemptState, TaskState
from tests.unit.kernel_driver import GIB, SUCCESS, Driver, task

OOM = Outcome(AttemptState.FAILED, "oom", usage=Usage(peak_memory=GIB))
MORE = RetryRule("retry", reasons=("oom",), memory_factor=1.5)


def policy(*rules: RetryRule, retries: int = 5, **fields: Any) -> RetryPolicy:
    return RetryPolicy(retries=retries, delay=0, factor=1, max_delay=60, jitter=0, rules=rules, **fields)


def running(planned: PlannedTask, memory: int = 64 * GIB, **fields: Any) -> Driver:
    driver = Driver(highmem_above=4 * GIB)
    driver.worker(memory=memory, queues=("cpu", "highmem"))
    driver.run(planned, **fields)
    driver.start("a")
    return driver


def next_attempt(driver: Driver) -> AttemptRecord:
    return driver.of(CreateAttempt)[0].attempt


def test_after_a_rule_with_more_memory_the_next_attempt_is_charged_with_it() -> None:
    driver = running(task("a", retry=policy(MORE)))
    driver.end("a", OOM)
    assert next_attempt(driver).resources.memory == 3 * GIB // 2
    assert driver.kernel.ledger.hosts["a"].memory_used == 3 * GIB // 2
    driver.start("a")
    driver.end("a", OOM)
    assert next_attempt(driver).resources.memory == 9 * GIB // 4


def test_the_row_keeps_what_the_next_try_asks_for_so_that_a_new_leader_asks_the_same() -> None:
    driver = running(task("a", retry=policy(MORE)))
    driver.end("a", OOM, tick=False)
    assert driver.last("r1.a").changes["memory"] == 3 * GIB // 2


def test_a_preemption_in_between_keeps_the_raised_request() -> None:
    driver = running(task("a", retry=policy(MORE)))
    driver.end("a", OOM)
    driver.start("a")
    driver.end("a", Outcome(AttemptState.PREEMPTED))
    driver.beat("w1")
    driver.beat("w1")
    driver.tick(after=2.0)
    assert next_attempt(driver).resources.memory == 3 * GIB // 2


def test_a_request_that_has_grown_above_the_threshold_goes_to_highmem() -> None:
    driver = running(task("a", memory=3 * GIB, retry=policy(MORE)))
    driver.end("a", OOM)
    assert next_attempt(driver).queue == "highmem"


def test_a_rule_names_the_queue_of_the_next_try() -> None:
    driver = running(task("a", retry=policy(RetryRule("retry", queue="highmem"))))
    driver.end("a", OOM)
    assert next_attempt(driver).queue == "highmem"


def test_a_request_larger_than_every_host_fails_the_task_with_the_numbers() -> None:
    driver = running(task("a", memory=6 * GIB, retry=policy(MORE)), memory=8 * GIB)
    driver.end("a", OOM)
    assert driver.state("a") is TaskState.FAILED
    reason, message = driver.reason("a")
    assert reason == "oom"
    for words in ("9 GiB", "8 GiB"):
        assert words in message


def test_a_rule_that_skips_settles_the_task_as_skipped() -> None:
    driver = running(task("a", retry=policy(RetryRule("skip", exit_codes=(3,)))))
    driver.end("a", Outcome(AttemptState.FAILED, "exit", "It left with 3.", exit_code=3))
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.SKIPPED, "rule")


def test_a_try_that_makes_no_progress_is_charged_to_the_user_and_rules_know_it_by_name() -> None:
    stuck = Outcome(AttemptState.TIMED_OUT, "no_progress")
    driver = running(task("a"))
    driver.end("a", stuck)
    assert (driver.state("a"), driver.last("r1.a").changes["failures"]) == (TaskState.RETRY_WAIT, 1)
    driver = running(task("a", retry=policy(RetryRule("fail", reasons=("no_progress",)))))
    driver.end("a", stuck)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "no_progress")


def test_a_rule_may_end_a_task_whose_worker_was_lost() -> None:
    driver = running(task("a", retry=policy(RetryRule("fail", reasons=("worker_lost",)))))
    driver.tick(after=31.0)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "worker_lost")


def test_a_task_with_a_budget_of_its_own_for_infrastructure_uses_it_up_first() -> None:
    driver = running(task("a", retry=policy(infrastructure=1)))
    driver.end("a", Outcome(AttemptState.FAILED, "runner_died", infrastructure=True))
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "poison")


def test_a_learned_request_remembers_what_was_used_with_some_room() -> None:
    driver = running(task("a", memory_auto=True, retry=policy()))
    driver.end("a", replace(SUCCESS, usage=Usage(peak_memory=GIB)))
    assert driver.of(LearnMemory) == [LearnMemory("p", "a", 20 * 64 * 2**20, GIB)]


def test_a_learned_request_falls_slowly() -> None:
    driver = running(task("a", memory=4 * GIB, memory_auto=True, retry=policy()))
    driver.end("a", replace(SUCCESS, usage=Usage(peak_memory=2**20)))
    assert driver.of(LearnMemory) == [LearnMemory("p", "a", 3 * GIB, 2**20)]


def test_a_learned_request_that_was_too_small_is_raised_at_once_and_remembered() -> None:
    driver = running(task("a", memory_auto=True, retry=policy()))
    driver.end("a", OOM)
    assert driver.of(LearnMemory) == [LearnMemory("p", "a", 3 * GIB // 2, GIB)]
    driver.start("a")
    driver.end("a", replace(SUCCESS, usage=Usage(peak_memory=GIB)))
    assert driver.of(LearnMemory) == [], "a smaller one of the same run does not take its place"


def test_what_was_learned_is_asked_for_by_a_task_that_has_not_been_tried() -> None:
    driver = Driver()
    driver.worker(memory=64 * GIB)
    driver.run(task("a", memory_auto=True), hold=True)
    rows = driver.rows()
    driver = Driver()
    driver.worker(memory=64 * GIB)
    driver.feed(replace(rows, tasks=(replace(rows.tasks[0], memory=5 * GIB),)))
    driver.tick()
    assert next_attempt(driver).resources.memory == 5 * GIB


def test_a_task_that_says_what_it_asks_for_teaches_nothing() -> None:
    driver = running(task("a", retry=policy(MORE)))
    driver.end("a", replace(SUCCESS, usage=Usage(peak_memory=GIB)))
    assert driver.of(LearnMemory) == []
