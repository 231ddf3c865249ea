"""The time limits of an attempt: set-up apart, then the time limit and silence."""

from __future__ import annotations

from typing import Any

from workers import verdict
from workers.limits import TimeLimits


def limits(**fields: Any) -> TimeLimits:
    return TimeLimits(**{"started": 100.0, "setup": 60.0, "timeout": None, "silence": None, **fields})


def test_neither_the_time_limit_nor_silence_counts_during_set_up() -> None:
    attempt = limits(timeout=10.0, silence=5.0)
    assert attempt.passed(159.9) == ""
    assert attempt.setup_seconds(159.9) == 59.900000000000006
    attempt.begin(159.9)
    assert attempt.passed(164.8) == ""
    assert attempt.passed(164.9) == verdict.NO_PROGRESS
    assert attempt.setup_seconds(200.0) == 59.900000000000006


def test_a_set_up_that_hangs_is_bounded() -> None:
    assert limits().passed(159.9) == ""
    assert limits().passed(160.0) == verdict.SETUP_TIMEOUT
    begun = limits()
    begun.begin(101.0)
    assert begun.passed(1e9) == "", "no limit was asked for"


def test_the_time_limit_counts_from_the_operators_start_whatever_is_heard() -> None:
    attempt = limits(timeout=10.0, silence=20.0)
    attempt.begin(130.0)
    attempt.hear(139.0)
    assert attempt.passed(139.9) == ""
    assert attempt.passed(140.0) == verdict.TIMEOUT


def test_a_sign_of_life_prolongs_the_silence_that_is_allowed() -> None:
    attempt = limits(silence=5.0)
    attempt.begin(100.0)
    for heard in (104.0, 108.0, 112.0):
        attempt.hear(heard)
        assert attempt.passed(heard + 4.9) == ""
    assert attempt.passed(117.0) == verdict.NO_PROGRESS
