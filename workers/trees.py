"""The trees of this worker: orders to its fork server, and what happens when that dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from orchestrator.logs import get_logger
from orchestrator.records import Outcome
from orchestrator.states import AttemptState
from orchestrator.wire.messages import grant_body
from workers.attempt_folder import AttemptFolder
from workers.fork_client import ForkClient, ForkServerGone, Listener
from workers.identity import HostFolders
from workers.process_tree import is_same
from workers.running import Held, Running
from workers.spool import Spool

log = get_logger(__name__)

ORPHAN_SECONDS = 5.0
"""How long an attempt of a dead fork server may be without a trace before it counts as never started."""


class Trees:
    """Starts and stops trees; replaces its fork server when that dies.

    :param open_client: starts a fork server.
    :param on_ended: called with each attempt that has ended, its outcome being in the spool.
    """

    def __init__(
        self,
        open_client: Callable[[Listener], ForkClient],
        running: Running,
        spool: Spool,
        folders: HostFolders,
        incarnation: str,
        on_ended: Callable[[str], None],
    ) -> None:
        self._open_client = open_client
        self._running = running
        self._spool = spool
        self._folders = folders
        self._incarnation = incarnation
        self._on_ended = on_ended
        self._lock = threading.Lock()
        self._orphans: dict[str, float] = {}
        self._client = self._open()

    def start(self, held: Held, fresh_until: float | None) -> None:
        """Have the attempt started; one that could not be is reported as lost."""
        spec = held.spec
        held.server = client = self._client
        try:
            client.start(spec.attempt_id, grant_body(spec), fresh_until)
        except ForkServerGone as error:
            log.warning("attempt_not_started", attempt_id=spec.attempt_id, error=str(error))
            self.refuse(held, "fork_server_lost", str(error))

    def refuse(self, held: Held, reason: str, message: str) -> None:
        """Report an attempt that never started, for a cause that is not the task's."""
        spec = held.spec
        outcome = Outcome(AttemptState.LOST, reason, message, infrastructure=True)
        self._spool.write(spec.attempt_id, spec.token, self._incarnation, outcome)
        self._on_ended(spec.attempt_id)

    def stop(self, attempt_id: str, why: str, grace: float | None) -> None:
        """Have its tree stopped; orders are repeated while they stand, so one that is lost harms nothing."""
        held = self._running.get(attempt_id)
        if held is not None and not held.ended.is_set():
            with suppress(ForkServerGone):
                self._client.stop(attempt_id, why, grace)

    def refresh(self, until: float) -> None:
        """Let exclusive attempts run on until then."""
        with suppress(ForkServerGone):
            self._client.refresh(until)

    def close(self) -> None:
        """End the fork server; call it when nothing runs."""
        self._client.close()

    def settle_orphans(self) -> None:
        """Find out how the attempts of a dead fork server ended: their supervisors end them and write outcomes."""
        for attempt_id, since in list(self._orphans.items()):
            held = self._running.get(attempt_id)
            if held is None or held.ended.is_set():
                del self._orphans[attempt_id]
            elif self._spool.has(attempt_id):
                self._on_ended(attempt_id)
            elif not self._has_supervisor(attempt_id) and time.monotonic() - since > ORPHAN_SECONDS:
                self.refuse(held, "fork_server_lost", "Its fork server died before it could start, or with it.")

    def _open(self) -> ForkClient:
        return self._open_client(Listener(self._running.started, self._on_ended, self._died))

    def _died(self) -> None:
        with self._lock:
            dead, self._client = self._client, self._open()
        now = time.monotonic()
        self._orphans.update({held.spec.attempt_id: now for held in self._running.living() if held.server is dead})

    def _has_supervisor(self, attempt_id: str) -> bool:
        state = AttemptFolder(self._folders.attempts, attempt_id).read("state")
        return bool(state.get("pid")) and is_same(state["pid"], state["started"])
