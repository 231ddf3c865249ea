"""Who calls: finds the API key of a request, with a short memory so that not every request asks the database."""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine

from orchestrator.errors import StoreUnavailable
from orchestrator.store.api_keys import KnownKey, Role, find_key
from orchestrator.store.bootstrap import key_digest, key_prefix

_FRESH_SECONDS = 5.0
"""A revoked key works for at most this long on a process that has just used it."""
_STALE_SECONDS = 60.0
"""While the database is away a key that was valid this long ago still reads the health pages."""
_MOST_KEYS = 1000
_LONGEST_KEY = 256


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated key behind a request."""

    key_id: str
    tenant_id: str
    name: str
    role: Role


class Keyring:
    """Looks keys up by prefix and compares digests in constant time."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, KnownKey]] = OrderedDict()

    def identify(self, key: str, *, stale: bool = False) -> Caller | None:
        """Return who has this key, ``None`` for a key that is not valid.

        :param stale: while the database is away, a key that was valid a minute ago will do. For the health pages: any
            other page would wait for the database once more, and answer 503 too late.
        :raises StoreUnavailable: the database is away and the key was not seen lately.
        """
        if not _is_key(key):
            return None
        known = self._find(key_prefix(key), stale)
        if known is None or not hmac.compare_digest(known.digest, key_digest(key)):
            return None
        return Caller(known.id, known.tenant_id, known.name, known.role)

    def remembers(self, key: str) -> bool:
        """Say whether this key was valid when it was last looked up, without asking the database."""
        if not _is_key(key):
            return False
        with self._lock:
            _, known = self._known.get(key_prefix(key), (0.0, None))
        return known is not None and hmac.compare_digest(known.digest, key_digest(key))

    def forget(self, prefix: str) -> None:
        """Look this key up again: it was just revoked here."""
        with self._lock:
            self._known.pop(prefix, None)

    def _find(self, prefix: str, stale: bool) -> KnownKey | None:
        now = self._clock()
        with self._lock:
            at, remembered = self._known.get(prefix, (float("-inf"), None))
        if remembered is not None and now - at < _FRESH_SECONDS:
            return remembered
        try:
            with self._engine.connect() as connection:
                found = find_key(connection, prefix)
        except StoreUnavailable:
            if stale and remembered is not None and now - at < _STALE_SECONDS:
                return remembered
            raise
        with self._lock:
            self._known.pop(prefix, None)
            # Only valid keys are remembered: guesses must not push them out.
            if found is not None:
                self._known[prefix] = (now, found)
                if len(self._known) > _MOST_KEYS:
                    self._known.popitem(last=False)
        return found


def _is_key(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_KEY and text.isascii() and "\x00" not in text
