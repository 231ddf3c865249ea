"""Looks whether objects are in the artifact store, for no longer than asked: a store that hangs holds up nobody."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from orchestrator.artifacts.port import ArtifactStore
from orchestrator.errors import OrchestratorError

_AT_ONCE = 8
_MOST_THREADS = 32
"""Of one process. A store that hangs keeps its threads; then it is looked into no more until it answers them."""


class Presence:
    """Asks a store which of its objects are there; safe for many threads."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._free = threading.BoundedSemaphore(_MOST_THREADS)

    def look(self, uris: Iterable[str], seconds: float) -> dict[str, bool]:
        """Return of each URI whether the object is there, as far as the store has answered in time.

        :param seconds: after which it returns in any case.
        """
        look = _Look(self._store, uris)
        threads = 0
        wanted = min(_AT_ONCE, len(look.left))
        while threads < wanted and self._free.acquire(blocking=False):
            threads += 1
        for _ in range(threads):
            threading.Thread(target=self._work, args=(look, threads), name="presence", daemon=True).start()
        if threads:
            look.done.wait(seconds)
        return look.close()

    def _work(self, look: _Look, threads: int) -> None:
        try:
            look.work()
        finally:
            self._free.release()
            look.ended(threads)


class _Look:
    """One question: what is left to ask, and what was answered."""

    def __init__(self, store: ArtifactStore, uris: Iterable[str]) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._found: dict[str, bool] = {}
        self._ended = 0
        self.left = deque(dict.fromkeys(uris))
        self.done = threading.Event()

    def work(self) -> None:
        """Ask one after the other until none is left."""
        while True:
            with self._lock:
                if not self.left:
                    return
                uri = self.left.popleft()
            try:
                is_there = self._store.exists(uri)
            except (OrchestratorError, OSError):
                # Nobody knows; it is taken for there, as the rows say.
                continue
            with self._lock:
                self._found[uri] = is_there

    def ended(self, threads: int) -> None:
        """Note the end of one of so many threads."""
        with self._lock:
            self._ended += 1
            is_over = self._ended == threads
        if is_over:
            self.done.set()

    def close(self) -> dict[str, bool]:
        """Ask no more, and return what was answered."""
        with self._lock:
            self.left.clear()
            return dict(self._found)
