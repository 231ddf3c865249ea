"""Redis loses everything, goes away, goes back in time, is full: it is only a wire, so nothing is lost (I7, I8)."""

from __future__ import annotations

import time

import pytest

from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, pipeline, run_load, start_run, task, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    LONG,
    asking,
    assert_no_attempt_ran_twice,
    assert_untouched,
    dispatched_after,
    lines,
    list_runs,
    logged,
    moment,
    refused,
    seconds_since,
    start_long,
)

pytestmark = pytest.mark.chaos

BACK_WITHIN = 15.0
"""Seconds from Redis' return to the first dispatch (I8)."""
RESENT_WITHIN = 10.0
"""Seconds from Redis' return until unclaimed work was sent again and runs (I7)."""


@pytest.mark.chaos_quick
def test_redis_flushed_again_and_again_loses_nothing_and_stops_nothing(chaos: Chaos) -> None:
    with chaos() as site:
        long = start_long(site, 20.0)
        run_load(site, runs=16)
        for _ in range(10):
            site.redis.flush()
            time.sleep(1.5)
        assert len(logged(site, "scheduler", "redis_back", reset=True)) >= 8, "the flushes were not noticed"
        site.wait_until_quiet(40.0)
        unclaimed = _hints_that_nobody_takes(site, "short", 8)
        began = time.monotonic()
        site.wait_until(
            lambda: all(lines(site, "start", run_id) for run_id in unclaimed),
            "lost hints are sent again",
            RESENT_WITHIN,
        )
        print(f"work whose hints were lost ran {seconds_since(began):.1f} s after the flush")
        wait_until_quiet(site)
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def _hints_that_nobody_takes(site: ChaosSite, pipeline_name: str, runs: int) -> list[str]:
    """Start runs while all workers are frozen, flush Redis when their hints wait there, and let the workers go on.

    A frozen worker has taken one hint already: Redis has written it to its socket. The others are lost.
    """
    site.client.save_pipeline(pipeline(pipeline_name, [task(LONG, seconds=0.2)]))
    with site.frozen(*site.workers):
        started = [start_run(site, pipeline_name) for _ in range(runs)]
        site.wait_until(
            lambda: site.redis.do(lambda client: client.llen("mlops_tasks:cpu")) >= runs - len(site.workers),
            "hints wait in Redis",
            5.0,
        )
        lost = site.redis.flush_with("mlops_tasks:cpu")
        assert lost >= runs - len(site.workers)
    site.note(f"{lost} hints were lost")
    return started


@pytest.mark.chaos_quick
def test_redis_away_for_five_seconds_and_empty_afterwards_costs_only_time(chaos: Chaos) -> None:
    with chaos() as site:
        _lose_redis(site, away=5.0)


@pytest.mark.timeout(200)
def test_redis_away_for_a_minute_and_empty_afterwards_costs_only_time(chaos: Chaos) -> None:
    with chaos() as site:
        _lose_redis(site, away=60.0)


def _lose_redis(site: ChaosSite, away: float) -> None:
    runs_through = start_long(site, away + 8.0)
    run_load(site, runs=12)
    # Its own time is up long before Redis is back: what its worker can't report is not to be given up for that.
    ends_meanwhile = start_long(site, min(10.0, away * 0.6), "short", timeout_seconds=min(12.0, away))
    assert not lines(site, "end", ends_meanwhile), "it has ended before Redis was stopped"
    site.redis.stop()
    with (
        asking(site, "api-1", list_runs) as reading,
        asking(site, "api-2", lambda api: api.start_run("chain-0"), pause=max(0.2, away / 30)) as writing,
    ):
        time.sleep(away)
    assert lines(site, "end", ends_meanwhile), "it did not end while Redis was away"
    since = moment(site)
    site.redis.start()
    site.note(f"Redis is back, {len(writing.replies)} runs were asked for meanwhile")
    seconds = site.wait_until(lambda: dispatched_after(site, since), "the first dispatch", BACK_WITHIN)
    print(
        f"away {away:g} s: first dispatch {seconds:.1f} s after the return, API {reading.statuses} {writing.statuses}"
    )
    assert seconds <= BACK_WITHIN
    reading.assert_prompt()
    writing.assert_prompt()
    # PostgreSQL holds all that runs are, so even they are taken while Redis is away.
    assert set(reading.statuses) == {200}
    assert set(writing.statuses) == {201}
    assert logged(site, "scheduler", "redis_back", reset=True), "the scheduler did not notice that Redis is empty"
    wait_until_quiet(site, 60.0)
    assert_untouched(site, ends_meanwhile)
    assert_untouched(site, runs_through)
    assert_no_attempt_ran_twice(site)
    assert not any(site.processes.restarts()[worker] for worker in site.workers), site.processes.restarts()
    assert_contract(site)


def test_redis_restored_from_an_old_snapshot_repeats_nothing(chaos: Chaos) -> None:
    with chaos() as site:
        before = start_long(site, 25.0, "before")
        run_load(site, runs=10)
        old = site.redis.save("old")
        site.note(f"a snapshot with {site.redis.do(lambda client: client.dbsize())} keys was taken")
        ended_by_snapshot = set(_ended(site))
        after = start_long(site, 20.0, "after")
        more = run_load(site, runs=6, purpose="more")
        site.wait_until(
            lambda: len(set(_ended(site)) - ended_by_snapshot) >= 15, "work that the snapshot knows nothing of", 30.0
        )
        site.redis.restart_from(old)
        since = moment(site)
        site.note("Redis has gone back in time")
        site.wait_until(
            lambda: logged(site, "scheduler", "redis_back", reset=True), "the leader notices the old generation", 10.0
        )
        late = start_run(site, "long-after")
        seconds = site.wait_until(lambda: dispatched_after(site, since), "the first dispatch", BACK_WITHIN)
        print(
            f"first dispatch {seconds:.1f} s after the restoration of {len(more) + 10} runs; refused: {refused(site)}"
        )
        wait_until_quiet(site)
        assert_untouched(site, before)
        assert_untouched(site, after)
        assert_untouched(site, late)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def _ended(site: ChaosSite) -> list[str]:
    return [str(row[0]) for row in site.postgres.query("SELECT id FROM attempts WHERE ended_at IS NOT NULL")]


def test_redis_that_is_full_for_ten_seconds_costs_only_time(chaos: Chaos) -> None:
    with chaos() as site:
        long = start_long(site, 20.0)
        run_load(site, runs=12)
        site.redis.limit_memory(1)
        with asking(site, "api-1", lambda api: api.start_run("chain-0")) as writing:
            time.sleep(10.0)
        site.redis.limit_memory(0)
        since = moment(site)
        denied = site.redis.do(lambda client: client.info("errorstats"))
        assert "errorstat_OOM" in denied, f"nobody was refused: {denied}"
        seconds = site.wait_until(lambda: dispatched_after(site, since), "the first dispatch", BACK_WITHIN)
        print(f"first dispatch {seconds:.1f} s after the end of the shortage; {denied['errorstat_OOM']}")
        writing.assert_prompt()
        assert set(writing.statuses) == {201}
        wait_until_quiet(site)
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert not any(site.processes.restarts().values()), site.processes.restarts()
        assert_contract(site)
