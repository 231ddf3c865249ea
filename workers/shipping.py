"""Ships what people look at: log files in chunks, progress and usage. Losing some of it harms no rule."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from orchestrator.wire.log_stream import CHUNK_BYTES, LogChunk
from orchestrator.wire.progress import Progress
from workers.attempt_folder import AttemptFolder

CHUNKS_PER_LOG = 4
CHUNKS_PER_ROUND = 32
"""With two rounds a second: 512 KiB/s of one attempt, 4 MiB/s of one worker."""
REPEAT_SECONDS = 30.0
"""Progress keys expire; what does not change is written again after this time."""
SHIPPED = "shipped"


class LogSink(Protocol):
    """The part of ``LogPublisher`` that shipping needs."""

    def publish(self, chunks: list[LogChunk]) -> None: ...


@dataclass(slots=True)
class _Cargo:
    folder: AttemptFolder
    tenant_id: str
    run_id: str
    offset: int
    has_ended: bool
    is_answered: bool = False


class Shipper:
    """The logs and progress of all attempts with a folder here."""

    def __init__(
        self,
        logs: LogSink,
        progress: Callable[[Mapping[str, Progress]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logs = logs
        self._progress = progress
        self._clock = clock
        self._lock = threading.Lock()
        self._cargo: dict[str, _Cargo] = {}
        self._said: dict[str, tuple[float, Progress]] = {}

    def follow(self, folder: AttemptFolder, *, has_ended: bool = False, is_answered: bool = False) -> None:
        """Ship this attempt's log from where the last shipper of this host stopped."""
        state, offset = folder.read("state"), folder.read(SHIPPED).get("offset", 0)
        if not state:  # another worker of this host has just cleared it away
            return
        cargo = _Cargo(folder, state["tenant_id"], state["run_id"], offset, has_ended, is_answered)
        with self._lock:
            self._cargo.setdefault(folder.attempt_id, cargo)

    def ended(self, attempt_id: str) -> None:
        """Note that the log grows no more."""
        with self._lock:
            if cargo := self._cargo.get(attempt_id):
                cargo.has_ended = True

    def answered(self, attempt_id: str) -> None:
        """Note that the outcome was answered: once the log is shipped, the folder is not needed any more."""
        with self._lock:
            if cargo := self._cargo.get(attempt_id):
                cargo.is_answered = True

    def ship(self) -> bool:
        """Send one round of logs and progress; returns whether more waits.

        :raises StoreUnavailable: Redis does not answer; the same chunks are sent again in the next round.
        """
        with self._lock:
            cargo = list(self._cargo.values())
        more = self._ship_logs(cargo)
        self._ship_progress(cargo)
        for one in cargo:
            if one.has_ended and one.is_answered and one.offset >= _size(one):
                one.folder.remove()
                with self._lock:
                    self._cargo.pop(one.folder.attempt_id, None)
        return more

    def _ship_logs(self, cargo: list[_Cargo]) -> bool:
        chunks: list[LogChunk] = []
        ends: dict[str, int] = {}
        for one in cargo:
            for chunk in _chunks(one, min(CHUNKS_PER_LOG, CHUNKS_PER_ROUND - len(chunks))):
                chunks.append(chunk)
                ends[chunk.attempt_id] = chunk.offset + len(chunk.content)
        if not chunks:
            return False
        self._logs.publish(chunks)
        for one in cargo:
            if one.folder.attempt_id in ends:
                one.offset = ends[one.folder.attempt_id]
                with suppress(FileNotFoundError):  # cleared away by another worker of this host
                    one.folder.write(SHIPPED, {"offset": one.offset})
        return any(one.offset < _size(one) for one in cargo)

    def _ship_progress(self, cargo: list[_Cargo]) -> None:
        now = self._clock()
        news: dict[str, Progress] = {}
        for one in cargo:
            if one.has_ended:
                self._said.pop(one.folder.attempt_id, None)
                continue
            progress = _read_progress(one.folder)
            said = self._said.get(one.folder.attempt_id)
            if said is None or said[1] != progress or now - said[0] > REPEAT_SECONDS:
                news[one.folder.attempt_id] = progress
        if news:
            self._progress(news)
            self._said.update({attempt_id: (now, progress) for attempt_id, progress in news.items()})


def _size(cargo: _Cargo) -> int:
    try:
        return cargo.folder.log.stat().st_size
    except OSError:
        return 0


def _chunks(cargo: _Cargo, count: int) -> Iterator[LogChunk]:
    if count <= 0 or _size(cargo) <= cargo.offset:
        return
    with open(cargo.folder.log, "rb") as file:
        file.seek(cargo.offset)
        for _ in range(count):
            offset = file.tell()
            if not (content := file.read(CHUNK_BYTES)):
                return
            yield LogChunk(cargo.folder.attempt_id, cargo.tenant_id, cargo.run_id, offset, content)


def _read_progress(folder: AttemptFolder) -> Progress:
    said, used = folder.read("progress"), folder.read("usage")
    fraction = said.get("fraction")
    return Progress(
        fraction=float(fraction) if isinstance(fraction, (int, float)) else None,
        message=str(said.get("message", "")),
        memory=int(used.get("memory", 0)),
        cpu_seconds=float(used.get("cpu_seconds", 0.0)),
    )
