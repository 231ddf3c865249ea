"""Exclusive tasks: whatever happens to the worker, the next attempt never runs beside the one before it."""

from __future__ import annotations

import signal
import time

import pytest

from tests.chaos.conftest import Chaos
from tests.chaos.ledger import Line
from tests.chaos.load import assert_contract, run_load, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import LONG, lines, seconds_since, start_long, worker_of

pytestmark = pytest.mark.chaos

LEASE = 3.0
ELSEWHERE_WITHIN = 15.0
THAW = 1.0
"""Seconds that what was frozen may run on after the thaw, until its supervisor, frozen too, has looked at the clock."""


def test_an_exclusive_task_that_is_cut_off_ends_before_it_starts_elsewhere(chaos: Chaos) -> None:
    with chaos() as site:
        run_load(site, runs=6)
        long = start_long(site, 14.0, exclusive=True, beat_seconds=0.1)
        link = site.proxies[f"{worker_of(site, long)}→redis"]
        site.note(f"{link.name} swallows all bytes")
        link.swallow()
        _wait_until_elsewhere(site, long)
        time.sleep(LEASE)
        link.pass_on()
        assert link.swallowed, "the worker was not cut off"
        assert not _beside_the_second(site, long), "two attempts of an exclusive task ran at once"
        site.succeed(long)
        wait_until_quiet(site, 60.0)
        assert not _beside_the_second(site, long)
        assert_contract(site)


def test_an_exclusive_task_that_thaws_beside_its_next_attempt_dies_at_once(chaos: Chaos) -> None:
    with chaos() as site:
        run_load(site, runs=6)
        long = start_long(site, 14.0, exclusive=True, beat_seconds=0.1)
        worker = worker_of(site, long)
        parts = site.parts(worker)
        site.processes.freeze(worker)
        others = [pid for pid in (parts.fork_server, *parts.supervisors, *parts.runners) if pid is not None]
        for pid in others:
            site.signal(pid, signal.SIGSTOP, f"a part of {worker}")
        _wait_until_elsewhere(site, long)
        assert not _beside_the_second(site, long), "it was not frozen"
        thawed = time.monotonic()
        for pid in others:
            site.signal(pid, signal.SIGCONT, f"a part of {worker}")
        site.processes.thaw(worker)
        site.succeed(long)
        wait_until_quiet(site, 60.0)
        late = [line.at - thawed for line in _beside_the_second(site, long)]
        print(f"after the thaw it wrote {len(late)} lines more, in {max(late, default=0.0):.2f} s")
        assert all(0 <= seconds <= THAW for seconds in late), late
        assert_contract(site)


def _wait_until_elsewhere(site: ChaosSite, run_id: str) -> None:
    began = time.monotonic()
    site.wait_until(lambda: len(lines(site, "start", run_id)) > 1, "the task runs elsewhere", ELSEWHERE_WITHIN)
    print(f"it runs elsewhere {seconds_since(began):.1f} s after the fault")


def _beside_the_second(site: ChaosSite, run_id: str) -> list[Line]:
    """Return what the first attempt has written after the second one had started."""
    first, second, *_ = lines(site, "start", run_id)
    assert first.task == second.task == LONG
    return [line for line in lines(site, "", run_id) if line.attempt == first.attempt and line.at > second.at]
