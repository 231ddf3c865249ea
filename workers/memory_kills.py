"""Tells whether the kernel killed something of one tree for memory: by its counters, and by who is gone when they rise.

A process that the operator started and waits for is reaped by the operator, which then fails as it likes; so the end of
the tree's first process alone says too little.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from enum import StrEnum

from workers import cgroups
from workers.process_tree import Proc
from workers.verdict import OutOfMemory

DYING_SECONDS = 2.0
"""A process that was killed may be seen alive for so long: it gives its memory back first."""
LATEST_SECONDS = 30.0
"""How long before the end the counter may have risen: hundreds of GiB take their time, a later kill was no such one."""
COPING_SECONDS = 60.0
"""Who fails so long after a process of it was killed has coped with that, unless it says otherwise."""
_PROBE_BYTES = 2**30


class Level(StrEnum):
    """By what a host's supervisors see that the kernel kills for memory; the best that there is."""

    OWN_CGROUP = "own_cgroup"
    """Each attempt has a cgroup with a ceiling, and so a counter of its own."""
    CONTAINER = "container_counter"
    """The cgroup in which the worker lives counts the kills of all in it."""
    MACHINE = "machine_counter"
    """The machine counts all kills, those of strangers too."""
    WATCH = "watch_only"
    """Nobody counts: only what the supervisors stop themselves is told apart."""


def find_level(incarnation: str) -> Level:
    """Find out what there is on this host, by making a cgroup as an attempt of this incarnation would."""
    group = cgroups.open_group(f"probe-{incarnation}", _PROBE_BYTES)
    group.remove()
    if group.oom_counter is not None:
        return Level.OWN_CGROUP
    if cgroups.surrounding_oom_counter() is not None:
        return Level.CONTAINER
    return Level.WATCH if cgroups.host_oom_kills() is None else Level.MACHINE


class MemoryKills:
    """What the kernel has killed for memory since an attempt started, as far as it concerns the attempt.

    :param group: the cgroups of the attempt; their own counter is exact.
    """

    def __init__(self, group: cgroups.Group) -> None:
        self._group = group
        self._counter = cgroups.surrounding_oom_counter()
        self._counted = self._at_start = self._count()
        self._largest: Proc | None = None
        self._suspects: dict[tuple[int, int], float] = {}
        self._risen_at = self._ours_at = -float("inf")

    def has_struck(self) -> bool:
        """Say whether a process of the attempt's own cgroup was killed."""
        return self._group.oom_kills() > 0

    def look(self, tree: Sequence[Proc], first: int, now: float) -> None:
        """Compare the living tree with the last look: the kernel takes the largest.

        :param first: pid of the tree's first process, whose end its status tells.
        """
        living = {(process.pid, process.started) for process in tree}
        largest = max(tree, key=lambda process: process.rss, default=None)
        if self._has_risen(now):
            for suspect in (self._largest, largest):
                if suspect is not None and suspect.pid != first:
                    self._suspects[suspect.pid, suspect.started] = now + DYING_SECONDS
                if suspect is not None and (suspect.pid, suspect.started) not in living:
                    break  # it was this one; whoever is the largest now may live on
        self._largest = largest
        if self._suspects.keys() - living:
            self._ours_at = now
        self._suspects = {one: until for one, until in self._suspects.items() if one in living and now < until}

    def saw_end(self, status: int, now: float) -> None:
        """Note the end of a process that had daemonised, which nobody of us has killed."""
        if _is_killed(status) and self._has_risen(now, LATEST_SECONDS):
            self._ours_at = now

    def judge(self, first: int, status: int, now: float) -> OutOfMemory:
        """Say how surely the attempt was out of memory, of which nothing lives any more.

        :param status: of its first process, as ``waitpid`` gives it.
        """
        if self.has_struck():
            return OutOfMemory.CERTAIN
        if _is_killed(status):
            return OutOfMemory.CERTAIN if self._has_risen(now, LATEST_SECONDS) else OutOfMemory.NO
        if self._counter is None or self._group.oom_counter is not None:
            return OutOfMemory.NO  # the machine's counter is full of strangers, and our own has not risen
        self.look((), first, now)
        if now - self._ours_at < COPING_SECONDS:
            return OutOfMemory.LIKELY
        return OutOfMemory.POSSIBLE if self._counted > self._at_start else OutOfMemory.NO

    def _has_risen(self, now: float, within: float = 0.0) -> bool:
        """Say whether the counter has risen since we last asked, or in so many seconds before."""
        if (count := self._count()) > self._counted:
            self._counted, self._risen_at = count, now
        return now - self._risen_at <= within

    def _count(self) -> int:
        return (cgroups.oom_kills(self._counter) if self._counter else cgroups.host_oom_kills()) or 0


def _is_killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
