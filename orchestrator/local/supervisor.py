"""Keeps the processes of a one-host system alive: starts, restarts with back-off, follows logs, stops in order.

Everything happens in the thread that calls :meth:`Supervisor.tick`, because the kernel's parent-death signal follows
the thread that started a child.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from orchestrator.errors import OrchestratorError
from orchestrator.local.child import ChildProcess, ProcessSpec, end_orphan, last_lines
from orchestrator.local.restart import Restarts
from orchestrator.local.tail import Tail

STARTS_BEFORE_GIVING_UP = 3
"""During start-up a process that ends this often is broken, not unlucky."""

SLOW_SECONDS = 3.0
"""After this the user is told what a stop waits for."""


class StartFailed(OrchestratorError):
    """A process of the system does not stay up; the message ends with its last words."""


@dataclass(slots=True)
class Supervised:
    """One process under supervision: how it is run, and the child that runs it now, if any."""

    spec: ProcessSpec
    tail: Tail
    child: ChildProcess | None
    started: float
    rank: int
    restarts: Restarts = Restarts()
    start_again: float = 0.0


class Supervisor:
    """Runs processes until told to stop.

    :param folder: takes ``logs/`` and ``run/``.
    :param emit: called with a process's name and one line of its log.
    :param announce: called with a sentence when a process ended or was started again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        emit: Callable[[str, str], None],
        announce: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._emit = emit
        self._announce = announce
        self._clock = clock
        self._processes: dict[str, Supervised] = {}
        self._starting = True

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self._folder / "logs" / f"{name}.log"

    def record(self, name: str) -> Path:
        """Return the file that remembers a process's id for a later start."""
        return self._folder / "run" / f"{name}.json"

    def start(self, spec: ProcessSpec, *, rank: int) -> None:
        """Start a process and keep it up.

        :param rank: higher ranks are stopped first.
        """
        end_orphan(self.record(spec.name))
        tail = Tail(spec.name, self.log(spec.name), self._emit)
        child = ChildProcess(spec, self.log(spec.name), self.record(spec.name))
        self._processes[spec.name] = Supervised(spec, tail, child, self._clock(), rank)

    def adopt(self, child: ChildProcess, *, rank: int) -> None:
        """Keep up a process that was started elsewhere in this thread."""
        tail = Tail(child.spec.name, child.log, self._emit)
        self._processes[child.spec.name] = Supervised(child.spec, tail, child, self._clock(), rank)

    def all_started(self) -> None:
        """End the start-up phase: from now on a process that keeps ending is restarted for ever."""
        self._starting = False

    def tick(self) -> None:
        """Print new log lines, notice ended processes, and start those again whose delay is over.

        :raises StartFailed: during start-up, when a process ended too often.
        """
        for process in self._processes.values():
            process.tail.poll()
            if process.child is not None and process.child.has_ended():
                self._note_end(process, process.child)
            if process.child is None and self._clock() >= process.start_again:
                process.child = ChildProcess(process.spec, self.log(process.spec.name), self.record(process.spec.name))
                process.started = self._clock()

    def run_until(self, condition: Callable[[], bool], *, pause: float = 0.05) -> None:
        """Tick until the condition holds."""
        while not condition():
            self.tick()
            time.sleep(pause)

    def stop(self, *, impatient: Callable[[], bool] = lambda: False) -> None:
        """Stop all processes, highest rank first, those of one rank together.

        :param impatient: when it becomes true, what is left is killed.
        """
        for rank in sorted({process.rank for process in self._processes.values()}, reverse=True):
            children = [p.child for p in self._processes.values() if p.rank == rank and p.child is not None]
            for child in children:
                child.ask_to_stop()
            asked = self._clock()
            has_said = False
            while waiting := [child for child in children if not child.has_ended()]:
                for child in waiting:
                    if impatient() or self._clock() - asked > child.spec.stop_seconds:
                        child.stop(0.0)
                if not has_said and self._clock() - asked > SLOW_SECONDS:
                    has_said = True
                    names = " and ".join(child.spec.name for child in waiting)
                    self._announce(f"Waiting for {names} to end; running tasks have their grace to stop.")
                time.sleep(0.02)
        for process in self._processes.values():
            process.tail.poll()
        self._processes.clear()

    def _note_end(self, process: Supervised, child: ChildProcess) -> None:
        process.child = None
        process.restarts = process.restarts.after_end(self._clock() - process.started)
        process.start_again = self._clock() + process.restarts.delay
        how = describe_end(child.returncode)
        if self._starting and process.restarts.count >= STARTS_BEFORE_GIVING_UP:
            self._give_up(process, how)
        self._announce(f"{process.spec.name} {how}; it starts again in {process.restarts.delay:.0f} s.")

    def _give_up(self, process: Supervised, how: str) -> NoReturn:
        log = self.log(process.spec.name)
        raise StartFailed(
            f"{process.spec.name} {how} and does not stay up. Its log {log} ends with:\n{last_lines(log)}"
        )


def describe_end(status: int | None) -> str:
    """Say how a process ended, from its exit status."""
    if status is not None and status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
