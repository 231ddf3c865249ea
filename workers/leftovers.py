"""What an ended incarnation may have left on this host: processes to kill, attempts to report, folders to clear.

Normally nothing: the death of a worker kills its trees, and their supervisors write the outcomes. But the kernel may
have killed all of them at once, and what had daemonised then belongs to init. It is found by what it inherited (the
incarnation's name in its environment) or by where it works (an attempt's folder).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.logs import get_logger
from orchestrator.records import Outcome
from orchestrator.states import AttemptState
from workers import cgroups, identity
from workers.attempt_folder import AttemptFolder, is_safe_id
from workers.identity import HostFolders
from workers.process_tree import Proc, all_processes, send
from workers.spool import Spool

log = get_logger(__name__)

KILL_SECONDS = 10.0
ANSWERED = "answered"
"""Name of the file that says that the attempt's outcome was answered, so that only its log is left to be sent."""


def settle_ended(folders: HostFolders, spool: Spool) -> Iterator[AttemptFolder]:
    """Kill and report what ended incarnations left; yield their attempts' folders, of which nothing lives.

    One whose processes can't be killed (they hang in the kernel) is left for the next time.
    """
    for incarnation in identity.incarnations(folders):
        with identity.inherit(folders, incarnation) as forget:
            if forget is None:
                continue
            attempts = list(attempts_of(folders, incarnation))
            if not _kill(incarnation, {folder.path for folder in attempts}):
                log.error("leftovers_live", incarnation=incarnation)
                continue
            for folder in attempts:
                report_lost(spool, folder)
                yield folder
            forget()


def abandoned(folders: HostFolders) -> Iterator[AttemptFolder]:
    """Yield folders of incarnations that are settled, whose logs nobody has shipped to the end."""
    known = set(identity.incarnations(folders))
    for path in sorted(folders.attempts.iterdir()):
        if is_safe_id(path.name):
            folder = AttemptFolder(folders.attempts, path.name)
            if folder.read("state").get("incarnation") not in known:
                yield folder


def attempts_of(folders: HostFolders, incarnation: str) -> Iterator[AttemptFolder]:
    """Yield the folders of an incarnation's attempts."""
    for path in sorted(folders.attempts.iterdir()):
        if is_safe_id(path.name):
            folder = AttemptFolder(folders.attempts, path.name)
            if folder.read("state").get("incarnation") == incarnation:
                yield folder


def report_lost(spool: Spool, folder: AttemptFolder) -> None:
    """Spool ``lost`` for an attempt that left no outcome."""
    state = folder.read("state")
    cgroups.find_group(folder.attempt_id).remove()
    if folder.read(ANSWERED):
        return
    outcome = Outcome(
        AttemptState.LOST, "worker_lost", "Its worker and its supervisor died together.", infrastructure=True
    )
    folder.remove_work()
    spool.write(folder.attempt_id, state["token"], state["incarnation"], outcome)


def _kill(incarnation: str, attempts: set[Path]) -> bool:
    """Kill the incarnation's processes; returns whether none lives any more."""
    deadline = time.monotonic() + KILL_SECONDS
    groups = [cgroups.find_group(path.name) for path in attempts]
    for group in groups:
        group.kill()
    while any(group.has_members() for group in groups) and time.monotonic() < deadline:
        time.sleep(0.02)
    while found := [process for process in all_processes() if _belongs(process, incarnation, attempts)]:
        log.warning("killing_leftovers", incarnation=incarnation, pids=[process.pid for process in found])
        send(found, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _belongs(process: Proc, incarnation: str, attempts: set[Path]) -> bool:
    if not process.is_alive or process.pid == os.getpid():
        return False
    try:
        if f"ORCHESTRATOR_INCARNATION={incarnation}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
            return True
        working = Path(f"/proc/{process.pid}/cwd").readlink()
    except OSError:
        return False
    return any(working.is_relative_to(folder) for folder in attempts)
