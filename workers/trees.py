"""The trees of this worker: orders to its fork server, and what happens when that dies or can't be had."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from orchestrator.logs import get_logger
from orchestrator.records import Outcome
from orchestrator.wire.messages import grant_body
from workers import verdict
from workers.attempt_folder import AttemptFolder
from workers.fork_client import ForkClient, ForkServerGone, Listener
from workers.identity import HostFolders
from workers.process_tree import is_same
from workers.running import Held, Running, Server
from workers.spool import Spool

log = get_logger(__name__)

ORPHAN_SECONDS = 5.0
"""How long an attempt of a dead fork server may be without a trace before it counts as never started."""
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
"""A fork server that has lived so long is replaced at once; one that keeps dying, later and later."""


class Trees:
    """Starts and stops trees; replaces its fork server when that dies.

    :param open_client: starts a fork server.
    :param on_ended: called with each attempt that has ended, its outcome being in the spool.
    :param changed: called when attempts can be started from now on, or no longer.
    """

    def __init__(
        self,
        open_client: Callable[[Listener], ForkClient],
        running: Running,
        spool: Spool,
        folders: HostFolders,
        incarnation: str,
        on_ended: Callable[[str], None],
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_client = open_client
        self._running = running
        self._spool = spool
        self._folders = folders
        self._incarnation = incarnation
        self._on_ended = on_ended
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._orphans: dict[str, float] = {}
        self._unsaid: dict[str, tuple[Held, Outcome]] = {}
        """Ends that the full disk did not take."""
        self._client: ForkClient | None = None
        self._pause = 0.0
        self._opened_at = self._open_at = self._clock()
        self._open()

    @property
    def can_start(self) -> bool:
        """Whether a fork server waits for orders."""
        return self._ready.is_set()

    def wait_until_able(self, seconds: float) -> bool:
        """Wait for the fork server; returns whether it can take orders."""
        return self._ready.wait(seconds)

    def start(self, held: Held, fresh_until: float | None) -> None:
        """Have the attempt started; one that is to stop already, or could not be, is reported as ended."""
        spec = held.spec
        with self._lock:
            outcome = verdict.stopped(held.stop) if held.stop else None
            if outcome is None:
                held.server = client = self._client
                try:
                    if client is None:
                        raise ForkServerGone("This worker has no fork server just now.")
                    client.start(spec.attempt_id, grant_body(spec), fresh_until)
                except ForkServerGone as error:
                    log.warning("attempt_not_started", attempt_id=spec.attempt_id, error=str(error))
                    outcome = verdict.never_started(str(error))
        if outcome is not None:
            self.refuse(held, outcome)

    def refuse(self, held: Held, outcome: Outcome) -> None:
        """Report an attempt nothing of which ever lived; as soon as the disk takes it."""
        spec = held.spec
        try:
            self._spool.write(spec.attempt_id, spec.token, held.ran_by or self._incarnation, outcome)
        except OSError as error:
            if spec.attempt_id not in self._unsaid:
                log.warning("outcome_not_spooled", attempt_id=spec.attempt_id, error=str(error))
            self._unsaid[spec.attempt_id] = (held, outcome)
            return
        self._unsaid.pop(spec.attempt_id, None)
        self._on_ended(spec.attempt_id)

    def stop(self, attempt_id: str, why: str, grace: float | None) -> None:
        """Have its tree stopped, or not started at all; orders are repeated while they stand, so one may be lost."""
        held = self._running.get(attempt_id)
        if held is None or held.ended.is_set():
            return
        with self._lock, suppress(ForkServerGone):
            if held.server is None:
                held.stop = held.stop or why
            else:
                held.server.stop(attempt_id, why, grace)

    def refresh(self, until: float) -> None:
        """Let exclusive attempts run on until then."""
        servers = {id(held.server): held.server for held in self._running.living() if held.server is not None}
        with self._lock:
            for server in servers.values():
                with suppress(ForkServerGone):
                    server.refresh(until)

    def mourn(self, server: Server) -> None:
        """Note that a fork server is dead, ours or one that we keep: its supervisors end what it started."""
        now = self._clock()
        self._orphans.update({held.spec.attempt_id: now for held in self._running.living() if held.server is server})

    def close(self) -> None:
        """End the fork server; call it when nothing runs."""
        with self._lock:
            client, self._client = self._client, None
            self._open_at = float("inf")
        if client is not None:
            client.close()

    def tend(self) -> None:
        """Start a fork server where there is none, settle what the last one left, report what could not be."""
        if self._client is None and self._clock() >= self._open_at:
            self._open()
        for held, outcome in list(self._unsaid.values()):
            self.refuse(held, outcome)
        self._settle_orphans()

    def _settle_orphans(self) -> None:
        """Find out how the attempts of a dead fork server ended: their supervisors end them and write outcomes."""
        for attempt_id, since in list(self._orphans.items()):
            held = self._running.get(attempt_id)
            if held is None or held.ended.is_set():
                del self._orphans[attempt_id]
            elif self._spool.has(attempt_id):
                self._on_ended(attempt_id)
            elif self._clock() - since > ORPHAN_SECONDS:
                self._settle_orphan(held)

    def _settle_orphan(self, held: Held) -> None:
        state = AttemptFolder(self._folders.attempts, held.spec.attempt_id).read("state")
        if not state.get("pid"):
            self.refuse(held, verdict.never_started("The fork server died before it could start it."))
        elif not is_same(state["pid"], state["started"]):
            self.refuse(held, verdict.never_started("The fork server and its supervisor died.", "fork_server_lost"))

    def _open(self) -> None:
        listener = Listener(
            ready=self._became_able,
            started=self._running.started,
            ended=self._on_ended,
            refused=self._refused,
            died=self._died,
        )
        with self._lock:
            self._opened_at = self._clock()
            try:
                self._client = self._open_client(listener)
            except (OSError, ForkServerGone) as error:
                log.warning("fork_server_not_started", error=str(error))
                self._open_later()

    def _open_later(self) -> None:
        self._open_at = self._clock() + self._pause
        self._pause = min(max(1.0, 2 * self._pause), LONGEST_PAUSE)

    def _became_able(self) -> None:
        self._ready.set()
        self._changed()

    def _refused(self, attempt_id: str, why: str) -> None:
        if held := self._running.get(attempt_id):
            self.refuse(held, verdict.never_started(f"This host could not start a process for it: {why}."))

    def _died(self) -> None:
        with self._lock:
            dead, self._client = self._client, None
            self._ready.clear()
            now = self._clock()
            if now - self._opened_at >= STEADY_SECONDS:
                self._pause = 0.0
            self._open_later()
        if dead is not None:
            self.mourn(dead)
        self._changed()
