"""Finds the processes of a site: a worker's fork server, supervisors and runners, and whatever of a task still lives.

The fork server hands its environment to all that is forked from it, and HOME is the site's folder there: so a process
of a site is known by it for as long as it lives, whatever it does to its parents, its session or its folder.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.processes import send
from workers.process_tree import Proc, all_processes, is_same, read_proc

_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """The process ids of one worker; the main one is the Celery worker itself."""

    main: int
    fork_server: int | None
    supervisors: tuple[int, ...]
    runners: tuple[int, ...]
    """The tasks' own processes, those that daemonised among them."""


def worker_parts(main: int, host_folder: Path) -> WorkerParts:
    """Look at the worker whose main process is ``main``.

    :param host_folder: its ``DATA_DIR/host-…``, where supervisors note themselves in their attempts' folders.
    """
    processes = [process for process in all_processes() if process.is_alive]
    forks = [process.pid for process in processes if process.parent == main and is_fork_server(process.pid)]
    supervisors = {process.pid for process in processes if process.parent in forks}
    noted = _noted_supervisors(host_folder)
    supervisors |= noted
    runners = _below({process.pid: process for process in processes}, supervisors)
    return WorkerParts(main, forks[0] if forks else None, tuple(sorted(supervisors)), tuple(sorted(runners)))


def is_fork_server(pid: int) -> bool:
    """Say whether this is a fork server, or a process forked from one."""
    try:
        return b"workers.fork_server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except _GONE:
        return False


def site_processes(folder: Path) -> list[Proc]:
    """Return every living process that belongs to the site on ``folder`` by its environment or its working folder."""
    mine = f"HOME={folder}".encode()
    found = []
    for process in all_processes():
        if process.pid == os.getpid() or not process.is_alive:
            continue
        try:
            belongs = mine in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            belongs = belongs or Path(f"/proc/{process.pid}/cwd").readlink().is_relative_to(folder)
        except _GONE:
            continue
        if belongs:
            found.append(process)
    return found


def survivors(folder: Path, mains: Iterable[int]) -> list[Proc]:
    """Return the site's processes that are no part of a living service: what is left of tasks, or runs as one.

    :param mains: ids of the supervised processes.
    """
    services = set(mains)
    here = site_processes(folder)
    # The children of a service are its own: gunicorn's workers, Celery's fork servers. Tasks are grandchildren.
    return [process for process in here if process.pid not in services and process.parent not in services]


def end_tasks(here: Iterable[Proc], *, all_of_them: bool) -> None:
    """Kill what tasks run, and let what looks after them go on to its own end.

    :param here: the site's processes.
    :param all_of_them: kill those too.
    """
    by_pid = {one.pid: one for one in here}
    for process in by_pid.values():
        supervisor = by_pid.get(process.parent)
        runs_a_task = supervisor is not None and is_fork_server(supervisor.pid) and supervisor.parent in by_pid
        if all_of_them or runs_a_task or not is_fork_server(process.pid):
            send(process.pid, signal.SIGKILL)
        elif process.state == "T":
            send(process.pid, signal.SIGCONT)


def describe(processes: Iterable[Proc]) -> list[str]:
    """Return a line for each, for a failure's message."""
    lines = []
    for process in processes:
        try:
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            folder = Path(f"/proc/{process.pid}/cwd").readlink()
        except _GONE:
            continue
        lines.append(
            f"pid {process.pid}, parent {process.parent}, {process.state}, {command.strip()[:120]} in {folder}"
        )
    return lines


def wait_dead(pid: int, seconds: float = 10.0) -> float:
    """Wait until a process lives no more (a zombie is dead); returns the seconds it took."""
    began = time.monotonic()
    seen = read_proc(pid)
    while seen is not None and is_same(pid, seen.started):
        if time.monotonic() - began > seconds:
            raise AssertionError(f"process {pid} still lives after {seconds:.0f} s: {describe([seen])}")
        time.sleep(0.01)
    return time.monotonic() - began


@dataclass(frozen=True, slots=True)
class Use:
    """What one process holds."""

    rss: int
    """Bytes."""
    descriptors: int
    threads: int


def use_of(pid: int) -> Use | None:
    """Measure one process."""
    process = read_proc(pid)
    try:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only counted
        threads = len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208
    except _GONE:
        return None
    return Use(process.rss, descriptors, threads) if process is not None else None


def _noted_supervisors(host_folder: Path) -> set[int]:
    found = set()
    for file in host_folder.glob("attempts/*/state.json"):
        try:
            state = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if "pid" in state and is_same(state["pid"], state["started"]):
            found.add(int(state["pid"]))
    return found


def _below(processes: dict[int, Proc], roots: set[int]) -> set[int]:
    """Return all descendants of ``roots`` among these."""
    found: set[int] = set()
    layer = set(roots)
    while layer:
        layer = {process.pid for process in processes.values() if process.parent in layer} - found - roots
        found |= layer
    return found
