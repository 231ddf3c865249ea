"""The worker's end of the fork server: starts it by ``exec``, orders forks, hears of starts and ends."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.errors import OrchestratorError
from orchestrator.logs import get_logger
from workers.orders import Lines, Site, fresh_order, send_line, start_order, stop_order

log = get_logger(__name__)


class ForkServerGone(OrchestratorError):
    """The fork server has died; its supervisors end their trees, and the worker starts another one."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom to tell, from the client's own thread."""

    ready: Callable[[], None]
    """It can fork from now on."""
    started: Callable[[str], None]
    """(attempt id) Its supervisor runs."""
    ended: Callable[[str], None]
    """(attempt id) Nothing of it lives and its outcome is in the spool."""
    refused: Callable[[str, str], None]
    """(attempt id, why) It could not be forked; nothing of it ever lived."""
    died: Callable[[], None]
    """The fork server is gone; not called after :meth:`ForkClient.close`."""


class ServerLink:
    """What a worker says to a fork server over a socket, and the thread that hears its answers."""

    def __init__(self, link: socket.socket, pid: int, listener: Listener) -> None:
        # Celery's shutdown gives every new socket a time-out, which would make a quiet fork server look dead.
        link.settimeout(None)
        self.pid = pid
        self._socket = link
        self._listener = listener
        self._sending = threading.Lock()
        self._closed = False
        self._lines = Lines()
        self._thread = threading.Thread(target=self._listen, name="fork-client", daemon=True)

    def stop(self, attempt_id: str, why: str, grace: float | None) -> None:
        """Have a tree stopped; one that is not there is no error.

        :raises ForkServerGone: then the supervisors stop all trees anyway.
        """
        self._send(stop_order(attempt_id, why, grace))

    def refresh(self, until: float) -> None:
        """Let exclusive attempts run until then (CLOCK_MONOTONIC) without another word of the scheduler."""
        self._send(fresh_order(until))

    def hang_up(self, timeout: float = 10.0) -> None:
        """End the conversation."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._socket.close()

    def _send(self, order: Mapping[str, object]) -> None:
        try:
            with self._sending:
                send_line(self._socket, order)
        except OSError as error:
            raise ForkServerGone(f"The fork server (pid {self.pid}) is gone: {error}.") from error

    def _listen(self) -> None:
        piece = b""
        while True:
            for line in self._lines.feed(piece):
                try:
                    self._tell(line)
                except Exception:  # or nobody would hear of the next ones
                    log.exception("fork_server_line_failed", line=str(line)[:200])
            try:
                piece = self._socket.recv(65536)
            except OSError:
                break
            if not piece:
                break
        if not self._closed:
            with self._sending:
                self._socket.close()
            self._mourn()
            self._listener.died()

    def _mourn(self) -> None:
        """Note its death."""

    def _tell(self, line: Mapping[str, str]) -> None:
        match line["is"]:
            case "ready":
                self._listener.ready()
            case "started":
                self._listener.started(line["attempt"])
            case "ended":
                self._listener.ended(line["attempt"])
            case "refused":
                self._listener.refused(line["attempt"], line["why"])


class ForkClient(ServerLink):
    """One fork server process of our own.

    :raises OSError: the host can't start a process now.
    :raises ForkServerGone: it ended at once.
    """

    def __init__(self, site: Site, environment: Mapping[str, str], lock: int, listener: Listener) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(None)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.fork_server", str(theirs.fileno()), str(lock)],
                env=dict(environment),
                pass_fds=(theirs.fileno(), lock),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is the worker's to answer
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        super().__init__(ours, self.process.pid, listener)
        try:
            self._send(site.to_line())
        except ForkServerGone:
            ours.close()
            self.process.wait()
            raise
        self._thread.start()

    def start(self, attempt_id: str, grant: bytes, fresh_until: float | None) -> None:
        """Have an attempt started.

        :raises ForkServerGone: it was not.
        """
        self._send(start_order(attempt_id, grant, fresh_until))

    def close(self, timeout: float = 10.0) -> None:
        """End the fork server, and with it whatever still runs (save for what another worker may adopt)."""
        self.hang_up(timeout)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.warning("fork_server_still_ends_trees", pid=self.pid)

    def _mourn(self) -> None:
        log.critical("fork_server_died", pid=self.pid)
        self.process.wait()
