"""Keys of limits, holders of slots, and windows of rate limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import TemplateError
from orchestrator.expressions.paths import lookup_in
from orchestrator.limits import Dispatches, Holders, Rate, Slot, rate_of, sentence, slots_of
from orchestrator.records import ConcurrencyLimit, RateLimit

NAMES = lookup_in({"params": {"user": "ann", "none": None, "n": 3}, "run": {"id": "r1", "pipeline": "p"}})
KEY = ("t", "attempts", "a")


def test_a_key_is_worked_out_per_tenant_and_a_null_key_limits_nothing() -> None:
    limits = (
        ConcurrencyLimit("{{ params.user }}", 1),
        ConcurrencyLimit("{{ params.none }}", 1),
        ConcurrencyLimit("u-{{ params.n }}", 2, "fail"),
    )
    assert slots_of(limits, "t", "runs", NAMES) == (
        Slot(("t", "runs", "ann"), 1),
        Slot(("t", "runs", "u-3"), 2, "fail"),
    )
    assert rate_of(RateLimit("{{ params.none }}", 1, 1.0), "t", NAMES) is None


def test_a_key_whose_path_leads_nowhere_is_an_error() -> None:
    with pytest.raises(TemplateError):
        slots_of((ConcurrencyLimit("{{ params.nobody }}", 1),), "t", "runs", NAMES)


def test_a_key_that_is_too_long_is_an_error_that_shows_how_it_begins() -> None:
    values = lookup_in({"params": {"text": "x" * 60_000, "long": "y" * 500, "list": [1, 2]}})
    for key in ("{{ params.text }}", "{{ params.text }}" * 30, "a-{{ params.long }}"):
        with pytest.raises(TemplateError, match="more than 500 characters") as caught:
            slots_of((ConcurrencyLimit(key, 1),), "t", "runs", values)
        assert len(str(caught.value)) < 300
        with pytest.raises(TemplateError, match="at /rate_limit has more than 500"):
            rate_of(RateLimit(key, 1, 1.0), "t", values)
    assert rate_of(RateLimit("{{ params.long }}", 1, 1.0), "t", values) == Rate(("t", "dispatches", "y" * 500), 1, 1.0)
    [slot] = slots_of((ConcurrencyLimit("{{ params.list }}", 1),), "t", "runs", values)
    assert slot.key[2] == "[1, 2]"


def test_a_holder_takes_once_and_gives_everything_back() -> None:
    holders, slots = Holders(), [Slot(KEY, 1), Slot(KEY, 2), Slot(("t", "attempts", "b"), 1)]
    holders.take("x", slots)
    holders.take("x", slots)
    holders.take("y", slots[:1])
    assert list(holders.of(KEY)) == ["x", "y"]
    assert holders.free("x")
    assert not holders.free("x")
    assert list(holders.of(KEY)) == ["y"]
    assert not holders.of(("t", "attempts", "b"))


def test_a_sentence_names_the_first_holders() -> None:
    text = sentence(Slot(KEY, 5), [f"h{n}" for n in range(5)])
    assert text == "Key 'a' allows 5 attempts at once; held by h0, h1, h2 and 2 more."


@given(
    st.integers(1, 4),
    st.sampled_from((0.5, 1.0, 7.0)),
    st.lists(st.sampled_from((0.0, 0.125, 0.5, 1.0, 3.0)), max_size=60),
)
def test_no_window_ever_holds_more_than_its_units_and_none_waits_longer_than_it_must(
    units: int, per: float, steps: list[float]
) -> None:
    rate, dispatches, now, sent = Rate(KEY, units, per), Dispatches(), 0.0, list[float]()
    for step in steps:
        now += step
        due = dispatches.next_at(rate, now)
        recent = [at for at in sent if at + per > now]
        assert (due <= now) is (len(recent) < units)
        if due <= now:
            dispatches.note(rate, now)
            sent.append(now)
        else:
            assert due == recent[-units] + per
    for at in sent:
        assert sum(at <= other < at + per for other in sent) <= units
