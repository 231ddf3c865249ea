"""The log of one attempt as its chunks in the artifact store tell it, holes included."""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.artifacts import ArtifactStore, uri_of
from orchestrator.wire.log_stream import CHUNK_BYTES

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
        chunks = _Chunks(self.artifacts, list(self.artifacts.list(self.prefix)), settled)
        found, here = bytearray(), offset
        rest = chunks.at(here)
        while len(found) < limit:
            if rest:
                taken = rest[: limit - len(found)]
                found += taken
                here += len(taken)
            else:
                start = chunks.after(here)
                if start is None:
                    return LogPart(bytes(found), here, more=False)
                if not (settled or self.gaps.is_lost(self.prefix, here)):
                    return LogPart(bytes(found), here, more=True)
                found += _in_place_of(start - here, at_line_start=not found or found.endswith(b"\n"))
                here = start
            rest = chunks.at(here)
        return LogPart(bytes(found), here, more=bool(rest) or chunks.after(here) is not None)


class _Chunks:
    """The chunks that one read may need, each fetched at most once.

    A worker that had no answer sends chunks again, cut otherwise, so that they overlap in any way.
    """

    def __init__(self, artifacts: ArtifactStore, keys: list[str], settled: bool) -> None:
        self._artifacts = artifacts
        self._keys = keys
        self._settled = settled
        self._starts = [int(key.rpartition("/")[2]) for key in keys]
        self._fetched: dict[int, bytes] = {}

    def after(self, offset: int) -> int | None:
        """Return where the next chunk starts."""
        place = bisect.bisect_right(self._starts, offset)
        return self._starts[place] if place < len(self._starts) else None

    def at(self, offset: int) -> bytes:
        """Return what some chunk has from this offset on; nothing where no chunk covers it."""
        newest = bisect.bisect_right(self._starts, offset) - 1
        oldest = min(newest, bisect.bisect_left(self._starts, offset - CHUNK_BYTES))
        for place in range(newest, max(0, oldest) - 1, -1):
            content, start = self._content(place), self._starts[place]
            if start + len(content) > offset:
                return content[offset - start :]
            if start + len(content) == offset and place == len(self._starts) - 1 and not self._settled:
                # The end of a growing log, which followers ask for again and again. Should an older chunk reach further
                # all the same, it is found once another chunk has come or the attempt has ended.
                return b""
        return b""

    def _content(self, place: int) -> bytes:
        if place not in self._fetched:
            self._fetched[place] = self._artifacts.get_bytes(uri_of(self._keys[place]), _CHUNK_LIMIT)
        return self._fetched[place]


def _in_place_of(missing: int, *, at_line_start: bool) -> bytes:
    line = f"[{missing} bytes of this log are missing: they were lost on their way here.]\n"
    return (line if at_line_start else f"\n{line}").encode()
