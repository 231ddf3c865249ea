"""The supervisor: what ends is started again, what belongs to it ends with it, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.local.child import ProcessSpec
from orchestrator.local.supervisor import StartFailed, Supervisor

pytestmark = pytest.mark.timeout(60)


class Listener:
    """Keeps what the supervisor says."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.sentences: list[str] = []

    def line(self, name: str, line: str) -> None:
        self.lines.append((name, line))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def supervisor(tmp_path: Path, listener: Listener) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path, emit=listener.line, announce=listener.sentences.append)
    yield supervisor
    supervisor.stop(impatient=lambda: True)


def shell(name: str, script: str, folder: Path, *, stop_seconds: float = 5.0) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        command=("/bin/sh", "-c", script),
        folder=folder,
        environment={"PATH": os.environ["PATH"]},
        stop_seconds=stop_seconds,
    )


def run_until(supervisor: Supervisor, condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    supervisor.run_until(lambda: condition() or time.monotonic() > deadline, pause=0.01)
    return condition()


def test_lines_of_the_children_come_with_their_names_and_stay_in_the_log(
    tmp_path: Path, supervisor: Supervisor, listener: Listener
) -> None:
    supervisor.start(shell("one", "echo first; echo second >&2; sleep 60", tmp_path), rank=0)
    assert run_until(supervisor, lambda: len(listener.lines) == 2)
    assert listener.lines == [("one", "first"), ("one", "second")]
    assert supervisor.log("one").read_text() == "first\nsecond\n"


def test_a_stop_that_takes_long_says_what_it_waits_for(
    tmp_path: Path, supervisor: Supervisor, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.local.supervisor.SLOW_SECONDS", 0.2)
    supervisor.start(
        shell("slow", "trap 'sleep 0.5; exit 0' TERM; echo up; while :; do sleep 0.05; done", tmp_path), rank=0
    )
    assert run_until(supervisor, lambda: len(listener.lines) == 1)
    supervisor.stop()
    assert listener.sentences == ["Waiting for slow to end; running tasks have their grace to stop."]


def test_a_process_that_is_killed_starts_again_and_the_supervisor_says_so(
    tmp_path: Path, supervisor: Supervisor, listener: Listener
) -> None:
    supervisor.start(shell("one", "echo $$; exec sleep 60", tmp_path), rank=0)
    supervisor.all_started()
    assert run_until(supervisor, lambda: len(listener.lines) == 1)
    os.kill(int(listener.lines[0][1]), signal.SIGKILL)
    assert run_until(supervisor, lambda: len(listener.lines) == 2)
    assert listener.lines[0] != listener.lines[1]
    assert listener.sentences == ["one was killed by SIGKILL; it starts again in 1 s."]


def test_a_process_that_does_not_stay_up_during_the_start_is_given_up_with_its_last_words(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    supervisor.start(shell("one", "echo no such setting; exit 3", tmp_path), rank=0)
    with pytest.raises(StartFailed, match=r"one ended with status 3 and does not stay up(.|\n)*no such setting"):
        run_until(supervisor, lambda: False)


def test_a_command_that_does_not_exist_is_named(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(ProcessSpec(name="one", command=("/no/such/program",), folder=tmp_path), rank=0)
    with pytest.raises(StartFailed, match="/no/such/program can't be run"):
        run_until(supervisor, lambda: False)


def test_processes_are_stopped_by_rank_highest_first(
    tmp_path: Path, supervisor: Supervisor, listener: Listener
) -> None:
    script = "trap 'echo {0} >> order; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    for rank, name in enumerate(("store", "scheduler", "api")):
        supervisor.start(shell(name, script.format(name), tmp_path), rank=rank)
    assert run_until(supervisor, lambda: len(listener.lines) == 3)
    supervisor.stop()
    assert (tmp_path / "order").read_text().split() == ["api", "scheduler", "store"]


def test_a_process_that_ignores_its_stop_signal_is_killed_with_all_its_group(
    tmp_path: Path, supervisor: Supervisor, listener: Listener
) -> None:
    script = "trap '' TERM; sleep 60 & echo $!; echo $$; while :; do sleep 60; done"
    supervisor.start(shell("one", script, tmp_path, stop_seconds=0.2), rank=0)
    assert run_until(supervisor, lambda: len(listener.lines) == 2)
    pids = [int(line) for _, line in listener.lines]
    supervisor.stop()
    assert all(has_ended(pid) for pid in pids)


def test_a_process_of_somebody_else_is_left_alone(tmp_path: Path, supervisor: Supervisor) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as stranger:
        started = psutil.Process(stranger.pid).create_time()
        record = supervisor.record("one")
        record.parent.mkdir()
        record.write_text(f'{{"pid": {stranger.pid}, "started": {started - 100}, "stop_signal": 9, "name": "one"}}')
        supervisor.start(shell("one", "sleep 60", tmp_path), rank=0)
        supervisor.stop()
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.timeout(120)
def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from orchestrator.local.child import ProcessSpec\n"
        "from orchestrator.local.supervisor import Supervisor\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "supervisor = Supervisor(folder, emit=lambda name, line: print(line, flush=True), announce=print)\n"
        "spec = ProcessSpec(name='one', command=('/bin/sh', '-c', 'echo $$; exec sleep 60'), folder=folder)\n"
        "supervisor.start(spec, rank=0)\n"
        "supervisor.run_until(lambda: False)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as supervising:
        assert supervising.stdout is not None
        pid = int(supervising.stdout.readline())
        supervising.kill()
    deadline = time.monotonic() + 30
    while not has_ended(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert has_ended(pid)


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
