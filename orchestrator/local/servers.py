"""Starts an embedded server and waits until it answers; used by the one-host command and by the tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from orchestrator.errors import StoreUnavailable
from orchestrator.local.child import ChildProcess, ProcessSpec, end_orphan, last_lines


class EmbeddedServer(Protocol):
    """A server that we bring along: :class:`EmbeddedPostgres` or :class:`EmbeddedRedis`."""

    name: str

    def prepare(self) -> ProcessSpec:
        """Make what the server needs and return how to run it."""

    def is_ready(self) -> bool:
        """Say whether it answers."""


def start_server(server: EmbeddedServer, folder: Path, *, seconds: float = 30.0) -> ChildProcess:
    """Start a server and wait until it answers.

    A server that ends early is started again until the time is up: its port may have been taken, or what remains of a
    killed predecessor may still be leaving.

    :param folder: takes ``logs/NAME.log`` and ``run/NAME.json``.
    :raises StoreUnavailable: it did not answer in time; the message ends with its last words.
    """
    log, record = folder / "logs" / f"{server.name}.log", folder / "run" / f"{server.name}.json"
    deadline = time.monotonic() + seconds
    end_orphan(record)
    while True:
        child = ChildProcess(server.prepare(), log, record)
        try:
            while time.monotonic() < deadline and not child.has_ended():
                if server.is_ready():
                    return child
                time.sleep(0.02)
        except BaseException:
            child.stop()
            raise
        if time.monotonic() >= deadline:
            child.stop()
            raise StoreUnavailable(
                f"{server.name} did not start within {seconds:.0f} s; its log {log} ends with:\n{last_lines(log)}"
            )
        time.sleep(0.2)
