"""What the leader could not hear: Redis or PostgreSQL away, reports unread. Nobody dies of that."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from orchestrator.effects import Transition
from orchestrator.events import OutcomeReceived, ReconcileDue, RedisAway, RedisBack, Tick
from orchestrator.kernel import Kernel, KernelSettings, Snapshot, decide
from orchestrator.kernel.hearing import Hearing
from orchestrator.records import AttemptRecord, Capacity, HostRecord, Plan, PlannedTask, RunRecord, TaskRunRecord
from orchestrator.states import AttemptState, RunState, TaskState, WorkerState
from tests.unit.kernel_driver import GIB, SUCCESS, Driver, task

LIMITED = task("a", timeout=60.0, grace=10.0)
"""With the slack of 30 s its attempt is overdue 100 s after the grant."""


def timed(**settings: float) -> tuple[Driver, AttemptRecord]:
    """A task with a time limit runs on w1."""
    driver = Driver(**settings)
    driver.worker("w1")
    driver.run(LIMITED)
    driver.start("a")
    return driver, driver.attempt("a")


def live(driver: Driver, seconds: float, *, unread_for: float = 0.0) -> None:
    """Let time pass while the worker speaks."""
    shown = {a.id: a.token for a in driver.kernel.attempts.values()}
    for _ in range(int(seconds // 5)):
        driver.now += 5
        driver.beat("w1", running=shown)
        driver.feed(Tick(unread_for=unread_for))


def ends(driver: Driver, attempt: AttemptRecord) -> str:
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, SUCCESS))
    [verdict] = driver.verdicts()
    return verdict


def test_an_attempt_that_outlives_every_limit_of_its_own_is_given_up() -> None:
    driver, attempt = timed()
    live(driver, 95)
    assert driver.state("a") is TaskState.RUNNING
    live(driver, 5)
    assert driver.last(attempt.id).reason == "overdue"


def test_no_attempt_is_overdue_while_redis_is_away_nor_before_its_report_could_come() -> None:
    driver, attempt = timed()
    driver.feed(RedisAway())
    for _ in range(24):
        driver.tick(after=5)
    driver.feed(RedisBack())
    driver.tick()
    driver.tick(after=29)
    assert ends(driver, attempt) == "committed"
    assert driver.state("a") is TaskState.SUCCESS


def test_it_is_overdue_a_lease_after_redis_is_back_and_the_leader_sleeps_until_then() -> None:
    driver, attempt = timed()
    driver.feed(RedisAway())
    driver.tick(after=120)
    assert driver.kernel.next_due(driver.now) != 0.0, "a timer that can do nothing must not turn the wait into a spin"
    driver.feed(RedisBack())
    driver.beat("w1", running={attempt.id: attempt.token})
    driver.tick()
    assert driver.kernel.next_due(driver.now) != 0.0
    live(driver, 30)
    assert driver.state("a") is TaskState.RUNNING
    live(driver, 5)
    assert driver.last(attempt.id).reason == "overdue"


def test_no_attempt_is_overdue_while_reports_of_before_its_deadline_lie_unread() -> None:
    driver, attempt = timed()
    live(driver, 120, unread_for=30.0)
    assert driver.state("a") is TaskState.RUNNING
    live(driver, 10, unread_for=30.0)
    assert driver.last(attempt.id).reason == "overdue", "what lies unread now was sent after the deadline"


def test_no_orphan_is_given_up_while_the_report_of_its_keeper_may_lie_unread() -> None:
    driver = Driver(adopt_seconds=60.0)
    driver.worker("w1")
    driver.worker("w2", host="b")
    driver.run(task("a", on_worker_loss="adopt"))
    attempt = driver.attempt("a")
    other = {"w1": "w2", "w2": "w1"}[attempt.worker_id]
    driver.start("a", worker_id=attempt.worker_id)
    for unread_for in (0.0,) * 7 + (30.0,) * 16 + (0.0,):
        assert attempt.id in driver.kernel.attempts
        driver.now += 5
        driver.beat(other)
        driver.feed(Tick(unread_for=unread_for))
    assert driver.last(attempt.id).reason == "worker_lost"


def rebuilt(before: Kernel, attempt: AttemptRecord, planned: PlannedTask, deaf_from: float, now: float) -> Kernel:
    """The memory that the same term builds after a while in which PostgreSQL was away."""
    kernel = Kernel(KernelSettings(new_id=lambda: "new"), now)
    kernel.load(
        Snapshot(
            runs=(RunRecord("r1", "tenant", RunState.RUNNING),),
            plans={"r1": Plan((planned,))},
            task_runs=(TaskRunRecord("r1.a", "r1", "a", state=TaskState.RUNNING, attempt_id=attempt.id, attempts=1),),
            attempts=(attempt,),
            reservations=tuple(before.ledger.reservations.values()),
            hosts=(HostRecord("a", "a-boot", Capacity(4000, 8 * GIB)),),
            workers=tuple(replace(worker, seen_at=now) for worker in before.workers.values()),
        ),
        now,
    )
    Hearing.of(before).hand_to(kernel, deaf_from, now)
    return kernel


def lost(kernel: Kernel, now: float, *, unread_for: float = math.inf) -> list[str]:
    """What the rebuild's own transaction loses."""
    effects = [*decide(kernel, ReconcileDue(), now), *decide(kernel, Tick(unread_for=unread_for), now)]
    return [e.id for e in effects if isinstance(e, Transition) and e.after is AttemptState.LOST]


def test_no_attempt_is_overdue_in_a_rebuild_before_the_stream_is_read() -> None:
    driver, attempt = timed()
    now = driver.now + 130
    kernel = rebuilt(driver.kernel, attempt, LIMITED, driver.now, now)
    assert not lost(kernel, now)
    assert not lost(kernel, now + 29, unread_for=0.0)
    assert lost(kernel, now + 31, unread_for=0.0)


def test_a_rebuild_goes_on_with_its_own_clock_whatever_that_of_the_database_says() -> None:
    driver, attempt = timed()
    live(driver, 50)
    jumped = replace(attempt, deadline=driver.now - 3600)
    kernel = rebuilt(driver.kernel, jumped, LIMITED, driver.now, driver.now)
    kernel.workers["w1"] = replace(kernel.workers["w1"], seen_at=driver.now + 50)
    assert not lost(kernel, driver.now + 49, unread_for=0.0)
    assert lost(kernel, driver.now + 50, unread_for=0.0)


def test_a_new_leader_gives_up_nothing_that_runs_well_though_the_databases_clock_has_jumped() -> None:
    driver, attempt = timed()
    live(driver, 50)
    now = driver.now
    kernel = rebuilt(driver.kernel, replace(attempt, deadline=now - 3600), LIMITED, now, now)
    Hearing(now).hand_to(kernel, now, now)
    kernel.workers["w1"] = replace(kernel.workers["w1"], seen_at=now + 100)
    assert not lost(kernel, now + 99, unread_for=0.0)
    assert lost(kernel, now + 100, unread_for=0.0)


def test_no_orphan_is_given_up_in_a_rebuild_before_its_keeper_could_be_heard() -> None:
    driver = Driver()
    driver.worker("w1")
    adopted = task("a", on_worker_loss="adopt")
    driver.run(adopted)
    driver.start("a")
    attempt = replace(driver.attempt("a"), orphaned_at=driver.now)
    now = driver.now + 700
    kernel = rebuilt(driver.kernel, attempt, adopted, driver.now, now)
    assert not lost(kernel, now)
    assert not lost(kernel, now + 29, unread_for=0.0)
    assert lost(kernel, now + 31, unread_for=0.0)


def test_rebuilds_again_and_again_do_not_keep_a_dead_worker_alive() -> None:
    driver = Driver()
    driver.worker("w1")
    driver.run(task("a"))
    driver.start("a")
    attempt, kernel, now = driver.attempt("a"), driver.kernel, driver.now + 100
    kernel.workers["w1"] = replace(kernel.workers["w1"], seen_at=now)
    for n in range(1, 4):
        assert not lost(kernel, now + 10 * n - 1, unread_for=0.0)
        kernel = rebuilt(kernel, attempt, task("a"), now + 10 * n - 1, now + 10 * n)
    assert lost(kernel, now + 33, unread_for=0.0)


@pytest.mark.parametrize(("blip", "every", "bound"), [(0.5, 25.0, 32.0), (2.5, 25.0, 38.0), (5.0, 20.0, 45.0)])
def test_a_dead_worker_is_given_up_in_time_though_redis_goes_away_again_and_again(
    blip: float, every: float, bound: float
) -> None:
    driver = Driver()
    driver.worker("w1")
    driver.worker("w2", host="b")
    driver.run(task("a"))
    dead = driver.attempt("a").worker_id
    driver.start("a", worker_id=dead)
    speaks = {"w1", "w2"} - {dead}
    for _ in range(10):
        driver.now += 5
        for worker in ("w1", "w2"):
            driver.beat(worker, running=driver.kernel.shown[worker])
        driver.feed(Tick())
    died, step = driver.now, 0.5
    while driver.kernel.workers[dead].state is not WorkerState.LOST:
        driver.now += step
        phase = (driver.now - died) % every
        if phase < step:
            driver.feed(RedisAway())
        elif blip <= phase < blip + step:
            driver.feed(RedisBack())
        for worker in speaks if driver.now % 5 < step and not driver.kernel.redis_away else ():
            driver.beat(worker)
        driver.feed(Tick())
        assert driver.now - died < 3600, "never given up"
    assert driver.now - died <= bound


@pytest.mark.parametrize("away", [1.0, 5.0, 8.0, 10.0, 14.0, 20.0, 300.0])
def test_a_live_worker_has_half_a_lease_to_speak_after_every_absence_of_redis(away: float) -> None:
    driver = Driver()
    driver.worker("w1")
    for _ in range(20):
        driver.tick(after=5)
        driver.beat()
    driver.tick(after=4.9)  # it was about to speak
    driver.feed(RedisAway())
    driver.tick(after=away)
    driver.feed(RedisBack())
    driver.tick(after=15)
    assert driver.kernel.workers["w1"].state is not WorkerState.LOST


def test_an_absence_is_as_long_as_it_was_whenever_the_leader_noticed() -> None:
    driver, _ = timed()
    live(driver, 50)
    last = driver.now
    driver.now += 20
    driver.feed(RedisAway(since=last))
    driver.now += 1
    driver.feed(RedisBack())
    assert driver.kernel.trusted_from == driver.now


def test_a_flush_is_no_absence() -> None:
    driver, _ = timed()
    live(driver, 50)
    trusted_from = driver.kernel.trusted_from
    driver.feed(RedisBack(reset=True))
    assert driver.kernel.trusted_from == trusted_from


def test_a_memory_that_was_made_after_an_absence_is_told_of_it() -> None:
    driver, _ = timed()
    live(driver, 50)
    driver.feed(RedisBack(reset=True, since=driver.now - 20))
    assert driver.kernel.trusted_from == driver.now


def rebuilt_of(before: Kernel, now: float) -> Kernel:
    """The memory that the same term builds at once, as after a row that differed; only its workers count here."""
    kernel = Kernel(before.settings, now)
    workers = tuple(replace(worker, seen_at=now) for worker in before.workers.values())
    hosts = tuple(HostRecord(host.id, host.boot_id, host.capacity) for host in before.ledger.hosts.values())
    kernel.load(Snapshot(hosts=hosts, workers=workers), now)
    Hearing.of(before).hand_to(kernel, now, now)
    return kernel


def test_mass_expiry_stays_held_and_trickles_on_though_the_memory_is_made_anew_again_and_again() -> None:
    driver, lost_at = Driver(), []
    for n in range(10):
        driver.worker(f"w{n}", host=f"h{n}")
    for second in range(1, 251):
        driver.now += 1
        if second % 7 == 0:
            driver.kernel = rebuilt_of(driver.kernel, driver.now)
        for n in range(6, 10):
            driver.beat(f"w{n}")
        driver.tick()
        lost_at += [second] * sum(e.after is WorkerState.LOST for e in driver.of(Transition))
    assert len(lost_at) == 6
    assert lost_at[0] > 60, "a lease of silence, and one more"
    assert min(after - before for before, after in pairwise(lost_at)) >= 30, lost_at


def test_the_deadline_of_a_drain_stays_where_it_is_whatever_the_databases_clock_says() -> None:
    driver = Driver()
    driver.worker("w1")
    driver.worker("w2", host="b")
    driver.command("drain", worker_id="w1", payload={"deadline_seconds": 600})
    until = driver.now + 600
    before = driver.kernel
    known = before.workers["w1"]
    for jump in (-86_400.0, 86_400.0):
        before.workers["w1"] = replace(known, drain_until=until)
        heard = Hearing.of(before)
        kernel = rebuilt_of(before, driver.now)
        kernel.workers["w1"] = replace(known, drain_until=until + jump)
        heard.hand_to(kernel, driver.now, driver.now)
        assert kernel.desired("w1").drain_until == until
        assert kernel.desired("w2").drain_until is None
    undrained = rebuilt_of(before, driver.now)
    undrained.workers["w1"] = replace(known, draining=False, drain_until=None)
    heard.hand_to(undrained, driver.now, driver.now)
    assert undrained.desired("w1").drain_until is None, "the rows say whether it drains at all"


def test_a_zombie_is_released_in_time_though_the_memory_is_made_anew_and_none_that_the_rows_do_not_know() -> None:
    driver, attempt = timed()
    driver.tick(after=31)
    driver.beat("w1", running={})
    zombies = dict(driver.kernel.ledger.reservations)
    assert zombies[attempt.id].zombie
    for _ in range(2):
        before, driver.now = driver.kernel, driver.now + 15
        driver.kernel = rebuilt_of(before, driver.now)
        assert not driver.kernel.buried_at
        driver.kernel.ledger.take(zombies[attempt.id])
        Hearing.of(before).hand_to(driver.kernel, driver.now, driver.now)
        driver.beat("w1")
    assert attempt.id not in driver.held()
