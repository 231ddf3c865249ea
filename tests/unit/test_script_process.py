"""What surrounds a script: where its temporary files go, and whose kills for memory count."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from operators.scripts import process
from orchestrator.operator import TaskContext

SOCKET = "pymp-12345678/listener-12345678"
"""What ``multiprocessing`` makes below ``TMPDIR``."""


def context_in(workdir: Path) -> TaskContext:
    """Return as much of a context as the environment of a script is made from."""
    words = dict.fromkeys(("registry_url", "pipeline", "run_id", "task", "tenant_id", "attempt_id", "fence"), "")
    made: Any = SimpleNamespace(**words, workdir=workdir, attempt_number=1, cpu=1.0, memory_bytes=1)
    return cast("TaskContext", made)


def test_a_script_binds_sockets_in_its_temporary_folder_however_deep_that_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / ("deep" * 20) / "work"
    scratch = workdir / "tmp"
    scratch.mkdir(parents=True)
    kept = os.open(scratch, os.O_PATH | os.O_DIRECTORY)
    try:
        monkeypatch.setenv("TMPDIR", f"/proc/{os.getpid()}/fd/{kept}")  # as the worker names it
        found = Path(process.environment(context_in(workdir), {}, {})["TMPDIR"])
        assert found.samefile(scratch)
        (found / SOCKET).parent.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(found / SOCKET))
    finally:
        os.close(kept)


@pytest.mark.parametrize("given", ["/tmp", "/nowhere/at/all", ""])
def test_temporary_files_of_a_script_go_with_its_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("TMPDIR", given)
    assert process.environment(context_in(tmp_path), {}, {})["TMPDIR"] == str(tmp_path / "tmp")


class Counters:
    """What the kernel shows of one process: its cgroups, and the counter of the machine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mount, self._own, self._machine = folder / "cgroup", folder / "own", folder / "vmstat"
        self._machine.write_text("pgfault 7\noom_kill 40\n")
        self.mount.mkdir()
        self.is_in("0::/")
        monkeypatch.setattr(process, "_CGROUPS", self.mount)
        monkeypatch.setattr(process, "_OWN_CGROUPS", self._own)
        monkeypatch.setattr(process, "_MACHINE", self._machine)

    def is_in(self, *lines: str) -> None:
        self._own.write_text("\n".join(lines))

    def counted(self, file: str, kills: int) -> None:
        path = self.mount / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"low 0\noom 9\noom_kill {kills}\n")


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counters:
    return Counters(tmp_path, monkeypatch)


def test_the_machine_counts_where_no_cgroup_does(counters: Counters) -> None:
    assert process.memory_kills() == 40


def test_in_a_container_only_its_own_kills_count(counters: Counters) -> None:
    counters.counted("memory.events", 2)
    assert process.memory_kills() == 2


def test_the_cgroup_of_the_attempt_counts_before_all_others(counters: Counters) -> None:
    counters.is_in("0::/site/attempt")
    counters.counted("site/attempt/memory.events", 1)
    counters.counted("memory.events", 5)
    assert process.memory_kills() == 1


def test_in_a_container_that_shows_the_paths_of_its_host_its_root_is_its_own_group(counters: Counters) -> None:
    counters.is_in("0::/kubepods/pod/container")
    counters.counted("memory.events", 3)
    assert process.memory_kills() == 3


@pytest.mark.parametrize("lines", [("12:memory:/a", "0::/"), ("4:cpu,memory:/a",)])
def test_the_older_cgroups_count_as_well(counters: Counters, lines: tuple[str, ...]) -> None:
    counters.is_in(*lines)
    counters.counted("memory/a/memory.oom_control", 6)
    assert process.memory_kills() == 6


def test_without_any_counter_nothing_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CGROUPS", "_OWN_CGROUPS", "_MACHINE"):
        monkeypatch.setattr(process, name, tmp_path / "absent", raising=False)
    assert process.memory_kills() == 0
