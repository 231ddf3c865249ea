"""Names in Redis: ours and Celery's share a prefix and never meet."""

from __future__ import annotations

import pytest

from orchestrator.config import RESERVED_QUEUE_NAMES, load_settings
from orchestrator.errors import ConfigurationError
from orchestrator.wire.keys import Keys, broker_url, own_queue

KEYS = Keys("site")


def test_every_key_has_the_prefix_of_the_site() -> None:
    keys = [KEYS.events, KEYS.logs, KEYS.live, KEYS.generation, KEYS.heartbeat("w"), KEYS.reply("w"), KEYS.desired("w")]
    keys += [KEYS.progress("a"), KEYS.queue("cpu"), KEYS.queue(own_queue("w"))]
    assert all(key.startswith("site:") for key in keys)
    assert len(set(keys)) == len(keys)


def test_the_reserved_names_are_those_of_our_own_keys() -> None:
    assert {KEYS.queue(name) for name in RESERVED_QUEUE_NAMES} == {KEYS.events, KEYS.logs, KEYS.live, KEYS.generation}


@pytest.mark.parametrize("name", ["ev", "logs", "hb:x", "w.mine"])
def test_a_queue_that_would_be_one_of_our_keys_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="choose other names"):
        load_settings({"QUEUES": f"cpu,gpu,highmem,{name}"})


@pytest.mark.parametrize(
    ("redis_url", "celery"),
    [
        ("redis://:pw@host:6379/3", "redis://:pw@host:6379/3"),
        ("rediss://host/0", "rediss://host/0"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix://:pw@/run/redis.sock?db=2", "redis+socket://:pw@/run/redis.sock?virtual_host=2"),
    ],
)
def test_celery_gets_the_address_in_its_own_spelling(redis_url: str, celery: str) -> None:
    assert broker_url(redis_url) == celery
