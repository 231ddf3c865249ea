"""Rules of a retry policy: what they match, what they want, and what the next try asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.records import Outcome, RetryPolicy, RetryRule
from orchestrator.retry import NextTry, after_failure
from orchestrator.retry_rules import MIB, Asked, fits, next_memory
from orchestrator.states import AttemptState

GIB = 2**30
TWO_GIB = Asked(2 * GIB)
PLAIN = RetryPolicy(retries=3, delay=10, factor=2, max_delay=100, jitter=0)
EXCEPTION = Outcome(
    AttemptState.FAILED, "exception", "Connection RESET by peer", exit_code=1, exception="builtins.ConnectionError"
)
OOM = Outcome(AttemptState.FAILED, "oom", "It was killed at 2 GiB.", infrastructure=True)
TIMED_OUT = Outcome(AttemptState.TIMED_OUT)
LOST = Outcome(AttemptState.LOST, "worker_lost", "Worker w1 is silent.")
PREEMPTED = Outcome(AttemptState.PREEMPTED)


def after(
    outcome: Outcome,
    *rules: RetryRule,
    failures: int = 0,
    losses: int = 0,
    asked: Asked = TWO_GIB,
    **policy: Any,
) -> NextTry:
    return after_failure(replace(PLAIN, rules=rules, **policy), failures, losses, outcome, "attempt", 3, asked=asked)


@pytest.mark.parametrize(
    ("rule", "outcome", "expected"),
    [
        (RetryRule("retry"), EXCEPTION, True),
        (RetryRule("retry", reasons=("oom", "exception")), EXCEPTION, True),
        (RetryRule("retry", reasons=("oom",)), EXCEPTION, False),
        (RetryRule("retry", reasons=("timeout",)), TIMED_OUT, True),
        (RetryRule("retry", reasons=("failed",)), Outcome(AttemptState.FAILED), True),
        (RetryRule("retry", reasons=("preempted",)), PREEMPTED, True),
        (RetryRule("retry", exit_codes=(1, 137)), EXCEPTION, True),
        (RetryRule("retry", exit_codes=(137,)), EXCEPTION, False),
        (RetryRule("retry", exit_codes=(0,)), LOST, False),
        (RetryRule("retry", exceptions=("ConnectionError",)), EXCEPTION, True),
        (RetryRule("retry", exceptions=("builtins.ConnectionError",)), EXCEPTION, True),
        (RetryRule("retry", exceptions=("requests.ConnectionError",)), EXCEPTION, False),
        (RetryRule("retry", exceptions=("Error",)), EXCEPTION, False),
        (RetryRule("retry", exceptions=("",)), LOST, False),
        (RetryRule("retry", messages=("connection reset",)), EXCEPTION, True),
        (RetryRule("retry", messages=("refused", "BY PEER")), EXCEPTION, True),
        (RetryRule("retry", messages=("refused",)), EXCEPTION, False),
        (RetryRule("retry", reasons=("exception",), exit_codes=(1,), messages=("reset",)), EXCEPTION, True),
        (RetryRule("retry", reasons=("exception",), exit_codes=(2,), messages=("reset",)), EXCEPTION, False),
    ],
)
def test_a_rule_fits_when_each_condition_it_names_is_met_by_one_of_its_values(
    rule: RetryRule, outcome: Outcome, expected: bool
) -> None:
    assert fits(rule, outcome) is expected


def test_the_first_rule_that_fits_decides() -> None:
    then = after(EXCEPTION, RetryRule("fail", reasons=("oom",)), RetryRule("skip"), RetryRule("fail"))
    assert then.skip


def test_without_a_rule_that_fits_it_goes_as_before() -> None:
    assert after(EXCEPTION, RetryRule("fail", reasons=("oom",))) == after(EXCEPTION)


def test_a_rule_that_says_fail_ends_the_task_though_retries_are_left() -> None:
    then = after(EXCEPTION, RetryRule("fail"))
    assert (then.again, then.reason, then.message, then.failures) == (False, "exception", EXCEPTION.message, 1)


def test_a_rule_that_says_skip_settles_the_task_and_says_what_it_skipped() -> None:
    then = after(EXCEPTION, RetryRule("skip"))
    assert (then.again, then.skip, then.reason) == (False, True, "rule")
    assert then.message == f"A retry rule skips it: it ended as exception. {EXCEPTION.message}"


def test_a_rule_that_says_retry_tries_again_what_is_not_retryable_until_the_retries_are_used_up() -> None:
    final = replace(EXCEPTION, retryable=False)
    assert not after(final).again
    assert after(final, RetryRule("retry", reasons=("exception",))).again
    assert not after(final, RetryRule("retry"), failures=3).again


@pytest.mark.parametrize("action", ["fail", "skip"])
@pytest.mark.parametrize("outcome", [LOST, PREEMPTED, replace(LOST, reason="never_started")])
def test_a_rule_may_end_a_task_that_infrastructure_has_cost_a_try(outcome: Outcome, action: str) -> None:
    then = after(outcome, RetryRule(action))
    assert (then.again, then.failures, then.skip) == (False, 0, action == "skip")


def test_a_rule_does_not_move_a_loss_to_the_budget_of_the_user() -> None:
    then = after(LOST, RetryRule("retry", delay=5.0), failures=3)
    assert (then.again, then.delay, then.failures, then.losses) == (True, 5.0, 3, 1)


def test_a_rule_can_t_stretch_the_budget_of_infrastructure() -> None:
    then = after(LOST, RetryRule("retry"), losses=2)
    assert (then.again, then.reason) == (False, "poison")


@pytest.mark.parametrize(("own", "tries"), [(None, 3), (1, 1), (5, 5)])
def test_a_task_may_have_a_budget_of_its_own_for_infrastructure(own: int | None, tries: int) -> None:
    lost = [after(LOST, losses=n, infrastructure=own).again for n in range(tries)]
    assert lost == [True] * (tries - 1) + [False]


def test_the_delay_of_a_rule_takes_the_place_of_the_back_off() -> None:
    assert after(EXCEPTION, RetryRule("retry", delay=0.0), failures=2).delay == 0
    assert after(EXCEPTION, RetryRule("retry", delay=500.0)).delay == 500


def test_what_the_other_side_asked_for_is_waited_under_a_rule_too_up_to_a_day() -> None:
    assert after(replace(EXCEPTION, retry_after=50.0), RetryRule("retry", delay=1.0)).delay == 50
    assert after(replace(EXCEPTION, retry_after=5000.0), RetryRule("retry", delay=1.0)).delay == 5000
    assert after(replace(EXCEPTION, retry_after=1e9), RetryRule("retry", delay=1.0)).delay == 86_400


@pytest.mark.parametrize(
    ("rule", "asked", "expected"),
    [
        (RetryRule("retry"), 2 * GIB, None),
        (RetryRule("retry", memory_factor=1.5), 2 * GIB, 3 * GIB),
        (RetryRule("retry", memory_factor=1.5), 1, MIB),
        (RetryRule("retry", memory_factor=4.0, memory_max=6 * GIB), 2 * GIB, 6 * GIB),
        (RetryRule("retry", memory_factor=4.0, memory_max=6 * GIB), 6 * GIB, 6 * GIB),
        (RetryRule("retry", memory=8 * GIB), 2 * GIB, 8 * GIB),
        (RetryRule("retry", memory=8 * GIB), 16 * GIB, 16 * GIB),
    ],
)
def test_the_next_request_of_memory(rule: RetryRule, asked: int, expected: int | None) -> None:
    assert next_memory(rule, Asked(asked)) == expected


@given(st.integers(1, 2**45), st.floats(1, 8), st.none() | st.integers(1, 2**45))
def test_a_next_request_is_never_smaller(asked: int, factor: float, most: int | None) -> None:
    found = next_memory(RetryRule("retry", memory_factor=factor, memory_max=most), Asked(asked))
    assert found is not None
    assert found >= asked


def test_a_rule_says_where_the_next_try_goes() -> None:
    assert after(EXCEPTION, RetryRule("retry", queue="highmem")).queue == "highmem"


def test_a_request_larger_than_every_host_fails_at_once_with_the_numbers() -> None:
    asked = Asked(4 * GIB, largest=5 * GIB, where="h1")
    then = after(OOM, RetryRule("retry", reasons=("oom",), memory_factor=1.5), asked=asked)
    assert (then.again, then.reason, then.memory) == (False, "oom", None)
    for words in (OOM.message, "4 GiB", "6 GiB", "h1", "5 GiB"):
        assert words in then.message


def test_where_no_host_is_known_nothing_is_too_large() -> None:
    assert after(OOM, RetryRule("retry", memory=2**50)).again


def test_a_learned_request_grows_by_half_when_it_was_too_small() -> None:
    then = after(OOM, asked=Asked(2 * GIB, auto=True, largest=64 * GIB))
    assert (then.again, then.memory, then.failures) == (True, 3 * GIB, 1)
    assert after(OOM).memory is None
    assert after(EXCEPTION, asked=Asked(2 * GIB, auto=True)).memory is None


def test_a_learned_request_goes_up_to_the_largest_host_and_no_further() -> None:
    assert after(OOM, asked=Asked(4 * GIB, auto=True, largest=5 * GIB)).memory == 5 * GIB
    assert not after(OOM, asked=Asked(5 * GIB, auto=True, largest=5 * GIB)).again


def test_the_task_s_own_rules_stand_before_the_one_for_a_learned_request() -> None:
    then = after(OOM, RetryRule("fail", reasons=("oom",)), asked=Asked(2 * GIB, auto=True))
    assert (then.again, then.memory) == (False, None)


def test_a_try_after_a_preemption_asks_as_before() -> None:
    then = after(PREEMPTED, RetryRule("retry", reasons=("oom",), memory_factor=2.0), asked=Asked(6 * GIB, auto=True))
    assert (then.again, then.memory, then.charged) == (True, None, False)
