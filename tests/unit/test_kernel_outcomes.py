"""Outcomes, retries and losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.effects import Release, SaveOutcome
from orchestrator.events import OutcomeReceived
from orchestrator.kernel import REGISTRY_CONFLICT, would_publish
from orchestrator.records import EndedAttempt, Outcome, PlannedTask
from orchestrator.states import AttemptState, RunState, TaskState
from tests.unit.kernel_driver import NO_JITTER, SUCCESS, Driver, task

FAILED = Outcome(AttemptState.FAILED, "exception")
DIED = Outcome(AttemptState.FAILED, "runner_died", infrastructure=True)


def running(*tasks: PlannedTask, **settings: Any) -> Driver:
    """A run whose roots are running; one task ``a`` unless others are given."""
    driver = Driver(**settings)
    driver.worker(slots=8)
    driver.run(*(tasks or (task("a"),)))
    driver.start(*driver.dispatched())
    return driver


def test_an_outcome_under_its_token_is_committed_and_releases_everything() -> None:
    driver = running()
    driver.end("a", replace(SUCCESS, outputs={"rows": 3}))
    assert driver.verdicts() == ["committed"]
    assert driver.of(SaveOutcome)[0].publish
    assert driver.of(Release)
    assert driver.run_state() is RunState.SUCCESS


def test_the_same_outcome_again_is_answered_committed_and_changes_nothing() -> None:
    driver = running()
    attempt = driver.attempt("a")
    driver.end("a")
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, SUCCESS, reply_to="w7"))
    assert driver.verdicts() == ["committed"]
    assert len(driver.effects) == 1


@pytest.mark.parametrize("is_new_leader", [False, True])
def test_a_success_that_was_committed_as_a_conflict_of_versions_is_answered_committed_again(
    is_new_leader: bool,
) -> None:
    driver = running()
    attempt = driver.attempt("a")
    conflict = Outcome(AttemptState.FAILED, REGISTRY_CONFLICT, retryable=False)
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, conflict))
    row = None
    if is_new_leader:
        driver, row = Driver(), EndedAttempt(attempt.id, AttemptState.FAILED, attempt.token, "w1", REGISTRY_CONFLICT)
    for outcome, verdict in ((SUCCESS, "committed"), (conflict, "committed")):
        driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, outcome, ended=row))
        assert driver.verdicts() == [verdict]
        assert len(driver.effects) == 1
    timeout = Outcome(AttemptState.TIMED_OUT)
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, timeout, ended=row))
    assert driver.verdicts() == ["fenced"]


def test_a_new_leader_answers_from_the_row() -> None:
    driver = Driver()
    row = EndedAttempt("x", AttemptState.SUCCEEDED, "t", "w1")
    driver.feed(OutcomeReceived("w1", "x", "t", SUCCESS, ended=row))
    assert driver.verdicts() == ["committed"]
    driver.feed(OutcomeReceived("w1", "x", "other", SUCCESS, ended=row))
    assert driver.verdicts() == ["fenced"]
    driver.feed(OutcomeReceived("w1", "y", "t", SUCCESS))
    assert driver.verdicts() == ["unknown"]


def test_an_outcome_with_another_token_is_fenced_and_changes_nothing() -> None:
    driver = running()
    driver.end("a", token="stale")
    assert driver.verdicts() == ["fenced"]
    assert driver.state("a") is TaskState.RUNNING


def test_an_outcome_of_an_incarnation_that_holds_no_grant_is_fenced() -> None:
    driver = running()
    driver.end("a", worker_id="w2")
    assert driver.verdicts() == ["fenced"]


def test_an_outcome_whose_grant_the_rows_have_lost_is_committed() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.end("a")
    assert driver.verdicts() == ["committed"]
    assert driver.run_state() is RunState.SUCCESS


def test_only_a_report_that_will_count_would_be_published() -> None:
    driver = running()
    attempt = driver.attempt("a")
    real = OutcomeReceived("w1", attempt.id, attempt.token, SUCCESS)
    assert would_publish(driver.kernel, real)
    assert not would_publish(driver.kernel, replace(real, token="forged"))
    assert not would_publish(driver.kernel, replace(real, worker_id="w2"))
    assert not would_publish(driver.kernel, replace(real, outcome=FAILED))
    assert not would_publish(driver.kernel, replace(real, attempt_id="x"))
    driver.command("cancel", run_id="r1")
    assert not would_publish(driver.kernel, real)
    driver.end("a")
    assert not would_publish(driver.kernel, real)


def test_a_failed_task_waits_and_is_tried_again() -> None:
    driver = running()
    driver.end("a", FAILED)
    assert driver.state("a") is TaskState.RETRY_WAIT
    assert driver.last("r1.a").changes["retry_at"] == ("in", 10.0)
    driver.tick(after=9)
    assert not driver.dispatched()
    driver.tick(after=1)
    assert driver.dispatched() == ["a"]
    assert driver.attempt("a").number == 2


def test_when_the_retries_are_used_up_the_task_fails_and_its_downstreams_are_settled() -> None:
    driver = running(task("a", retry=replace(NO_JITTER, retries=0)), task("b", "a"), task("c", "a", rule="one_failed"))
    driver.end("a", FAILED)
    assert driver.state("a") is TaskState.FAILED
    assert driver.state("b") is TaskState.UPSTREAM_FAILED
    assert driver.dispatched() == ["c"]


def test_a_skip_by_the_operator_is_a_skip_of_the_task() -> None:
    driver = running(task("a"), task("b", "a"))
    driver.end("a", replace(SUCCESS, skipped=True, reason="nothing_new"))
    assert (driver.state("a"), driver.state("b")) == (TaskState.SKIPPED, TaskState.SKIPPED)
    assert driver.run_state() is RunState.SUCCESS


def test_a_poison_task_is_tried_three_times_for_infrastructure_reasons() -> None:
    driver = running()
    for _ in range(2):
        driver.end("a", DIED)
        driver.start("a")
    driver.end("a", DIED)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "poison")
    assert driver.last("r1.a").changes["losses"] == 3
    assert driver.last("r1.a").changes["failures"] == 0


def test_out_of_memory_uses_a_retry_of_the_user() -> None:
    driver = running()
    driver.end("a", Outcome(AttemptState.FAILED, "oom", infrastructure=True))
    assert driver.state("a") is TaskState.RETRY_WAIT
    assert driver.last("r1.a").changes["failures"] == 1


def test_a_preempted_attempt_goes_again_at_no_charge() -> None:
    driver = running()
    driver.end("a", Outcome(AttemptState.PREEMPTED), tick=False)
    changes = driver.last("r1.a").changes
    assert (driver.state("a"), changes["failures"], changes["losses"]) == (TaskState.RETRY_WAIT, 0, 0)
    driver.worker("w2", host="b")
    driver.tick(after=1)
    assert driver.dispatched() == ["a"]
    assert driver.attempt("a").worker_id == "w2", "who preempts leaves"


def test_two_upstreams_that_end_in_one_batch_start_their_join_once() -> None:
    driver = running(task("a"), task("b"), task("join", "a", "b"))
    driver.end("a", tick=False)
    driver.end("b")
    assert driver.dispatched() == ["join"]


def test_an_attempt_that_outlives_its_limits_is_given_up_but_stays_charged() -> None:
    driver = running(task("a", timeout=100.0, grace=10.0), lease=139)
    attempt = driver.attempt("a")
    driver.tick(after=139)
    assert driver.state("a") is TaskState.RUNNING
    driver.beat()
    driver.tick(after=1)
    assert driver.last(attempt.id).after is AttemptState.LOST
    assert driver.last(attempt.id).reason == "overdue"
    assert driver.kernel.ledger.reservations[attempt.id].zombie
    assert attempt.id in driver.kernel.desired("w1").fence
