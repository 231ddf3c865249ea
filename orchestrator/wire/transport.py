"""Celery's Redis transport, but a message that can't be read is dropped and noted: it must not end the worker.

Whoever reaches Redis can write to a queue. Unprotected, an empty message there ended the worker, and with it all that
it ran; one without properties cost it a new connection. A hint that is dropped by mistake is sent again.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from orchestrator.logs import get_logger

log = get_logger(__name__)

_MISREAD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What code raises that takes for granted what a message looks like."""


class Channel(kombu_redis.Channel):
    """Survives a message that is no JSON."""

    def _brpop_read(self, **options: Any) -> bool | None:
        try:
            taken: bool | None = super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (Empty, *self.connection_errors, *self.connection.channel_errors):
            raise
        except _MISREAD as error:
            # It was no JSON, or Redis' answer was none of Redis': only a new connection is surely in step again.
            log.warning("message_dropped", why=f"{type(error).__name__}: {error}"[:200])
            self.client.connection.disconnect()
            raise redis.ConnectionError("a message that can't be read; the connection is made anew") from error
        return taken


class Transport(kombu_redis.Transport):
    """Survives a message that is JSON, but not as Celery writes it."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
        except (redis.RedisError, OSError):
            raise
        except _MISREAD as error:
            log.warning("message_dropped", queue=queue, why=f"{type(error).__name__}: {error}"[:200])


def use_everywhere() -> None:
    """Have every broker URL of Redis in this process lead to this transport.

    By alias: Celery's ``broker_transport`` would have the scheme forgotten, and with it TLS (``rediss:``).
    """
    name = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES.update(redis=name, rediss=name)
