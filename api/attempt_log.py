"""The log of one attempt as its chunks in the artifact store tell it, holes included."""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.artifacts import ArtifactStore, uri_of

GAP_PATIENCE = 30.0
"""Seconds that a missing chunk may be on its way: workers send again what got lost in Redis."""
_CHUNK_LIMIT = 16 * 2**20
_MOST_GAPS = 1000


class LogGaps:
    """Remembers since when this process has seen the holes in logs; safe for many threads.

    :param clock: monotonic seconds.
    """

    def __init__(self, patience: float = GAP_PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, int], float] = OrderedDict()

    def is_lost(self, prefix: str, offset: int) -> bool:
        """Say whether what is missing at this offset has been missing for too long to come."""
        now = self._clock()
        with self._lock:
            since = self._seen.setdefault((prefix, offset), now)
            if len(self._seen) > _MOST_GAPS:
                self._seen.popitem(last=False)
        return now - since >= self.patience


@dataclass(frozen=True, slots=True)
class LogPart:
    """A piece of a log."""

    content: bytes
    """With a line of ours in place of each hole."""
    next_offset: int
    """Where the log goes on; more than the content's length away where there was a hole."""
    more: bool
    """Whether something follows: what did not fit, or what comes after a chunk that may still arrive."""


@dataclass(frozen=True, slots=True)
class AttemptLog:
    """The chunks of one attempt's log: objects named by the offset of their first byte."""

    artifacts: ArtifactStore
    prefix: str
    gaps: LogGaps

    def read(self, offset: int, limit: int, *, settled: bool) -> LogPart:
        """Return about ``limit`` bytes from ``offset`` on.

        :param settled: nothing is on its way any more, so that a missing chunk is lost for certain.
        """
        keys = list(self.artifacts.list(self.prefix))
        starts = [int(key.rpartition("/")[2]) for key in keys]
        found, here = bytearray(), offset
        place = max(0, bisect.bisect_right(starts, offset) - 1)
        for start, key in zip(starts[place:], keys[place:], strict=True):
            if len(found) >= limit:
                return LogPart(bytes(found), here, more=True)
            if start > here:
                if not (settled or self.gaps.is_lost(self.prefix, here)):
                    return LogPart(bytes(found), here, more=True)
                found += _in_place_of(start - here, at_line_start=not found or found.endswith(b"\n"))
                here = start
            # Chunks may overlap when a worker sent one again after a lost answer.
            rest = self.artifacts.get_bytes(uri_of(key), _CHUNK_LIMIT)[here - start :]
            taken = rest[: max(0, limit - len(found))]
            found += taken
            here += len(taken)
            if len(taken) < len(rest):
                return LogPart(bytes(found), here, more=True)
        return LogPart(bytes(found), here, more=False)


def _in_place_of(missing: int, *, at_line_start: bool) -> bytes:
    line = f"[{missing} bytes of this log are missing: they were lost on their way here.]\n"
    return (line if at_line_start else f"\n{line}").encode()
