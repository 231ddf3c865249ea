"""The harness itself: a load without faults keeps the contract, every kind of message fault and every break works."""

from __future__ import annotations

import os
import time

import psycopg2
import pytest

from tests.chaos.checker import Bounds
from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, run_load, wait_until_quiet

pytestmark = pytest.mark.chaos


@pytest.mark.chaos_quick
def test_without_faults_the_load_keeps_the_contract(chaos: Chaos) -> None:
    began = time.monotonic()
    with chaos() as site:
        print(f"the site works after {time.monotonic() - began:.1f} s")
        run_load(site, runs=16)
        wait_until_quiet(site)
        assert_contract(site)
        assert not any(site.processes.restarts().values())
        ended = time.monotonic()
    print(f"the site is gone after {time.monotonic() - ended:.1f} s")


def test_message_faults_of_every_kind_are_really_made(chaos: Chaos) -> None:
    faults = {
        "scheduler": {"hints": 3, "hints_dropped": 0.1, "replies": 2, "replies_dropped": 0.1, "events_per_second": 60},
        "worker": {"events": 3, "events_shuffled": 0.4, "events_dropped": 0.2},
        "api": {"dies_after_commit": 4},
    }
    with chaos(faults=faults) as site:
        run_load(site, runs=8)
        wait_until_quiet(site, seconds=60)
        assert_contract(site)
        refused = dict(site.postgres.query("SELECT what, count FROM refusals"))
        print(f"refused: {refused}")
        assert any(reply.status == 0 for reply in site.memory.replies), "no API died before its answer"


def test_a_clock_can_be_set_wrong_while_its_process_runs(chaos: Chaos) -> None:
    with chaos(workers=("a",), clocks=("postgres", "worker-a")) as site:
        before = site.postgres.query("SELECT extract(epoch FROM clock_timestamp())::float")[0][0]
        site.shift_clock("postgres", 3600)
        after = site.postgres.query("SELECT extract(epoch FROM clock_timestamp())::float")[0][0]
        assert 3590 < after - before < 3620
        site.shift_clock("postgres", 0)
        site.shift_clock("worker-a", -3600)
        run_load(site, runs=2, cancelled=0.0)
        wait_until_quiet(site)
        assert_contract(site)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own for PostgreSQL needs root")
def test_every_part_can_be_broken_and_mended(chaos: Chaos) -> None:
    with chaos(postgres_disk_mb=256) as site:
        with site.postgres.full_disk(), pytest.raises(psycopg2.Error, match="No space left"):
            site.postgres.query("CREATE TABLE filled AS SELECT repeat('x', 1000) FROM generate_series(1, 10000)")
        assert site.postgres.terminate_backends() > 0
        site.postgres.restart(immediate=True)
        site.redis.do(lambda client: client.set("kept", "yes"))
        snapshot = site.redis.save("before")
        site.redis.restart_empty()
        assert site.redis.do(lambda client: client.get("kept")) is None
        site.redis.restart_from(snapshot)
        assert site.redis.do(lambda client: client.get("kept")) == b"yes"
        leader = site.wait_for_leader()
        with site.frozen(leader):
            site.wait_for_leader(other_than=leader)
        worker = site.processes["worker-a"]
        site.processes.kill(worker.name)
        site.processes.wait_for_restart(worker.name, worker.starts)
        for proxy in (site.proxies["worker-b→redis"], site.proxies[f"{leader}→postgres"]):
            proxy.reset_all()
        run_load(site, runs=4)
        wait_until_quiet(site, seconds=60)
        # A power cut takes what was committed asynchronously.
        assert_contract(site, bounds=Bounds(commits_lost=True))
        assert {"api-1", "api-1/worker", "scheduler-1", "worker-a"} <= site.use().keys()
