"""PostgreSQL is restarted, crashes, loses all sessions, has a full disk: it says so and goes on (I5, I8)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from orchestrator.client import ApiError
from tests.chaos.checker import Bounds
from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, run_load, start_run, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    asking,
    assert_no_attempt_ran_twice,
    assert_untouched,
    dispatched_after,
    lines,
    list_runs,
    moment,
    seconds_since,
    start_long,
)

pytestmark = pytest.mark.chaos

BACK_WITHIN = 15.0
"""Seconds from PostgreSQL's return to the first dispatch (I8)."""
REPORTED_WITHIN = 30.0
"""Seconds from its return until what ended meanwhile is committed (I8)."""


@pytest.mark.chaos_quick
@pytest.mark.timeout(150)
def test_postgres_restarted_three_times_and_all_sessions_ended_cost_only_time(chaos: Chaos) -> None:
    with chaos() as site:
        long = start_long(site, 30.0)
        run_load(site, runs=16)
        _break_under_load(site, "restarted fast", site.postgres.restart)
        _break_under_load(site, "all sessions ended", lambda: _end_all_sessions(site))
        wait_until_quiet(site, 60.0)
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert not any(site.processes.restarts()[worker] for worker in site.workers), site.processes.restarts()
        assert_contract(site)


@pytest.mark.timeout(150)
def test_postgres_crashing_three_times_loses_no_run_and_no_outcome(chaos: Chaos) -> None:
    with chaos() as site:
        long = start_long(site, 30.0)
        run_load(site, runs=16)
        _break_under_load(site, "crashed", lambda: site.postgres.restart(immediate=True))
        wait_until_quiet(site, 60.0)
        assert_untouched(site, long)
        assert not any(site.processes.restarts()[worker] for worker in site.workers), site.processes.restarts()
        # A crash takes what was committed asynchronously: dispatches and grants, never what a user was told.
        assert_contract(site, bounds=Bounds(commits_lost=True))


def _break_under_load(site: ChaosSite, what: str, deed: Callable[[], object]) -> None:
    """Do it three times while both APIs are asked; every answer is one, and dispatches go on soon after."""
    took = []
    with (
        asking(site, "api-1", list_runs) as reading,
        asking(site, "api-2", lambda api: api.start_run("chain-0")) as writing,
    ):
        for _ in range(3):
            site.note(what)
            deed()
            took.append(_wait_for_dispatch(site, moment(site)))
            time.sleep(2.0)
    print(f"{what}: first dispatch {', '.join(f'{seconds:.1f}' for seconds in took)} s after the return")
    print(f"answers meanwhile: read {dict(reading.statuses)}, write {dict(writing.statuses)}")
    assert max(took) <= BACK_WITHIN
    reading.assert_prompt()
    writing.assert_prompt()


def _wait_for_dispatch(site: ChaosSite, since: datetime) -> float:
    """Return how many seconds after this moment something was dispatched."""
    return float(site.wait_until(lambda: dispatched_after(site, since), "a dispatch", 60.0))


def _end_all_sessions(site: ChaosSite) -> None:
    assert site.postgres.terminate_backends() >= 3, "hardly anybody was connected"


@pytest.mark.timeout(150)
def test_postgres_away_while_tasks_end_gets_every_outcome_after_its_return(chaos: Chaos) -> None:
    with chaos() as site:
        runs_through = start_long(site, 25.0, "through")
        run_load(site, runs=8)
        ends_meanwhile = [start_long(site, 5.0, f"short{n}", timeout_seconds=10.0) for n in range(3)]
        assert not any(lines(site, "end", run_id) for run_id in ends_meanwhile), "one has ended too soon"
        site.postgres.stop()
        with (
            asking(site, "api-1", list_runs) as reading,
            asking(site, "api-2", lambda api: api.start_run("chain-0")) as writing,
        ):
            time.sleep(10.0)
        ended = [run_id for run_id in ends_meanwhile if lines(site, "end", run_id)]
        assert len(ended) == len(ends_meanwhile), "they did not end while it was away"
        assert not lines(site, "end", runs_through)
        site.postgres.start()
        since, began = moment(site), time.monotonic()
        seconds = _wait_for_dispatch(site, since)
        for run_id in ends_meanwhile:
            site.finish(run_id, 60.0)
        print(f"first dispatch {seconds:.1f} s, the outcomes {seconds_since(began):.1f} s after the return")
        assert seconds <= BACK_WITHIN
        assert seconds_since(began) <= REPORTED_WITHIN
        for asker in (reading, writing):
            asker.assert_prompt()
            assert asker.statuses[503] >= 3, f"{asker.api} hid that PostgreSQL was away: {asker.statuses}"
        wait_until_quiet(site, 60.0)
        for run_id in (*ends_meanwhile, runs_through):
            assert_untouched(site, run_id)
        assert_no_attempt_ran_twice(site)
        assert not any(site.processes.restarts()[worker] for worker in site.workers), site.processes.restarts()
        assert_contract(site)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own for PostgreSQL needs root")
@pytest.mark.timeout(180)
def test_a_full_disk_of_postgres_is_said_and_costs_only_time(chaos: Chaos) -> None:
    with chaos(postgres_disk_mb=192) as site:
        long = start_long(site, 30.0)
        run_load(site, runs=12)
        with (
            asking(site, "api-1", list_runs) as reading,
            asking(site, "api-2", lambda api: api.start_run("chain-0")) as writing,
        ):
            with site.postgres.full_disk():
                site.note("the disk is full")
                site.wait_until(lambda: "disk is full" in _refusal(site), "it is said that the disk is full", 30.0)
                time.sleep(8.0)
            refused = writing.statuses[503]
            since = _moment_when_back(site)
            seconds = _wait_for_dispatch(site, since)
            site.wait_until(lambda: writing.replies[-1].status == 201, "starts are taken again", 30.0)
        print(f"{refused} starts were refused; first dispatch {seconds:.1f} s after there was room again")
        print(f"answers meanwhile: read {dict(reading.statuses)}, write {dict(writing.statuses)}")
        reading.assert_prompt()
        writing.assert_prompt()
        assert seconds <= BACK_WITHIN
        last = start_run(site, "chain-0")
        wait_until_quiet(site, 60.0)
        assert site.finish(last)["state"] == "success"
        assert_untouched(site, long)
        assert not any(site.processes.restarts()[worker] for worker in site.workers), site.processes.restarts()
        # On a full disk PostgreSQL may crash, and then recovers.
        assert_contract(site, bounds=Bounds(commits_lost=True))


def _refusal(site: ChaosSite) -> str:
    """Return with what sentence a start is refused, or nothing."""
    client = site.new_client(patience=0.0)
    try:
        client.start_run("chain-0")
    except ApiError as error:
        if error.status != 503:
            raise
        return str(error)
    finally:
        client.close()
    return ""


def _moment_when_back(site: ChaosSite) -> datetime:
    """Return the time once PostgreSQL answers: without room for its log it may have had to recover."""
    site.postgres.wait_until_ready(30.0)
    return moment(site)
