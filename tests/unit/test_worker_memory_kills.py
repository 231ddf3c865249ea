"""Whose process the kernel killed for memory, told from counters, ends and who is gone; nobody pays for another's."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from workers import cgroups, memory_kills
from workers.cgroups import Group
from workers.memory_kills import COPING_SECONDS, DYING_SECONDS, LATEST_SECONDS, Level, MemoryKills, find_level
from workers.process_tree import Proc
from workers.verdict import OutOfMemory

FIRST = 10
EXIT_1 = 1 << 8
MAIN = Proc(FIRST, 1, FIRST, "S", 100, 0.0, 80 << 20)
BIG = Proc(11, FIRST, FIRST, "R", 101, 0.0, 900 << 20)
SMALL = Proc(12, FIRST, FIRST, "S", 102, 0.0, 10 << 20)


class Counters:
    """The files of a host: of an attempt's own cgroup, of its container, and of the machine."""

    def __init__(self, folder: Path) -> None:
        self.own, self.container, self.machine = folder / "own", folder / "container", folder / "machine"
        for file in (self.own, self.container, self.machine):
            self.rise(file, 3 if file != self.own else 0)

    def rise(self, file: Path, to: int) -> None:
        file.write_text(f"oom 9\noom_kill {to}\n")


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counters:
    made = Counters(tmp_path)
    monkeypatch.setattr(cgroups, "surrounding_oom_counter", lambda: made.container)
    monkeypatch.setattr(cgroups, "host_oom_kills", lambda: cgroups.oom_kills(made.machine))
    return made


@pytest.fixture
def kills(counters: Counters) -> MemoryKills:
    """In a container, without a cgroup of its own; one look has been taken."""
    made = MemoryKills(Group((), None))
    made.look((MAIN, BIG, SMALL), FIRST, 0.0)
    return made


def test_without_a_kill_nothing_is_out_of_memory(kills: MemoryKills) -> None:
    kills.look((MAIN, SMALL), FIRST, 0.2)
    kills.saw_end(signal.SIGKILL, 0.3)
    assert kills.judge(FIRST, EXIT_1, 0.4) is OutOfMemory.NO
    assert kills.judge(FIRST, signal.SIGKILL, 0.4) is OutOfMemory.NO


def test_the_largest_that_is_gone_when_the_counter_rises_was_ours(kills: MemoryKills, counters: Counters) -> None:
    counters.rise(counters.container, 4)
    kills.look((MAIN, SMALL), FIRST, 0.2)
    assert kills.judge(FIRST, EXIT_1, 1.0) is OutOfMemory.LIKELY


def test_a_victim_may_take_a_moment_to_die(kills: MemoryKills, counters: Counters) -> None:
    counters.rise(counters.container, 4)
    kills.look((MAIN, replace(BIG, rss=0), SMALL), FIRST, 0.2)
    kills.look((MAIN, SMALL), FIRST, 1.0)
    assert kills.judge(FIRST, EXIT_1, 1.2) is OutOfMemory.LIKELY


def test_a_task_that_fails_before_the_next_look_is_compared_with_the_last(
    kills: MemoryKills, counters: Counters
) -> None:
    counters.rise(counters.container, 4)
    assert kills.judge(FIRST, EXIT_1, 0.1) is OutOfMemory.LIKELY


def test_a_kill_of_another_attempt_is_only_possibly_ours(kills: MemoryKills, counters: Counters) -> None:
    counters.rise(counters.container, 4)
    kills.look((MAIN, BIG), FIRST, 0.2)  # a small one is gone, which the kernel would not have chosen
    kills.look((MAIN,), FIRST, 0.3 + DYING_SECONDS)
    assert kills.judge(FIRST, EXIT_1, 1.0 + DYING_SECONDS) is not OutOfMemory.NO
    alone = MemoryKills(Group((), None))
    alone.look((MAIN,), FIRST, 0.0)
    counters.rise(counters.container, 5)
    assert alone.judge(FIRST, EXIT_1, 0.1) is OutOfMemory.POSSIBLE, "its first process ended by itself"


def test_a_large_one_that_ends_long_after_the_kill_was_not_its_victim(kills: MemoryKills, counters: Counters) -> None:
    counters.rise(counters.container, 4)
    kills.look((MAIN, BIG), FIRST, 0.2)
    kills.look((MAIN, BIG), FIRST, 0.4 + DYING_SECONDS)
    kills.look((MAIN,), FIRST, 0.6 + DYING_SECONDS)
    assert kills.judge(FIRST, EXIT_1, 1.0 + DYING_SECONDS) is OutOfMemory.POSSIBLE


def test_who_fails_long_after_a_kill_has_coped_with_it(kills: MemoryKills, counters: Counters) -> None:
    counters.rise(counters.container, 4)
    kills.look((MAIN, SMALL), FIRST, 0.2)
    assert kills.judge(FIRST, EXIT_1, 1.0 + COPING_SECONDS) is OutOfMemory.POSSIBLE


def test_a_killed_process_that_had_daemonised_was_ours(kills: MemoryKills, counters: Counters) -> None:
    counters.rise(counters.container, 4)
    kills.look((MAIN, BIG, SMALL), FIRST, 0.2)
    kills.saw_end(signal.SIGKILL, 0.3)
    assert kills.judge(FIRST, EXIT_1, 0.5) is OutOfMemory.LIKELY


def test_the_death_of_the_first_process_is_the_kernels_only_while_its_counter_is_fresh(
    kills: MemoryKills, counters: Counters
) -> None:
    counters.rise(counters.container, 4)
    kills.look((MAIN, BIG, SMALL), FIRST, 0.2)
    assert kills.judge(FIRST, signal.SIGKILL, 0.3) is OutOfMemory.CERTAIN
    assert kills.judge(FIRST, signal.SIGKILL, 1.0 + LATEST_SECONDS) is OutOfMemory.NO


def test_a_kill_elsewhere_on_the_machine_is_nothing_to_a_container(kills: MemoryKills, counters: Counters) -> None:
    counters.rise(counters.machine, 4)
    kills.look((MAIN, SMALL), FIRST, 0.2)
    assert kills.judge(FIRST, EXIT_1, 0.3) is OutOfMemory.NO
    assert kills.judge(FIRST, signal.SIGKILL, 0.3) is OutOfMemory.NO


def test_the_machines_counter_speaks_of_the_first_process_alone(
    counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "surrounding_oom_counter", lambda: None)
    kills = MemoryKills(Group((), None))
    kills.look((MAIN, BIG), FIRST, 0.0)
    counters.rise(counters.machine, 4)
    kills.look((MAIN,), FIRST, 0.2)
    assert kills.judge(FIRST, EXIT_1, 0.3) is OutOfMemory.NO
    assert kills.judge(FIRST, signal.SIGKILL, 0.3) is OutOfMemory.CERTAIN


def test_the_counter_of_its_own_cgroup_is_believed_in_both_directions(counters: Counters) -> None:
    kills = MemoryKills(Group((), counters.own))
    kills.look((MAIN, BIG), FIRST, 0.0)
    counters.rise(counters.container, 4)
    kills.look((MAIN,), FIRST, 0.2)
    assert kills.judge(FIRST, EXIT_1, 0.3) is OutOfMemory.NO, "it was in the same container, and another's"
    counters.rise(counters.own, 1)
    assert kills.has_struck()
    assert kills.judge(FIRST, EXIT_1, 0.3) is OutOfMemory.CERTAIN


def test_the_best_counter_there_is_names_the_level(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "open_group", lambda *_: Group((), counters.own))
    assert find_level("w1") is Level.OWN_CGROUP
    monkeypatch.setattr(cgroups, "open_group", lambda *_: Group((), None))
    assert find_level("w1") is Level.CONTAINER
    monkeypatch.setattr(cgroups, "surrounding_oom_counter", lambda: None)
    assert find_level("w1") is Level.MACHINE
    monkeypatch.setattr(cgroups, "host_oom_kills", lambda: None)
    assert find_level("w1") is Level.WATCH


@pytest.mark.parametrize("file", ["memory.events", "memory.oom_control"])
def test_the_counter_around_us_is_found_in_either_version_of_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    version = "" if file == "memory.events" else "memory"
    monkeypatch.setattr(cgroups, "own_group", lambda controller: tmp_path if controller == version else None)
    assert cgroups.surrounding_oom_counter() is None
    (tmp_path / file).write_text("oom_kill_disable 0\nunder_oom 0\n")
    assert cgroups.surrounding_oom_counter() is None, "a kernel before 4.13 counts nothing"
    (tmp_path / file).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    assert cgroups.surrounding_oom_counter() == tmp_path / file
    assert cgroups.oom_kills(tmp_path / file) == 7
    assert memory_kills.find_level("w1") in (Level.CONTAINER, Level.OWN_CGROUP)
