"""The counter by which the leader notices that Redis was reset or restored from an older copy (DESIGN §4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from orchestrator.errors import StoreUnavailable
from orchestrator.wire.keys import Keys
from orchestrator.wire.redis import Client, redis_errors

_LOOK_SECONDS = 1.0
_AWAY_SECONDS = 5.0
_STANDBY_SECONDS = 60


class GenerationCounter:
    """Raised by the leader every second. One per term of leadership."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._key = keys.generation
        self.value = 0
        """The latest value; goes to workers in their desired state."""

    def advance(self) -> bool:
        """Raise the counter; return whether Redis was reset since the last call (at the first: whether it is empty).

        :raises StoreUnavailable: no answer; nothing is known.
        """
        with redis_errors("raising the generation counter"):
            value = self._client.incr(self._key)
        was_reset = value <= self.value or value == 1
        self.value = value
        return was_reset


class GenerationWatch:
    """A standby's ear: tells a leader who renews its lease in PostgreSQL, but of whom Redis hears nothing more.

    It could dispatch nothing and hear nobody, for as long as its link is broken. While Redis takes nothing from us
    either (it is away, or full), no other leader would do better.

    :param limit: seconds of silence; longer than any round of a leader's, its rebuilding included.
    :param clock: monotonic seconds.
    """

    def __init__(self, client: Client, keys: Keys, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._keys = keys
        self._limit = limit
        self._clock = clock
        self._seen: tuple[int | None, bytes | None] = (None, None)
        self._since: float | None = None
        self._due = 0.0

    def is_leader_deaf(self, epoch: int | None) -> bool:
        """Say whether the counter has stood still for too long under the leader of this epoch; asks once a second.

        The silence is that of one epoch: every leader has its time.
        """
        now = self._clock()
        if now < self._due:
            return False
        try:
            seen = (epoch, self._look())
        except StoreUnavailable:
            # Not every look for the lease is to wait for a Redis that is silent.
            self._since, self._due = None, self._clock() + _AWAY_SECONDS
            return False
        self._due = now + _LOOK_SECONDS
        if self._since is None or seen != self._seen:
            self._seen, self._since = seen, now
        return epoch is not None and now - self._since > self._limit

    def _look(self) -> bytes | None:
        with redis_errors("looking for the leader's counter"):
            pipeline = self._client.pipeline(transaction=False)
            pipeline.set(self._keys.standby, 1, ex=_STANDBY_SECONDS)
            pipeline.get(self._keys.generation)
            answers: list[Any] = pipeline.execute()
        counter: bytes | None = answers[1]
        return counter
