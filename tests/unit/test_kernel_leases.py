"""Leases of work, heartbeats, zombies, adoption and the breaker."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.effects import Count, Release, Reserve, RetireQueue
from orchestrator.events import (
    ClaimReceived,
    HeartbeatSeen,
    OutcomeReceived,
    ReconcileDue,
    RedisAway,
    RedisBack,
    Tick,
    WorkerLeft,
)
from orchestrator.records import RetryPolicy
from orchestrator.states import AttemptState, RunState, TaskState, WorkerState
from tests.unit.kernel_driver import SUCCESS, Driver, task


def busy(workers: int = 1, **settings: Any) -> Driver:
    """One running task per worker, each on a host of its own, named a1, a2 …"""
    driver = Driver(**settings)
    for n in range(1, workers + 1):
        driver.worker(f"w{n}", host=f"h{n}", slots=1)
    driver.run(*(task(f"a{n}") for n in range(1, workers + 1)))
    for n in range(1, workers + 1):
        driver.start(f"a{n}", worker_id=driver.attempt(f"a{n}").worker_id)
    return driver


def live(driver: Driver, *worker_ids: str) -> None:
    for worker_id in worker_ids:
        driver.beat(worker_id)


def test_a_silent_worker_is_suspect_at_half_its_lease_and_lost_after_all_of_it() -> None:
    driver = busy()
    driver.tick(after=16)
    assert worker_state(driver) == "suspect"
    driver.tick(after=14)
    assert driver.state("a1") is TaskState.RUNNING
    driver.tick(after=1)
    assert worker_state(driver) is WorkerState.LOST
    assert driver.of(RetireQueue)
    assert driver.state("a1") is TaskState.READY


def test_a_lost_attempt_stays_charged_to_its_host_until_the_host_confirms_its_death() -> None:
    driver = busy()
    attempt = driver.attempt("a1")
    driver.tick(after=31)
    assert driver.kernel.ledger.hosts["h1"].cpu_used == 1000
    driver.worker("new", host="h1")
    assert driver.kernel.desired("new").confirm == ((attempt.id, "w1"),)
    driver.beat("new", dead=(attempt.id,))
    assert attempt.id not in driver.held()


def test_a_new_boot_of_the_host_ends_all_that_was_on_it_at_once() -> None:
    driver = busy()
    attempt = driver.attempt("a1")
    driver.tick(after=15.5)
    driver.worker("new", host="h1", boot_id="second")
    assert driver.last(attempt.id).reason == "host_rebooted"
    assert attempt.id not in driver.held()
    driver.tick()
    assert driver.dispatched() == ["a1"]


def test_a_heartbeat_of_before_the_last_boot_that_comes_once_more_ends_nothing() -> None:
    """Its incarnation is forgotten, so that there is no number to tell that it is old."""
    driver = Driver()
    driver.worker("old", boot_id="boot-1")
    of_long_ago = replace(driver.beats["old"], seq=999)
    driver.tick(after=31)
    driver.worker("w1", boot_id="boot-2")
    driver.kernel.forget_worker("old")
    driver.run(task("a"))
    driver.start("a")
    attempt = driver.attempt("a")
    for _ in range(12):
        driver.now += 5
        driver.beat("w1", running={attempt.id: attempt.token})
        driver.feed(HeartbeatSeen(of_long_ago), Tick())
        assert [count.what for count in driver.all_of(Count)][-1] == "another_boot"
    assert driver.attempt("a").state is AttemptState.RUNNING
    assert attempt.id in driver.held()
    assert driver.kernel.ledger.hosts["a"].boot_id == "boot-2"
    assert "old" not in driver.kernel.workers


def test_two_machines_under_one_host_id_do_not_end_each_others_work() -> None:
    """Two sandboxes have boot ids of their own: the first that came works, and the refusal says how to mend it."""
    driver = busy()
    attempt = driver.attempt("a1")
    driver.worker("other", host="h1", boot_id="second")
    for _ in range(20):
        driver.now += 5
        driver.beat("w1", running={attempt.id: attempt.token})
        driver.beat("other")
        driver.feed(Tick())
    assert driver.state("a1") is TaskState.RUNNING
    assert "HOST_ID of its own" in driver.all_of(Count)[-1].detail


def test_no_host_was_started_anew_before_its_workers_could_speak_again() -> None:
    driver = busy()
    driver.feed(RedisAway())
    driver.tick(after=300)
    driver.feed(RedisBack())
    driver.worker("new", host="h1", boot_id="second")
    assert driver.state("a1") is TaskState.RUNNING
    driver.tick(after=15.5)
    driver.beat("new")
    assert driver.state("a1") is TaskState.READY


def test_a_worker_that_thaws_is_online_again_and_its_lost_attempt_is_fenced() -> None:
    driver = busy()
    attempt = driver.attempt("a1")
    driver.tick(after=31)
    driver.beat("w1")
    assert worker_state(driver) is WorkerState.ONLINE
    assert driver.kernel.desired("w1").fence == (attempt.id,)
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, SUCCESS))
    assert driver.verdicts() == ["fenced"]
    assert attempt.id not in driver.held(), "its report tells that its tree has ended"


def test_a_zombie_that_its_own_incarnation_no_longer_shows_is_released_once_no_grant_can_start_it() -> None:
    driver = busy()
    attempt = driver.attempt("a1")
    driver.tick(after=31)
    driver.beat("w1", running={})
    assert attempt.id in driver.held()
    driver.now += 30
    driver.beat("w1")
    assert attempt.id not in driver.held()


def test_silence_does_not_count_while_redis_is_away_nor_within_one_lease_of_its_return() -> None:
    driver = busy()
    driver.feed(RedisAway())
    driver.tick(after=300)
    assert driver.state("a1") is TaskState.RUNNING
    driver.feed(RedisBack())
    driver.tick(after=30)
    assert driver.state("a1") is TaskState.RUNNING
    driver.tick(after=1)
    assert driver.state("a1") is TaskState.READY


def test_a_granted_attempt_that_no_heartbeat_shows_is_lost_after_two_that_were_surely_taken_later() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.claim("a")
    attempt = driver.attempt("a")
    driver.beat()
    driver.now += 31
    driver.beat()
    assert driver.state("a") is TaskState.RUNNING
    driver.beat()
    assert driver.last(attempt.id).reason == "never_started"


def test_a_lost_grant_is_adopted_when_a_heartbeat_shows_it() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    attempt = driver.attempt("a")
    driver.beat(running={attempt.id: attempt.token})
    assert driver.attempt("a").state is AttemptState.RUNNING
    assert driver.kernel.desired("w1").fence == ()


def test_a_lost_grant_is_fenced_if_another_grant_exists() -> None:
    driver = Driver()
    driver.worker("w1")
    driver.worker("w2", host="b")
    driver.run(task("a"))
    attempt = driver.attempt("a")
    driver.claim("a", worker_id="w1")
    driver.beat("w2", running={attempt.id: attempt.token})
    assert driver.attempt("a").worker_id == "w1"
    assert driver.kernel.desired("w2").fence == (attempt.id,)


def test_a_shown_attempt_with_another_token_is_neither_adopted_nor_left_alone() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    attempt = driver.attempt("a")
    driver.beat(running={attempt.id: "stale"})
    assert driver.attempt("a").state is AttemptState.DISPATCHED
    assert driver.kernel.desired("w1").fence == (attempt.id,)


def test_a_heartbeat_seen_before_is_no_sign_of_life() -> None:
    driver = busy()
    driver.now += 31
    assert driver.feed(HeartbeatSeen(driver.beats["w1"])) == []
    driver.tick()
    assert driver.state("a1") is TaskState.READY


def test_unclaimed_work_of_a_lost_worker_is_planned_anew_without_a_charge() -> None:
    driver = Driver()
    driver.worker("w1", host="a", cpu=1000)
    driver.run(task("a"))
    driver.worker("w2", host="b", slots=0)
    driver.now += 31
    driver.beat("w2", slots=1)
    driver.tick()
    assert driver.attempt("a").worker_id == "w2"
    assert driver.kernel.tasks["r1.a"].losses == 0


def test_a_worker_that_says_goodbye_leaves_nothing_behind() -> None:
    driver = busy()
    attempt = driver.attempt("a1")
    driver.feed(WorkerLeft("w1"))
    assert worker_state(driver) is WorkerState.DRAINED
    assert driver.last(attempt.id).after is AttemptState.LOST
    assert not driver.held()


def test_what_a_leaving_worker_was_granted_is_charged_to_nobody() -> None:
    """It says goodbye only when nothing runs: what it has not reported never started. Restarts make no poison."""
    driver = busy()
    driver.feed(WorkerLeft("w1"))
    assert driver.state("a1") is TaskState.RETRY_WAIT
    node = driver.kernel.tasks["r1.a1"]
    assert (node.failures, node.losses) == (0, 0)


def test_what_a_host_that_never_returns_held_is_given_back_once_its_workers_are_forgotten() -> None:
    driver = busy()
    attempt = driver.attempt("a1")
    driver.tick(after=31)
    driver.tick(after=2900)
    driver.feed(ReconcileDue())
    assert attempt.id in driver.held()
    driver.tick(after=200)
    driver.feed(ReconcileDue())
    assert attempt.id in [release.attempt_id for release in driver.of(Release)]
    assert "abandoned" in [count.what for count in driver.of(Count)]
    assert not driver.kernel.ledger.hosts
    assert not driver.kernel.workers


def test_pods_that_are_killed_one_after_the_other_pile_up_nothing() -> None:
    """Each is a host of its own that never returns to say that its trees are dead: what it held is given back after 100
    leases, and it is forgotten, also by a leader of its own time."""
    driver = Driver()
    driver.worker("stays", host="stays", slots=0)
    held: list[int] = []
    for minute in range(180):
        driver.worker(f"w{minute}", host=f"pod{minute}", slots=1)
        driver.run(task(f"t{minute}", retry=RetryPolicy(retries=0)), run_id=f"r{minute}")
        for attempt in list(driver.kernel.attempts.values()):
            if attempt.state is AttemptState.DISPATCHED and attempt.worker_id == f"w{minute}":
                driver.feed(ClaimReceived(attempt.worker_id, attempt.id, 1, "n1"))
        for _ in range(12):
            driver.now += 5
            driver.beat("stays")
            driver.tick()
        driver.feed(ReconcileDue())
        kernel = driver.kernel
        held.append(len(kernel.ledger.zombies))
        assert max(len(kernel.workers), len(kernel.ledger.hosts), len(kernel.ledger.reservations)) <= 55
    assert held[45] > 40, "each pod leaves what it held"
    assert [effect.reservation for effect in driver.all_of(Reserve) if effect.reservation.zombie]
    assert max(held) <= 52


def test_worker_after_worker_leaves_no_trace_in_memory() -> None:
    driver = busy()
    driver.feed(WorkerLeft("w1"))
    driver.tick(after=4000)
    driver.feed(ReconcileDue())
    kernel = driver.kernel
    assert (kernel.workers, kernel.grants, kernel.shown, kernel.ledger.hosts) == ({}, {}, {}, {})


def worker_state(driver: Driver, worker_id: str = "w1") -> WorkerState:
    return driver.kernel.workers[worker_id].state


def lost(driver: Driver) -> int:
    return sum(w.state is WorkerState.LOST for w in driver.kernel.workers.values())


def test_mass_expiry_is_held_for_one_lease_and_then_trickles() -> None:
    driver = busy(20)
    driver.tick(after=31)
    assert lost(driver) == 0
    assert "breaker" in [count.what for count in driver.of(Count)]
    driver.tick(after=29)
    assert lost(driver) == 0
    driver.tick(after=1)
    assert lost(driver) == 2
    driver.tick(after=29)
    assert lost(driver) == 2
    driver.tick(after=1)
    assert lost(driver) == 3


def test_mass_expiry_is_held_though_every_worker_speaks_at_a_moment_of_its_own() -> None:
    driver = busy(10)
    for n in range(1, 11):
        driver.now += 0.5
        live(driver, f"w{n}")
    first = driver.now - 4.5
    while driver.now < first + 59:
        driver.tick(after=0.5)
    assert lost(driver) == 0
    driver.tick(after=2)
    assert lost(driver) == 1


def test_workers_that_fall_silent_one_after_the_other_are_lost_in_turn() -> None:
    driver = busy(6)
    for n in range(1, 4):
        for _ in range(6):
            driver.now += 5
            live(driver, *(f"w{m}" for m in range(n + 1, 7)))
            driver.tick()
        driver.tick(after=1)
        assert lost(driver) == n


def test_workers_that_come_back_during_the_hold_lose_nothing() -> None:
    driver = busy(6)
    driver.tick(after=31)
    live(driver, *(f"w{n}" for n in range(1, 7)))
    driver.tick(after=14)
    assert lost(driver) == 0
    assert all(driver.state(f"a{n}") is TaskState.RUNNING for n in range(1, 7))


def test_workers_that_come_back_one_after_the_other_during_the_hold_lose_nothing() -> None:
    """Fewer are silent then than would have tripped it; the others are about to speak too."""
    driver = busy(3)
    driver.tick(after=31)
    for n in range(1, 4):
        live(driver, f"w{n}")
        driver.tick(after=2)
    assert lost(driver) == 0
    assert all(driver.state(f"a{n}") is TaskState.RUNNING for n in range(1, 4))


def test_of_a_few_workers_that_stay_silent_one_goes_after_the_hold_and_one_more_each_lease() -> None:
    driver = busy(3)
    for after, gone in ((31, 0), (29, 0), (1, 1), (29, 1), (1, 2), (29, 2), (1, 3)):
        driver.tick(after=after)
        assert lost(driver) == gone


def test_the_trickle_goes_on_though_the_given_up_no_longer_count_among_the_silent() -> None:
    """Of ten hosts six fall silent: with each that is given up, fewer than half of the rest are."""
    driver = busy(10)
    given_up = []
    for second in range(5, 300, 5):
        driver.now += 5
        live(driver, "w7", "w8", "w9", "w10")
        before = lost(driver)
        driver.tick()
        given_up += [second] * (lost(driver) - before)
    assert given_up == [65, 95, 125, 155, 185, 215]


@pytest.mark.parametrize("away", [5.0, 20.0, 120.0])
def test_the_trickle_goes_on_after_an_absence_of_redis(away: float) -> None:
    """It is a while until silence counts again; that nobody is silent by then does not mean that they have spoken."""
    driver = busy(10)
    left: list[int] = []
    for _ in range(80):
        driver.now += 5
        live(driver, "w7", "w8", "w9", "w10")
        if len(left) == 26:  # three are given up: the other three are fewer than half
            driver.feed(RedisAway())
            driver.tick(after=away)
            driver.feed(RedisBack())
        driver.tick()
        left.append(10 - lost(driver))
    assert max(before - after for before, after in pairwise(left)) == 1, left
    assert left[-1] == 4


def test_after_the_trickle_a_worker_that_dies_is_given_up_in_time() -> None:
    driver = busy(10)
    for _ in range(48):
        driver.now += 5
        live(driver, "w7", "w8", "w9", "w10")
        driver.tick()
    assert lost(driver) == 6
    for _ in range(7):
        driver.now += 5
        live(driver, "w8", "w9", "w10")
        driver.tick()
    assert worker_state(driver, "w7") is WorkerState.LOST


def test_a_worker_that_dies_after_all_have_come_back_is_given_up_in_time() -> None:
    driver = busy(6)
    driver.tick(after=31)
    live(driver, *(f"w{n}" for n in range(1, 7)))
    driver.tick()
    for _ in range(6):
        driver.now += 5
        live(driver, *(f"w{n}" for n in range(2, 7)))
        driver.tick()
    driver.tick(after=1)
    assert lost(driver) == 1


def test_one_host_that_dies_with_most_workers_trips_no_breaker() -> None:
    driver = Driver()
    for n in range(1, 4):
        driver.worker(f"w{n}", host="big", slots=1)
    driver.worker("w4", host="small", slots=1)
    for _ in range(6):
        driver.now += 5
        live(driver, "w4")
        driver.tick()
    driver.tick(after=1)
    assert [worker_state(driver, f"w{n}") for n in range(1, 4)] == [WorkerState.LOST] * 3
    assert "breaker" not in [count.what for count in driver.of(Count)]


def test_a_few_dead_workers_trip_no_breaker() -> None:
    driver = busy(6)
    driver.now += 31
    live(driver, "w4", "w5", "w6")
    driver.tick()
    assert lost(driver) == 3


def test_without_the_breaker_all_are_lost_at_once() -> None:
    driver = busy(6, breaker=False)
    driver.tick(after=31)
    assert lost(driver) == 6


def test_a_new_leader_gives_every_worker_a_whole_lease() -> None:
    driver = busy()
    driver.kernel.workers["w1"] = replace(driver.kernel.workers["w1"], seen_at=0.0)
    driver.tick(after=30)
    assert driver.state("a1") is TaskState.RUNNING


def test_the_worker_that_dies_with_an_attempt_three_times_makes_it_poison() -> None:
    driver = Driver()
    driver.worker("w1")
    driver.run(task("a"))
    for n in range(2, 5):
        driver.start("a", worker_id=f"w{n - 1}")
        driver.worker(f"w{n}", host=f"host{n}")
        driver.now += 31
        driver.beat(f"w{n}")
        driver.feed(Tick())
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "poison")
    assert driver.run_state() is RunState.FAILED


def test_what_a_dead_host_ran_is_offered_to_all_of_the_pool_since_the_next_host_may_be_dying_too() -> None:
    driver = busy()
    driver.worker("w2", host="h2")
    driver.worker("w3", host="h3")
    for _ in range(3):
        driver.now += 11
        driver.beat("w2")
        driver.beat("w3")
    driver.tick()
    assert driver.dispatched() == ["a1"]
    assert [queue for _, _, queue in driver.hints()] == ["cpu"]


def lost_together(*survivors: str) -> Driver:
    """Two tasks ran on one host, which died; the hosts of these workers are left."""
    driver = Driver()
    driver.worker("w1", slots=2)
    driver.run(task("a"), task("b"))
    for name in ("a", "b"):
        driver.start(name, worker_id="w1")
    for worker in survivors:
        driver.worker(worker, host=f"host of {worker}", slots=2)
    for _ in range(3):
        driver.now += 11
        live(driver, *survivors)
    driver.tick()
    assert worker_state(driver) is WorkerState.LOST
    return driver


def test_tasks_that_were_lost_together_are_kept_apart_since_one_of_them_may_be_what_kills_its_host() -> None:
    driver = lost_together("w2", "w3")
    assert {driver.attempt(name).worker_id for name in ("a", "b")} == {"w2", "w3"}
    # Who else listens to the pool must not take the second: it may be the first one's.
    assert [queue for _, _, queue in driver.hints()].count("cpu") == 1


def test_tasks_that_were_lost_together_share_a_host_rather_than_wait() -> None:
    driver = lost_together("w2")
    assert {driver.attempt(name).worker_id for name in ("a", "b")} == {"w2"}


def test_a_hint_that_only_a_silent_worker_got_goes_to_another_as_soon_as_it_is_suspect() -> None:
    driver = Driver()
    driver.worker("w1", host="h1", labels={"disk": "fast"})
    driver.worker("w2", host="h2")
    driver.run(task("only", labels=(("disk", "fast"),)))
    assert [queue for _, _, queue in driver.hints()] == ["w.w1"]
    driver.worker("w3", host="h3", labels={"disk": "fast"})
    driver.now += 14
    driver.beat("w2")
    driver.beat("w3")
    driver.tick(after=2)
    assert worker_state(driver) is WorkerState.SUSPECT
    assert driver.dispatched() == ["only"]
    assert driver.attempt("only").worker_id == "w3"
