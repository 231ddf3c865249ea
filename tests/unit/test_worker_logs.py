"""Logs on their way: capped in the file, shipped in chunks, cleared away when nobody needs them any more."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.errors import StoreUnavailable
from orchestrator.wire.log_stream import CHUNK_BYTES, LogChunk
from orchestrator.wire.progress import Progress
from workers.attempt_folder import AttemptFolder
from workers.log_pump import LogPump
from workers.shipping import CHUNKS_PER_LOG, Shipper


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
    def __init__(self) -> None:
        self.chunks: list[LogChunk] = []
        self.said: list[Mapping[str, Progress]] = []
        self.is_away = False

    def publish(self, chunks: list[LogChunk]) -> None:
        if self.is_away:
            raise StoreUnavailable("away")
        self.chunks += chunks

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


def test_progress_is_told_when_it_changes(folder: AttemptFolder) -> None:
    sink = Sink()
    shipper = Shipper(sink, sink.progress)
    shipper.follow(folder)
    folder.write("progress", {"fraction": 0.5, "message": "half"})
    folder.write("usage", {"memory": 10, "cpu_seconds": 1.5})
    shipper.ship()
    shipper.ship()
    assert sink.said == [{"a1": Progress(0.5, "half", 10, 1.5)}]
