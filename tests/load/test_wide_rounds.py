"""How long one round of the leader is over a run as wide as there may be: its start, its cancel, its rerun.

A round is one transaction, in which PostgreSQL waits 3 s at most for the leader, and in which no worker is heard. Run
with ``pytest tests/load/test_wide_rounds.py -m load -s`` on a machine that is idle; it prints its figures.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.kernel import Kernel, KernelSettings
from orchestrator.store.loader import load_snapshot
from orchestrator.store.plans import PlanCache
from orchestrator.sweep import MAX_TASK_RUNS
from scheduler.transaction import Leader, Round
from tests.integration.dag_site import DagSite, open_site, script

pytestmark = [pytest.mark.load, pytest.mark.timeout(300)]

WIDE = MAX_TASK_RUNS // 2 - 10
LONGEST = 3.0


@pytest.fixture
def site(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[DagSite]:
    made = open_site(database_url, redis_url, tmp_path)
    with made.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO leases (role, holder, epoch, expires_at) VALUES ('scheduler', 'x', 1, now() + interval '1 h')"
        )
    yield made
    made.close()


class Rounds:
    """A leader that is asked for one round after the other, and how long each was."""

    def __init__(self, site: DagSite) -> None:
        self._site = site
        self._now = 100.0
        self._leader = Leader(site.engine, 1, connections={}, registry_url=None)
        self._kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4())), self._now)
        with site.engine.connect() as connection:
            self._kernel.load(load_snapshot(connection, PlanCache(), self._now), self._now)

    def longest_until(self, run: str, what: str, query: str) -> float:
        """Go on until the query finds something of the run; returns the seconds of the longest round."""
        took: list[float] = []
        busy: list[float] = []
        while not self._site.rows(query, run=run):
            assert len(took) < 50, self._site.story(run)[-2000:]
            self._now += 0.1
            began, used = time.monotonic(), time.process_time()
            self._leader.take_in(self._kernel, Round(self._now, poll=True))
            took.append(time.monotonic() - began)
            busy.append(time.process_time() - used)
        shown = [f"{wall:.2f} s ({cpu:.2f} s of it at work itself)" for wall, cpu in zip(took, busy, strict=True)]
        print(f"\n{what}, round after round: {', '.join(shown)}")
        return max(took)


def test_no_round_over_a_wide_run_is_longer_than_postgresql_waits(site: DagSite) -> None:
    inside = {"over": {"range": WIDE}, "max_size": WIDE}
    run = site.run(script("first", map=inside), script("second", map=inside))
    rounds = Rounds(site)
    whole = f"SELECT 1 FROM task_runs WHERE run_id = :run HAVING count(*) = {2 * WIDE + 2}"
    ended = "SELECT 1 FROM runs WHERE id = :run AND state = 'cancelled'"
    again = "SELECT 1 FROM runs WHERE id = :run AND generation = 2 AND state = 'running'"
    found = [rounds.longest_until(run, "start and expand", whole)]
    site.cancel(run)
    found.append(rounds.longest_until(run, "cancel", ended))
    site.rerun(run)
    found.append(rounds.longest_until(run, "run again", again))
    site.cancel(run, mode="force")
    found.append(rounds.longest_until(run, "cancel by force", ended))
    assert max(found) < LONGEST
