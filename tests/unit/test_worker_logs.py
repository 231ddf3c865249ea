"""Logs on their way: capped in the file, shipped in chunks, cleared away when nobody needs them any more."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from orchestrator.errors import StoreUnavailable
from orchestrator.wire.log_stream import CHUNK_BYTES, LogChunk, LogsSeen
from orchestrator.wire.progress import Progress
from workers.attempt_folder import AttemptFolder
from workers.log_pump import LogPump
from workers.shipping import CHUNKS_PER_LOG, CHUNKS_PER_ROUND, KEPT_SECONDS, Shipper


def pumped(tmp_path: Path, pieces: list[bytes], head: int, tail: int) -> bytes:
    reading, writing = os.pipe()
    pump = LogPump(reading, tmp_path / "log", head, tail)
    for piece in pieces:
        os.write(writing, piece)
        assert not pump.pump()
    os.close(writing)
    assert pump.pump()
    pump.close()
    return (tmp_path / "log").read_bytes()


def test_a_short_log_is_kept_whole(tmp_path: Path) -> None:
    assert pumped(tmp_path, [b"one\n", b"two\n"], 100, 100) == b"one\ntwo\n"


def test_a_log_between_head_and_tail_is_kept_whole(tmp_path: Path) -> None:
    assert pumped(tmp_path, [b"aaaa", b"bbbb"], 6, 10) == b"aaaabbbb"


def test_a_long_log_loses_its_middle_and_says_so(tmp_path: Path) -> None:
    text = pumped(tmp_path, [f"{number:03d}\n".encode() for number in range(100)], 8, 8)
    assert text.startswith(b"000\n001\n")
    assert text.endswith(b"098\n099\n")
    assert b"384 bytes of output were left out here" in text


class Sink:
    """A stream with its collector, which stores what comes at once unless it is ``asleep``."""

    def __init__(self) -> None:
        self.chunks: list[LogChunk] = []
        self.said: list[Mapping[str, Progress]] = []
        self.is_away = False
        self.is_asleep = False
        self.stream: dict[str, LogChunk] = {}
        self.stored: dict[str, int] = {}
        self.room = 1000
        self.sent = 0

    def publish(self, chunks: list[LogChunk]) -> list[str]:
        if self.is_away:
            raise StoreUnavailable("away")
        entries = [f"{self.sent + number}" for number in range(len(chunks))]
        self.sent += len(chunks)
        self.stream.update(zip(entries, chunks, strict=True))
        if not self.is_asleep:
            self.collect()
        return entries

    def collect(self) -> None:
        for chunk in self.stream.values():
            self.chunks.append(chunk)
            end = max(self.stored.get(chunk.attempt_id, 0), chunk.confirmed)
            if chunk.offset <= end:
                self.stored[chunk.attempt_id] = max(end, chunk.offset + len(chunk.content))
        self.stream.clear()

    def flush(self) -> None:
        self.stream.clear()
        self.stored.clear()

    def look(self, attempt_ids: Iterable[str], entry_ids: Iterable[str]) -> LogsSeen:
        stored = {attempt: self.stored[attempt] for attempt in attempt_ids if attempt in self.stored}
        return LogsSeen(self.room, frozenset(self.stream) & frozenset(entry_ids), stored)

    def progress(self, news: Mapping[str, Progress]) -> None:
        self.said.append(dict(news))

    def content(self) -> bytes:
        return b"".join(chunk.content for chunk in sorted(self.chunks, key=lambda chunk: chunk.offset))


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    made = AttemptFolder(tmp_path / "attempts", "a1")
    made.create()
    made.write("state", {"tenant_id": "t", "run_id": "r", "incarnation": "i"})
    return made


def test_a_log_is_shipped_in_bounded_rounds_and_in_order(folder: AttemptFolder) -> None:
    sink = Sink()
    shipper = Shipper(sink, sink.progress)
    content = os.urandom(CHUNK_BYTES * (CHUNKS_PER_LOG + 1) + 17)
    folder.log.write_bytes(content)
    shipper.follow(folder)
    assert shipper.ship(), "more waits"
    assert len(sink.chunks) == CHUNKS_PER_LOG
    assert not shipper.ship()
    assert sink.content() == content
    assert {(chunk.tenant_id, chunk.run_id) for chunk in sink.chunks} == {("t", "r")}


def test_nothing_is_skipped_while_redis_is_away(folder: AttemptFolder) -> None:
    sink = Sink()
    shipper = Shipper(sink, sink.progress)
    folder.log.write_bytes(b"hello")
    shipper.follow(folder)
    sink.is_away = True
    with pytest.raises(StoreUnavailable):
        shipper.ship()
    sink.is_away = False
    shipper.ship()
    assert sink.content() == b"hello"


def test_a_successor_goes_on_where_the_last_shipper_stopped(folder: AttemptFolder) -> None:
    first, second = Sink(), Sink()
    folder.log.write_bytes(b"hello ")
    shipper = Shipper(first, first.progress)
    shipper.follow(folder)
    shipper.ship()
    with folder.log.open("ab") as file:
        file.write(b"again")
    successor = Shipper(second, second.progress)
    successor.follow(folder, has_ended=True)
    successor.ship()
    assert [(chunk.offset, chunk.content) for chunk in second.chunks] == [(6, b"again")]


def test_the_folder_goes_once_the_outcome_is_answered_and_the_log_is_shipped(folder: AttemptFolder) -> None:
    sink = Sink()
    shipper = Shipper(sink, sink.progress)
    folder.log.write_bytes(b"x" * CHUNK_BYTES * (CHUNKS_PER_LOG + 1))
    shipper.follow(folder)
    shipper.ended("a1")
    shipper.answered("a1")
    shipper.ship()
    assert folder.path.exists()
    shipper.ship()
    assert not folder.path.exists()


def test_a_log_stays_until_it_is_stored(folder: AttemptFolder) -> None:
    sink = Sink()
    shipper = Shipper(sink, sink.progress)
    folder.log.write_bytes(b"hello")
    shipper.follow(folder)
    shipper.ended("a1")
    shipper.answered("a1")
    sink.is_asleep = True
    shipper.ship()
    assert shipper.has_unconfirmed()
    assert folder.path.exists()
    sink.collect()
    shipper.ship()
    assert not shipper.has_unconfirmed()
    assert not folder.path.exists()
    assert sink.sent == 1


def test_what_a_flush_of_redis_took_is_sent_again(folder: AttemptFolder) -> None:
    sink = Sink()
    shipper = Shipper(sink, sink.progress)
    folder.log.write_bytes(b"one ")
    shipper.follow(folder)
    shipper.ship()
    sink.is_asleep = True
    for word in (b"two ", b"three"):
        with folder.log.open("ab") as file:
            file.write(word)
        shipper.ship()
    sink.flush()
    sink.is_asleep = False
    shipper.ended("a1")
    shipper.answered("a1")
    shipper.ship()
    shipper.ship()
    assert sink.content() == b"one two three"
    assert not folder.path.exists()


def test_a_log_that_is_lost_over_and_over_is_not_sent_in_a_hot_loop(folder: AttemptFolder) -> None:
    sink, now = Sink(), [0.0]
    shipper = Shipper(sink, sink.progress, clock=lambda: now[0])
    folder.log.write_bytes(b"hello")
    shipper.follow(folder)
    sink.is_asleep = True
    for _ in range(600):
        shipper.ship()
        sink.flush()
        now[0] += 0.5
    assert 3 <= sink.sent <= 12


def test_a_worker_waits_while_nobody_collects_and_the_stream_is_long(folder: AttemptFolder) -> None:
    sink = Sink()
    shipper = Shipper(sink, sink.progress)
    folder.log.write_bytes(os.urandom(CHUNK_BYTES * 20))
    shipper.follow(folder)
    sink.is_asleep, sink.room = True, 0
    for _ in range(10):
        assert not shipper.ship(), "nothing more can be sent just now"
    assert sink.sent == CHUNKS_PER_LOG
    sink.is_asleep, sink.room = False, 1000
    sink.collect()
    while shipper.ship():
        pass
    assert sink.content() == folder.log.read_bytes()


def test_every_busy_log_gets_its_turn(tmp_path: Path) -> None:
    sink = Sink()
    shipper = Shipper(sink, sink.progress)
    busy = 3 * CHUNKS_PER_ROUND // CHUNKS_PER_LOG
    for number in range(busy):
        folder = AttemptFolder(tmp_path / "attempts", f"a{number}")
        folder.create()
        folder.write("state", {"tenant_id": "t", "run_id": "r", "incarnation": "i"})
        folder.log.write_bytes(b"x" * CHUNK_BYTES * CHUNKS_PER_LOG * 9)
        shipper.follow(folder)
    for _ in range(3):
        shipper.ship()
    served = Counter(chunk.attempt_id for chunk in sink.chunks)
    assert served == {f"a{number}": CHUNKS_PER_LOG for number in range(busy)}


def test_a_successor_removes_a_log_that_is_stored_already_and_sends_nothing(folder: AttemptFolder) -> None:
    sink = Sink()
    folder.log.write_bytes(b"hello")
    sink.stored["a1"] = 5
    successor = Shipper(sink, sink.progress)
    successor.follow(folder, has_ended=True, is_answered=True)
    successor.ship()
    assert sink.sent == 0
    assert not folder.path.exists()


def test_a_log_that_nobody_ever_stores_is_given_up_after_a_day(folder: AttemptFolder) -> None:
    sink, now = Sink(), [0.0]
    shipper = Shipper(sink, sink.progress, clock=lambda: now[0])
    folder.log.write_bytes(b"hello")
    shipper.follow(folder)
    shipper.ended("a1")
    shipper.answered("a1")
    sink.is_asleep = True
    shipper.ship()
    now[0] += KEPT_SECONDS - 1
    shipper.ship()
    assert folder.path.exists()
    now[0] += 2
    shipper.ship()
    assert not folder.path.exists()


def test_progress_is_told_when_it_changes(folder: AttemptFolder) -> None:
    sink = Sink()
    shipper = Shipper(sink, sink.progress)
    shipper.follow(folder)
    folder.write("progress", {"fraction": 0.5, "message": "half"})
    folder.write("usage", {"memory": 10, "cpu_seconds": 1.5})
    shipper.ship()
    shipper.ship()
    assert sink.said == [{"a1": Progress(0.5, "half", 10, 1.5)}]


def test_what_a_nearly_full_disk_does_not_take_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    pump = LogPump(reading, tmp_path / "log")
    whole = pump._file

    class NearlyFull:
        def write(self, piece: bytes) -> int:
            return whole.write(piece[:3])

    monkeypatch.setattr(pump, "_file", NearlyFull())
    os.write(writing, b"hello")
    os.close(writing)
    pump.pump()
    monkeypatch.undo()
    pump.close()
    text = (tmp_path / "log").read_text()
    assert text.startswith("hel")
    assert "2 bytes of output were left out here" in text
