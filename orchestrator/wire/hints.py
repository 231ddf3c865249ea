"""Publishes hints: Celery messages with two ids, many in one round trip, to queues that need no binding."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import redis
from celery import Celery
from kombu.connection import Connection
from kombu.entity import Exchange
from kombu.exceptions import KombuError
from kombu.messaging import Producer

from orchestrator.config import Settings
from orchestrator.effects import SendHint
from orchestrator.errors import StoreUnavailable
from orchestrator.wire.keys import Keys, broker_url, own_queue
from orchestrator.wire.redis import LEADER_TIMEOUT

TASK_NAME = "orchestrator.attempt"
_BATCH = 500
_LEADER_TIMEOUTS = {"socket_timeout": LEADER_TIMEOUT, "socket_connect_timeout": LEADER_TIMEOUT}


def celery_app(settings: Settings) -> Celery:
    """Return a Celery app by ``celeryconfig.py``, on the broker and prefix of ``settings``; not the current one."""
    app = Celery("orchestrator", set_as_current=False, config_source="celeryconfig")
    app.conf.broker_url = broker_url(settings.redis_url)
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        "global_keyprefix": Keys(settings.redis_task_queue).prefix,
    }
    return app


class HintPublisher:
    """The scheduler's only way to Celery. One thread at a time; close it when done."""

    def __init__(self, settings: Settings) -> None:
        self._app = celery_app(settings)
        options = self._app.conf.broker_transport_options
        self._app.conf.broker_transport_options = {**options, **_LEADER_TIMEOUTS}
        self._connection: Connection | None = None
        self._producer: Producer | None = None

    def publish(self, hints: Sequence[SendHint]) -> None:
        """Send the hints: one round trip per 500.

        :raises StoreUnavailable: Redis does not answer. Some hints may have been sent; sending them again is harmless.
        """
        if not hints:
            return
        try:
            producer = self._connected()
            with producer.batch(max_size=_BATCH):
                for hint in hints:
                    self._add(producer, hint)
        except (KombuError, redis.RedisError, OSError) as error:
            self.close()
            raise StoreUnavailable(f"Redis did not take {len(hints)} hints: {error}. They are sent again.") from error

    def delete_queues(self, incarnations: Iterable[str]) -> None:
        """Delete the own queues of ended incarnations with what is left in them.

        :raises StoreUnavailable: Redis does not answer.
        """
        names = [own_queue(incarnation) for incarnation in incarnations]
        if not names:
            return
        try:
            # Not kombu's queue_delete: it deletes only queues that this process has itself declared.
            with self._connected().channel.conn_or_acquire() as client:
                client.delete(*names)
        except (KombuError, redis.RedisError, OSError) as error:
            self.close()
            raise StoreUnavailable(f"Redis did not delete {len(names)} queues: {error}.") from error

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.release()
        self._connection = self._producer = None

    def _connected(self) -> Producer:
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            self._producer = Producer(self._connection.channel(), exchange=Exchange(""), serializer="json")
        return self._producer

    def _add(self, producer: Producer, hint: SendHint) -> None:
        kwargs: dict[str, Any] = {"attempt": hint.attempt_id, "seq": hint.seq}
        # A random id, not the attempt's: a hint that is sent again is another message to Celery and to Flower.
        message = self._app.amqp.as_task_v2(
            str(uuid.uuid4()), TASK_NAME, kwargs=kwargs, argsrepr="()", kwargsrepr=repr(kwargs), ignore_result=True
        )
        producer.publish(
            message.body,
            exchange="",
            routing_key=hint.queue,
            headers=message.headers,
            delivery_mode="transient",
            **message.properties,
        )
