"""The circuit of an external service."""

from __future__ import annotations

from orchestrator.breaker import FAILURES, LONGEST_HOLD, WITHIN, Circuit

WELL = Circuit("warehouse")


def failing(times: int, *, now: float = 0.0, circuit: Circuit = WELL) -> Circuit:
    for n in range(times):
        circuit = circuit.failed(f"a{n}", "unreachable", now)
    return circuit


def test_five_failures_in_a_row_open_it_and_four_do_not() -> None:
    assert failing(FAILURES - 1).state == "closed"
    opened = failing(FAILURES)
    assert (opened.state, opened.failures, opened.reason) == ("open", FAILURES, "unreachable")
    assert not opened.lets_through(29.9)
    assert opened.lets_through(30.0)


def test_a_success_in_between_begins_the_count_anew() -> None:
    circuit = failing(FAILURES - 1).succeeded("b")
    assert failing(FAILURES - 1, circuit=circuit).state == "closed"


def test_failures_that_lie_too_far_apart_do_not_count_together() -> None:
    circuit = Circuit("warehouse")
    for n in range(3 * FAILURES):
        circuit = circuit.failed(f"a{n}", "unavailable", n * WITHIN)
    assert circuit.state == "closed"


def test_after_the_hold_one_attempt_finds_out_and_the_others_wait() -> None:
    probed = failing(FAILURES).sent("p", 30.0)
    assert probed.state == "half_open"
    assert not probed.lets_through(29.9 + LONGEST_HOLD)
    assert probed.succeeded("p") == Circuit("warehouse")


def test_while_it_is_open_only_the_one_that_finds_out_counts() -> None:
    probed = failing(FAILURES).sent("p", 30.0)
    assert probed.succeeded("earlier") == probed
    assert probed.failed("earlier", "unreachable", 40.0) == probed
    assert probed.told_nothing("earlier") == probed


def test_each_failure_of_it_doubles_the_hold_up_to_ten_minutes() -> None:
    circuit, now, holds = failing(FAILURES), 0.0, []
    for n in range(8):
        now = circuit.open_until
        circuit = circuit.sent(f"p{n}", now).failed(f"p{n}", "rate_limited", now)
        holds.append(circuit.open_until - now)
    assert holds == [60, 120, 240, 480, LONGEST_HOLD, LONGEST_HOLD, LONGEST_HOLD, LONGEST_HOLD]


def test_when_it_ends_without_telling_anything_another_finds_out() -> None:
    circuit = failing(FAILURES).sent("p", 30.0).told_nothing("p")
    assert circuit.state == "open"
    assert circuit.lets_through(30.0)


def test_while_one_takes_long_another_finds_out_every_ten_minutes_and_each_of_them_counts() -> None:
    first = failing(FAILURES).sent("p", 30.0)
    assert first.lets_through(30.0 + LONGEST_HOLD)
    second = first.sent("q", 30.0 + LONGEST_HOLD)
    assert not second.lets_through(29.9 + 2 * LONGEST_HOLD)
    assert second.succeeded("p") == second.succeeded("q") == Circuit("warehouse")
    assert second.failed("p", "unreachable", 700.0).open_until == 760.0


def test_only_the_end_of_the_latest_lets_another_go_at_once() -> None:
    both = failing(FAILURES).sent("p", 30.0).sent("q", 640.0)
    assert not both.told_nothing("p").lets_through(650.0)
    assert both.told_nothing("q").lets_through(650.0)
    assert both.told_nothing("q").succeeded("p") == Circuit("warehouse")


def test_after_it_has_closed_it_holds_for_half_a_minute_again() -> None:
    circuit = failing(FAILURES).sent("p", 30.0).failed("p", "unreachable", 30.0).sent("q", 90.0).succeeded("q")
    assert failing(FAILURES, now=500.0, circuit=circuit).open_until == 530.0


def test_an_earlier_one_that_fails_takes_no_word_from_a_later_one() -> None:
    both = failing(FAILURES).sent("p", 30.0).sent("q", 640.0)
    failed = both.failed("p", "unreachable", 700.0)
    assert (failed.state, failed.failures) == ("half_open", FAILURES + 1)
    assert not failed.lets_through(1239.9), "the later one has time until then"
    assert failed.succeeded("q") == Circuit("warehouse")
    assert failed.told_nothing("q").state == "open"


def test_once_a_later_one_has_failed_an_earlier_one_has_nothing_more_to_tell() -> None:
    failed = failing(FAILURES).sent("p", 30.0).sent("q", 640.0).failed("q", "unreachable", 700.0)
    assert failed.state == "open"
    assert failed.succeeded("p") == failed.failed("p", "unreachable", 710.0) == failed
    assert failed.lets_through(760.0)
