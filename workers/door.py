"""The door of a fork server whose worker died: a private socket by which another worker of the host takes it over.

It is made when the worker dies and removed when nothing lives behind it. Only this account may open it (0600, and the
peer's user is checked). The first worker that does and says ``keep`` is the keeper; while it is there others are told
that they come late.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROTOCOL = 1
"""Of what is said through the door. A worker that does not know it leaves the trees alone."""
SUFFIX = ".sock"
OPENING = ".new"
GREETING_SECONDS = 5.0


class Door:
    """The listening end."""

    def __init__(self, folder: Path, incarnation: str) -> None:
        self._folder = folder
        self._name = f"{incarnation}{SUFFIX}"
        self._listener: socket.socket | None = None

    @property
    def is_open(self) -> bool:
        return self._listener is not None

    def open(self) -> socket.socket:
        """Listen from now on; returns what gets readable when somebody knocks.

        :raises OSError: the disk is full, or no descriptor is left; try again later.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        former = os.umask(0o177)
        # Found under its name only once it listens: who knocks before that is refused, as at a door nobody is behind.
        unhung = self._folder / f"{self._name}{OPENING}"
        try:
            unhung.unlink(missing_ok=True)  # of an earlier try that failed after it was bound
            with reachable(self._folder, unhung.name) as path:
                listener.bind(path)
            listener.listen(8)
            unhung.replace(self._folder / self._name)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(former)
        self._listener = listener
        return listener

    def accept(self) -> socket.socket | None:
        """Return the next worker that knocks, if it is one of our account."""
        assert self._listener is not None, "opened before"
        try:
            visitor, _ = self._listener.accept()
        except OSError:  # it has gone away again
            return None
        visitor.settimeout(GREETING_SECONDS)
        if _user_of(visitor) != os.geteuid():
            visitor.close()
            return None
        return visitor

    def close(self) -> None:
        """Be no longer found."""
        if self._listener is not None:
            self._listener.close()
            (self._folder / self._name).unlink(missing_ok=True)
            self._listener = None


def knock(folder: Path, incarnation: str) -> socket.socket:
    """Return a connection to the fork server of that incarnation.

    :raises OSError: nobody listens there (any more).
    """
    visitor = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    visitor.settimeout(GREETING_SECONDS)
    try:
        with reachable(folder, f"{incarnation}{SUFFIX}") as path:
            visitor.connect(path)
    except OSError:
        visitor.close()
        raise
    return visitor


@contextmanager
def reachable(folder: Path, name: str) -> Iterator[str]:
    """Yield a path of the socket that is never too long: the kernel takes 107 bytes, and ``DATA_DIR`` may lie deep."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def doors(folder: Path) -> list[str]:
    """Return the incarnations that have a door here, open or not."""
    with suppress(OSError):
        return sorted(file.stem for file in folder.glob(f"*{SUFFIX}"))
    return []


def _user_of(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
