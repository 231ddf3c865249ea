"""Who this host and this worker are: kept host id, boot id, a new incarnation per start, and proof that it lives.

A worker and all its processes hold the lock of ``workers/<incarnation>.lock``. The kernel lets go of it when the last
of them has ended, so whoever can take the lock knows that nothing of that incarnation is left to report by itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from orchestrator.config import Settings
from orchestrator.errors import ConfigurationError
from workers import door

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_ID = Path("/etc/machine-id")


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
    root = settings.data_dir.absolute()
    # Hosts that share one DATA_DIR but have ids of their own must not meet each other's locks and spool.
    folders = HostFolders(root / f"host-{quote(settings.host_id, safe='')}" if settings.host_id else root)
    try:
        for folder in (folders.spool, folders.attempts, folders.locks):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"DATA_DIR is {folders.root}, which this worker can't write ({error.strerror}); set it to a folder it owns."
        ) from error
    return folders


def read_host_id(settings: Settings, folders: HostFolders) -> str:
    """Return ``HOST_ID``, or the id that was made once for this host's ``DATA_DIR``.

    :raises ConfigurationError: it was made for another host: both would report, and kill, each other's work.
    """
    if settings.host_id:
        return settings.host_id
    _require_same_machine(folders)
    return _keep(folders.root / "host-id", str(uuid.uuid4()))


def _require_same_machine(folders: HostFolders) -> None:
    machine, file = read_machine(), folders.root / "host-machine.json"
    ours = json.dumps(asdict(machine))
    kept = _keep(file, ours)
    try:
        known = Machine(**json.loads(kept))
    except (ValueError, TypeError):
        known = Machine("", "unknown", "")
    if not machine.may_be(known):
        raise ConfigurationError(
            f"DATA_DIR is {folders.root}, which is that of host {known.hostname!r}, and this is {machine.hostname!r}. "
            "Set DATA_DIR to a folder of this host alone, or give each host a HOST_ID of its own. If it is the same "
            f"host under a new name, remove {file}."
        )
    if machine != known:  # it was rebooted, or renamed since
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(ours)
        temporary.rename(file)


def _keep(file: Path, text: str) -> str:
    """Write the file unless there is one; return what it holds: of two workers that start at once, one makes it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text)
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return file.read_text().strip()


@dataclass(frozen=True, slots=True)
class Machine:
    """What tells one machine from another: containers may lack the first, clones share it, reboots change the last."""

    machine: str
    hostname: str
    boot_id: str

    def may_be(self, other: Machine) -> bool:
        """Say whether both may be one machine: the same boot, or the same machine and name after another one."""
        return self.boot_id == other.boot_id or (self.machine, self.hostname) == (other.machine, other.hostname)


def read_machine() -> Machine:
    """Return the identity of the machine we run on; its machine id is confidential, so a hash of it."""
    try:
        machine_id = MACHINE_ID.read_text().strip()
    except OSError:
        machine_id = ""
    digest = hashlib.sha256(f"pipeline-orchestrator|{machine_id}".encode()).hexdigest() if machine_id else ""
    return Machine(digest, socket.gethostname(), read_boot_id())


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
        yield lambda: _forget(folders, incarnation)
    except BlockingIOError:
        yield None
    finally:
        os.close(fd)


def _forget(folders: HostFolders, incarnation: str) -> None:
    (folders.locks / f"{incarnation}{door.SUFFIX}").unlink(missing_ok=True)  # of a fork server that was killed
    _lock_file(folders, incarnation).unlink(missing_ok=True)


def _lock_file(folders: HostFolders, incarnation: str) -> Path:
    return folders.locks / f"{incarnation}.lock"
