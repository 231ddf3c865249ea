"""Loops that stand still, on a clock that the test turns: when the worker ends, and when it must not."""

from __future__ import annotations

import threading

import pytest

from orchestrator.watchdog import EXIT_STATUS, Pulse, Standstill
from workers.stall import INTERVAL, LIMIT, REDIS_LIMIT, REDIS_STEADY_SECONDS, Stall


class Loops:
    """Both loops of a worker; they turn with the clock unless they are stuck."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pulse, self.consumer = Pulse(self.clock), Pulse(self.clock)
        self.is_pulse_stuck = self.is_consumer_stuck = self.is_asking = False
        self.may_end = True
        self.redis_steady = 10_000.0
        self.statuses: list[int] = []
        self.stall = Stall(
            self.pulse,
            self.consumer,
            is_asking=lambda: self.is_asking,
            redis_steady=lambda: self.redis_steady,
            may_end=lambda: self.may_end,
            end=self.statuses.append,
            clock=self.clock,
        )

    def clock(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        for _ in range(int(seconds / INTERVAL)):
            self.now += INTERVAL
            if not self.is_pulse_stuck:
                self.pulse.beat()
            if not self.is_consumer_stuck:
                self.consumer.beat()
            self.stall.look()


@pytest.fixture
def loops() -> Loops:
    return Loops()


def test_a_worker_whose_loops_turn_lives(loops: Loops) -> None:
    loops.turn(10 * LIMIT)
    assert loops.statuses == []


def test_a_stuck_pulse_ends_the_worker_even_when_trees_run(loops: Loops) -> None:
    loops.is_pulse_stuck, loops.may_end = True, False
    loops.turn(LIMIT)
    assert loops.statuses == []
    loops.turn(1)
    assert loops.statuses == [EXIT_STATUS]


def test_a_pulse_that_waits_for_redis_is_given_all_of_its_time_outs(loops: Loops) -> None:
    loops.is_pulse_stuck = loops.is_asking = True
    loops.turn(REDIS_LIMIT)
    assert loops.statuses == []
    loops.turn(1)
    assert loops.statuses == [EXIT_STATUS]


def test_a_deaf_consumer_ends_an_idle_worker(loops: Loops) -> None:
    loops.is_consumer_stuck = True
    loops.turn(LIMIT)
    assert loops.statuses == []
    loops.turn(1)
    assert loops.statuses == [EXIT_STATUS]


def test_a_deaf_consumer_is_told_and_borne_while_trees_run(loops: Loops) -> None:
    loops.is_consumer_stuck, loops.may_end = True, False
    loops.turn(10 * LIMIT)
    assert loops.stall.is_deaf
    assert loops.statuses == []
    loops.may_end = True
    loops.turn(1)
    assert loops.statuses == [EXIT_STATUS]


def test_a_consumer_that_hears_again_is_not_deaf(loops: Loops) -> None:
    loops.is_consumer_stuck, loops.may_end = True, False
    loops.turn(2 * LIMIT)
    loops.is_consumer_stuck = False
    loops.turn(1)
    assert not loops.stall.is_deaf


def test_a_consumer_that_waits_for_redis_to_come_back_is_not_deaf(loops: Loops) -> None:
    loops.is_consumer_stuck, loops.redis_steady = True, 0.0
    loops.turn(10 * LIMIT)
    loops.redis_steady = REDIS_STEADY_SECONDS - 1
    loops.turn(LIMIT)
    assert loops.statuses == []
    loops.redis_steady = REDIS_STEADY_SECONDS
    loops.turn(LIMIT + 1)
    assert loops.statuses == [EXIT_STATUS]


def test_a_worker_that_leaves_needs_no_consumer(loops: Loops) -> None:
    loops.stall.spare_consumer()
    loops.is_consumer_stuck = True
    loops.turn(10 * LIMIT)
    assert loops.statuses == []


def test_a_process_that_was_frozen_was_not_stuck(loops: Loops) -> None:
    loops.turn(5)
    loops.now += 3600.0
    loops.stall.look()
    loops.turn(5)
    assert loops.statuses == []
    pulse = Pulse(loops.clock)
    standstill = Standstill(pulse, longest_gap=2.0, clock=loops.clock)
    loops.now += 3600.0
    assert standstill.look() == 2.0


@pytest.mark.timeout(10)
def test_it_looks_in_a_thread_of_its_own_until_it_is_stopped(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()
    monkeypatch.setattr("workers.stall.INTERVAL", 0.01)
    monkeypatch.setattr(loops.stall, "look", looked.set)
    loops.stall.start()
    assert looked.wait(5)
    loops.stall.stop()
    loops.stall.join(5)
    assert not loops.stall.is_alive()
