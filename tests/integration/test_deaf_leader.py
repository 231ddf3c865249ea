"""A leader that renews its lease and hears nothing in Redis: a standby that does hear tells it by the counter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.wire.generation import GenerationCounter, GenerationWatch
from orchestrator.wire.keys import Keys
from orchestrator.wire.redis import Client, connect

pytestmark = pytest.mark.timeout(60)

KEYS = Keys("test")


class SteppedClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with connect(redis_url) as client:
        yield client


def test_a_counter_that_stands_still_while_redis_answers_tells_of_a_deaf_leader(client: Client) -> None:
    clock = SteppedClock()
    counter, watch = GenerationCounter(client, KEYS), GenerationWatch(client, KEYS, 10.0, clock)

    def deaf_after(seconds: float, epoch: int = 1) -> bool:
        clock.now += seconds
        return watch.is_leader_deaf(epoch)

    assert not deaf_after(100.0)
    counter.advance()
    assert not deaf_after(9.0)
    assert not deaf_after(9.0)
    assert deaf_after(2.0)
    assert not deaf_after(2.0, epoch=2), "a new leader has its time"
    assert not deaf_after(9.0, epoch=2)
    counter.advance()
    assert not deaf_after(2.0, epoch=2)


def test_a_full_redis_makes_no_leader_look_deaf(client: Client) -> None:
    clock = SteppedClock()
    watch = GenerationWatch(client, KEYS, 10.0, clock)
    assert not watch.is_leader_deaf(1)
    client.config_set("maxmemory", 1)
    try:
        for _ in range(5):
            clock.now += 6.0
            assert not watch.is_leader_deaf(1), "another one could tell the workers nothing either"
    finally:
        client.config_set("maxmemory", 0)
    clock.now += 6.0
    assert not watch.is_leader_deaf(1)
