"""Who this host and this worker are: kept host id, boot id, a new incarnation per start, and proof that it lives.

A worker and all its processes hold the lock of ``workers/<incarnation>.lock``. The kernel lets go of it when the last
of them has ended, so whoever can take the lock knows that nothing of that incarnation is left to report by itself.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config import Settings
from orchestrator.errors import ConfigurationError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class HostFolders:
    """The folders of ``DATA_DIR`` that the workers of a host share."""

    root: Path

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def locks(self) -> Path:
        return self.root / "workers"


def open_folders(settings: Settings) -> HostFolders:
    """Make the host's folders.

    :raises ConfigurationError: ``DATA_DIR`` can't be written.
    """
    folders = HostFolders(settings.data_dir.absolute())
    try:
        for folder in (folders.spool, folders.attempts, folders.locks):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"DATA_DIR is {folders.root}, which this worker can't write ({error.strerror}); set it to a folder it owns."
        ) from error
    return folders


def read_host_id(settings: Settings, folders: HostFolders) -> str:
    """Return ``HOST_ID``, or the id that was made once for this host's ``DATA_DIR``."""
    if settings.host_id:
        return settings.host_id
    file = folders.root / "host-id"
    temporary = folders.root / f".host-id.{os.getpid()}"
    temporary.write_text(str(uuid.uuid4()))
    try:
        os.link(temporary, file)  # of two workers that start at once, one makes the id
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return file.read_text().strip()


def read_boot_id() -> str:
    """Return what changes with every boot of the host."""
    return BOOT_ID.read_text().strip()


class IncarnationLock:
    """The lock of one incarnation; held until :meth:`release` and the end of every process that inherited it."""

    def __init__(self, folders: HostFolders, incarnation: str) -> None:
        self.path = _lock_file(folders, incarnation)
        # It gets its name only once it is locked, or another worker could take us for dead in between.
        temporary = self.path.with_suffix(".new")
        self.fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.rename(self.path)

    def release(self) -> None:
        """Give the lock up for this process."""
        os.close(self.fd)


def has_ended(folders: HostFolders, incarnation: str) -> bool:
    """Say whether no process of this incarnation lives (supervisors of its attempts included)."""
    try:
        fd = os.open(_lock_file(folders, incarnation), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def incarnations(folders: HostFolders) -> list[str]:
    """Return the incarnations that have a lock file, living or not."""
    return sorted(file.stem for file in folders.locks.glob("*.lock"))


@contextmanager
def inherit(folders: HostFolders, incarnation: str) -> Iterator[Callable[[], None] | None]:
    """Take the place of an ended incarnation, so that of several workers one alone clears up after it.

    Yields ``None`` when it lives or another worker is at it, else a function that forgets it for good.
    """
    file = _lock_file(folders, incarnation)
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lambda: file.unlink(missing_ok=True)
    except BlockingIOError:
        yield None
    finally:
        os.close(fd)


def _lock_file(folders: HostFolders, incarnation: str) -> Path:
    return folders.locks / f"{incarnation}.lock"
