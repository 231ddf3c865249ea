"""The leader is killed again and again, frozen, sent away: another goes on, and the old one writes nothing (I9)."""

from __future__ import annotations

import itertools
import signal
import time
from functools import partial

import pytest

from tests.chaos.conftest import Chaos
from tests.chaos.history import Event
from tests.chaos.load import Task, assert_contract, pipeline, run_load, start_run, task, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    assert_no_attempt_ran_twice,
    assert_untouched,
    dispatched_after,
    epoch,
    logged,
    moment,
    start_long,
)

pytestmark = pytest.mark.chaos

LEASE = 3.0
"""``LEADER_LEASE_SECONDS`` of a site."""
NEXT_DISPATCH = LEASE + 5.0
"""Seconds until another leader dispatches: I9 says 15 with a lease of 10."""


@pytest.mark.chaos_quick
def test_leaders_killed_every_two_seconds_and_then_both_cost_only_time(chaos: Chaos) -> None:
    with chaos() as site:
        long = start_long(site, 30.0)
        run_load(site, runs=24)
        first, killed = epoch(site), 0
        until = time.monotonic() + 20.0
        while time.monotonic() < until:
            if (leader := site.leader()) is not None:
                site.processes.kill(leader, signal.SIGKILL)
                killed += 1
            time.sleep(2.0)
        assert killed >= 4, f"only {killed} leaders could be killed"
        last = site.wait_for_leader()
        other = next(name for name in site.schedulers if name != last)
        for name in site.schedulers:
            site.processes.forget_restarts(name)
        for name in (other, last):
            pid = site.processes.kill(name)
            site.processes.wait_for_end(name, pid)
        before, since = epoch(site), moment(site)
        start_run(site, "chain-0")  # accepted while nobody leads
        site.processes.start(other)
        started = moment(site)
        seconds = site.wait_until(lambda: dispatched_after(site, since, before), "the only one dispatches", 20.0)
        away = (started - since).total_seconds()
        print(f"{killed} leaders killed; then none, then one: a dispatch {seconds - away:.1f} s after its start")
        assert seconds - away <= NEXT_DISPATCH
        site.processes.start(last)
        wait_until_quiet(site, 60.0)
        assert epoch(site) >= first + 4, "no other scheduler has led in between"
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert not any(site.processes.restarts()[worker] for worker in site.workers), site.processes.restarts()
        assert_contract(site)


@pytest.mark.chaos_quick
@pytest.mark.timeout(150)
def test_a_leader_frozen_for_two_leases_writes_nothing_when_it_thaws(chaos: Chaos) -> None:
    with chaos() as site:
        long = start_long(site, 25.0)
        run_load(site, runs=20)
        took = [_freeze_the_leader(site) for _ in range(2)]
        print(f"the first dispatch of another came {took[0]:.1f} s and {took[1]:.1f} s after the freeze")
        assert max(took) <= NEXT_DISPATCH
        wait_until_quiet(site, 60.0)
        _assert_epochs_follow_each_other(site)
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert not any(site.processes.restarts().values()), site.processes.restarts()
        assert_contract(site)


def _freeze_the_leader(site: ChaosSite) -> float:
    """Freeze the leader wherever it is in its round, for two leases; returns when another dispatched."""
    leader = site.wait_for_leader()
    old, since = epoch(site), moment(site)
    with site.frozen(leader):
        until = time.monotonic() + 2 * LEASE
        start_run(site, "chain-0")
        seconds = site.wait_until(lambda: dispatched_after(site, since, old), "another leader dispatches", 20.0)
        time.sleep(max(0.0, until - time.monotonic()))
    # Only one that has looked and found itself replaced has had its chance to write.
    site.wait_until(
        lambda: logged(site, leader, "leadership_lost", epoch=old), f"{leader} learns that it was replaced", 15.0
    )
    return float(seconds)


def _assert_epochs_follow_each_other(site: ChaosSite) -> None:
    """Hold that once a leader wrote, none before it wrote any more; neither by the order of rows nor by their times."""
    first: dict[int, Event] = {}
    last: dict[int, Event] = {}
    for event in site.history().events:
        if event.epoch:
            first.setdefault(event.epoch, event)
            last[event.epoch] = event
    epochs = sorted(first)
    assert len(epochs) >= 3, f"only the epochs {epochs} have written"
    for old, new in itertools.pairwise(epochs):
        assert last[old].id < first[new].id, f"{last[old]} was written after {first[new]}"
        assert last[old].at <= first[new].at, f"{last[old]} is later than {first[new]}"


RUNS = 10
LAYERS = 25
JOINS = 2 * RUNS * LAYERS


@pytest.mark.chaos_quick
@pytest.mark.timeout(180)
def test_five_hundred_joins_of_upstreams_that_finish_together_all_fire_once(chaos: Chaos) -> None:
    """Every task of a layer waits for both of the layer before, so each is a join, and one half of the next two."""
    with chaos(slots=8) as site:
        site.client.save_pipeline(pipeline("lattice", _lattice()))
        began, first = time.monotonic(), epoch(site)
        runs = [start_run(site, "lattice") for _ in range(RUNS)]
        for share in (0.2, 0.4, 0.6, 0.8):
            _wait_until_joined(site, share * JOINS)
            leader = site.wait_for_leader()
            site.processes.kill(leader, signal.SIGTERM)
            site.wait_for_leader(other_than=leader)
        wait_until_quiet(site, 60.0)
        took = time.monotonic() - began
        assert _joined(site) == JOINS
        assert {site.finish(run_id)["state"] for run_id in runs} == {"success"}
        assert epoch(site) >= first + 4
        assert_no_attempt_ran_twice(site)
        assert_contract(site)
        gaps = _gaps(site)
        together = sum(gap <= 0.1 for gap in gaps)
        print(f"{JOINS} joins in {took:.1f} s; {together} of {len(gaps)} pairs ended within 0.1 s")
        assert together >= JOINS // 4, "their upstreams hardly ever finished together"


def _lattice() -> list[Task]:
    """Return pairs of tasks, each of which waits for both of the pair before; all end on the same beat of the clock."""
    cheap = partial(task, cpu=0.25, memory_gb=0.12, seconds=0.0, tick_seconds=0.25)
    tasks = [cheap("l0"), cheap("r0")]
    for layer in range(1, LAYERS + 1):
        upstream = (f"l{layer - 1}", f"r{layer - 1}")
        tasks += [cheap(f"l{layer}", *upstream), cheap(f"r{layer}", *upstream)]
    return tasks


def _wait_until_joined(site: ChaosSite, count: float) -> None:
    site.wait_until(lambda: _joined(site) >= count, f"{count:.0f} joins", 60.0)


def _joined(site: ChaosSite) -> int:
    """Return how many joins have been run to their success."""
    rows = site.postgres.query("SELECT count(*) FROM task_runs WHERE state = 'success' AND name NOT IN ('l0', 'r0')")
    return int(rows[0][0])


def _gaps(site: ChaosSite) -> list[float]:
    """Return how many seconds lie between the commits of the two upstreams, of each pair."""
    rows = site.postgres.query(
        "SELECT extract(epoch FROM max(at) - min(at))::float FROM events "
        "WHERE entity = 'task_run' AND after = 'success' GROUP BY run_id, substr(task, 2)"
    )
    return [row[0] for row in rows]
