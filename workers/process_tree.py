"""Looks at process trees through ``/proc`` alone: who descends from whom, what they use, and how to end them.

Used in the lean processes, so it imports nothing heavy. Linux only, as the whole worker is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, slots=True)
class Proc:
    """One line of ``/proc/<pid>/stat``."""

    pid: int
    parent: int
    session: int
    state: str
    started: int
    """Clock ticks after boot; with the pid it names a process for ever (until the next boot)."""
    cpu_seconds: float
    """Its own and that of its reaped children."""
    rss: int

    @property
    def is_alive(self) -> bool:
        return self.state not in "ZX"


def read_proc(pid: int) -> Proc | None:
    """Return the process, or ``None`` when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except _GONE:
        return None
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split()
    return Proc(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        state=fields[0].decode(),
        started=int(fields[19]),
        cpu_seconds=sum(map(int, fields[11:15])) / TICKS,
        rss=int(fields[21]) * PAGE,
    )


def all_processes() -> Iterator[Proc]:
    """Yield every process that can be read."""
    for entry in os.listdir("/proc"):  # noqa: PTH208 (a Path per process would cost more than the reading)
        if entry.isdigit() and (found := read_proc(int(entry))) is not None:
            yield found


def descendants(root: int) -> list[Proc]:
    """Return all descendants of ``root``, zombies among them, nearest first.

    Complete only when ``root`` is a subreaper: then whoever daemonises becomes its child instead of init's.
    """
    children: dict[int, list[Proc]] = {}
    for process in all_processes():
        children.setdefault(process.parent, []).append(process)
    found: list[Proc] = []
    layer = children.get(root, [])
    while layer:
        found += layer
        layer = [child for process in layer for child in children.get(process.pid, [])]
    return found


def is_same(pid: int, started: int) -> bool:
    """Say whether the process that had this pid and start time still lives."""
    process = read_proc(pid)
    return process is not None and process.is_alive and process.started == started


def send(processes: Iterable[Proc], what: signal.Signals) -> int:
    """Send a signal to every living process; returns how many there were."""
    count = 0
    for process in processes:
        if process.is_alive:
            count += 1
            with suppress(*_GONE):
                os.kill(process.pid, what)
    return count


def proportional_memory(processes: Iterable[Proc]) -> int:
    """Return the bytes that these processes hold, pages shared between them counted once (PSS).

    The sum of RSS counts the pages of forked processes several times: 648 MB instead of 321 MB was measured. Where
    the kernel does not tell PSS, RSS it is.
    """
    return sum(_pss(process) for process in processes if process.is_alive)


def _pss(process: Proc) -> int:
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return process.rss
