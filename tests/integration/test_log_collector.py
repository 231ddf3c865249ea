"""Log chunks travel from Redis to the artifact store; a store that is away delays them and blocks nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.artifacts import Artifact, LocalArtifacts
from orchestrator.errors import StoreUnavailable
from orchestrator.wire.keys import Keys
from orchestrator.wire.log_stream import CHUNK_BYTES, LogChunk, LogPublisher
from orchestrator.wire.redis import Client, connect
from orchestrator.wire.seal import Seal
from scheduler.log_collector import LogCollector, log_key

pytestmark = pytest.mark.timeout(30)

SEAL = Seal("worker-key-for-tests")


class SometimesAway(LocalArtifacts):
    away = True

    def put_bytes(self, key: str, data: bytes) -> Artifact:
        if self.away:
            raise StoreUnavailable("The object store does not answer.")
        return super().put_bytes(key, data)


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    made = connect(redis_url)
    yield made
    made.close()


@pytest.fixture
def keys() -> Keys:
    return Keys(f"test-{uuid.uuid4().hex[:8]}")


def chunk(offset: int, content: bytes, attempt: str = "attempt") -> LogChunk:
    return LogChunk(attempt, "tenant", "run", offset, content)


def collect_all(collector: LogCollector, client: Client, keys: Keys) -> None:
    while client.xlen(keys.logs):
        collector.collect(0.01)


def test_chunks_become_objects_in_their_order(client: Client, keys: Keys, tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path, scope="shared")
    collector = LogCollector(client, keys, SEAL, artifacts, "one")
    LogPublisher(client, keys, SEAL, "worker").publish([chunk(5, b"world"), chunk(0, b"hello")])
    collect_all(collector, client, keys)
    stored = list(artifacts.list("logs/tenant/run/attempt"))
    assert stored == [log_key(chunk(0, b"")), log_key(chunk(5, b""))]
    assert b"".join(artifacts.get_bytes(f"artifact://{key}", 100) for key in stored) == b"helloworld"
    assert client.xlen(keys.logs) == 0


def test_chunks_wait_while_the_store_is_away_and_are_taken_over_by_another(
    client: Client, keys: Keys, tmp_path: Path
) -> None:
    artifacts = SometimesAway(tmp_path, scope="shared")
    first = LogCollector(client, keys, SEAL, artifacts, "first")
    LogPublisher(client, keys, SEAL, "worker").publish([chunk(0, b"kept")])
    first.collect(0.01)
    with pytest.raises(StoreUnavailable):
        first.collect(0.01)
    artifacts.away = False
    second = LogCollector(client, keys, SEAL, artifacts, "second")
    collect_all(second, client, keys)
    assert artifacts.get_bytes(f"artifact://{log_key(chunk(0, b''))}", 100) == b"kept"


def test_what_is_stored_without_a_gap_is_told_before_the_chunks_are_removed(
    client: Client, keys: Keys, tmp_path: Path
) -> None:
    artifacts = SometimesAway(tmp_path, scope="shared")
    collector = LogCollector(client, keys, SEAL, artifacts, "one")
    publisher = LogPublisher(client, keys, SEAL, "worker")
    entries = publisher.publish([chunk(0, b"hello"), chunk(10, b"after a gap")])
    seen = publisher.look(["attempt"], entries)
    assert seen.waiting == set(entries)
    assert seen.stored == {}
    collector.collect(0.01)
    with pytest.raises(StoreUnavailable):
        collector.collect(0.01)
    assert publisher.look(["attempt"], entries).stored == {}, "nothing is told before it is stored"
    artifacts.away = False
    collect_all(LogCollector(client, keys, SEAL, artifacts, "two"), client, keys)
    seen = publisher.look(["attempt", "another"], entries)
    assert (seen.waiting, seen.stored) == (frozenset(), {"attempt": 5})
    publisher.publish([chunk(5, b"world")])
    publisher.publish([chunk(10, b"after a gap")])
    collect_all(LogCollector(client, keys, SEAL, artifacts, "three"), client, keys)
    assert publisher.look(["attempt"], []).stored == {"attempt": 21}


def test_a_collector_whose_note_is_gone_goes_on_from_what_the_worker_knows(
    client: Client, keys: Keys, tmp_path: Path
) -> None:
    collector = LogCollector(client, keys, SEAL, LocalArtifacts(tmp_path, scope="shared"), "one")
    publisher = LogPublisher(client, keys, SEAL, "worker")
    publisher.publish([LogChunk("attempt", "tenant", "run", 100, b"hello", confirmed=100)])
    collect_all(collector, client, keys)
    assert publisher.look(["attempt"], []).stored == {"attempt": 105}
    assert 0 < client.ttl(keys.logged("attempt")) <= 3600


def test_an_old_chunk_that_is_claimed_late_does_not_replace_a_longer_one(
    client: Client, keys: Keys, tmp_path: Path
) -> None:
    artifacts = LocalArtifacts(tmp_path, scope="shared")
    publisher = LogPublisher(client, keys, SEAL, "worker")
    collector = LogCollector(client, keys, SEAL, artifacts, "one")
    publisher.publish([chunk(0, b"hello world")])
    collect_all(collector, client, keys)
    publisher.publish([chunk(0, b"hello")])
    collect_all(collector, client, keys)
    assert artifacts.get_bytes(f"artifact://{log_key(chunk(0, b''))}", 100) == b"hello world"


def test_forged_and_misnamed_chunks_are_dropped_and_counted(client: Client, keys: Keys, tmp_path: Path) -> None:
    collector = LogCollector(client, keys, SEAL, LocalArtifacts(tmp_path, scope="shared"), "one")
    LogPublisher(client, keys, Seal("another key"), "worker").publish([chunk(0, b"forged")])
    LogPublisher(client, keys, SEAL, "worker").publish([chunk(0, b"escaping", attempt="../../etc")])
    collect_all(collector, client, keys)
    assert sorted(count.what for count in collector.take_counts()) == ["forged_log", "refused_log"]
    assert collector.take_counts() == []
    assert list(tmp_path.rglob("*passwd*")) == []


@pytest.mark.timeout(90)
def test_the_thread_goes_on_after_the_store_was_away(client: Client, keys: Keys, tmp_path: Path) -> None:
    artifacts = SometimesAway(tmp_path, scope="shared")
    collector = LogCollector(client, keys, SEAL, artifacts, "one")
    collector.start()
    LogPublisher(client, keys, SEAL, "worker").publish([chunk(0, b"late")])
    deadline = time.monotonic() + 30
    while not any(count.what == "log_delayed" for count in collector.take_counts()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    artifacts.away = False
    deadline = time.monotonic() + 30
    while not artifacts.exists(f"artifact://{log_key(chunk(0, b''))}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    collector.stop()


def test_a_full_redis_is_given_room_though_nothing_can_be_noted(client: Client, keys: Keys, tmp_path: Path) -> None:
    artifacts = LocalArtifacts(tmp_path, scope="shared")
    collector = LogCollector(client, keys, SEAL, artifacts, "one")
    publisher = LogPublisher(client, keys, SEAL, "worker")
    collector.collect(0.01)
    entries = publisher.publish([chunk(0, b"hello")])
    client.config_set("maxmemory", 1)
    try:
        collect_all(collector, client, keys)
    finally:
        client.config_set("maxmemory", 0)
    assert [count.what for count in collector.take_counts()] == ["log_unconfirmed"]
    # Neither waiting nor stored, as far as its worker can see: so it sends it again, and then it is noted.
    seen = publisher.look(["attempt"], entries)
    assert (seen.waiting, seen.stored) == (frozenset(), {})
    publisher.publish([chunk(0, b"hello")])
    collect_all(collector, client, keys)
    assert publisher.look(["attempt"], []).stored == {"attempt": 5}


def test_logs_that_nobody_collects_are_cut_before_they_take_much_of_redis(
    client: Client, keys: Keys, tmp_path: Path
) -> None:
    publisher = LogPublisher(client, keys, SEAL, "worker")
    size, told_to_wait, sent = 0, 0, 0
    for _ in range(40):
        first = publisher.publish([chunk((sent + n) * CHUNK_BYTES, b"x" * CHUNK_BYTES) for n in range(16)])[0]
        sent += 16
        size = max(size, int(str(client.memory_usage(keys.logs, samples=0))))
        seen = publisher.look(["attempt"], [first])
        if not seen.room:
            told_to_wait = told_to_wait or size
    assert 16 * 2**20 < size <= 32 * 2**20
    assert 8 * 2**20 < told_to_wait <= 20 * 2**20
    # The newest are there; that the oldest are not is seen by who sent them, for none says that it was stored.
    assert publisher.look(["attempt"], [first]).waiting == {first}
    collector = LogCollector(client, keys, SEAL, LocalArtifacts(tmp_path, scope="shared"), "one")
    collect_all(collector, client, keys)
    assert publisher.look(["attempt"], []).stored == {"attempt": 0}
