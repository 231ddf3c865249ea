"""The wall clock of one host jumps by an hour, ahead or back: nobody is given up, no timer is early or late (I14)."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest

from orchestrator.wire.keys import Keys
from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, definitions_saved, pipeline, run_load, start_run, task, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    assert_no_attempt_ran_twice,
    assert_untouched,
    epoch,
    lines,
    logged,
    start_long,
    worker_of,
)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(150)]

HOUR = 3600.0
HELD = 4.0
"""Seconds for which the clock is left wrong: more than a lease."""
DELAY = 9.0
"""Seconds until the second try of a task that failed; longer than one jump."""
LATE = 7.0
"""Seconds by which that may be late on a busy machine; a timer that was shifted comes an hour late, or at once."""

REFUSED_WITHIN = 10.0
"""Seconds until the leader has said of a report that it refuses it."""


def test_the_clock_of_a_worker_that_jumps_changes_nothing(chaos: Chaos) -> None:
    with chaos(clocks=("worker-a", "worker-b", "worker-c")) as site:
        long = _start_work(site)
        wrong = worker_of(site, long)
        _jump(site, wrong)
        host = "host-" + wrong.removeprefix("worker-")
        _assert_nothing_changed(site, long)
        assert len([line for line in lines(site, "start") if line.host == host]) >= 5, f"{wrong} hardly worked"


def test_the_clock_of_the_leader_that_jumps_changes_nothing(chaos: Chaos) -> None:
    with chaos(clocks=("scheduler-1", "scheduler-2")) as site:
        long = _start_work(site)
        before = epoch(site)
        _jump(site, site.wait_for_leader())
        assert epoch(site) == before, "another leads"
        _assert_nothing_changed(site, long)


def test_the_clock_of_the_database_that_jumps_changes_nothing_while_one_leads(chaos: Chaos) -> None:
    with chaos(clocks=("postgres",)) as site:
        long = _start_work(site)
        before = epoch(site)
        _jump(site, "postgres")
        assert epoch(site) == before, "the lease was taken from a leader that renews it"
        _assert_nothing_changed(site, long, clock_jumped=True)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_leader_that_dies_as_the_clock_of_the_database_jumps_is_replaced(chaos: Chaos, jump: float) -> None:
    """Timers may be off by the jump across a change of leaders, so nothing waits for one here; all else may not be."""
    with chaos(clocks=("postgres",)) as site:
        names = [f"t{n}" for n in range(5)]
        row = [task(name, *names[max(0, n - 1) : n], seconds=0.5) for n, name in enumerate(names)]
        definitions_saved(site, [pipeline("row", row)])
        for _ in range(8):
            start_run(site, "row")
        leader = site.wait_for_leader()
        site.processes.forget_restarts(leader)
        site.shift_clock("postgres", jump)
        _assert_it_is_off_by(site, "postgres", jump)
        pid = site.processes.kill(leader)
        site.processes.wait_for_end(leader, pid)
        died = time.monotonic()
        run_id = start_run(site, "row")
        site.wait_until(lambda: lines(site, "start", run_id), "another leader dispatches", 20.0)
        print(f"with a jump of {jump:+.0f} s a task started {time.monotonic() - died:.1f} s after the leader's death")
        assert time.monotonic() - died <= 10.0
        site.processes.start(leader)
        site.shift_clock("postgres", 0)
        # The next leader reads what was written by the wrong clock.
        site.processes.kill(site.wait_for_leader(), signal.SIGTERM)
        wait_until_quiet(site, 60.0)
        _assert_nobody_was_given_up(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site, clock_jumped=True)


def _start_work(site: ChaosSite) -> str:
    """Start a long task with a timeout, tasks that wait for their second try, and a load; returns the long run's id."""
    again = [task(f"again{n}", seconds=0.1, fail_times=1, retry_delay_seconds=DELAY) for n in range(2)]
    definitions_saved(site, [pipeline("again", again)])
    long = start_long(site, 25.0, timeout_seconds=60.0)
    start_run(site, "again")
    run_load(site, runs=8, cancelled=0.0)
    return long


def _jump(site: ChaosSite, whose: str) -> None:
    """Set the clock an hour ahead, an hour back, and right again; in between work arrives and timers run."""
    for seconds in (HOUR, -HOUR, 0.0):
        site.shift_clock(whose, seconds)
        start_run(site, "again")
        run_load(site, runs=2, cancelled=0.0, purpose=f"{whose} {seconds:+.0f}")
        time.sleep(HELD)
        _assert_it_is_off_by(site, whose, seconds)


def _assert_it_is_off_by(site: ChaosSite, whose: str, seconds: float) -> None:
    """Hold that the process sees another time of day: by its own words."""
    if whose == "postgres":
        seen = float(site.postgres.query("SELECT extract(epoch FROM clock_timestamp())::float")[0][0])
    elif whose.startswith("scheduler-"):
        seen = _leaders_word_at(site, whose)
    else:
        seen = _last_word_at(site, whose)
    assert abs(seen - time.time() - seconds) < 60, f"the clock of {whose} is off by {seen - time.time():.0f} s"


def _last_word_at(site: ChaosSite, worker: str) -> float:
    """Return what time it was for a worker when it last said something; it works all the while."""
    for line in reversed(site.processes.log(worker).read_text(errors="replace").splitlines()):
        with suppress(ValueError, KeyError):
            return datetime.fromisoformat(json.loads(line)["at"]).timestamp()
    raise AssertionError(f"{worker} has never said anything")


def _leaders_word_at(site: ChaosSite, leader: str) -> float:
    """Return what time it is for the leader, which is silent for long when all is well: a report that nobody sealed
    makes it say so."""

    def words() -> list[dict[str, Any]]:
        return logged(site, leader, "report_refused")

    known = len(words())
    unsealed: dict[Any, Any] = {"k": "outcome", "w": "nobody", "b": "{}", "m": "none"}
    site.redis.do(lambda client: client.xadd(Keys("mlops_tasks").events, unsealed))
    site.wait_until(lambda: len(words()) > known, f"{leader} refuses a report", REFUSED_WITHIN)
    return datetime.fromisoformat(words()[-1]["at"]).timestamp()


def _assert_nothing_changed(site: ChaosSite, long: str, *, clock_jumped: bool = False) -> None:
    wait_until_quiet(site, 60.0)
    assert_untouched(site, long)
    assert_no_attempt_ran_twice(site)
    assert not any(site.processes.restarts().values()), site.processes.restarts()
    _assert_nobody_was_given_up(site)
    _assert_second_tries_were_in_time(site)
    assert_contract(site, clock_jumped=clock_jumped)


def _assert_nobody_was_given_up(site: ChaosSite) -> None:
    states = Counter(dict(site.postgres.query("SELECT state, count(*) FROM attempts GROUP BY state")))
    assert not states.keys() & {"lost", "expired", "timed_out"}, states
    gone = site.postgres.query("SELECT id, state, reason FROM workers WHERE state IN ('lost', 'suspect')")
    assert not gone, gone


def _assert_second_tries_were_in_time(site: ChaosSite) -> None:
    ended = {(line.run, line.task): line.at for line in reversed(lines(site, "end")) if line.task.startswith("again")}
    waits = [
        line.at - ended[line.run, line.task]
        for line in lines(site, "start")
        if line.task.startswith("again") and line.at > ended[line.run, line.task]
    ]
    print(f"{len(waits)} second tries began {min(waits):.2f} to {max(waits):.2f} s after the first")
    assert len(waits) == len(ended) >= 8
    assert min(waits) >= DELAY - 0.1, f"a second try came early: {sorted(waits)}"
    assert max(waits) <= DELAY + LATE, f"a second try came late: {sorted(waits)}"
