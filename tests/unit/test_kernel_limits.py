"""Limits in time: of the wait for a claim, of a task over all its attempts, of a run; across rebuilds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.effects import Count
from orchestrator.events import ClaimReceived, OutcomeReceived, RedisAway, RedisBack, Tick
from orchestrator.kernel import Kernel, Snapshot
from orchestrator.kernel.hearing import Hearing
from orchestrator.records import MapPlan, Outcome, Plan, RetryPolicy
from orchestrator.states import AttemptState, RunState, TaskState
from tests.unit.kernel_driver import SUCCESS, Driver, task

CANCELLED = Outcome(AttemptState.CANCELLED, "cancelled")
FAILED = Outcome(AttemptState.FAILED, "exception")
AT_ONCE = RetryPolicy(retries=5, delay=0, factor=1, max_delay=0, jitter=0)


def driven(*tasks: Any, **fields: Any) -> Driver:
    driver = Driver()
    driver.worker(slots=8, cpu=8000)
    driver.run(*tasks, **fields)
    return driver


def beat_for(driver: Driver, seconds: float) -> None:
    """Let time pass with a well worker."""
    until = driver.now + seconds
    while driver.now < until:
        driver.now = min(until, driver.now + 5.0)
        driver.beat("w1")
        driver.feed(Tick())


def rebuild(driver: Driver, *, jump: float = 0.0) -> None:
    """Let a new leader take over, by whose clock everything is ``jump`` seconds later."""
    old, rows = driver.kernel, driver.rows()
    ready = {node.id: node.ready_since for node in old.tasks.values()}
    snapshot = Snapshot(
        runs=(replace(rows.run, deadline_at=_moved(rows.run.deadline_at, jump)),),
        plans={"r1": rows.plan},
        task_runs=tuple(
            replace(row, deadline_at=_moved(row.deadline_at, jump), ready_at=_moved(ready[row.id], jump))
            for row in rows.tasks
        ),
        attempts=tuple(old.attempts.values()),
        reservations=old.reservations(),
        workers=tuple(old.workers.values()),
    )
    driver.kernel = Kernel(old.settings, driver.now)
    driver.kernel.load(snapshot, driver.now)


def _moved(at: Any, jump: float) -> float | None:
    # The rows keep delays; the driver's rows have the last one as it was written.
    if isinstance(at, tuple):
        at = 1000.0 + at[1]
    return None if at is None else at + jump


# The wait for a claim


def test_a_task_that_waits_too_long_for_a_worker_has_failed_a_try() -> None:
    driver = Driver()
    driver.run(task("a", max_queued=60.0))
    driver.tick(after=59.0)
    assert driver.state("a") is TaskState.READY
    driver.tick(after=1.0)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.RETRY_WAIT, "max_queued")
    assert "waiting_for_worker" in driver.reason("a")[1]
    driver.tick(after=10.0)
    assert driver.state("a") is TaskState.READY
    driver.tick(after=60.0)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "max_queued")


def test_a_task_that_waits_too_long_is_counted_anew_where_it_is_tried_again_at_once() -> None:
    driver = Driver()
    driver.run(task("a", max_queued=60.0, retry=replace(AT_ONCE, retries=1)))
    driver.tick(after=60.0)
    driver.tick(after=0.1)
    assert driver.state("a") is TaskState.READY
    driver.tick(after=59.0)
    assert driver.state("a") is TaskState.READY
    driver.tick(after=1.0)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "max_queued")


def test_a_hint_that_nobody_claims_in_time_is_taken_back() -> None:
    driver = driven(task("a", max_queued=30.0))
    beat_for(driver, 30.0)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.RETRY_WAIT, "max_queued")
    assert not driver.held()
    driver.tick(after=10.0)
    assert driver.state("a") is TaskState.QUEUED


def test_a_hint_that_nobody_claims_is_counted_anew_where_it_is_tried_again_at_once() -> None:
    driver = driven(task("a", max_queued=60.0, retry=AT_ONCE))
    for tries in range(1, 4):
        beat_for(driver, 55.0)
        assert driver.kernel.tasks["r1.a"].failures == tries - 1
        beat_for(driver, 5.0)
        assert (driver.state("a"), driver.kernel.tasks["r1.a"].failures) == (TaskState.QUEUED, tries)


def test_what_was_claimed_in_time_may_run_for_ever() -> None:
    driver = driven(task("a", max_queued=30.0))
    driver.start("a")
    beat_for(driver, 300.0)
    assert driver.state("a") is TaskState.RUNNING


def test_planning_it_anew_does_not_begin_the_wait_anew() -> None:
    driver = driven(task("a", max_queued=30.0))
    beat_for(driver, 20.0)
    driver.command("drain", worker_id="w1")
    assert driver.state("a") is TaskState.READY
    assert driver.last("r1.a").changes["ready_at"] == ("in", -20.0)
    driver.tick(after=10.0)
    assert driver.reason("a")[0] == "max_queued"


def test_nothing_is_taken_back_while_a_claim_of_it_may_lie_unread() -> None:
    driver = driven(task("a", max_queued=15.0))
    driver.tick(after=15.0, claims_waiting=True)
    assert driver.state("a") is TaskState.QUEUED
    driver.feed(RedisAway())
    driver.tick(after=5.0)
    assert driver.state("a") is TaskState.QUEUED
    driver.feed(RedisBack())
    driver.tick(after=1.0)
    assert driver.reason("a")[0] == "max_queued"


@pytest.mark.parametrize(("wait", "deadline"), [(60.0, 50.0), (50.0, 60.0)])
def test_of_two_limits_that_passed_unseen_the_second_finds_nothing_to_end(wait: float, deadline: float) -> None:
    driver = Driver()
    driver.run(task("a", max_queued=wait, retry=replace(AT_ONCE, retries=0)), plan={"deadline": deadline})
    driver.tick(after=90.0)
    assert driver.state("a") is (TaskState.CANCELLED if deadline < wait else TaskState.FAILED)
    assert driver.run_state() is RunState.FAILED
    assert not driver.all_of(Count)


def test_the_tasks_of_a_paused_run_wait_for_a_person() -> None:
    driver = Driver()
    driver.run(task("a", max_queued=60.0))
    driver.command("pause", run_id="r1")
    driver.tick(after=600.0)
    assert driver.state("a") is TaskState.READY
    driver.command("resume", run_id="r1")
    driver.tick(after=59.0)
    assert driver.state("a") is TaskState.READY
    driver.tick(after=2.0)
    assert driver.reason("a")[0] == "max_queued"


# A task over all its attempts


def test_a_task_past_its_deadline_is_stopped_with_its_grace_and_then_has_failed() -> None:
    driver = driven(task("a", deadline=100.0, grace=7.0), task("b", "a", rule="all_done"))
    driver.start("a")
    attempt = driver.attempt("a")
    beat_for(driver, 99.0)
    assert driver.kernel.desired("w1").cancel == ()
    beat_for(driver, 1.0)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.CANCELLING, "deadline")
    assert driver.kernel.desired("w1").cancel == ((attempt.id, 7.0),)
    driver.end("a", CANCELLED)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "deadline")
    assert driver.state("b") is TaskState.QUEUED


def test_a_deadline_counts_over_all_attempts_and_is_not_tried_again() -> None:
    driver = driven(task("a", deadline=100.0, retry=AT_ONCE))
    for _ in range(3):
        driver.start("a")
        beat_for(driver, 30.0)
        driver.end("a", FAILED)
    driver.start("a")
    beat_for(driver, 10.0)
    driver.end("a", CANCELLED)
    assert (driver.state("a"), driver.run_state()) == (TaskState.FAILED, RunState.FAILED)


@pytest.mark.parametrize("how", ["ready", "queued", "retry_wait"])
def test_a_deadline_ends_at_once_what_does_not_run(how: str) -> None:
    driver = Driver()
    if how != "ready":
        driver.worker()
    driver.run(task("a", deadline=15.0))
    if how == "retry_wait":
        driver.start("a")
        beat_for(driver, 10.0)
        driver.end("a", FAILED)
    driver.tick(after=15.0)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "deadline")
    assert not driver.held()


def test_a_success_that_was_reported_in_time_counts_though_it_was_read_late() -> None:
    driver = driven(task("a", deadline=20.0))
    driver.start("a")
    driver.now += 21.0
    driver.feed(Tick(unread_for=5.0))
    assert driver.state("a") is TaskState.RUNNING
    driver.end("a")
    assert driver.state("a") is TaskState.SUCCESS


def test_a_task_lost_while_it_is_stopped_for_its_deadline_has_failed_for_it() -> None:
    driver = driven(task("a", deadline=20.0))
    driver.start("a")
    driver.tick(after=20.0)
    driver.tick(after=20.0)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "deadline")


# A run


def test_a_run_past_its_deadline_stops_everything_and_has_failed() -> None:
    driver = driven(task("a"), task("b", "a"), task("c"), plan={"deadline": 50.0})
    assert driver.last("r1").changes["deadline_at"] == ("in", 50.0)
    driver.start("a")
    beat_for(driver, 50.0)
    assert (driver.run_state(), driver.last("r1").reason) == (RunState.CANCELLING, "run_deadline")
    assert (driver.state("b"), driver.state("c")) == (TaskState.CANCELLED, TaskState.CANCELLED)
    assert driver.reason("b")[0] == "run_deadline"
    driver.end("a", CANCELLED)
    assert driver.state("a") is TaskState.CANCELLED
    assert (driver.run_state(), driver.last("r1").reason) == (RunState.FAILED, "run_deadline")


def test_the_deadline_of_a_run_counts_from_its_start_and_not_while_it_is_queued() -> None:
    driver = Driver(max_runs=1)
    driver.worker()
    driver.run(task("a"))
    driver.run(task("a"), run_id="r2", plan={"deadline": 50.0})
    beat_for(driver, 60.0)
    assert driver.kernel.next_due(driver.now) is not None
    assert not [effect for effect in driver.history if getattr(effect, "id", "") == "r2"]


def test_a_run_that_is_run_again_has_its_whole_time_again() -> None:
    driver = driven(task("a"), plan={"deadline": 50.0})
    driver.start("a")
    beat_for(driver, 40.0)
    driver.end("a", Outcome(AttemptState.FAILED, "bad", retryable=False))
    driver.rerun()
    assert driver.run_state() is RunState.RUNNING
    driver.start("a")
    beat_for(driver, 45.0)
    assert driver.run_state() is RunState.RUNNING
    beat_for(driver, 5.0)
    assert driver.last("r1").reason == "run_deadline"


# Another leader


@pytest.mark.parametrize(
    ("planned", "plan", "reason"),
    [
        ({"max_queued": 60.0}, {}, "max_queued"),
        ({"deadline": 60.0}, {}, "deadline"),
        ({}, {"deadline": 60.0}, "run_deadline"),
    ],
)
def test_a_limit_goes_on_under_another_leader(planned: dict[str, Any], plan: dict[str, Any], reason: str) -> None:
    driver = Driver()
    driver.run(task("a", **planned), plan=plan)
    driver.now += 40.0
    rebuild(driver)
    driver.tick(after=19.0)
    assert driver.state("a") is TaskState.READY
    assert driver.kernel.next_due(driver.now) == pytest.approx(1.0)
    driver.tick(after=1.0)
    assert driver.reason("a")[0] == reason


def test_within_a_term_a_limit_goes_on_by_our_own_clock() -> None:
    driver = Driver()
    driver.run(task("a", deadline=60.0), plan={"deadline": 90.0})
    hearing = Hearing.of(driver.kernel)
    rebuild(driver, jump=-3600.0)
    hearing.hand_to(driver.kernel, driver.now, driver.now)
    driver.tick(after=59.0)
    assert driver.state("a") is TaskState.READY
    driver.tick(after=1.0)
    assert driver.reason("a")[0] == "deadline"


def test_a_task_that_was_being_stopped_for_its_deadline_ends_failed_under_another_leader() -> None:
    driver = driven(task("a", deadline=20.0))
    driver.start("a")
    beat_for(driver, 20.0)
    rebuild(driver)
    driver.end("a", CANCELLED)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "deadline")


def test_limits_that_were_kept_leave_no_timer_behind() -> None:
    driver = driven(task("a", deadline=60.0, max_queued=60.0), plan={"deadline": 90.0})
    driver.start("a")
    driver.end("a", SUCCESS)
    assert driver.run_state() is RunState.SUCCESS
    assert driver.kernel.timers.next_at() is None


def test_a_container_past_its_deadline_stops_what_is_inside_of_it_and_has_failed() -> None:
    body = Plan((task("m"),))
    driver = driven(task("m", map=MapPlan(over=[1, 2]), body=body, deadline=30.0), task("b", "m", rule="all_done"))
    attempts = list(driver.kernel.attempts.values())
    assert len(attempts) == 2
    for attempt in attempts:
        driver.feed(ClaimReceived("w1", attempt.id, 1, "n"))
    driver.beat("w1", running={attempt.id: attempt.token for attempt in attempts})
    beat_for(driver, 30.0)
    assert driver.last("r1.m").after is TaskState.CANCELLING
    for attempt in attempts:
        driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, CANCELLED), Tick())
    assert (driver.last("r1.m").after, driver.last("r1.m").reason) == (TaskState.FAILED, "deadline")
    assert driver.state("b") is TaskState.QUEUED


def test_a_run_of_which_only_the_teardown_is_not_over_was_done_in_time() -> None:
    driver = driven(task("a"), task("clean", "a", teardown=True), plan={"deadline": 50.0})
    driver.start("a")
    driver.end("a")
    driver.start("clean")
    beat_for(driver, 60.0)
    assert driver.run_state() is RunState.RUNNING
    driver.end("clean")
    assert driver.run_state() is RunState.SUCCESS
