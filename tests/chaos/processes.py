"""Keeps a site's processes up as systemd, compose and the one-host command do, and breaks them on demand.

One thread starts and reaps them all, for as long as the site lives: the kernel kills a child when the thread that
started it ends, so nothing of a site outlives a test that was itself killed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.local.child import ChildProcess, ProcessSpec

RESTART_SECONDS = 0.2
TICK = 0.02


def send(pid: int, what: int) -> bool:
    """Signal a process; returns whether it was still there."""
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return False
    return True


@dataclass(slots=True)
class Supervised:
    """One process under supervision: how it is run, and the child that runs it now, if any."""

    name: str
    spec: Callable[[], ProcessSpec]
    """Asked anew at every start, so that a test may change what the next start runs."""
    is_wanted: bool = True
    child: ChildProcess | None = None
    start_at: float = 0.0
    starts: int = 0
    pids: list[int] = field(default_factory=list)
    """Of all its starts."""
    statuses: list[int] = field(default_factory=list)
    """How it ended, each time; negative for a signal."""

    @property
    def restarts(self) -> int:
        return max(0, self.starts - 1)


class Processes:
    """Starts, restarts, kills and freezes processes by name.

    :param folder: takes ``logs/NAME.log`` (of all starts of NAME) and ``run/NAME.json``.
    :param note: told what was done to whom.
    """

    def __init__(self, folder: Path, note: Callable[[str], None], *, restart_seconds: float = RESTART_SECONDS) -> None:
        self.restart_seconds = restart_seconds
        self.troubles: list[str] = []
        """Starts that could not even be tried."""
        self._folder = folder
        self._note = note
        self._all: dict[str, Supervised] = {}
        self._changed = threading.Condition(threading.RLock())
        self._closing = False
        self._thread = threading.Thread(target=self._supervise, name="chaos-supervisor", daemon=True)
        self._thread.start()

    # --- questions ---

    def __getitem__(self, name: str) -> Supervised:
        return self._all[name]

    def names(self, prefix: str = "") -> list[str]:
        """Return the names that begin so, in the order of their first start."""
        return [name for name in self._all if name.startswith(prefix)]

    def log(self, name: str) -> Path:
        """Return the log of all starts of a process."""
        return self._folder / "logs" / f"{name}.log"

    def pid(self, name: str, seconds: float = 5.0) -> int:
        """Return the process id; waits while the process is being restarted."""
        with self._changed:
            self._wait(lambda: self._all[name].child is not None, f"{name} runs", seconds)
            child = self._all[name].child
            assert child is not None
            return child.pid

    def pids(self) -> dict[str, int]:
        """Return the ids of all that run now."""
        with self._changed:
            return {name: one.child.pid for name, one in self._all.items() if one.child is not None}

    def name_of(self, pid: int) -> str | None:
        """Return whose id this is now."""
        return next((name for name, its in self.pids().items() if its == pid), None)

    def restarts(self) -> dict[str, int]:
        """Return how often each was started again."""
        return {name: one.restarts for name, one in self._all.items()}

    # --- deeds ---

    def add(self, name: str, spec: Callable[[], ProcessSpec]) -> None:
        """Start a process without waiting, and keep it up from now on."""
        with self._changed:
            self._all[name] = Supervised(name, spec)
            self._changed.notify_all()

    def start(self, name: str, seconds: float = 10.0) -> int:
        """Start a process that was stopped, or have a living one kept up again; returns its id."""
        with self._changed:
            self._all[name].is_wanted = True
            self._all[name].start_at = 0.0
            self._changed.notify_all()
        return self.pid(name, seconds)

    def stop(self, name: str, what: int | None = None, seconds: float = 20.0) -> None:
        """Stop a process and leave it stopped: by its own stop signal, or by ``what``; returns when it has ended."""
        with self._changed:
            one = self._all[name]
            one.is_wanted = False
            if one.child is None:
                return
            number = one.child.spec.stop_signal if what is None else what
            self._note(f"stop {name} (pid {one.child.pid}) by {signal.Signals(number).name}")
            send(one.child.pid, number)
            self._wait(lambda: one.child is None, f"{name} has ended", seconds)

    def forget_restarts(self, name: str) -> None:
        """Leave the process alone: when it ends now, nobody starts it again (until :meth:`start`)."""
        with self._changed:
            self._all[name].is_wanted = False

    def kill(self, name: str, what: signal.Signals = signal.SIGKILL) -> int:
        """Signal the process alone, as an out-of-memory killer would; returns its id."""
        pid = self.pid(name)
        self._note(f"{what.name} to {name} (pid {pid})")
        send(pid, what)
        return pid

    def freeze(self, name: str) -> int:
        """Stop the process in its tracks (SIGSTOP) until :meth:`thaw`."""
        return self.kill(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a frozen process go on."""
        self.kill(name, signal.SIGCONT)

    def wait_for_restart(self, name: str, starts: int, seconds: float = 15.0) -> int:
        """Wait until the process was started more than ``starts`` times; returns its id."""
        with self._changed:
            one = self._all[name]
            self._wait(lambda: one.starts > starts and one.child is not None, f"{name} is started again", seconds)
            assert one.child is not None
            return one.child.pid

    def wait_for_end(self, name: str, pid: int, seconds: float = 15.0) -> int:
        """Wait until the process with this id has ended and was reaped; returns its exit status."""
        with self._changed:
            one = self._all[name]
            self._wait(lambda: one.child is None or one.child.pid != pid, f"{name} (pid {pid}) has ended", seconds)
            return one.statuses[-1]

    def restart_no_more(self) -> None:
        """Leave all that ends from now on ended."""
        with self._changed:
            for one in self._all.values():
                one.is_wanted = False

    def close(self, last: tuple[str, ...] = ()) -> None:
        """Kill what runs and end the thread.

        :param last: those that are to end first of themselves: their stop signal was sent by the caller.
        """
        self.restart_no_more()
        for name, pid in self.pids().items():
            if name not in last:
                send(pid, signal.SIGKILL)
        with self._changed:
            self._wait(lambda: not self.pids(), f"{', '.join(self.pids())} ended", 10.0)
            self._closing = True
            self._changed.notify_all()
        self._thread.join(10.0)

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        if not self._changed.wait_for(condition, seconds):
            raise AssertionError(f"not within {seconds:.0f} s: {what}")

    # --- the thread ---

    def _supervise(self) -> None:
        with self._changed:
            while not self._closing:
                for one in list(self._all.values()):
                    self._tend(one)
                self._changed.wait(TICK)

    def _tend(self, one: Supervised) -> None:
        now = time.monotonic()
        if one.child is not None and one.child.has_ended():
            status = one.child.returncode
            one.statuses.append(0 if status is None else status)
            one.child = None
            one.start_at = now + self.restart_seconds
            self._note(f"{one.name} ended with {status}")
            self._changed.notify_all()
        if one.child is None and one.is_wanted and now >= one.start_at:
            try:
                one.child = ChildProcess(one.spec(), self.log(one.name), self._folder / "run" / f"{one.name}.json")
            except Exception as error:  # noqa: BLE001 - told with the test's failure; tried again like any start
                self.troubles.append(f"{one.name}: {error}")
                one.start_at = now + self.restart_seconds
                return
            one.starts += 1
            one.pids.append(one.child.pid)
            self._changed.notify_all()
