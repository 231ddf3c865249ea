"""Ships what people look at: log files in chunks, progress and usage. A log stays here until all of it is stored."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.logs import get_logger
from orchestrator.wire.log_stream import CHUNK_BYTES, LogChunk, LogsSeen
from orchestrator.wire.progress import Progress
from workers.attempt_folder import AttemptFolder

log = get_logger(__name__)

CHUNKS_PER_LOG = 4
CHUNKS_PER_ROUND = 32
"""With two rounds a second: 512 KiB/s of one attempt, 4 MiB/s of one worker."""
REPEAT_SECONDS = 30.0
"""Progress keys expire; what does not change is written again after this time."""
LONGEST_PAUSE = 60.0
KEPT_SECONDS = 24 * 3600.0
"""How long the log of an ended attempt waits to be stored."""
SHIPPED = "shipped"


class LogSink(Protocol):
    """The part of ``LogPublisher`` that shipping needs."""

    def publish(self, chunks: list[LogChunk]) -> list[str]: ...

    def look(self, attempt_ids: Iterable[str], entry_ids: Iterable[str]) -> LogsSeen: ...


@dataclass(slots=True)
class _Cargo:
    folder: AttemptFolder
    tenant_id: str
    run_id: str
    confirmed: int
    """Bytes that are known to be stored."""
    offset: int
    """Bytes that were sent."""
    has_ended: bool
    is_answered: bool
    is_adopted: bool
    """Another shipper may have sent more of it than we know: ask before sending."""
    sent: deque[tuple[int, str]] = field(default_factory=deque)
    """(end, entry) of the chunks that were sent and are not known to be stored, in their order."""
    losses: int = 0
    resume_at: float = 0.0
    done_at: float | None = None


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
        self._room = CHUNKS_PER_ROUND
        self._said: dict[str, tuple[float, Progress]] = {}

    def follow(
        self, folder: AttemptFolder, *, has_ended: bool = False, is_answered: bool = False, is_adopted: bool = False
    ) -> None:
        """Ship this attempt's log from where the last shipper of this host knew it to be stored.

        :param is_adopted: another incarnation may have sent more of it than it noted. One that has ended may have, too.
        """
        with self._lock:
            if folder.attempt_id in self._cargo:
                return
        state, shipped = folder.read("state"), folder.read(SHIPPED)
        if not state:  # another worker of this host has just cleared it away
            return
        start = shipped.get("offset", 0)
        is_adopted = is_adopted or has_ended or bool(shipped)
        cargo = _Cargo(folder, state["tenant_id"], state["run_id"], start, start, has_ended, is_answered, is_adopted)
        with self._lock:
            self._cargo.setdefault(folder.attempt_id, cargo)

    def ended(self, attempt_id: str) -> None:
        """Note that the log grows no more."""
        with self._lock:
            if cargo := self._cargo.get(attempt_id):
                cargo.has_ended = True

    def answered(self, attempt_id: str) -> None:
        """Note that the outcome was answered: once the log is stored, the folder is not needed any more."""
        with self._lock:
            if cargo := self._cargo.get(attempt_id):
                cargo.is_answered = True

    def has_unconfirmed(self) -> bool:
        """Say whether something was sent that is not known to be stored yet."""
        with self._lock:
            return any(one.sent for one in self._cargo.values())

    def ship(self) -> bool:
        """Send one round of logs and progress; returns whether more could be sent at once.

        :raises StoreUnavailable: Redis does not answer; the same chunks are sent again in the next round.
        """
        with self._lock:
            cargo = list(self._cargo.values())
        self._look([one for one in cargo if one.is_adopted])
        self._ship_logs(cargo)
        self._look([one for one in cargo if one.sent])
        self._ship_progress(cargo)
        for one in cargo:
            if self._is_done(one):
                one.folder.remove()
                with self._lock:
                    self._cargo.pop(one.folder.attempt_id, None)
        return self._room > 0 and any(self._may_send(one) and one.offset < _size(one) for one in cargo)

    def _ship_logs(self, cargo: list[_Cargo]) -> None:
        if not any(one.sent for one in cargo):
            self._room = CHUNKS_PER_ROUND  # nothing of ours is on the stream, so nothing would tell us its length
        left = min(CHUNKS_PER_ROUND, self._room)
        chunks: list[LogChunk] = []
        served: list[_Cargo] = []
        for one in cargo:
            if left > 0 and self._may_send(one) and (mine := list(_chunks(one, min(CHUNKS_PER_LOG, left)))):
                chunks += mine
                left -= len(mine)
                served.append(one)
        if not chunks:
            return
        entries = self._logs.publish(chunks)
        owners = {one.folder.attempt_id: one for one in served}
        for chunk, entry in zip(chunks, entries, strict=True):
            one = owners[chunk.attempt_id]
            one.offset = chunk.offset + len(chunk.content)
            one.sent.append((one.offset, entry))
        with self._lock:  # whoever was served goes to the end of the line
            for attempt_id in owners:
                if (waiting := self._cargo.pop(attempt_id, None)) is not None:
                    self._cargo[attempt_id] = waiting

    def _may_send(self, one: _Cargo) -> bool:
        return self._clock() >= one.resume_at

    def _look(self, cargo: list[_Cargo]) -> None:
        """Learn what has been stored, and go back to there where something on its way was lost."""
        if not cargo:
            return
        oldest = {one.folder.attempt_id: one.sent[0] for one in cargo if one.sent}
        seen = self._logs.look([one.folder.attempt_id for one in cargo], [entry for _, entry in oldest.values()])
        self._room = seen.room
        for one in cargo:
            one.is_adopted = False
            self._confirm(one, seen.stored.get(one.folder.attempt_id, 0))
            end, entry = oldest.get(one.folder.attempt_id, (0, ""))
            if end > one.confirmed and entry not in seen.waiting:
                self._go_back(one)

    def _confirm(self, one: _Cargo, stored: int) -> None:
        stored = min(stored, _size(one))
        if stored <= one.confirmed:
            return
        one.confirmed, one.losses = stored, 0
        one.offset = max(one.offset, stored)
        while one.sent and one.sent[0][0] <= stored:
            one.sent.popleft()
        with suppress(OSError):  # cleared away by another worker of this host, or the disk is full
            one.folder.write(SHIPPED, {"offset": stored})

    def _go_back(self, one: _Cargo) -> None:
        log.info("log_sent_again", attempt_id=one.folder.attempt_id, offset=one.confirmed)
        one.offset = one.confirmed
        one.sent.clear()
        if one.losses:  # at once the first time, then later and later
            one.resume_at = self._clock() + min(LONGEST_PAUSE, 2.0**one.losses)
        one.losses += 1

    def _is_done(self, one: _Cargo) -> bool:
        if not (one.has_ended and one.is_answered):
            return False
        if one.confirmed >= _size(one):
            return True
        now = self._clock()
        one.done_at = now if one.done_at is None else one.done_at
        if now - one.done_at < KEPT_SECONDS:
            return False
        log.warning("log_given_up", attempt_id=one.folder.attempt_id, stored=one.confirmed, size=_size(one))
        return True

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
    if _size(cargo) <= cargo.offset:
        return
    with suppress(FileNotFoundError), open(cargo.folder.log, "rb") as file:
        file.seek(cargo.offset)
        for _ in range(count):
            offset = file.tell()
            if not (content := file.read(CHUNK_BYTES)):
                return
            yield LogChunk(cargo.folder.attempt_id, cargo.tenant_id, cargo.run_id, offset, content, cargo.confirmed)


def _read_progress(folder: AttemptFolder) -> Progress:
    said, used = folder.read("progress"), folder.read("usage")
    fraction = said.get("fraction")
    return Progress(
        fraction=float(fraction) if isinstance(fraction, (int, float)) else None,
        message=str(said.get("message", "")),
        memory=int(used.get("memory", 0)),
        cpu_seconds=float(used.get("cpu_seconds", 0.0)),
        phase=str(used.get("phase", "")),
    )
