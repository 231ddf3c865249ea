"""Connects to Redis so that no call waits for ever, and turns its driver's errors into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from orchestrator.errors import ConfigurationError, StoreUnavailable

FLOOR = (6, 2)
SOCKET_TIMEOUT = 5.0
LEADER_TIMEOUT = 2.0
"""Seconds the scheduler waits: its rounds go on without Redis, and must not stand still for it."""
LONGEST_BLOCK = 4.0
"""Seconds a blocking command may wait: below the socket's timeout, or a quiet wire would look like a dead one."""

Client = redis.Redis


def connect(url: str, *, connections: int = 16, timeout: float = SOCKET_TIMEOUT, retries: int = 2) -> Client:
    """Return a client; nothing is sent yet. Close it when done.

    A command is tried again (twice, within about 0.3 s) when the connection breaks, never after a time-out: each try
    over a link that swallows bytes would last as long again. All we write may be written twice: reports are idempotent
    by their ids, state keys are replaced, and a counter may skip.

    :param timeout: seconds to wait for an answer, and at most 3 s of them for a connection.
    :param retries: 0 for the readers of groups: entries whose answer was lost are theirs, and the same question again
        would get the ones behind them.
    :raises ConfigurationError: the URL can't be read.
    """
    # A socket file has no keepalive, and the driver refuses the option there.
    tcp_only: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True}
    try:
        client: Client = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=min(3.0, timeout),
            health_check_interval=15,
            max_connections=connections,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.1), retries, supported_errors=(redis.ConnectionError,)),
            **tcp_only,
        )
    except (ValueError, redis.RedisError) as error:
        raise ConfigurationError(
            "REDIS_URL can't be read; expected redis://user:password@host:port/database."
        ) from error
    return client


def require_supported(client: Client) -> None:
    """Refuse a server older than Redis 6.2: the wire needs XAUTOCLAIM, and Celery's transport dies on 6.0.

    :raises ConfigurationError: too old; says what to do.
    :raises StoreUnavailable: no answer.
    """
    with redis_errors("asking for its version"):
        found: dict[str, Any] = client.info("server")
    version = str(found.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < FLOOR:
        raise ConfigurationError(
            f"The server at REDIS_URL is Redis {version}; at least 6.2 is needed (any Valkey will do). Upgrade it, or "
            "leave REDIS_URL empty on one host to use the Valkey that comes with us."
        )


class RedisFull(StoreUnavailable):
    """Redis has no memory left (``maxmemory``): it still answers, gives away and deletes, but takes nothing in."""


@contextmanager
def redis_errors(doing: str, *, pass_answers: bool = False) -> Iterator[None]:
    """Translate the driver's errors.

    :param doing: what was tried, to stand after “while”.
    :param pass_answers: let Redis' own error answers (NOGROUP, BUSYGROUP …) through, for a caller that reads them.
    :raises RedisFull: it takes nothing in.
    :raises StoreUnavailable: with the driver's error as its cause.
    """
    try:
        yield
    except redis.OutOfMemoryError as error:
        raise RedisFull(f"Redis is full and did not do it while {doing}: {error}. It is tried again.") from error
    except (redis.RedisError, OSError) as error:
        if pass_answers and isinstance(error, redis.ResponseError):
            raise
        raise StoreUnavailable(f"Redis did not do it while {doing}: {error}. It is tried again.") from error
