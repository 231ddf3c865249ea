"""One cgroup per attempt, where this process may make them: ceilings, and a kill that nothing outruns.

Works with v2, v1, and both side by side. Where groups can't be made (most containers, most ordinary users), the
supervisor watches the tree's memory and number itself and kills what it finds in ``/proc``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Group:
    """The cgroups of one attempt: one in v2, more for memory and processes where these are still v1."""

    folders: tuple[Path, ...]
    oom_counter: Path | None
    """File that counts the kernel's kills for memory; ``None`` when no ceiling is kept here."""
    fork_counter: Path | None = None
    """File that counts the forks that the kernel refused; ``None`` when it limits none."""

    def enter(self) -> None:
        """Move the calling process, and so all it will start, into the group."""
        for folder in self.folders:
            with suppress(OSError):  # the ceiling is then watched, and the tree found in /proc
                (folder / "cgroup.procs").write_text(str(os.getpid()))

    def oom_kills(self) -> int:
        """Return how many processes of the group the kernel killed for memory."""
        return oom_kills(self.oom_counter) if self.oom_counter else 0

    def refused_forks(self) -> int:
        """Return how often the kernel refused the group another process or thread."""
        return _counter(self.fork_counter, "max") if self.fork_counter else 0

    def kill(self) -> None:
        """Kill all members at once, so that a chain of forks can't run ahead (kernel 5.14, v2)."""
        for folder in self.folders:
            if (folder / "cgroup.kill").exists():
                with suppress(OSError):
                    (folder / "cgroup.kill").write_text("1")

    def has_members(self) -> bool:
        """Say whether anything lives in it; exact, unlike a walk through ``/proc``, which a chain of forks outruns."""
        return any(_counter(folder / "cgroup.events", "populated") for folder in self.folders)

    def remove(self) -> None:
        """Remove the group, which must be empty."""
        for folder in self.folders:
            _discard(folder)


def open_group(name: str, memory: int, processes: int = 0) -> Group:
    """Make what groups can be made.

    :param memory: ceiling in bytes; 0: none.
    :param processes: how many processes and threads there may be; 0: any number.
    """
    folders: list[Path] = []
    counter: Path | None = None
    unified = _make(own_group(""), name)
    if unified is not None:
        folders.append(unified)
        if memory and _limit(unified / "memory.max", memory):
            counter = unified / "memory.events"
    if memory and counter is None and (group := _make(own_group("memory"), name)) is not None:
        if _limit(group / "memory.limit_in_bytes", memory):
            folders.append(group)
            counter = group / "memory.oom_control"
        else:
            _discard(group)
    if counter is not None:
        for swap, value in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", memory)):
            _limit(counter.parent / swap, value)
    refusals = _limit_forks(folders, name, processes) if processes else None
    return Group(tuple(folders), counter, refusals)


def _limit_forks(folders: list[Path], name: str, processes: int) -> Path | None:
    for folder in folders:
        if _limit(folder / "pids.max", processes):
            return folder / "pids.events"
    if (group := _make(own_group("pids"), name)) is not None:
        if _limit(group / "pids.max", processes):
            folders.append(group)
            return group / "pids.events"
        _discard(group)
    return None


def find_group(name: str) -> Group:
    """Return the group that an attempt was given, to clear up after a supervisor that died."""
    parents = [parent for parent in map(own_group, ("", "memory", "pids")) if parent is not None]
    return Group(tuple(folder for parent in parents if (folder := parent / f"orchestrator-{name}").is_dir()), None)


def surrounding_oom_counter() -> Path | None:
    """Return the file that counts the kernel's kills for memory in the cgroup we live in (that of our container).

    ``None`` at the root of v2, which has none, and before kernel 4.13. One of v2 counts the groups below it, too.
    """
    for controller, file in (("", "memory.events"), ("memory", "memory.oom_control")):
        group = own_group(controller)
        if group is not None and _find_count(group / file, "oom_kill") is not None:
            return group / file
    return None


def oom_kills(counter: Path) -> int:
    """Return how many processes the kernel has killed for memory, by this file."""
    return _counter(counter, "oom_kill")


def host_oom_kills() -> int | None:
    """Return how often the kernel's OOM killer struck on this machine since boot; ``None`` when it does not count."""
    return _find_count(Path("/proc/vmstat"), "oom_kill")


def own_group(controller: str) -> Path | None:
    """Return the folder of this process's cgroup: of the v1 ``controller``, or of v2 for an empty name."""
    mounted = _mounted(controller)
    if mounted is None:
        return None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inside = mounted / path.lstrip("/")
            # In a container the path may be the host's, while the mount shows our own group as its root.
            return inside if inside.is_dir() else mounted
    return None


def _mounted(controller: str) -> Path | None:
    if controller:
        return MOUNT / controller if (MOUNT / controller).is_dir() else None
    places = (MOUNT, MOUNT / "unified")  # the second where v1 and v2 are side by side
    return next((place for place in places if (place / "cgroup.controllers").exists()), None)


def _make(parent: Path | None, name: str) -> Path | None:
    if parent is None:
        return None
    folder = parent / f"orchestrator-{name}"
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder


def _limit(file: Path, value: int) -> bool:
    """Write a limit; returns whether it holds (the controller may not be there for us)."""
    try:
        if not file.exists():
            return False
        file.write_text(str(value))
    except OSError:
        return False
    return True


def _discard(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _counter(file: Path, name: str) -> int:
    return _find_count(file, name) or 0


def _find_count(file: Path, name: str) -> int | None:
    try:
        words = file.read_text().split()
    except OSError:
        return None
    return int(words[words.index(name) + 1]) if name in words else None
