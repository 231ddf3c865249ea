"""kill -9 of a worker's parts at random (main, fork server, supervisors, tasks): all runs end, the contract holds."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, run_load, wait_until_quiet
from tests.chaos.site import ChaosSite

pytestmark = pytest.mark.chaos

KILLS = 24
PARTS = ("main", "fork_server", "supervisor", "runner")


@pytest.mark.chaos_quick
def test_worker_parts_killed_at_random_cost_no_run(chaos: Chaos) -> None:
    with chaos() as site:
        dice = site.dice("kills")
        run_load(site, runs=16)
        killed = dict.fromkeys(PARTS, 0)
        deadline = time.monotonic() + 40.0
        while sum(killed.values()) < KILLS:
            assert time.monotonic() < deadline, f"only {killed} could be killed in time"
            part = min(killed, key=lambda name: (killed[name], dice.random()))
            killed[part] += _kill_one(site, part, dice)
            time.sleep(dice.uniform(0.1, 0.6))
            if not site.open_business():
                run_load(site, runs=4, purpose=f"more after {sum(killed.values())}")
        print(f"killed {killed}, restarts {site.processes.restarts()}")
        wait_until_quiet(site)
        assert_contract(site)


def _kill_one(site: ChaosSite, part: str, dice: random.Random) -> bool:
    """Kill one process of this kind somewhere; returns whether there was one."""
    for worker in dice.sample(site.workers, len(site.workers)):
        if worker not in site.processes.pids():
            continue  # it is just being started again
        found = site.parts(worker)
        candidates = {
            "main": [found.main],
            "fork_server": [found.fork_server] if found.fork_server else [],
            "supervisor": list(found.supervisors),
            "runner": list(found.runners),
        }[part]
        if candidates and site.signal(dice.choice(candidates), signal.SIGKILL, f"{part} of {worker}"):
            return True
    return False
