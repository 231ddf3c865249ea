"""The counter by which the leader notices that Redis was reset or restored from an older copy (DESIGN §4)."""

from __future__ import annotations

from orchestrator.wire.keys import Keys
from orchestrator.wire.redis import Client, redis_errors


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
