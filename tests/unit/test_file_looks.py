"""Files are looked at beside the rounds of the scheduler: whoever asks is never held up, and never waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import cache_files
from orchestrator.cache_files import WHOLE, FoundFiles, WantedFiles
from orchestrator.errors import ForbiddenPath
from orchestrator.paths import DataRoots
from scheduler import file_looks
from scheduler.file_looks import LONGEST_LOOK, LONGEST_WAIT, FileLooks


class Share:
    """A data root whose files may be held back: who reads one waits until it is let go."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.roots = {"data": folder}
        self.held: dict[str, threading.Event] = {}
        self.read: list[str] = []
        self.now = 100.0
        self.looks = FileLooks(self.opened, clock=lambda: self.now)
        plain = cache_files.digest_of_file

        def slow(path: Path, whole: int = WHOLE) -> str:
            self.read.append(path.name)
            if (gate := self.held.get(path.name)) is not None:
                gate.wait(30)
            return plain(path, whole)

        monkeypatch.setattr(cache_files, "digest_of_file", slow)

    def opened(self) -> DataRoots:
        return DataRoots(self.roots)

    def hold(self, *names: str) -> None:
        for name in names:
            (self.folder / name).write_text("1")
            self.held[name] = threading.Event()

    def holds_all_threads(self) -> bool:
        with self.looks._lock:
            return all(
                one.job is not None and one.text.rpartition("/")[2].rpartition(":")[2] in self.read
                for one in self.looks._lookers
            )

    def seen(self, task: str, *names: str) -> FoundFiles:
        """Ask until there is an answer."""
        wanted = WantedFiles(names)
        found: list[FoundFiles] = []

        def is_there() -> bool:
            answer = self.looks.of(task, wanted)
            found.extend([] if answer is None else [answer])
            return bool(found)

        until(is_there)
        return found[0]


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    made = Share(tmp_path, monkeypatch)
    yield made
    for gate in made.held.values():
        gate.set()


def test_what_was_seen_is_told_once_and_then_looked_at_anew(share: Share) -> None:
    (share.folder / "x.csv").write_text("1")
    first = share.seen("t", "x.csv")
    assert share.seen("t", "x.csv") == first
    (share.folder / "x.csv").write_text("2")
    share.looks.begin()
    assert share.seen("t", "x.csv") != first


def test_who_asks_waits_for_no_file(share: Share) -> None:
    share.hold("slow.csv")
    assert share.looks.of("t", WantedFiles(("slow.csv",))) is None
    assert share.looks.is_waiting("t")
    (share.folder / "quick.csv").write_text("1")
    assert share.seen("other", "quick.csv").digests
    share.held["slow.csv"].set()
    until(lambda: not share.looks.is_waiting("t"))
    assert share.looks.of("t", WantedFiles(("slow.csv",))) is not None


def test_nothing_is_looked_at_where_nothing_is_named_or_nothing_can_be_found(tmp_path: Path) -> None:
    assert FileLooks(None).of("t", WantedFiles()) == FoundFiles()
    with pytest.raises(ForbiddenPath, match="give the cache a key"):
        FileLooks(None).of("t", WantedFiles(("x.csv",)))
    with pytest.raises(ForbiddenPath, match="no scripts root"):
        FileLooks(None).of("t", WantedFiles(script="x.py"))


def test_what_is_not_seen_in_time_is_an_error_and_the_file_is_left_alone_until_it_answers(share: Share) -> None:
    share.hold("hung.csv")
    wanted = WantedFiles(("hung.csv",))
    assert share.looks.of("t", wanted) is None
    until(lambda: share.read == ["hung.csv"])
    share.now += LONGEST_LOOK + 0.1
    assert not share.looks.is_waiting("t")
    with pytest.raises(
        ForbiddenPath, match=r"hung\.csv could not be looked at .* within 5 seconds.* give the cache a key"
    ):
        share.looks.of("t", wanted)
    with pytest.raises(ForbiddenPath, match=r"hung\.csv does not answer the scheduler"):
        share.seen("again", "hung.csv")
    assert share.read == ["hung.csv"]
    share.held["hung.csv"].set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "file-looks"])
    share.looks.begin()
    assert share.seen("again", "hung.csv").digests


def test_a_share_that_hangs_keeps_so_many_threads_and_no_more_and_all_tasks_are_answered(share: Share) -> None:
    names = [f"{n}.csv" for n in range(40)]
    share.hold(*names)
    for name in names:
        assert share.looks.of(name, WantedFiles((name,))) is None
    left = list(names)
    rounds = 0
    while left:
        # Before the clock goes on every thread is held by a file: one that had not come to it would give up.
        until(share.holds_all_threads)
        share.now += LONGEST_LOOK + 0.1
        for name in list(left):
            if not share.looks.is_waiting(name):
                with pytest.raises(ForbiddenPath, match="give the cache a key"):
                    share.looks.of(name, WantedFiles((name,)))
                left.remove(name)
        rounds += 1
        assert rounds < 50
    threads = [thread for thread in threading.enumerate() if thread.name == "file-looks"]
    assert len(threads) <= 16
    for gate in share.held.values():
        gate.set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "file-looks"])
    (share.folder / "x.csv").write_text("1")
    assert share.seen("later", "x.csv").digests


def test_who_waits_too_long_for_its_turn_is_answered(share: Share) -> None:
    names = [f"{n}.csv" for n in range(5)]
    share.hold(*names)
    for name in names:
        assert share.looks.of(name, WantedFiles((name,))) is None
    until(lambda: len(share.read) == 4)
    share.now += LONGEST_WAIT + 1
    with pytest.raises(ForbiddenPath, match=r"4\.csv could not be looked at in time"):
        share.looks.of("4.csv", WantedFiles(("4.csv",)))


def test_who_waits_too_long_behind_files_that_are_only_many_is_told_so(share: Share) -> None:
    names = [f"{n}.csv" for n in range(9)]
    share.hold(*names)
    for name in names:
        assert share.looks.of(name, WantedFiles((name,))) is None
    until(lambda: len(share.read) == 4)
    share.now += LONGEST_WAIT + 1
    first = share.read[0]
    share.held[first].set()
    until(lambda: len(share.read) == 5)
    with pytest.raises(
        ForbiddenPath, match=r"8\.csv could not be looked at in time, for many others are looked at first"
    ):
        share.looks.of("8.csv", WantedFiles(("8.csv",)))


def test_a_root_that_hangs_takes_the_cache_from_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = Share(tmp_path / "share", monkeypatch)
    share.folder.mkdir()
    own = tmp_path / "own"
    own.mkdir()
    (own / "x.csv").write_text("1")
    share.roots = {"share": share.folder, "own": own}
    names = [f"{n}.csv" for n in range(40)]
    share.hold(*names)
    try:
        for n, name in enumerate(names):
            wanted = WantedFiles((f"share:{name}" if n % 2 else str(share.folder / name),))
            assert share.looks.of(name, wanted) is None
        for _ in range(5):
            until(share.holds_all_threads)
            share.now += LONGEST_LOOK + 0.1
            for name in names:
                share.looks.is_waiting(name)
        assert len(share.read) <= 8, "of one root so many are looked at, and those beside them that had begun"
        assert share.seen("t", "own:x.csv").digests
        assert share.seen("u", str(own / "x.csv")).digests
        with pytest.raises(ForbiddenPath, match="lies where other files do not answer the scheduler"):
            share.seen("v", "share:new.csv")
    finally:
        for gate in share.held.values():
            gate.set()


def test_a_thread_that_can_t_be_started_is_started_later(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    (share.folder / "x.csv").write_text("1")

    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        for n in range(20):
            assert share.looks.of(f"{n}", WantedFiles(("x.csv",))) is None
    assert share.seen("0", "x.csv").digests


def test_of_many_only_the_ids_are_kept_until_there_is_room(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_looks, "MOST_JOBS", 4)
    share.hold("slow.csv")
    (share.folder / "x.csv").write_text("1")
    assert [share.looks.of(f"slow{n}", WantedFiles(("slow.csv",))) for n in range(4)] == [None] * 4
    assert share.looks.of("t", WantedFiles(("x.csv",))) is None
    assert share.looks.is_waiting("t")
    share.held["slow.csv"].set()
    for n in range(4):
        share.seen(f"slow{n}", "slow.csv")
    assert not share.looks.is_waiting("t")
    assert share.seen("t", "x.csv").digests


def test_what_is_forgotten_is_looked_at_anew_when_it_is_asked_for_again(share: Share) -> None:
    share.hold("slow.csv")
    assert share.looks.of("t", WantedFiles(("slow.csv",))) is None
    share.looks.forget_all()
    assert not share.looks.is_waiting("t")
    (share.folder / "x.csv").write_text("1")
    assert share.seen("t", "x.csv").digests
    share.held["slow.csv"].set()


def test_a_data_root_that_hangs_when_it_is_opened_holds_up_nobody(tmp_path: Path) -> None:
    gate, now = threading.Event(), [100.0]

    def opened() -> DataRoots:
        gate.wait(30)
        return DataRoots({"data": tmp_path})

    looks = FileLooks(opened, clock=lambda: now[0])
    wanted = WantedFiles(("x.csv",))
    try:
        assert looks.of("t", wanted) is None
        until(lambda: any(thread.name == "file-looks" for thread in threading.enumerate()))
        until(lambda: all(job.begun is not None for job in looks._jobs.values()))
        now[0] += LONGEST_LOOK + 0.1
        with pytest.raises(ForbiddenPath, match="A data root could not be looked at"):
            looks.of("t", wanted)
    finally:
        gate.set()
