"""The wire against a real Redis: nothing that was sent is missed, and nothing forged is believed."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator.config import Settings
from orchestrator.effects import SendHint
from orchestrator.errors import ConfigurationError, ForgedMessage, StoreUnavailable
from orchestrator.events import ClaimReceived, OutcomeReceived, WorkerLeft
from orchestrator.local.binaries import redis_binary
from orchestrator.records import Capacity, Heartbeat, Outcome, Resources
from orchestrator.states import AttemptState
from orchestrator.wire.generation import GenerationCounter
from orchestrator.wire.heartbeats import HeartbeatPublisher, HeartbeatReader
from orchestrator.wire.hints import HintPublisher
from orchestrator.wire.keys import Keys, own_queue
from orchestrator.wire.log_stream import LogChunk, LogPublisher, LogStream
from orchestrator.wire.mailbox import ReplyBox, ReplySender
from orchestrator.wire.messages import (
    Answer,
    Denial,
    DesiredState,
    Grant,
    GrantSpec,
    Refused,
    SealedGrant,
    Wake,
)
from orchestrator.wire.progress import Progress, publish_progress, read_progress
from orchestrator.wire.redis import Client, connect, require_supported
from orchestrator.wire.seal import Seal
from orchestrator.wire.stream import EventStream, Reporter, wake

pytestmark = pytest.mark.timeout(60)

KEYS = Keys("test")
SEAL = Seal("the key of the site")
SUCCESS = Outcome(AttemptState.SUCCEEDED, outputs={"rows": 3})


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def stream(client: Client) -> EventStream:
    stream = EventStream(client, KEYS, SEAL, "leader-1")
    stream.ensure_group()
    return stream


def reporter(client: Client, incarnation: str = "worker", seal: Seal = SEAL) -> Reporter:
    return Reporter(client, KEYS, seal, incarnation)


def only_entry(client: Client, stream: str) -> dict[Any, Any]:
    found: Any = client.xrange(stream)
    ((_, fields),) = found
    return dict(fields)


def test_the_server_of_the_wheel_is_new_enough(client: Client) -> None:
    require_supported(client)


def test_an_old_server_is_refused_with_a_sentence(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "info", lambda _: {"redis_version": "6.0.9"})
    with pytest.raises(ConfigurationError, match=r"at least 6\.2 is needed"):
        require_supported(client)


def test_reports_arrive_in_their_order_and_decoded(client: Client, stream: EventStream) -> None:
    worker = reporter(client)
    worker.claim("attempt", 2, "nonce")
    worker.outcome("attempt", "token", "an older incarnation", SUCCESS)
    worker.goodbye()
    wake(client, KEYS)
    entries = stream.read(200, 0.1)
    assert [entry.report for entry in entries] == [
        ClaimReceived("worker", "attempt", 2, "nonce"),
        OutcomeReceived("an older incarnation", "attempt", "token", SUCCESS, reply_to="worker"),
        WorkerLeft("worker"),
        Wake(),
    ]


def test_an_empty_stream_is_waited_for_no_longer_than_asked(
    client: Client, stream: EventStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = client.xreadgroup

    def noting(*names: Any, **options: Any) -> Any:
        asked.append(options["block"])
        return read(*names, **options)

    monkeypatch.setattr(client, "xreadgroup", noting)
    assert stream.read(200, 0.05) == []
    assert asked == [50], "milliseconds"


def test_acknowledged_entries_are_gone_and_others_are_not(client: Client, stream: EventStream) -> None:
    for number in range(5):
        reporter(client).claim(f"attempt-{number}", 1, "nonce")
    entries = stream.read(3, 0.1)
    stream.ack(entry.id for entry in entries)
    assert stream.length() == 2
    assert len(stream.read(200, 0.1)) == 2


def test_a_worker_can_tell_whether_its_report_still_waits(client: Client, stream: EventStream) -> None:
    worker = reporter(client)
    claim, outcome = worker.claim("attempt", 1, "nonce"), worker.outcome_from_spool(b"{}")
    assert worker.is_unread(claim)
    assert worker.is_unread(outcome)
    (entry,) = stream.read(1, 0.1)
    assert worker.is_unread(claim), "read is not acknowledged: a leader that dies now has not answered it"
    stream.ack([entry.id])
    assert not worker.is_unread(claim)
    assert worker.is_unread(outcome)
    client.flushdb()
    assert not worker.is_unread(outcome)


def test_a_new_leader_gets_at_once_what_the_old_one_has_read_and_not_acknowledged(
    client: Client, stream: EventStream
) -> None:
    for number in range(5):
        reporter(client).claim(f"attempt-{number}", 1, "nonce")
    unacknowledged = stream.read(3, 0.1)
    successor = EventStream(client, KEYS, SEAL, "leader-2")
    first = successor.read(2, 0.1)
    successor.ack(entry.id for entry in first)
    rest = successor.read(2, 0.1)
    assert [entry.id for entry in [*first, *rest]] == [entry.id for entry in unacknowledged]
    assert len(successor.read(200, 0.1)) == 2


def test_what_a_former_leader_still_reads_reaches_the_new_one_within_seconds(
    client: Client, stream: EventStream
) -> None:
    successor = EventStream(client, KEYS, SEAL, "leader-2")
    assert successor.read(200, 0.01) == []
    reporter(client).claim("attempt", 1, "nonce")
    stolen = stream.read(200, 0.1)
    assert len(stolen) == 1
    deadline = time.monotonic() + 7.0
    while not (found := successor.read(200, 0.1)):
        assert time.monotonic() < deadline, "It waits for one that can't commit it."
    assert found == stolen


def test_after_a_rollback_the_same_entries_can_be_read_again(client: Client, stream: EventStream) -> None:
    reporter(client).claim("attempt", 1, "nonce")
    before = stream.read(200, 0.1)
    assert stream.read(200, 0.01) == []
    stream.take_over()
    assert stream.read(200, 0.1) == before


def test_a_flush_costs_the_group_and_reading_makes_it_again(client: Client, stream: EventStream) -> None:
    client.flushall()
    assert stream.read(200, 0.05) == []
    reporter(client).claim("attempt", 1, "nonce")
    assert [entry.report for entry in stream.read(200, 0.1)] == [ClaimReceived("worker", "attempt", 1, "nonce")]


def test_entries_from_before_the_group_count(client: Client) -> None:
    reporter(client).claim("attempt", 1, "nonce")
    stream = EventStream(client, KEYS, SEAL, "leader-1")
    stream.ensure_group()
    assert len(stream.read(200, 0.1)) == 1


def test_the_age_of_the_oldest_entry_grows_until_it_is_acknowledged(client: Client, stream: EventStream) -> None:
    assert stream.oldest_unread_age() == 0.0
    client.xadd(KEYS.events, {b"k": "wake"}, id="1-0")
    assert stream.oldest_unread_age() > 1e6
    stream.ack(entry.id for entry in stream.read(200, 0.1))
    assert stream.oldest_unread_age() == 0.0


@pytest.mark.parametrize(
    "fields",
    [
        {b"k": b"claim"},
        {b"k": b"claim", b"w": b"worker", b"b": b"{}", b"m": b"x" * 32},
        {b"k": b"\xff", b"w": b"worker", b"b": b"{}", b"m": b""},
        {b"other": b"thing"},
    ],
)
def test_forged_entries_are_refused_and_can_be_acknowledged(
    client: Client, stream: EventStream, fields: dict[Any, Any]
) -> None:
    client.xadd(KEYS.events, fields)
    (entry,) = stream.read(200, 0.1)
    assert isinstance(entry.report, Refused)
    stream.ack([entry.id])
    assert stream.length() == 0


def test_a_worker_with_another_key_is_refused(client: Client, stream: EventStream) -> None:
    reporter(client, seal=Seal("another key")).claim("attempt", 1, "nonce")
    (entry,) = stream.read(200, 0.1)
    assert isinstance(entry.report, Refused)
    assert "WORKER_KEY" in entry.report.why


def test_a_copied_entry_in_the_name_of_another_worker_is_refused(client: Client, stream: EventStream) -> None:
    reporter(client).claim("attempt", 1, "nonce")
    fields = only_entry(client, KEYS.events)
    client.xadd(KEYS.events, {**fields, b"w": b"another worker"})
    reports = [entry.report for entry in stream.read(200, 0.1)]
    assert isinstance(reports[0], ClaimReceived)
    assert isinstance(reports[1], Refused)


def test_wakes_stop_where_nobody_reads(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.wire.stream._WAKES_ENOUGH", 3)
    for _ in range(10):
        wake(client, KEYS)
    assert client.xlen(KEYS.events) == 3


SPEC = GrantSpec(
    attempt_id="attempt",
    token="token",
    run_id="run",
    tenant_id="tenant",
    task="train",
    number=1,
    operator="model_training",
    parameters={"seed": 7},
    connections={"warehouse": {"url": "postgresql://user:password@host/db"}},
    resources=Resources(cpu=1000, memory=2**30, gpus=1),
    devices=("GPU-1",),
    timeout=60.0,
)


def test_a_grant_reaches_the_worker_it_was_made_for(client: Client) -> None:
    ReplySender(client, KEYS, SEAL).send([("worker", Grant(SPEC, "nonce"))])
    box = ReplyBox(client, KEYS, SEAL, "worker")
    sealed = box.take(1)
    assert isinstance(sealed, SealedGrant)
    assert (sealed.attempt_id, sealed.nonce) == ("attempt", "nonce")
    assert box.open(sealed, age=0.5) == SPEC


def test_a_grant_shows_no_secret_in_redis(client: Client) -> None:
    ReplySender(client, KEYS, SEAL).send([("worker", Grant(SPEC, "nonce"))])
    (raw,) = client.lrange(KEYS.reply("worker"), 0, -1)
    assert b"password" not in raw
    assert b"seed" not in raw


def test_a_grant_copied_to_another_worker_does_not_open(client: Client) -> None:
    ReplySender(client, KEYS, SEAL).send([("worker", Grant(SPEC, "nonce"))])
    client.rename(KEYS.reply("worker"), KEYS.reply("thief"))
    box = ReplyBox(client, KEYS, SEAL, "thief")
    sealed = box.take(1)
    assert isinstance(sealed, SealedGrant)
    with pytest.raises(ForgedMessage):
        box.open(sealed, age=0.5)


def test_a_grant_whose_lifetime_was_stretched_does_not_open(client: Client) -> None:
    ReplySender(client, KEYS, SEAL).send([("worker", Grant(SPEC, "nonce"))])
    box = ReplyBox(client, KEYS, SEAL, "worker")
    sealed = box.take(1)
    assert isinstance(sealed, SealedGrant)
    with pytest.raises(ForgedMessage, match="good for 30 s"):
        box.open(sealed, age=31)
    with pytest.raises(ForgedMessage, match="does not open"):
        box.open(replace(sealed, lifetime=3600), age=31)


def test_denials_and_answers_come_in_their_order(client: Client) -> None:
    replies: list[Denial | Answer] = [Denial("attempt", "nonce", "superseded"), Answer("attempt", "token", "committed")]
    ReplySender(client, KEYS, SEAL).send([("worker", reply) for reply in replies])
    box = ReplyBox(client, KEYS, SEAL, "worker")
    assert [box.take(1), box.take(1), box.take(0.01)] == [*replies, None]
    assert 0 < client.ttl(KEYS.reply("worker")) <= 120 or client.exists(KEYS.reply("worker")) == 0


def test_a_forged_reply_is_dropped_and_counted(client: Client) -> None:
    box = ReplyBox(client, KEYS, SEAL, "worker")
    body = '{"attempt":"a","token":"t","verdict":"committed"}'
    for raw in (json.dumps({"k": "answer", "b": body, "m": "AAAA"}), "[]", "{", json.dumps({"k": "grant", "box": "ü"})):
        client.rpush(KEYS.reply("worker"), raw)
        assert box.take(1) is None
    assert box.refused == 4


def test_the_desired_state_is_replaced_and_authentic(client: Client) -> None:
    sender = ReplySender(client, KEYS, SEAL)
    box = ReplyBox(client, KEYS, SEAL, "worker")
    assert box.desired() is None
    sender.write_desired([("worker", DesiredState(1, 1))])
    state = DesiredState(2, 7, cancel=(("attempt", 10.0),), fence=("lost",), drain=True, gen=4)
    sender.write_desired([("worker", state)])
    assert box.desired() == state
    client.rename(KEYS.desired("worker"), KEYS.desired("other"))
    other = ReplyBox(client, KEYS, SEAL, "other")
    assert other.desired() is None
    assert other.refused == 1


def heartbeat(worker: str, seq: int = 1) -> Heartbeat:
    return Heartbeat(worker, "host", "boot", "hostname", f"celery@{worker}", seq, ("cpu",), 2, Capacity(4000, 2**33))


def test_only_changed_heartbeats_are_read_again(client: Client) -> None:
    publisher = HeartbeatPublisher(client, KEYS, SEAL)
    reader = HeartbeatReader(client, KEYS, SEAL)
    publisher.publish(heartbeat("a"))
    publisher.publish(heartbeat("b"))
    assert reader.read_changed().heartbeats == (heartbeat("a"), heartbeat("b"))
    publisher.publish(heartbeat("b", seq=2))
    assert reader.read_changed().heartbeats == (heartbeat("b", seq=2),)
    assert reader.read_changed().heartbeats == ()
    reader.forget()
    assert len(reader.read_changed().heartbeats) == 2


def test_a_silent_or_withdrawn_incarnation_leaves_the_live_set(client: Client) -> None:
    publisher = HeartbeatPublisher(client, KEYS, SEAL)
    reader = HeartbeatReader(client, KEYS, SEAL)
    for name in ("silent", "leaving", "staying"):
        publisher.publish(heartbeat(name))
    client.delete(KEYS.heartbeat("silent"))
    publisher.withdraw("leaving")
    assert [found.worker_id for found in reader.read_changed().heartbeats] == ["staying"]
    assert client.smembers(KEYS.live) == {b"staying"}


def test_forged_heartbeats_are_refused_once(client: Client) -> None:
    HeartbeatPublisher(client, KEYS, Seal("another key")).publish(heartbeat("forged"))
    HeartbeatPublisher(client, KEYS, SEAL).publish(heartbeat("honest"))
    client.copy(KEYS.heartbeat("honest"), KEYS.heartbeat("copied"))
    client.sadd(KEYS.live, "copied", b"\xff\xfe")
    reader = HeartbeatReader(client, KEYS, SEAL)
    read = reader.read_changed()
    assert [found.worker_id for found in read.heartbeats] == ["honest"]
    assert len(read.refused) == 2
    assert reader.read_changed().refused == ()


def test_a_flush_or_an_older_copy_is_seen_in_the_generation_counter(client: Client) -> None:
    counter = GenerationCounter(client, KEYS)
    client.set(KEYS.generation, 41)
    assert [counter.advance(), counter.advance(), counter.value] == [False, False, 43]
    client.flushall()
    assert counter.advance()
    assert not counter.advance()
    counter.value = 100
    assert counter.advance()
    client.flushall()
    assert GenerationCounter(client, KEYS).advance()


def test_progress_is_read_for_those_who_have_some(client: Client) -> None:
    told = {"a": Progress(0.5, "half", 2**20, 1.5), "b": Progress()}
    publish_progress(client, KEYS, told)
    client.set(KEYS.progress("bad"), b'{"fraction": NaN}')
    assert read_progress(client, KEYS, ["a", "b", "bad", "c"]) == told


def test_log_chunks_arrive_with_their_bytes_and_forged_ones_do_not(client: Client) -> None:
    chunk = LogChunk("attempt", "tenant", "run", 4096, b"caf\xe9\n\x00")
    LogPublisher(client, KEYS, SEAL, "worker").publish([chunk])
    fields = only_entry(client, KEYS.logs)
    client.xadd(KEYS.logs, {**fields, b"d": b"forged"})
    stream = LogStream(client, KEYS, SEAL, "collector")
    stream.ensure_group()
    entries = stream.read(100, 0.1)
    assert entries[0][1] == chunk
    assert isinstance(entries[1][1], Refused)
    stream.ack(id_ for id_, _ in entries)
    assert stream.length() == 0


@pytest.fixture
def publisher(redis_url: str) -> Iterator[HintPublisher]:
    publisher = HintPublisher(Settings(redis_url=redis_url, redis_task_queue="test"))
    yield publisher
    publisher.close()


def test_hints_need_no_binding_and_carry_only_ids(client: Client, publisher: HintPublisher) -> None:
    publisher.publish([SendHint("attempt", 3, "cpu"), SendHint("other", 1, own_queue("worker"))])
    assert sorted(client.keys("*")) == [b"test:cpu", b"test:w.worker"]
    (raw,) = client.lrange(KEYS.queue("cpu"), 0, -1)
    message = json.loads(raw)
    assert message["headers"]["task"] == "orchestrator.attempt"
    assert uuid.UUID(message["headers"]["id"])
    assert len(raw) < 1500


def test_five_hundred_hints_go_in_one_pipeline(
    client: Client, publisher: HintPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish([SendHint("warm", 1, "cpu")])
    sent: list[int] = []
    execute = redis.client.Pipeline.execute

    def counted(pipeline: redis.client.Pipeline, raise_on_error: bool = True) -> list[Any]:
        sent.append(len(pipeline.command_stack))
        return execute(pipeline, raise_on_error)

    monkeypatch.setattr(redis.client.Pipeline, "execute", counted)
    publisher.publish([SendHint(f"attempt-{number}", 1, "cpu") for number in range(500)])
    assert client.llen(KEYS.queue("cpu")) == 501
    assert sent == [500]


def test_the_queue_of_an_ended_worker_is_deleted_with_what_is_in_it(client: Client, publisher: HintPublisher) -> None:
    publisher.publish([SendHint("attempt", 1, own_queue("worker")), SendHint("attempt", 1, "cpu")])
    publisher.delete_queues(["worker", "never seen"])
    assert client.keys("*") == [b"test:cpu"]


def test_without_redis_everything_says_that_the_store_is_away() -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0")
    publisher = HintPublisher(settings)
    with pytest.raises(StoreUnavailable):
        publisher.publish([SendHint("attempt", 1, "cpu")])
    publisher.close()
    with connect(settings.redis_url) as client:
        for call in (
            lambda: reporter(client).goodbye(),
            lambda: wake(client, KEYS),
            lambda: EventStream(client, KEYS, SEAL, "leader").read(10, 0.01),
            lambda: EventStream(client, KEYS, SEAL, "leader").ensure_group(),
            lambda: HeartbeatReader(client, KEYS, SEAL).read_changed(),
            lambda: ReplyBox(client, KEYS, SEAL, "worker").take(0.01),
            lambda: GenerationCounter(client, KEYS).advance(),
            lambda: require_supported(client),
        ):
            with pytest.raises(StoreUnavailable):
                call()


def test_redis_behind_a_socket_file_serves_the_wire_and_celery() -> None:
    folder = Path(tempfile.mkdtemp(prefix="wire-"))  # a socket's path has about a hundred characters at most
    socket_file = folder / "redis.sock"
    command = [str(redis_binary()), "--port", "0", "--unixsocket", str(socket_file), "--requirepass", "password"]
    server = subprocess.Popen([*command, "--save", "", "--dir", str(folder)], stdout=subprocess.DEVNULL)
    url = f"unix://:password@{socket_file}?db=2"
    publisher = HintPublisher(Settings(redis_url=url, redis_task_queue="test"))
    try:
        deadline = time.monotonic() + 30
        while not socket_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        publisher.publish([SendHint("attempt", 1, "cpu")])
        with connect(url) as client:
            assert client.llen(KEYS.queue("cpu")) == 1
    finally:
        publisher.close()
        server.terminate()
        server.wait(timeout=10)
        shutil.rmtree(folder)
