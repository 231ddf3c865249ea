"""A Redis stream read by one consumer group: batches, taken over at once, deleted when acknowledged."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from orchestrator.wire.redis import LONGEST_BLOCK, Client, redis_errors

_START = "0-0"
_STALE_SWEEP_SECONDS = 2.0
_STALE_IDLE_MILLISECONDS = 3_000
"""Our own are acknowledged, or taken over again, before the next read; so what is this old is somebody else's."""


@dataclass(frozen=True, slots=True)
class Entry:
    id: str
    fields: dict[bytes, bytes]


class GroupStream:
    """The reading end. One thread at a time.

    :param consumer: name of this reader, of its own per process start.
    """

    def __init__(self, client: Client, stream: str, group: str, consumer: str) -> None:
        self._client = client
        self._stream = stream
        self._group = group
        self._consumer = consumer
        self._claim_from: str | None = _START
        self._claim_idle = 0
        self._swept_at = time.monotonic()

    def ensure_group(self) -> None:
        """Make the group if it is missing, from the stream's beginning: entries that came before it count."""
        with redis_errors(f"making the group of {self._stream}"):
            try:
                self._client.xgroup_create(self._stream, self._group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    def take_over(self) -> None:
        """Have the next reads return all delivered and unacknowledged entries first, whoever they were delivered to.

        For a new leader, and for one that has rolled its transaction back.
        """
        self._claim_from = _START
        self._claim_idle = 0

    def read(self, batch: int, block: float) -> list[Entry]:
        """Return up to ``batch`` entries, pending ones first; wait up to ``block`` seconds when there are none.

        :raises StoreUnavailable: Redis does not answer. A missing group (a flush) is made again and is no error.
        """
        if self._claim_from is None and time.monotonic() - self._swept_at > _STALE_SWEEP_SECONDS:
            # A former leader may have read entries after we took over; it can't commit them.
            self._claim_from, self._claim_idle = _START, _STALE_IDLE_MILLISECONDS
        try:
            while self._claim_from is not None:
                if entries := self._claim(batch, self._claim_from):
                    return entries
            return self._read_new(batch, block)
        except redis.ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                with redis_errors(f"reading {self._stream}"):
                    raise
            self.ensure_group()
            return []

    def _claim(self, batch: int, cursor: str) -> list[Entry]:
        with redis_errors(f"taking over {self._stream}", pass_answers=True):
            answer: Any = self._client.xautoclaim(
                self._stream, self._group, self._consumer, self._claim_idle, start_id=cursor, count=batch
            )
        following = _text(answer[0])
        self._claim_from = None if following == _START else following
        if self._claim_from is None:
            self._swept_at = time.monotonic()
        return _entries(answer[1])

    def _read_new(self, batch: int, block: float) -> list[Entry]:
        milliseconds = max(1, int(min(block, LONGEST_BLOCK) * 1000))
        with redis_errors(f"reading {self._stream}", pass_answers=True):
            answer: Any = self._client.xreadgroup(
                self._group, self._consumer, {self._stream: ">"}, count=batch, block=milliseconds
            )
        return [entry for _, raw in answer or () for entry in _entries(raw)]

    def ack(self, ids: Iterable[str]) -> None:
        """Acknowledge and delete entries, in one round trip; do it after the commit of what they led to."""
        wanted = list(ids)
        if not wanted:
            return
        with redis_errors(f"acknowledging {len(wanted)} entries of {self._stream}"):
            pipeline = self._client.pipeline(transaction=False)
            for start in range(0, len(wanted), 1000):
                pipeline.xack(self._stream, self._group, *wanted[start : start + 1000])
                pipeline.xdel(self._stream, *wanted[start : start + 1000])
            pipeline.execute()

    def length(self) -> int:
        """Return how many entries are not yet acknowledged, read or not."""
        with redis_errors(f"measuring {self._stream}"):
            return self._client.xlen(self._stream)

    def oldest_unread_age(self) -> float:
        """Return the age in seconds of the oldest entry not yet acknowledged; 0 when there is none.

        Both times are Redis' own, so no two hosts' clocks are compared.
        """
        with redis_errors(f"measuring {self._stream}"):
            pipeline = self._client.pipeline(transaction=False)
            pipeline.xrange(self._stream, count=1)
            pipeline.time()
            first, (seconds, microseconds) = pipeline.execute()
        if not first:
            return 0.0
        born = int(_text(first[0][0]).partition("-")[0]) / 1000
        return max(0.0, float(seconds) + float(microseconds) / 1e6 - born)


def _entries(raw: Iterable[Any] | None) -> list[Entry]:
    # Redis 6.2 answers (None, None) for an entry that was deleted while pending.
    return [Entry(_text(id_), dict(fields)) for id_, fields in raw or () if id_ is not None and fields is not None]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
