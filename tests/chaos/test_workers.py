"""Workers that freeze, die all at once, or fall silent all at once: their work is done once, elsewhere or later."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, cancel, pipeline, run_load, task, wait_until_quiet
from tests.chaos.parts import WorkerParts
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    LONG,
    assert_fenced,
    assert_no_attempt_ran_twice,
    assert_untouched,
    lines,
    moment,
    refused,
    seconds_since,
    start_long,
    worker_of,
)

pytestmark = pytest.mark.chaos

LEASE = 3.0
"""Seconds of silence after which a worker is lost, on this scaled site."""
PATIENT_LEASE = 9.0
"""The same where heartbeats must be allowed again before the breaker's hold ends."""
ROUND = 1.5
"""Seconds until the leader has heard, or given up, what it may: a heartbeat's interval and a round of its own."""
SEEN_WITHIN = 15.0
"""Seconds for what takes one round of the leader, on a busy machine."""


# --- frozen and thawed ---


@pytest.mark.chaos_quick
@pytest.mark.parametrize("whole", [True, False], ids=["with its tasks", "its main process alone"])
def test_a_worker_frozen_for_two_leases_is_fenced_when_it_reports(chaos: Chaos, whole: bool) -> None:
    with chaos() as site:
        run_load(site, runs=8)
        long = start_long(site, 5.0)
        worker = worker_of(site, long)
        site.processes.freeze(worker)
        parts = site.parts(worker)
        if whole:
            _signal_all(site, _others(parts), signal.SIGSTOP, worker)
        began = time.monotonic()
        site.wait_until(lambda: len(lines(site, "start", long)) > 1, "the task runs elsewhere", SEEN_WITHIN)
        print(f"it runs elsewhere {seconds_since(began):.1f} s after the freeze")
        time.sleep(max(0.0, 2 * LEASE - seconds_since(began)))
        _thaw(site, worker, parts, long)
        assert_fenced(site, long, worker)
        assert not site.processes.restarts()[worker], "it was to thaw, not to be started again"
        wait_until_quiet(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def _others(parts: WorkerParts) -> tuple[int, ...]:
    return tuple(pid for pid in (parts.fork_server, *parts.supervisors, *parts.runners) if pid is not None)


def _signal_all(site: ChaosSite, pids: tuple[int, ...], what: signal.Signals, worker: str) -> None:
    for pid in pids:
        site.signal(pid, what, f"a part of {worker}")


def _thaw(site: ChaosSite, worker: str, parts: WorkerParts, run_id: str) -> None:
    """Let the tasks go on first, so that the attempt that was given up finishes before its worker hears of it."""
    first = lines(site, "start", run_id)[0].attempt
    _signal_all(site, (*parts.runners, *parts.supervisors), signal.SIGCONT, worker)
    site.wait_until(
        lambda: any(line.attempt == first for line in lines(site, "end", run_id)), "the zombie finishes", SEEN_WITHIN
    )
    if parts.fork_server is not None:
        _signal_all(site, (parts.fork_server,), signal.SIGCONT, worker)
    site.processes.thaw(worker)


# --- all dead ---


def test_every_worker_dead_for_three_leases_costs_only_time(chaos: Chaos) -> None:
    with chaos() as site:
        run_load(site, runs=14, cancelled=0.0)
        long = start_long(site, 4.0)
        _kill_all_workers(site)
        assert not lines(site, "end", long), "it has ended before the workers died"
        killed = time.monotonic()
        late = start_long_without_waiting(site, 0.5)
        _assert_all_wait(site, late)
        time.sleep(max(0.0, 3 * LEASE - seconds_since(killed)))
        assert_contract(site, quiescent=False)
        for worker in site.workers:
            site.processes.start(worker)
        back = time.monotonic()
        site.wait_until(lambda: lines(site, "start", late), "work starts again", SEEN_WITHIN)
        print(f"all dead for {back - killed:.1f} s; work started {seconds_since(back):.1f} s after the first was back")
        wait_until_quiet(site, 60.0)
        site.succeed(late)
        site.succeed(long)
        assert len(site.attempts(long, LONG)) == 2
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def test_when_no_worker_ever_returns_runs_say_what_they_wait_for_and_can_be_cancelled(chaos: Chaos) -> None:
    with chaos() as site:
        timed = start_long(site, 60.0, "timed", timeout_seconds=5.0, retries=0)
        free = start_long(site, 60.0, "free")
        run_load(site, runs=6, cancelled=0.0)
        _kill_all_workers(site)
        late = start_long_without_waiting(site, 0.5)
        # Cancelled while its worker is dead and nobody knows that yet, and cancelled while it waits.
        assert cancel(site, free)
        _assert_all_wait(site, late)
        assert_contract(site, quiescent=False)
        for run_id in _open_runs(site):
            cancel(site, run_id)
        asked = time.monotonic()
        site.wait_until(lambda: not _open_runs(site), "every run has ended", SEEN_WITHIN)
        print(f"without any worker, all runs were cancelled in {seconds_since(asked):.1f} s")
        assert {site.finish(run_id)["state"] for run_id in (timed, free, late)} == {"cancelled"}
        assert not site.survivors()
        assert_no_attempt_ran_twice(site)
        # What the dead hosts may still run stays charged to them, for nobody there has said that it is dead.
        assert_contract(site)


def start_long_without_waiting(site: ChaosSite, seconds: float) -> str:
    """Start a run that nobody can run just now."""
    return site.start_run(pipeline("late", [task(LONG, seconds=seconds)]))


def _kill_all_workers(site: ChaosSite) -> None:
    for worker in site.workers:
        site.processes.forget_restarts(worker)
        site.processes.kill(worker)
    site.wait_until_no_survivors()


def _open_runs(site: ChaosSite) -> list[str]:
    rows = site.postgres.query("SELECT id::text FROM runs WHERE state NOT IN ('success', 'failed', 'cancelled')")
    return [row[0] for row in rows]


def _assert_all_wait(site: ChaosSite, late: str) -> None:
    """Wait until every worker was given up; hold that all open tasks then say what they wait for (I4)."""
    began = time.monotonic()
    site.wait_until(lambda: _workers(site) == {"lost"}, "all workers are given up", 10 * LEASE)
    print(f"all workers were given up {seconds_since(began):.1f} s after the last one died")
    told = site.wait_for_task(late, LONG, "ready", seconds=SEEN_WITHIN)

    def says_why() -> bool:
        told.update(site.task(late, LONG))
        return bool(told["reason"] == "waiting_for_worker")

    site.wait_until(says_why, "the waiting task says why", SEEN_WITHIN)
    assert "start one" in told["message"], told
    open_tasks = site.postgres.query(
        "SELECT t.run_id::text, t.name, t.state, t.reason FROM task_runs t JOIN runs r ON r.id = t.run_id "
        "WHERE r.state = 'running' AND t.state IN ('ready', 'queued', 'running')"
    )
    assert open_tasks, "everything had ended before the workers died"
    silent = [row for row in open_tasks if row[2:] != ("ready", "waiting_for_worker")]
    assert not silent, f"these tasks do not say what they wait for: {silent}"


def _workers(site: ChaosSite) -> set[str]:
    """Return the states that workers are in."""
    return {str(row[0]) for row in site.postgres.query("SELECT DISTINCT state FROM workers")}


# --- all silent ---


@pytest.mark.timeout(150)
def test_when_all_heartbeats_stop_nothing_is_given_up_before_they_return(chaos: Chaos) -> None:
    """Judged by the database's clock: a machine that is late to let heartbeats pass again is owed one lease, no more.

    With its longer lease that is not to be expected; if it happens, what may be given up then is one worker per lease.
    """
    with chaos(WORKER_LEASE_SECONDS=f"{PATIENT_LEASE:g}") as site:
        run_load(site, runs=10, cancelled=0.0)
        longs = [start_long(site, 3 * PATIENT_LEASE, f"{number}") for number in range(3)]
        with _no_heartbeats(site):
            silent_from = _now(site)
            site.wait_until(lambda: refused(site)["breaker"], "the breaker trips", PATIENT_LEASE + SEEN_WITHIN)
        heard_again = _now(site) + ROUND
        wait_until_quiet(site, 90.0)
        # One lease of silence, one that the breaker holds them for, and then one worker after each lease.
        held_until = silent_from + 2 * PATIENT_LEASE - ROUND
        may_be_lost = max(0, math.ceil((heard_again - held_until) / PATIENT_LEASE))
        given_up = _given_up(site)
        print(f"heard again {held_until - heard_again:.1f} s before the hold ended; {len(given_up)} were given up")
        assert [at for at in given_up if at < held_until] == []
        assert len(given_up) <= may_be_lost
        assert may_be_lost or _lost_attempts(site) == [], "something was run again for want of heartbeats alone"
        for long in longs:
            assert_untouched(site, long) if not may_be_lost else site.succeed(long)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


@pytest.mark.timeout(150)
def test_when_heartbeats_do_not_return_workers_are_given_up_one_per_lease(chaos: Chaos) -> None:
    with chaos(workers=("a", "b", "c", "d", "e", "f"), slots=2) as site:
        longs = [start_long(site, 20.0, f"{number}") for number in range(2)]
        run_load(site, runs=8, cancelled=0.0)
        with _no_heartbeats(site):
            began = _now(site)
            site.wait_until(lambda: len(_given_up(site)) >= 3, "three workers are given up", 12 * LEASE)
            given_up = _given_up(site)[:3]
        print(f"given up {[round(at - began, 1) for at in given_up]} s after the last heartbeat")
        assert refused(site)["breaker"]
        # The hold is one lease after the first lease, and then one worker per lease; a round of the leader is the blur.
        assert given_up[0] - began > 2 * LEASE - 1.5
        assert min(later - earlier for earlier, later in pairwise(given_up)) > LEASE - 0.5
        wait_until_quiet(site, 70.0)
        for long in longs:
            site.succeed(long)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


@contextmanager
def _no_heartbeats(site: ChaosSite) -> Iterator[None]:
    """Refuse every heartbeat, and nothing else, for the block: an access list gone wrong."""
    others = [f"~mlops_tasks:{part}" for part in ("[^hl]*", "highmem*", "log*")]
    # A command that reads and writes asks for both in one pattern.
    _allow(site, "%R~*", *others)
    site.note("Redis refuses heartbeats")
    try:
        yield
    finally:
        _allow(site, "allkeys")
        site.note("Redis takes heartbeats")


def _allow(site: ChaosSite, *keys: str) -> None:
    """Let everybody who knows the password use these keys alone."""

    def set_rules(client: Any) -> None:
        assert client.execute_command("ACL", "SETUSER", "default", "resetkeys", *keys)

    site.redis.do(set_rules)


def _lost_attempts(site: ChaosSite) -> list[tuple[str, str]]:
    return [
        (row[0], row[1]) for row in site.postgres.query("SELECT id::text, reason FROM attempts WHERE state = 'lost'")
    ]


def _now(site: ChaosSite) -> float:
    """Return the time by which events are stamped, as seconds."""
    return moment(site).timestamp()


def _given_up(site: ChaosSite) -> list[float]:
    """Return when workers became lost."""
    rows = site.postgres.query(
        "SELECT extract(epoch FROM at)::float FROM events WHERE entity = 'worker' AND after = 'lost' ORDER BY id"
    )
    return [row[0] for row in rows]
