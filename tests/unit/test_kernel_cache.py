"""The cache in the kernel: questions, hits and misses, and only one of equal tasks in flight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.effects import Count, LookUp
from orchestrator.events import CacheAnswered, OutcomeReceived, ReconcileDue, Tick
from orchestrator.kernel import Kernel, Snapshot
from orchestrator.records import CachePlan, Outcome, PlannedTask
from orchestrator.states import AttemptState, RunState, TaskState
from tests.unit.kernel_driver import GIB, Driver, task

FAILED = Outcome(AttemptState.FAILED, "bad", retryable=False)


def cached(name: str = "a", *up: str, **cache: Any) -> PlannedTask:
    return task(name, *up, cache=CachePlan(**cache))


def site(*runs: str, planned: PlannedTask | None = None) -> Driver:
    """Runs whose only task ``a`` waits for the answer of the cache."""
    driver = Driver()
    driver.worker(slots=8, cpu=8000, memory=64 * GIB)
    for order, run_id in enumerate(runs):
        driver.run(planned or cached(), run_id=run_id, order=order)
    return driver


def asked(driver: Driver) -> list[str]:
    return [effect.task_run_id for effect in driver.of(LookUp)]


def answer(driver: Driver, run_id: str = "r1", key: str = "k", origin: str | None = None, **fields: Any) -> None:
    driver.feed(CacheAnswered(f"{run_id}.a", key, origin, **fields), Tick())


def flying(*runs: str, planned: PlannedTask | None = None) -> Driver:
    """Runs all of whose tasks have the same key; that of the first one runs."""
    driver = site(*runs, planned=planned)
    for run_id in runs:
        answer(driver, run_id)
    driver.claim("a", nonce="n")
    return driver


def end(driver: Driver, run_id: str, outcome: Outcome | None = None) -> None:
    attempt = driver.attempt("a", run_id)
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, outcome or Outcome(AttemptState.SUCCEEDED)), Tick())


def test_a_task_with_a_cache_asks_before_it_is_sent_out() -> None:
    driver = site("r1")
    assert asked(driver) == ["r1.a"]
    assert driver.state("a") is TaskState.READY
    driver.tick(after=1.0)
    assert asked(driver) == []
    assert driver.dispatched() == []


def test_a_hit_ends_the_task_with_the_outputs_of_its_origin() -> None:
    driver = site("r1", planned=cached())
    answer(driver, origin="other", outputs={"rows": 3}, message="Taken from run r0.", local_to="host-7")
    assert (driver.state("a"), driver.reason("a")) == (TaskState.SUCCESS, ("cache_hit", "Taken from run r0."))
    changes = driver.last("r1.a").changes
    assert changes["outputs"] == {"rows": 3}
    assert (changes["cached_from"], changes["cache_key"], changes["local_to"]) == ("other", "k", "host-7")
    assert driver.run_state() is RunState.SUCCESS


def test_a_miss_lets_it_go_and_keeps_its_key() -> None:
    driver = site("r1")
    answer(driver)
    assert driver.dispatched() == ["a"]
    assert driver.kernel.tasks["r1.a"].cache_key == "k"


def test_without_a_key_it_runs_uncached_and_does_not_ask_again() -> None:
    driver = site("r1")
    answer(driver, key="")
    assert driver.dispatched() == ["a"]


def test_a_retry_does_not_ask_again() -> None:
    driver = site("r1")
    answer(driver)
    driver.claim("a")
    end(driver, "r1", Outcome(AttemptState.FAILED, "exception"))
    driver.tick(after=10.0)
    assert asked(driver) == []
    assert driver.dispatched() == ["a"]


def test_a_cache_that_is_only_written_takes_no_hit() -> None:
    driver = site("r1", planned=cached(mode="write"))
    answer(driver, origin="other")
    assert driver.dispatched() == ["a"]


def test_an_answer_to_a_question_that_nobody_asks_changes_nothing() -> None:
    driver = flying("r1")
    answer(driver, origin="other")
    assert driver.state("a") is TaskState.RUNNING


def test_the_answer_for_a_task_that_was_cancelled_meanwhile_changes_nothing() -> None:
    driver = site("r1")
    driver.command("cancel", run_id="r1", task="a")
    answer(driver, origin="other")
    assert driver.state("a") is TaskState.CANCELLED


def test_of_equal_tasks_only_one_runs_and_the_others_say_for_which_they_wait() -> None:
    driver = flying("r1", "r2", "r3")
    assert driver.state("a") is TaskState.RUNNING
    for run_id in ("r2", "r3"):
        assert driver.state("a", run_id) is TaskState.READY
        reason, message = driver.reason("a", run_id)
        assert reason == "cache_flight"
        assert "a of run r1" in message


def test_when_it_succeeds_the_others_ask_for_its_outputs() -> None:
    driver = flying("r1", "r2", "r3")
    end(driver, "r1")
    assert set(asked(driver)) == {"r2.a", "r3.a"}
    answer(driver, "r2", origin="r1.a", outputs={})
    assert driver.state("a", "r2") is TaskState.SUCCESS


def test_when_its_outputs_are_not_in_the_cache_after_all_one_of_the_others_runs() -> None:
    driver = flying("r1", "r2", "r3")
    end(driver, "r1")
    answer(driver, "r2")
    answer(driver, "r3")
    assert driver.state("a", "r2") is TaskState.QUEUED
    assert "a of run r2" in driver.reason("a", "r3")[1]


@pytest.mark.parametrize("how", ["failed", "cancelled", "skipped"])
def test_when_it_does_not_succeed_the_next_one_takes_its_place(how: str) -> None:
    driver = flying("r1", "r2", "r3")
    if how == "failed":
        end(driver, "r1", FAILED)
    elif how == "skipped":
        end(driver, "r1", Outcome(AttemptState.SUCCEEDED, skipped=True))
    else:
        driver.command("cancel", run_id="r1")
        end(driver, "r1", Outcome(AttemptState.CANCELLED))
    assert driver.state("a", "r2") is TaskState.QUEUED
    assert driver.state("a", "r3") is TaskState.READY
    assert "a of run r2" in driver.reason("a", "r3")[1]


def test_while_it_waits_for_its_retry_the_others_go_on_waiting() -> None:
    driver = flying("r1", "r2")
    end(driver, "r1", Outcome(AttemptState.FAILED, "exception"))
    assert driver.state("a") is TaskState.RETRY_WAIT
    assert driver.state("a", "r2") is TaskState.READY
    assert driver.dispatched() == []


def test_a_follower_that_ends_leaves_the_others_where_they_are() -> None:
    driver = flying("r1", "r2", "r3")
    driver.command("cancel", run_id="r2")
    end(driver, "r1", FAILED)
    assert driver.state("a", "r3") is TaskState.QUEUED


def test_a_paused_run_does_not_keep_others_from_working() -> None:
    driver = Driver()
    driver.run(cached(), run_id="r1")
    driver.run(cached(), run_id="r2", order=1)
    answer(driver, "r1")
    answer(driver, "r2")
    driver.command("pause", run_id="r1")
    driver.worker()
    driver.tick()
    assert driver.state("a", "r2") is TaskState.QUEUED
    driver.command("resume", run_id="r1")
    assert driver.state("a") is TaskState.READY
    assert driver.reason("a")[0] == "cache_flight"


def test_a_retry_in_a_paused_run_gives_its_place_to_another() -> None:
    driver = flying("r1", "r2")
    end(driver, "r1", Outcome(AttemptState.FAILED, "exception"))
    driver.command("pause", run_id="r1")
    driver.tick(after=11.0)
    assert (driver.state("a"), driver.state("a", "r2")) == (TaskState.READY, TaskState.QUEUED)
    driver.command("resume", run_id="r1")
    assert driver.reason("a")[0] == "cache_flight"


@pytest.mark.parametrize("paused", ["r1", "r2", "r3"])
def test_reconcile_leaves_the_tasks_of_a_paused_run_where_they_are(paused: str) -> None:
    driver = flying("r1", "r2", "r3")
    driver.command("pause", run_id=paused)
    driver.feed(ReconcileDue(), Tick())
    assert "repaired" not in [count.what for count in driver.all_of(Count)]
    end(driver, "r1", FAILED)
    other = "r3" if paused == "r2" else "r2"
    assert driver.state("a", other) is TaskState.QUEUED, "what is paused has taken the place of another"


@pytest.mark.parametrize("order", [("r1", "r2"), ("r2", "r1")])
def test_a_new_leader_lets_nobody_wait_for_a_task_of_a_paused_run(order: tuple[str, ...]) -> None:
    driver = Driver()
    for run_id in ("r1", "r2"):
        driver.run(cached(), run_id=run_id)
        answer(driver, run_id)
    driver.command("pause", run_id="r1")
    rebuilt(driver, *order)
    answer(driver, "r2")
    driver.worker()
    driver.tick()
    assert driver.state("a", "r2") is TaskState.QUEUED


def test_without_single_flight_equal_tasks_run_side_by_side() -> None:
    driver = flying("r1", "r2", planned=cached(single_flight=False))
    assert driver.state("a", "r2") is TaskState.QUEUED


def test_tasks_of_different_pipelines_are_equal_only_where_the_scope_says_so() -> None:
    for scope, state in (("pipeline", TaskState.QUEUED), ("tenant", TaskState.READY)):
        driver = Driver()
        driver.worker()
        driver.run(cached(scope=scope), run_id="r1", pipeline_id="p1")
        driver.run(cached(scope=scope), run_id="r2", pipeline_id="p2", order=1)
        answer(driver, "r1")
        answer(driver, "r2")
        assert driver.state("a", "r2") is state


def test_reconcile_finds_nothing_to_repair_in_tasks_that_wait_for_the_cache() -> None:
    driver = flying("r1", "r2")
    driver.run(cached(), run_id="r3", order=3)
    driver.feed(ReconcileDue(), Tick())
    assert "repaired" not in [count.what for count in driver.all_of(Count)]
    assert driver.dispatched() == []


def rebuilt(driver: Driver, *runs: str) -> None:
    rows = [driver.rows(run_id) for run_id in runs]
    keys = {node.id: node.cache_key for node in driver.kernel.tasks.values()}
    old = driver.kernel
    driver.kernel = Kernel(old.settings, driver.now)
    driver.kernel.load(
        Snapshot(
            runs=tuple(row.run for row in rows),
            plans={row.run.id: row.plan for row in rows},
            task_runs=tuple(replace(task, cache_key=keys[task.id]) for row in rows for task in row.tasks),
            attempts=tuple(old.attempts.values()),
            reservations=old.reservations(),
            workers=tuple(old.workers.values()),
        ),
        driver.now,
    )
    driver.feed(ReconcileDue(), Tick())


def test_a_new_leader_asks_again_what_has_no_key_yet() -> None:
    driver = site("r1")
    rebuilt(driver, "r1")
    assert asked(driver) == ["r1.a"]


@pytest.mark.parametrize("order", [("r1", "r2"), ("r2", "r1")])
def test_a_new_leader_lets_the_others_follow_the_one_that_runs(order: tuple[str, ...]) -> None:
    driver = flying("r1", "r2")
    rebuilt(driver, *order)
    driver.beat("w1")
    driver.tick()
    assert driver.state("a", "r2") is TaskState.READY
    assert "a of run r1" in driver.reason("a", "r2")[1]
    end(driver, "r1")
    assert asked(driver) == ["r2.a"]


def test_a_rerun_asks_again() -> None:
    driver = flying("r1")
    end(driver, "r1", FAILED)
    driver.rerun()
    assert asked(driver) == ["r1.a"]
