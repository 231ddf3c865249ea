"""A memory cgroup around one worker of a site, as a container has one: the kernel kills inside it, and only there."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from workers.cgroups import MOUNT, own_group


def _parent() -> Path | None:
    """Return where a group with a memory ceiling may be made: v1, or the root of v2 if it hands memory down."""
    if (old := own_group("memory")) is not None:
        return old
    handed_down = MOUNT / "cgroup.subtree_control"
    return MOUNT if handed_down.exists() and "memory" in handed_down.read_text().split() else None


@cache
def why_no_memory_group() -> str:
    """Say why no memory cgroup can be made here; "" when one can."""
    if os.geteuid() != 0:
        return "memory cgroups need root"
    try:
        with MemoryGroup(2**30):
            return ""
    except OSError as error:
        return f"no memory cgroup can be made here: {error}"


class MemoryGroup:
    """Usable as a context manager; what is in it moves back to where we are.

    :param ceiling: bytes that all in it may hold together.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling

    def __enter__(self) -> Self:
        parent = _parent()
        if parent is None:
            raise FileNotFoundError(f"{MOUNT} offers no memory controller")
        self._outside = parent
        self._folder = parent / f"chaos-{os.getpid()}"
        self._folder.mkdir()
        try:
            name = "memory.max" if (self._folder / "memory.max").exists() else "memory.limit_in_bytes"
            (self._folder / name).write_text(str(self._ceiling))
            for swap, value in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", self._ceiling)):
                with suppress(OSError):  # without swap there is nothing to limit
                    (self._folder / swap).write_text(str(value))
        except OSError:
            self._folder.rmdir()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + 10.0
        while True:
            for pid in (self._folder / "cgroup.procs").read_text().split():
                with suppress(OSError):  # it has ended
                    (self._outside / "cgroup.procs").write_text(pid)
            try:
                self._folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def take_in(self, *pids: int) -> None:
        """Move these processes into the group; what they start from now on is in it too."""
        for pid in pids:
            (self._folder / "cgroup.procs").write_text(str(pid))
