"""A scheduler whose links swallow bytes, whose Redis is full, or whose main loop hangs: it stops waiting in time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from sqlalchemy import text

from orchestrator.config import Settings
from orchestrator.local.redis import EmbeddedRedis
from orchestrator.local.servers import start_server
from orchestrator.records import Outcome, Plan
from orchestrator.states import AttemptState
from orchestrator.store.engine import create_store_engine
from orchestrator.watchdog import EXIT_STATUS
from orchestrator.wire.keys import Keys
from orchestrator.wire.redis import LEADER_TIMEOUT, connect
from scheduler.daemon import Daemon
from tests.chaos.proxy import Direction, Proxies, Proxy
from tests.integration.seeded_runs import planned, seed_run
from tests.integration.test_scheduler import ROOT, WORKER_KEY, Site, until

pytestmark = pytest.mark.timeout(150)

ONE_TASK = Plan((planned("a"),))
SLACK = 2.0
"""A busy machine; without bounds these rounds lasted 15 s (Redis) or for ever (PostgreSQL)."""


@pytest.fixture
def site(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """As in production but for the heartbeat: the lease lives 10 s."""
    settings = Settings(
        database_url=database_url,
        redis_url=redis_url,
        redis_task_queue=f"test-{uuid.uuid4().hex[:8]}",
        worker_key=WORKER_KEY,
        data_dir=tmp_path,
        heartbeat_interval_seconds=0.5,
        redispatch_seconds=2.0,
    )
    made = Site(settings, create_store_engine(database_url), connect(redis_url))
    yield made
    for stop in reversed(made.stops):
        stop()
    made.engine.dispose()
    made.client.close()


@dataclass
class Links:
    """A scheduler's own links to its stores."""

    postgres: Proxy
    redis: Proxy
    settings: Settings


@pytest.fixture
def links(site: Site) -> Iterator[Links]:
    proxies = Proxies()
    ports = {"postgres": site.settings.database_url, "redis": site.settings.redis_url}
    made: dict[str, Proxy] = {}
    urls: dict[str, str] = {}
    for name, url in ports.items():
        port = urlsplit(url).port or 0
        made[name] = proxies.add(name, partial(int, port))
        urls[name] = url.replace(f":{port}/", f":{made[name].port}/")
    yield Links(**made, settings=replace(site.settings, database_url=urls["postgres"], redis_url=urls["redis"]))
    proxies.close()


@dataclass
class Watched:
    """The longest time the main loop did not come by."""

    daemon: Daemon
    stop: threading.Event = field(default_factory=threading.Event)
    longest: float = 0.0

    def look(self) -> None:
        while not self.stop.wait(0.02):
            self.longest = max(self.longest, self.daemon._pulse.age())


@contextmanager
def leading(settings: Settings) -> Iterator[Watched]:
    watched = Watched(Daemon(settings))
    threads = [
        threading.Thread(target=watched.look),
        threading.Thread(target=watched.daemon.run, args=(watched.stop,)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield watched
    finally:
        watched.stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_a_leader_whose_redis_is_silent_goes_on_with_the_rows_and_comes_back(
    site: Site, links: Links, direction: Direction
) -> None:
    with leading(links.settings) as leader, site.worker(behave=lambda spec: None) as worker:
        first = site.submit(ONE_TASK)
        until(lambda: len(worker.running) == 1)
        links.redis.swallow(direction)
        second = seed_run(site.engine, plan=ONE_TASK)
        until(lambda: site.state(second) == "running", seconds=15)
        until(lambda: bool(site.rows("SELECT 1 FROM task_runs WHERE reason = 'waiting_for_redis'")), seconds=15)
        worker.behave = lambda spec: Outcome(AttemptState.SUCCEEDED)
        worker.finish(next(iter(worker.running)), Outcome(AttemptState.SUCCEEDED))
        links.redis.pass_on()
        healed = time.monotonic()
        site.wait_for(first)
        site.wait_for(second)
        assert time.monotonic() - healed < 15.0
        assert leader.longest < 2 * LEADER_TIMEOUT + SLACK
    assert site.rows("SELECT epoch FROM leases") == [(1,)]
    assert {row.attempts for row in site.rows("SELECT attempts FROM task_runs")} == {1}


def test_a_leader_whose_postgres_is_silent_is_succeeded_and_stands_by_afterwards(site: Site, links: Links) -> None:
    with leading(links.settings) as first, site.worker():
        site.wait_for(site.submit(ONE_TASK))
        site.lead()
        links.postgres.swallow()
        cut = time.monotonic()
        site.wait_for(site.submit(ONE_TASK))
        assert time.monotonic() - cut < 15.0
        links.postgres.pass_on()
        site.wait_for(site.submit(ONE_TASK))
        # Long enough to show that it does not hang: it would have stood still ever since the cut.
        until(lambda: first.daemon._pulse.age() < 1.0)
        assert first.longest < 7.0 + SLACK
    assert {row.epoch for row in site.rows("SELECT DISTINCT epoch FROM events WHERE epoch > 1")} == {2}


def test_a_full_redis_is_drained_and_nothing_is_lost(site: Site, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", durable=False)
    child = start_server(server, tmp_path)
    client = connect(server.url())
    site = replace(site, settings=replace(site.settings, redis_url=server.url()), client=client)
    events = Keys(site.settings.redis_task_queue).events
    try:
        with leading(site.settings), site.worker(behave=lambda spec: None) as worker:
            first = site.submit(ONE_TASK)
            until(lambda: len(worker.running) == 1)
            client.config_set("maxmemory", 1)
            second = seed_run(site.engine, plan=ONE_TASK)
            until(lambda: site.state(second) == "running")
            third = seed_run(site.engine, plan=ONE_TASK)
            until(lambda: bool(site.rows("SELECT 1 FROM task_runs WHERE reason = 'waiting_for_redis'")))
            # What fills it may be the reports themselves: it must be read, or it would stay full for ever.
            worker.behave = lambda spec: Outcome(AttemptState.SUCCEEDED)
            attempt = next(iter(worker.running))
            full_with(client, lambda: worker.finish(attempt, Outcome(AttemptState.SUCCEEDED)))
            site.wait_for(first)
            until(lambda: client.xlen(events) == 0)
            client.config_set("maxmemory", 0)
            site.wait_for(second)
            site.wait_for(third)
    finally:
        client.close()
        child.stop()
    assert {row.attempts for row in site.rows("SELECT attempts FROM task_runs")} == {1}


def full_with(client: redis.Redis, add: Callable[[], object]) -> None:
    """Have a full Redis hold one thing more."""
    client.config_set("maxmemory", 0)
    add()
    client.config_set("maxmemory", 1)


HANGING = """
import sys, threading
from orchestrator.config import load_settings
from orchestrator.store.lease import Lease
from scheduler.daemon import Daemon
Lease.{method} = lambda self, **_: threading.Event().wait()
Daemon(load_settings(), watchdog_limit=1.0).run(threading.Event())
"""


def test_a_scheduler_whose_main_loop_hangs_ends_with_status_70(site: Site) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": site.settings.database_url,
        "REDIS_URL": site.settings.redis_url,
        "WORKER_KEY": WORKER_KEY,
        "DATA_DIR": str(site.settings.data_dir),
    }
    process = subprocess.Popen([sys.executable, "-c", HANGING.format(method="acquire")], cwd=ROOT, env=environment)
    try:
        assert process.wait(timeout=60) == EXIT_STATUS
    finally:
        process.kill()
        process.wait()


def test_a_server_that_only_reads_is_waited_for_and_loses_no_report(site: Site) -> None:
    name = urlsplit(site.settings.database_url).path.lstrip("/")
    with leading(site.settings), site.worker(behave=lambda spec: None) as worker:
        run = site.submit(ONE_TASK)
        until(lambda: len(worker.running) == 1)
        with site.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only TO on'))
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
            worker.behave = lambda spec: Outcome(AttemptState.SUCCEEDED)
            worker.finish(next(iter(worker.running)), Outcome(AttemptState.SUCCEEDED))
            # The lease was due for renewal, so rounds have failed for a while, with the report among what they tried.
            until(lambda: bool(site.rows("SELECT 1 FROM leases WHERE renewed_at < clock_timestamp() - interval '5 s'")))
            assert site.client.xlen(Keys(site.settings.redis_task_queue).events) > 0
            connection.execute(text(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'))
        site.wait_for(run)
    assert site.rows("SELECT 1 FROM refusals WHERE what = 'dropped_report'") == []
