"""One supervised child process: its start, its end, and the record by which a later start finds it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.local import launch

SAME_START_SECONDS = 2.0
"""Two start times of one process, read in two boots of psutil, differ by less than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """How one process of the system is run and stopped."""

    name: str
    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str | None = None
    """Account to run as; None is our own."""
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = 10.0
    """How long the process may take to stop before its group is killed."""
    orphan_signal: int = signal.SIGKILL
    """What the kernel sends it when we die."""


class ChildProcess:
    """A running child, leader of its own session, so that Ctrl-C in the terminal reaches only us."""

    def __init__(self, spec: ProcessSpec, log: Path, record: Path) -> None:
        self.spec = spec
        self.log = log
        self._record = record
        log.parent.mkdir(parents=True, exist_ok=True)
        record.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as sink:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", launch.__file__),
                    *(str(os.getpid()), str(int(spec.orphan_signal)), spec.user or "-"),
                    *spec.command,
                ],
                cwd=spec.folder,
                env=dict(spec.environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self.pid = self._process.pid
        _remember(record, spec, self.pid)

    @property
    def returncode(self) -> int | None:
        """The exit status once the child has been reaped; negative for a signal."""
        return self._process.returncode

    def has_ended(self) -> bool:
        """Say whether the child has ended; what is left of its group is killed before the child is reaped.

        The order matters: while the child is a zombie its process group id can't be given to another process.
        """
        if self._process.returncode is not None:
            return True
        try:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                return False
            os.killpg(self.pid, signal.SIGKILL)
        except ChildProcessError:  # another part of this process has reaped it
            pass
        except (ProcessLookupError, PermissionError):  # macOS refuses to signal a zombie's group
            pass
        self._process.wait()
        self._record.unlink(missing_ok=True)
        return True

    def ask_to_stop(self) -> None:
        """Send the stop signal, without waiting."""
        if not self.has_ended():
            self._process.send_signal(self.spec.stop_signal)

    def stop(self, seconds: float | None = None) -> int:
        """Stop the child: its stop signal, then SIGKILL to its group; returns the exit status."""
        self.ask_to_stop()
        if not self.wait(self.spec.stop_seconds if seconds is None else seconds):
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(10.0)
        return self._process.returncode if self._process.returncode is not None else -signal.SIGKILL

    def wait(self, seconds: float) -> bool:
        """Wait for the end; returns whether it came in time."""
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _remember(record: Path, spec: ProcessSpec, pid: int) -> None:
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return
    document = {"pid": pid, "started": started, "stop_signal": int(spec.stop_signal), "name": spec.name}
    record.write_text(json.dumps(document))


def end_orphan(record: Path, seconds: float = 10.0) -> None:
    """End the child that ``record`` names, if it outlived a supervisor that was killed; nothing else is touched.

    A process is the recorded one only if id and start time agree, so that a reused id is left alone.
    """
    try:
        document = json.loads(record.read_text())
        process = psutil.Process(document["pid"])
        ours = abs(process.create_time() - document["started"]) < SAME_START_SECONDS
        if ours and process.status() != psutil.STATUS_ZOMBIE:
            process.send_signal(document["stop_signal"])
            try:
                process.wait(seconds)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(seconds)
    except (OSError, ValueError, KeyError, psutil.Error):
        pass  # no record, not readable, or the process is gone
    record.unlink(missing_ok=True)


def last_lines(log: Path, count: int = 15) -> str:
    """Return the end of a log file, for an error message."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    except OSError:
        return ""
