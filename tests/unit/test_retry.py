"""Back-off and the two budgets of retries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.records import Outcome, RetryPolicy
from orchestrator.retry import LONGEST_RETRY_AFTER, UNCHARGED, NextTry, after_failure, after_loss, back_off
from orchestrator.states import AttemptState

PLAIN = RetryPolicy(retries=3, delay=10, factor=2, max_delay=100, jitter=0)


def after(outcome: Outcome, *, failures: int = 0, losses: int = 0, policy: RetryPolicy = PLAIN) -> NextTry:
    return after_failure(policy, failures, losses, outcome, "attempt", 3)


def failed(
    reason: str = "",
    *,
    retryable: bool = True,
    retry_after: float | None = None,
    infrastructure: bool = False,
    state: AttemptState = AttemptState.FAILED,
) -> Outcome:
    return Outcome(state, reason, retryable=retryable, retry_after=retry_after, infrastructure=infrastructure)


def test_the_delay_grows_by_the_factor_up_to_the_cap() -> None:
    assert [back_off(PLAIN, n, "a") for n in (1, 2, 3, 4, 5, 6)] == [10, 20, 40, 80, 100, 100]


def test_a_huge_number_of_failures_stays_at_the_cap() -> None:
    assert back_off(PLAIN, 100_000, "a") == 100


@given(st.integers(1, 50), st.text(max_size=8), st.floats(0, 1), st.none() | st.floats(0, 1e6))
def test_the_delay_never_leaves_its_bounds_and_is_the_same_each_time(
    failures: int, attempt_id: str, jitter: float, retry_after: float | None
) -> None:
    policy = RetryPolicy(3, 10, 2, 100, jitter)
    delay = back_off(policy, failures, attempt_id, retry_after)
    assert 0 <= delay <= max(100, min(LONGEST_RETRY_AFTER, retry_after or 0))
    assert delay == back_off(policy, failures, attempt_id, retry_after)


def test_jitter_differs_between_attempts() -> None:
    policy = RetryPolicy(3, 10, 2, 100, 0.5)
    assert len({back_off(policy, 1, f"attempt-{n}") for n in range(20)}) > 10


def test_retry_after_is_waited_at_least_beyond_the_policy_s_cap_too_but_no_longer_than_a_day() -> None:
    assert back_off(PLAIN, 1, "a", retry_after=50) == 50
    assert back_off(PLAIN, 1, "a", retry_after=3) == 10
    assert back_off(PLAIN, 1, "a", retry_after=3600) == 3600
    assert back_off(PLAIN, 1, "a", retry_after=1e9) == 86_400


def test_a_failure_is_tried_again_until_the_retries_are_used_up() -> None:
    assert after(failed(), failures=2) == NextTry(True, 40, 3, 0, "failed", "")
    assert after(failed(), failures=3) == NextTry(False, 0, 4, 0, "failed", "")


def test_what_is_not_retryable_fails_at_once() -> None:
    assert after(failed("quality_gate", retryable=False)) == NextTry(False, 0, 1, 0, "quality_gate", "")


def test_a_timeout_is_charged_to_the_user() -> None:
    then = after(failed(state=AttemptState.TIMED_OUT))
    assert (then.again, then.failures, then.losses, then.reason) == (True, 1, 0, "timeout")


def test_out_of_memory_is_charged_to_the_user_whatever_the_worker_says() -> None:
    then = after(failed("oom", infrastructure=True))
    assert (then.failures, then.losses, then.reason) == (1, 0, "oom")


def test_infrastructure_losses_use_no_retry_of_the_user() -> None:
    then = after(failed("runner_died", infrastructure=True), failures=3)
    assert (then.again, then.delay, then.failures, then.losses) == (True, 0, 3, 1)


def test_the_third_infrastructure_loss_is_poison() -> None:
    then = after_loss(0, 2, 3, "worker_lost", "")
    assert (then.again, then.reason, then.losses) == (False, "poison", 3)
    assert "worker_lost" in then.message


def test_a_preempted_try_is_charged_to_nobody() -> None:
    then = after(failed(state=AttemptState.PREEMPTED), failures=3, losses=2)
    assert (then.again, then.delay, then.failures, then.losses) == (True, 1, 3, 2)
    assert not then.charged


@pytest.mark.parametrize("reason", sorted(UNCHARGED))
def test_an_end_that_killed_nothing_is_charged_to_nobody_however_often_it_comes(reason: str) -> None:
    for spared in range(50):
        then = after_loss(1, 2, 3, reason, "", spared=spared)
        assert (then.again, then.failures, then.losses, then.charged) == (True, 1, 2, False)
        assert then.delay == min(60.0, 2.0**spared)
    reported = after(failed(reason, infrastructure=True), failures=1, losses=2)
    assert (reported.again, reported.charged) == (True, False)


def test_the_word_of_an_operator_is_not_enough_to_be_charged_to_nobody() -> None:
    assert after(failed("gpu_busy")).charged
