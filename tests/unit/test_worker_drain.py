"""Drains: how long a worker waits for what runs, what each task wishes, and when an end by drain may be told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from orchestrator.config import load_settings
from orchestrator.records import Heartbeat, Outcome
from orchestrator.states import AttemptState
from orchestrator.wire.messages import GrantSpec
from workers import verdict
from workers.beat import KNOWN_SECONDS, Beat, Me
from workers.drain import Drain, Stop
from workers.gpus import Gpus
from workers.outcomes import HOLD_SECONDS, ROUND_SECONDS, OutcomeSender
from workers.running import Running
from workers.spool import Spool

WAIT, CHECKPOINT, KILL = (
    GrantSpec("a1", "token", "run", "tenant", "task", 1, "probe", {}, on_drain=on_drain)
    for on_drain in ("wait", "checkpoint", "kill")
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def drain(clock: Clock) -> Drain:
    return Drain(3600.0, clock)


def test_nothing_is_stopped_while_no_drain_is_wanted(drain: Drain) -> None:
    assert [drain.order_for(spec) for spec in (WAIT, CHECKPOINT, KILL)] == [None, None, None]
    assert not drain.is_on


@pytest.mark.parametrize("begin", [lambda drain: drain.leave(), lambda drain: drain.command(True, None, (1, 1))])
def test_each_task_is_stopped_as_it_wishes(drain: Drain, clock: Clock, begin: Callable[[Drain], object]) -> None:
    begin(drain)
    assert drain.is_on
    assert drain.order_for(KILL) == Stop(0.0)
    assert drain.order_for(CHECKPOINT) == Stop(None)
    assert drain.order_for(WAIT) is None
    clock.now += 3599.0
    assert drain.order_for(WAIT) is None
    clock.now += 1.0
    assert drain.order_for(WAIT) == Stop(None)


def test_the_shorter_of_two_deadlines_counts(drain: Drain, clock: Clock) -> None:
    drain.leave()
    drain.command(True, 10.0, (1, 1))
    clock.now += 10.0
    assert drain.order_for(WAIT) == Stop(None)
    later = Drain(5.0, clock)
    later.command(True, 1000.0, (1, 1))
    later.leave()
    clock.now += 5.0
    assert later.order_for(WAIT) == Stop(None)


def test_the_schedulers_deadline_is_followed_as_it_changes(drain: Drain, clock: Clock) -> None:
    assert drain.command(True, 10.0, (1, 1))
    clock.now += 9.0
    assert not drain.command(True, 100.0, (1, 1)), "no news"
    clock.now += 50.0
    assert drain.order_for(WAIT) is None
    drain.command(True, -3.0, (1, 2))
    assert drain.order_for(WAIT) == Stop(None)


def test_a_drain_without_a_deadline_is_not_prolonged_by_every_reading(drain: Drain, clock: Clock) -> None:
    for number in range(3601):
        drain.command(True, None, (1, number))
        clock.now += 1.0
    assert drain.order_for(WAIT) == Stop(None)


def test_a_word_of_the_scheduler_that_is_read_again_and_again_prolongs_nothing(drain: Drain, clock: Clock) -> None:
    """The leader is away; its last word stands in Redis for a minute, and is read every second."""
    drain.command(True, 10.0, (1, 7))
    for _ in range(10):
        assert drain.order_for(WAIT) is None
        clock.now += 1.0
        drain.command(True, 10.0, (1, 7))
    assert drain.order_for(WAIT) == Stop(None)


def test_each_new_word_of_the_scheduler_sets_the_deadline_anew(drain: Drain, clock: Clock) -> None:
    drain.command(True, 10.0, (1, 7))
    for said, left in [((1, 8), 10.0), ((2, 8), 10.0), ((2, 8), 12.0)]:
        clock.now += 9.0
        drain.command(True, left, said)
        assert drain.order_for(WAIT) is None
    clock.now += 11.9
    assert drain.order_for(WAIT) is None
    drain.command(False, None, (2, 9))
    drain.command(True, 12.0, (2, 8))
    clock.now += 11.9
    assert drain.order_for(WAIT) is None, "another drain"


def test_an_undrained_worker_waits_for_nothing_and_one_that_leaves_can_not_be_undrained(drain: Drain) -> None:
    drain.command(True, 0.0, (1, 1))
    assert drain.command(False, None, (1, 2))
    assert not drain.is_on
    assert drain.order_for(KILL) is None
    drain.leave()
    drain.command(False, None, (1, 3))
    assert drain.is_leaving
    assert drain.order_for(KILL) == Stop(0.0)


def test_a_second_term_or_quit_waits_for_nothing(drain: Drain, clock: Clock) -> None:
    drain.leave()
    assert drain.order_for(WAIT) is None
    drain.leave()
    assert drain.order_for(WAIT) == Stop(None)
    other = Drain(3600.0, clock)
    other.hurry()
    assert (other.is_leaving, other.order_for(WAIT), other.order_for(KILL)) == (True, Stop(None), Stop(0.0))


# When the end by a drain may be told


class Sink:
    def publish(self, heartbeat: Heartbeat) -> None:
        pass


class Wire:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def outcome_from_spool(self, body: bytes) -> str:
        self.sent.append(body)
        return "1-0"

    def is_unread(self, entry_id: str) -> bool:
        return False


def make_beat(clock: Clock, tmp_path: Path) -> Beat:
    me = Me("me", "host", "boot", "name", "w@host", 1, ("cpu",), "shared", {})
    settings = load_settings({"DATA_DIR": str(tmp_path)})
    return Beat(me, settings, Sink(), Running(lambda: None), Gpus(None, None, lambda pid: False), clock)


def test_a_drain_is_known_when_the_leader_has_read_it_or_had_the_time_to(clock: Clock, tmp_path: Path) -> None:
    beat = make_beat(clock, tmp_path)
    beat.publish(draining=False)
    beat.heard(1)
    assert not beat.is_draining_known()
    beat.publish(draining=True)
    assert not beat.is_draining_known()
    beat.heard(1)
    assert not beat.is_draining_known(), "that one said nothing of it"
    beat.heard(2)
    assert beat.is_draining_known()
    beat.publish(draining=False)
    assert not beat.is_draining_known()
    beat.publish(draining=True)
    beat.heard(999)
    assert beat.is_draining_known(), "a number above all that we sent proves as much as the last"
    beat.publish(draining=False)
    beat.publish(draining=True)
    clock.now += KNOWN_SECONDS
    assert beat.is_draining_known()


def test_only_preempted_waits_for_the_drain_to_be_known(clock: Clock, tmp_path: Path) -> None:
    spool, wire = Spool(tmp_path), Wire()
    spool.write("a1", "token", "me", verdict.stopped(verdict.PREEMPTED))
    spool.write("a2", "token", "me", Outcome(AttemptState.SUCCEEDED))
    sender = OutcomeSender(spool, wire, "me", lambda incarnation: False, clock)
    sender.look()
    sender.send_due(lambda: False)
    assert [b'"a2"' in body for body in wire.sent] == [True]
    assert cast("float", sender.next_at()) <= clock.now + HOLD_SECONDS
    clock.now += HOLD_SECONDS
    sender.send_due(lambda: True)
    assert [b'"a1"' in body for body in wire.sent] == [False, True]


def test_a_slow_round_of_outcomes_gives_way_to_the_heartbeat(clock: Clock, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(10):
        spool.write(f"a{number}", "token", "me", Outcome(AttemptState.SUCCEEDED))

    class Slow(Wire):
        def outcome_from_spool(self, body: bytes) -> str:
            clock.now += ROUND_SECONDS / 2 + 0.1
            return super().outcome_from_spool(body)

    wire = Slow()
    sender = OutcomeSender(spool, wire, "me", lambda incarnation: False, clock)
    sender.look()
    sender.send_due()
    assert len(wire.sent) == 2
    while (due := sender.next_at()) is not None and due <= clock.now and len(wire.sent) < 10:
        sender.send_due()
    assert len(set(wire.sent)) == 10, "the rest follows in the next rounds"
