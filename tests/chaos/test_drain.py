"""Workers that are drained under load, by TERM or by command: what they ran goes on elsewhere, charged to nobody."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from orchestrator.retry import UNCHARGED
from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, pipeline, run_load, start_run, task, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    LONG,
    assert_no_attempt_ran_twice,
    assert_untouched,
    lines,
    moment,
    seconds_since,
    start_long,
)

pytestmark = pytest.mark.chaos

GRACE = 2.0
SEEN_WITHIN = 15.0
"""Seconds for what takes a round of the leader and of a worker, on a busy machine."""


def test_a_worker_told_to_end_under_load_lets_every_task_go_as_it_wishes(chaos: Chaos) -> None:
    deadline = 5.0
    with chaos(DRAIN_SECONDS=f"{deadline:g}") as site:
        long = _run_on_the_first_worker(
            site,
            # Four slots: as many as one worker has.
            ends_in_time={"on_drain": "wait", "seconds": 9.0},
            too_long={"on_drain": "wait", "seconds": 22.0},
            saves={"on_drain": "checkpoint", "checkpoint": True, "seconds": 22.0},
            killed={"on_drain": "kill", "seconds": 22.0},
        )
        run_load(site, runs=10, cancelled=0.0)
        site.wait_until(lambda: _age(site, long["ends_in_time"]) > 6.0, "one is about to end", SEEN_WITHIN)
        site.processes.forget_restarts("worker-a")
        told, since = site.processes.kill("worker-a", signal.SIGTERM), time.monotonic()
        assert site.processes.wait_for_end("worker-a", told, deadline + GRACE + SEEN_WITHIN) == 0
        print(f"it ended {seconds_since(since):.1f} s after TERM, with a deadline of {deadline:g} s")
        _assert_goes_on_elsewhere(site, long["saves"], before=since + deadline, noted=["start", "term", "saved"])
        _assert_goes_on_elsewhere(site, long["killed"], before=since + deadline, noted=["start"], maybe="term")
        _assert_goes_on_elsewhere(
            site, long["too_long"], before=since + deadline + SEEN_WITHIN, noted=["start", "term"]
        )
        assert _ended(site, long["too_long"])[0] - since > deadline - 0.5, "it was to have the time until the deadline"
        assert_untouched(site, long["ends_in_time"])
        assert not [line for line in lines(site, "start") if line.host == "host-a" and line.at > since + deadline]
        site.processes.start("worker-a")
        wait_until_quiet(site, 60.0)
        for run_id in long.values():
            site.succeed(run_id)
        _assert_nobody_was_charged(site, *long.values())
        _assert_nothing_lost(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def test_a_worker_drained_by_command_is_empty_at_its_deadline_and_works_again_when_undrained(chaos: Chaos) -> None:
    deadline = 4.0
    with chaos() as site:
        long = _run_on_the_first_worker(
            site,
            too_long={"on_drain": "wait", "seconds": 18.0},
            saves={"on_drain": "checkpoint", "checkpoint": True, "seconds": 18.0},
        )
        run_load(site, runs=10, cancelled=0.0)
        worker = _worker_on(site, "host-a")
        asked = time.monotonic()
        site.client._request("POST", f"/api/v1/workers/{worker}/drain", body={"deadline_seconds": deadline})
        site.wait_until(lambda: all(_ended(site, one) for one in long.values()), "all is preempted", 2 * SEEN_WITHIN)
        print(
            f"preempted {[round(_ended(site, run_id)[0] - asked, 1) for run_id in long.values()]} s after the command"
        )
        assert _ended(site, long["too_long"])[0] - asked > deadline - 0.5
        shown = site.client._request("GET", f"/api/v1/workers/{worker}")
        assert (shown["state"], shown["draining"]) == ("draining", True), shown
        assert shown["drain_until"], "it is to say until when it waits"
        _assert_nothing_starts_there(site, asked)
        site.client._request("DELETE", f"/api/v1/workers/{worker}/drain")
        known = len(lines(site, "start"))

        def works_again() -> bool:
            start_run(site, "fan-0")
            return any(line.host == "host-a" for line in lines(site, "start")[known:])

        site.wait_until(works_again, "it takes work again", SEEN_WITHIN)
        wait_until_quiet(site, 60.0)
        assert not site.processes.restarts()["worker-a"], "nobody was to end"
        for run_id in long.values():
            site.succeed(run_id)
            _assert_elsewhere(site, run_id)
        _assert_nobody_was_charged(site, *long.values())
        _assert_nothing_lost(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def test_work_for_a_queue_whose_only_worker_drains_waits_and_says_so(chaos: Chaos) -> None:
    with chaos(workers=("a",)) as site:
        running = start_long(site, 6.0)
        worker = _worker_on(site, "host-a")
        site.client._request("POST", f"/api/v1/workers/{worker}/drain")
        site.wait_until(
            lambda: site.client._request("GET", f"/api/v1/workers/{worker}")["state"] == "draining", "it drains"
        )
        waiting = site.start_run(pipeline("waits", [task(LONG, seconds=0.5)]))
        site.wait_until(lambda: site.task(waiting, LONG)["reason"] == "waiting_for_worker", "it says why", SEEN_WITHIN)
        site.succeed(running)
        assert_untouched(site, running)
        assert_contract(site, quiescent=False)
        assert site.task(waiting, LONG)["state"] == "ready"
        assert not lines(site, "start", waiting)
        site.client._request("DELETE", f"/api/v1/workers/{worker}/drain")
        site.succeed(waiting)
        wait_until_quiet(site)
        _assert_nobody_was_charged(site, running, waiting)
        assert_contract(site)


def test_all_workers_restarted_in_turn_under_load_lose_nothing(chaos: Chaos) -> None:
    with chaos(DRAIN_SECONDS="3") as site:
        long = [start_long(site, 12.0, policy, on_drain=policy) for policy in ("wait", "checkpoint", "kill")]
        run_load(site, runs=24, cancelled=0.0)
        began = time.monotonic()
        for worker in site.workers:
            starts = site.processes[worker].starts
            pid = site.processes.kill(worker, signal.SIGTERM)
            assert site.processes.wait_for_end(worker, pid, 3.0 + GRACE + SEEN_WITHIN) == 0
            site.processes.wait_for_restart(worker, starts)
            site.wait_until(lambda: _online(site) == 3, f"{worker} is back", SEEN_WITHIN)
        print(f"all were restarted in {seconds_since(began):.1f} s")
        wait_until_quiet(site, 60.0)
        for run_id in long:
            site.succeed(run_id)
        preempted = site.postgres.query("SELECT count(*) FROM attempts WHERE state = 'preempted'")[0][0]
        assert preempted, "nothing ran when they were told to end"
        _assert_nobody_was_charged(site, *long)
        _assert_nothing_lost(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


# --- deeds ---


def _run_on_the_first_worker(site: ChaosSite, **tasks: dict[str, Any]) -> dict[str, str]:
    """Start one run of each of these long tasks while the first worker is the only one; return the runs by name."""
    others = site.workers[1:]
    for worker in others:
        site.processes.stop(worker)
    site.wait_until(lambda: _online(site) == 1, "one worker alone")
    started = {
        name: start_long(site, name=name, grace_seconds=GRACE, **parameters) for name, parameters in tasks.items()
    }
    for worker in others:
        site.processes.start(worker)
    site.wait_until(lambda: _online(site) == len(site.workers), "all workers", SEEN_WITHIN)
    return started


def _online(site: ChaosSite) -> int:
    return int(site.postgres.query("SELECT count(*) FROM workers WHERE state = 'online'")[0][0])


def _worker_on(site: ChaosSite, host: str) -> str:
    """Return the id of the incarnation that is online there."""
    return next(str(worker["id"]) for worker in site.client.workers() if worker["host_id"] == host)


def _age(site: ChaosSite, run_id: str) -> float:
    return seconds_since(lines(site, "start", run_id)[0].at)


def _ended(site: ChaosSite, run_id: str) -> list[float]:
    """Return when attempts of the run's task were preempted, on the machine's monotonic clock."""
    rows = site.postgres.query(
        "SELECT extract(epoch FROM clock_timestamp() - at)::float FROM events "
        "WHERE run_id = %s AND entity = 'attempt' AND after = 'preempted' ORDER BY id",
        run_id,
    )
    return [time.monotonic() - ago for (ago,) in rows]


# --- what must hold ---


def _assert_goes_on_elsewhere(
    site: ChaosSite, run_id: str, *, before: float, noted: list[str], maybe: str = ""
) -> None:
    """Hold that the first attempt noted just this, was preempted before this moment, and that another one runs.

    :param maybe: what it may have noted too: TERM is sent just before KILL, where there is no grace between them.
    """
    (ended,) = _ended(site, run_id)
    assert ended < before, f"it was preempted {ended - before:.1f} s too late"
    first = lines(site, "start", run_id)[0]
    told = [line.what for line in lines(site, "", run_id) if line.attempt == first.attempt]
    assert told in (noted, [*noted, maybe]), told
    site.wait_until(lambda: len(lines(site, "start", run_id)) == 2, "it runs elsewhere", SEEN_WITHIN)
    _assert_elsewhere(site, run_id)


def _assert_elsewhere(site: ChaosSite, run_id: str) -> None:
    hosts = [line.host for line in lines(site, "start", run_id)]
    assert len(hosts) == 2
    assert hosts[0] == "host-a"
    assert hosts[1] != "host-a", "it was sent back to the worker that leaves"


def _assert_nothing_starts_there(site: ChaosSite, asked: float) -> None:
    """Hold that a drained worker starts nothing once it has been told, though there is work enough."""
    known = moment(site)
    elsewhere = len(lines(site, "start"))
    start_run(site, "fan-0")
    site.wait_until(lambda: len(lines(site, "start")) > elsewhere + 3, "work goes on elsewhere", SEEN_WITHIN)
    late = [line for line in lines(site, "start") if line.host == "host-a" and line.at > asked + 3.0]
    assert not late, f"it started {late} after it was drained (looked at {known})"


def _assert_nobody_was_charged(site: ChaosSite, *runs: str) -> None:
    charged = site.postgres.query(
        "SELECT run_id::text, name, failures, losses FROM task_runs "
        "WHERE run_id::text = ANY(%s) AND failures + losses > 0",
        list(runs),
    )
    assert not charged, f"a drain was charged to {charged}"


def _assert_nothing_lost(site: ChaosSite) -> None:
    """Hold that nothing was killed but what a drain preempts; what was granted to one that just left has not begun."""
    lost = site.postgres.query(
        "SELECT id::text, reason, message FROM attempts WHERE state = 'lost' AND NOT reason = ANY(%s)",
        sorted(UNCHARGED),
    )
    assert not lost, f"lost in spite of all care: {lost}"
    uncharged = {row[0] for row in site.postgres.query("SELECT id::text FROM attempts WHERE state = 'lost'")}
    begun = [line for line in lines(site, "start") if line.attempt in uncharged]
    assert not begun, f"these were charged to nobody, and had begun: {begun}"
