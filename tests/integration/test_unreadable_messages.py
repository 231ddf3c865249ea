"""What anybody may write to a queue of Redis, and what Celery's own transport and ours make of it: one gives up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.message import Message
from kombu.messaging import Consumer
from kombu.mixins import ConsumerMixin
from kombu.transport import redis as kombu_redis

from orchestrator.config import Settings
from orchestrator.effects import SendHint
from orchestrator.wire import transport
from orchestrator.wire.hints import HintPublisher, celery_app
from orchestrator.wire.keys import Keys
from orchestrator.wire.redis import Client, connect

pytestmark = pytest.mark.timeout(60)

SITE = "unreadable"
QUEUE = Keys(SITE).queue("cpu")
NO_JSON = {"empty": b"", "no text": b"\xff\xfe\x00", "no JSON": b"{nothing", "too deep": b"[" * 100_000}
NO_MESSAGE = {
    "a list": b"[1, 2]",
    "a number": b"7",
    "no properties": b'{"body": "e30="}',
    "properties of another kind": b'{"body": "e30=", "properties": 5}',
}
MESSAGES = {**NO_JSON, **NO_MESSAGE}
COSTS_THEM_A_CONNECTION = "no properties"
"""The one of these that their transport takes for a fault of the channel; with the others it ends."""


class Taker(ConsumerMixin):
    """Takes hints as a worker does: begins anew after what its transport calls a lost connection, and only then."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.taken: list[str] = []
        self.begun = 0
        self._deadline = time.monotonic() + 30.0

    def get_consumers(self, _: Any, channel: Any) -> list[Consumer]:
        self.begun += 1
        queue = Queue("cpu", Exchange(""), routing_key="cpu")
        return [Consumer(channel, [queue], callbacks=[self._take], accept=["json"], auto_declare=False)]

    def _take(self, body: Any, message: Message) -> None:
        message.ack()
        self.taken.append(body[1]["attempt"])
        self.should_stop = True

    def on_iteration(self) -> None:
        assert time.monotonic() < self._deadline, "no hint came"


def taker(redis_url: str, kind: type[kombu_redis.Transport]) -> Taker:
    app = celery_app(Settings(redis_url=redis_url, redis_task_queue=SITE))
    options = app.conf.broker_transport_options
    return Taker(Connection(redis_url, transport=kind, transport_options=options))


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def publisher(redis_url: str) -> Iterator[HintPublisher]:
    publisher = HintPublisher(Settings(redis_url=redis_url, redis_task_queue=SITE))
    yield publisher
    publisher.close()


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_consumer_takes_the_hint_behind_a_message_that_nobody_can_read(
    redis_url: str, client: Client, publisher: HintPublisher, kind: str
) -> None:
    client.lpush(QUEUE, MESSAGES[kind])
    publisher.publish([SendHint("good", 1, "cpu")])
    ours = taker(redis_url, transport.Transport)
    with ours.connection:
        ours.run()  # type: ignore[no-untyped-call]
    assert ours.taken == ["good"]
    assert client.llen(QUEUE) == 0
    assert ours.begun == (2 if kind in NO_JSON else 1), "after what is no JSON only a new connection is in step again"


def test_a_consumer_gets_through_all_of_them_and_loses_none_of_the_hints_between(
    redis_url: str, client: Client, publisher: HintPublisher
) -> None:
    for n, message in enumerate(MESSAGES.values()):
        client.lpush(QUEUE, message)
        publisher.publish([SendHint(f"hint-{n}", 1, "cpu")])
    ours = taker(redis_url, transport.Transport)
    with ours.connection:
        for _ in MESSAGES:
            ours.should_stop = False
            ours.run()  # type: ignore[no-untyped-call]
    assert ours.taken == [f"hint-{n}" for n in range(len(MESSAGES))]


def test_with_celerys_own_transport_one_of_them_costs_a_new_connection(
    redis_url: str, client: Client, publisher: HintPublisher
) -> None:
    client.lpush(QUEUE, MESSAGES[COSTS_THEM_A_CONNECTION])
    publisher.publish([SendHint("good", 1, "cpu")])
    theirs = taker(redis_url, kombu_redis.Transport)
    with theirs.connection:
        theirs.run()  # type: ignore[no-untyped-call]
    assert (theirs.taken, theirs.begun) == (["good"], 2)


@pytest.mark.parametrize("kind", [kind for kind in MESSAGES if kind != COSTS_THEM_A_CONNECTION])
def test_with_celerys_own_transport_it_would_end(redis_url: str, client: Client, kind: str) -> None:
    """This is why we have one of our own: should theirs learn it some day, ours can go."""
    client.lpush(QUEUE, MESSAGES[kind])
    theirs = taker(redis_url, kombu_redis.Transport)
    with (
        theirs.connection,
        pytest.raises((ValueError, TypeError, LookupError, AttributeError, RecursionError)) as error,
    ):
        theirs.run()  # type: ignore[no-untyped-call]
    assert not isinstance(error.value, (redis.RedisError, OSError))
    assert theirs.taken == []


def test_the_scheme_of_every_redis_leads_to_ours(redis_url: str) -> None:
    app = celery_app(Settings(redis_url=redis_url, redis_task_queue=SITE))
    with app.connection_for_read() as connection:
        assert type(connection.transport) is transport.Transport
    with Connection("rediss://127.0.0.1:1/0") as connection:
        assert type(connection.transport) is transport.Transport
