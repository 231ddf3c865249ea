"""Tasks that outlive their worker (``on_worker_loss: adopt``) run once, and the host's next worker reports them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.chaos.checker import Bounds
from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, cancel, run_load, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    LONG,
    assert_fenced,
    assert_no_attempt_ran_twice,
    assert_untouched,
    lines,
    refused,
    seconds_since,
    start_long,
    worker_of,
)

pytestmark = pytest.mark.chaos

LEASE = 3.0
ADOPT_SECONDS = 4.0
STOP_SECONDS = 7.0
"""From a cancel to the death of the last process, beside the grace (I10)."""
SEEN_WITHIN = 15.0


def test_a_task_whose_worker_is_killed_runs_on_and_is_reported_by_the_next(chaos: Chaos) -> None:
    with chaos() as site:
        long = _start(site, 16.0)
        run_load(site, runs=8, cancelled=0.0)
        worker = worker_of(site, long)
        site.processes.kill(worker)
        _wait_until_adopted(site, long)
        assert _is_held(site, long), "its room was given away while it ran"
        site.succeed(long)
        assert_untouched(site, long)
        _assert_kept_by_another(site, long)
        wait_until_quiet(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def test_a_task_whose_keepers_are_killed_too_runs_once(chaos: Chaos) -> None:
    with chaos() as site:
        dice = site.dice("keepers")
        long = _start(site, 25.0)
        run_load(site, runs=6, cancelled=0.0)
        worker = worker_of(site, long)
        for _ in range(4):
            starts = site.processes[worker].starts
            site.processes.kill(worker)
            site.processes.wait_for_restart(worker, starts)
            # Before it has looked around, in the middle of the adoption, and when it is all done.
            time.sleep(dice.uniform(0.3, 4.0))
        _wait_until_adopted(site, long)
        site.succeed(long)
        assert_untouched(site, long)
        _assert_kept_by_another(site, long)
        assert site.processes.restarts()[worker] == 4
        wait_until_quiet(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def test_an_adopted_task_is_cancelled_like_any_other(chaos: Chaos) -> None:
    with chaos() as site:
        long = _start(site, 60.0, ignore_term=True, double_fork=True, grace_seconds=1.0)
        worker = worker_of(site, long)
        site.processes.kill(worker)
        _wait_until_adopted(site, long)
        assert cancel(site, long)
        asked = time.monotonic()
        assert site.finish(long)["state"] == "cancelled"
        print(f"an adopted task was dead {seconds_since(asked):.1f} s after its cancel, with a grace of 1 s")
        assert lines(site, "term", long), "it was not asked to end first"
        assert len(lines(site, "start", long)) == 1
        wait_until_quiet(site)
        assert_contract(site, bounds=Bounds(stop_seconds=STOP_SECONDS))


def test_an_orphan_that_is_cancelled_is_stopped_by_the_next_worker(chaos: Chaos) -> None:
    with chaos(ADOPT_SECONDS="60") as site:
        long = _start(site, 90.0, grace_seconds=1.0)
        worker = worker_of(site, long)
        _kill_for_good(site, worker)
        _wait_until_orphaned(site, long)
        assert cancel(site, long)
        site.wait_for_task(long, LONG, "cancelling", seconds=SEEN_WITHIN)
        told = site.task(long, LONG)["message"]
        assert "another worker of its host" in told, f"it does not say what it waits for: {told!r}"
        assert _is_held(site, long)
        site.processes.start(worker)
        assert site.finish(long)["state"] == "cancelled"
        assert len(lines(site, "start", long)) == 1
        assert [attempt["state"] for attempt in site.attempts(long, LONG)] == ["cancelled"]
        wait_until_quiet(site)
        assert_contract(site)


@pytest.mark.parametrize("orphaned", [False, True], ids=["before anybody misses its worker", "as an orphan"])
def test_a_task_that_ends_while_no_worker_is_there_is_committed_by_the_next(chaos: Chaos, orphaned: bool) -> None:
    with chaos(ADOPT_SECONDS="60") as site:
        long = _start(site, 10.0 if orphaned else 3.0)
        worker = worker_of(site, long)
        _kill_for_good(site, worker)
        if orphaned:
            _wait_until_orphaned(site, long)
        site.wait_until(lambda: lines(site, "end", long), "it ends all by itself", SEEN_WITHIN)
        site.processes.start(worker)
        site.succeed(long)
        assert_untouched(site, long)
        run_load(site, runs=3, cancelled=0.0)
        wait_until_quiet(site)
        assert_contract(site)


def test_a_task_whose_host_does_not_return_in_time_runs_elsewhere_and_is_fenced_when_it_does(chaos: Chaos) -> None:
    with chaos(ADOPT_SECONDS=f"{ADOPT_SECONDS:g}") as site:
        long = _start(site, 16.0)
        worker = worker_of(site, long)
        _kill_for_good(site, worker)
        killed = time.monotonic()
        _wait_until_orphaned(site, long)
        site.wait_until(lambda: len(lines(site, "start", long)) > 1, "it runs elsewhere", SEEN_WITHIN + ADOPT_SECONDS)
        waited = seconds_since(killed)
        print(f"it runs elsewhere {waited:.1f} s after its worker died; the host had {ADOPT_SECONDS:g} s to return")
        assert waited > ADOPT_SECONDS, "nobody has waited for its host"
        assert not lines(site, "end", long), "the first one has ended too soon for this to be a test"
        first, second = lines(site, "start", long)
        lived_until = max(line.at for line in lines(site, "beat", long) if line.attempt == first.attempt)
        print(f"the first one was dead {second.at - lived_until:.1f} s before the second began")
        assert lived_until < second.at, "both ran at once, though nobody was cut off"
        site.processes.start(worker)
        assert_fenced(site, long, worker)
        wait_until_quiet(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


# --- deeds ---


def _start(site: ChaosSite, seconds: float, **parameters: Any) -> str:
    return start_long(site, seconds, on_worker_loss="adopt", beat_seconds=0.2, **parameters)


def _kill_for_good(site: ChaosSite, worker: str) -> None:
    site.processes.forget_restarts(worker)
    pid = site.processes.kill(worker)
    site.processes.wait_for_end(worker, pid)


def _wait_until_adopted(site: ChaosSite, run_id: str) -> None:
    """Wait until the newest incarnation of its host answers for it."""

    def is_kept() -> bool:
        rows = site.postgres.query(
            "SELECT a.keeper_id = w.id AND a.orphaned_at IS NULL FROM attempts a "
            "JOIN workers w ON w.host_id = a.host_id WHERE a.run_id = %s ORDER BY w.started_at DESC LIMIT 1",
            run_id,
        )
        return bool(rows and rows[0][0])

    site.wait_until(is_kept, "it is adopted", SEEN_WITHIN)
    assert refused(site)["adopted"]


def _wait_until_orphaned(site: ChaosSite, run_id: str) -> None:
    site.wait_until(
        lambda: site.postgres.query("SELECT 1 FROM attempts WHERE run_id = %s AND orphaned_at IS NOT NULL", run_id),
        "its worker is missed",
        SEEN_WITHIN,
    )
    told = site.task(run_id, LONG)
    assert (told["state"], told["reason"]) == ("running", "worker_lost"), told


def _is_held(site: ChaosSite, run_id: str) -> bool:
    """Say whether the attempt's room on its host is charged."""
    return bool(
        site.postgres.query(
            "SELECT 1 FROM reservations r JOIN attempts a ON a.id = r.attempt_id WHERE a.run_id = %s", run_id
        )
    )


def _assert_kept_by_another(site: ChaosSite, run_id: str) -> None:
    """Hold that the one attempt was reported under its own token, for the worker that ran it, by another one."""
    ((worker, keeper, token),) = site.postgres.query(
        "SELECT worker_id, keeper_id, token FROM attempts WHERE run_id = %s", run_id
    )
    assert keeper
    assert keeper != worker
    outputs = site.client._request("GET", f"/api/v1/runs/{run_id}/tasks/{LONG}")["outputs"]
    assert outputs == {"fence": token}
