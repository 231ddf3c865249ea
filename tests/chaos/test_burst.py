"""A thousand runs at once (``make chaos``: ten thousand): answers come in time, and all of them end (I15)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.acceptance.system import ADMIN_KEY
from tests.chaos.burst import Crowd
from tests.chaos.conftest import Chaos
from tests.chaos.ledger import Accepted
from tests.chaos.load import assert_contract, definitions_saved, pipeline, task, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import assert_no_attempt_ran_twice, seconds_since

pytestmark = pytest.mark.chaos

CONNECTIONS = 500
PROMPT = 2.0
"""Seconds in which ``SHARE`` of the answers come (I15)."""
SHARE = 0.99
MOST_MEMORY = 512 * 2**20
MOST_REDIS = 64 * 2**20
ACCEPTED_PER_SECOND = 10.0
ENDED_PER_SECOND = 5.0
"""Less than what two cores do that others keep busy too (19 to 33, and 11 to 14 were measured). It bounds how long the
runs may take to be accepted, and then to end."""
JUDGED_PER_SECOND = 20.0
REST = 60.0
"""Seconds of each of these parts that do not grow with the number: start and end of the site among them."""


def time_limit(config: pytest.Config) -> float:
    """Return the seconds that the scenario may take, which grow with the runs that are asked for."""
    count = int(config.getoption("--burst"))
    return 3 * REST + sum(count / each for each in (ACCEPTED_PER_SECOND, ENDED_PER_SECOND, JUDGED_PER_SECOND))


@pytest.mark.chaos_quick
def test_runs_asked_for_all_at_once_are_answered_in_time_and_all_end(
    chaos: Chaos, request: pytest.FixtureRequest
) -> None:
    count = int(request.config.getoption("--burst"))
    with chaos(slots=8) as site:
        definitions_saved(site, [pipeline("one", [task("a", cpu=0.25, memory_gb=0.12, seconds=0.0)])])
        crowd = Crowd(list(site.apis.values()), ADMIN_KEY, "one")
        dice = site.dice("keys")
        keys = [f"{number}-{dice.getrandbits(64):x}" for number in range(count)]
        with _measured(site) as most:
            began = time.monotonic()
            crowd.ask(keys, min(count, CONNECTIONS), REST + count / ACCEPTED_PER_SECOND)
            asked = seconds_since(began)
            _remember(site, crowd)
            site.note(f"{count} runs accepted in {asked:.1f} s, answers {crowd.statuses}")
            _wait_until_ended(site, REST + count / ENDED_PER_SECOND)
            wait_until_quiet(site)
            took = seconds_since(began)
        print(
            f"{count} runs over {min(count, CONNECTIONS)} connections: accepted in {asked:.1f} s, ended in {took:.1f} s"
        )
        print(
            f"answers {dict(crowd.statuses)}: half in {crowd.slowest(0.5):.2f} s, 99 % in {crowd.slowest(0.99):.2f} s, "
            f"all in {crowd.slowest(1.0):.2f} s"
        )
        print(f"at most: {', '.join(f'{name} {size >> 20} MiB' for name, size in sorted(most.items()))}")
        assert set(crowd.statuses) <= {200, 201, 429, 503}, crowd.statuses
        assert crowd.slowest(SHARE) < PROMPT
        assert most.pop("redis data") < MOST_REDIS
        assert max(most.values()) < MOST_MEMORY, most
        assert not any(site.processes.restarts().values()), site.processes.restarts()
        assert site.postgres.query("SELECT state, count(*) FROM runs GROUP BY state") == [("success", count)]
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def _wait_until_ended(site: ChaosSite, seconds: float) -> None:
    """Wait by one number, seldom: to look at each of ten thousand runs would be part of the load."""
    deadline = time.monotonic() + seconds
    while (
        left := site.postgres.query("SELECT count(*) FROM runs WHERE state IN ('queued', 'running')")[0][0]
    ) and time.monotonic() < deadline:
        time.sleep(1.0)
    assert not left, f"{left} runs have not ended {seconds:.0f} s after the last one was accepted"


@contextmanager
def _measured(site: ChaosSite) -> Iterator[dict[str, int]]:
    """Note the largest size of every service, and of what Redis holds, until the end of the block; bytes."""
    most: dict[str, int] = {"redis data": 0}
    ended = threading.Event()

    def measure() -> None:
        while not ended.wait(0.5):
            most["redis data"] = max(most["redis data"], site.redis.used_memory())
            for name, use in site.use().items():
                most[name] = max(most.get(name, 0), use.rss)

    thread = threading.Thread(target=measure, name="measure", daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join(10.0)
    assert len(most) > 5, f"hardly anything was measured: {most}"


def _remember(site: ChaosSite, crowd: Crowd) -> None:
    """Have the contract count for what the crowd was told, too."""
    for answer in crowd.answers:
        site.memory.asked.append(answer.key)
        if answer.run_id:
            site.memory.accepted.append(Accepted(answer.run_id, answer.key, answer.at))
