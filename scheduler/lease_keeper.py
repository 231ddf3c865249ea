"""Renews the leader's lease beside the main loop, on a connection of its own, and learns when it is lost."""

from __future__ import annotations

import threading

from orchestrator.errors import LostLeadership, StoreUnavailable
from orchestrator.logs import get_logger
from orchestrator.store.lease import Lease
from orchestrator.watchdog import Pulse

log = get_logger(__name__)

RENEW_AT = 0.3
"""Share of the lease's life after which it is renewed."""
SHORTEST_STANDSTILL = 20.0
"""Above what a round may last while a link swallows bytes (all its time-outs), below the watchdog's limit."""


class LeaseKeeper(threading.Thread):
    """One per term of leadership.

    It does not renew for a main loop that stands still, so that a standby takes over from a stuck leader as well.
    """

    def __init__(self, lease: Lease, pulse: Pulse) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self._lease = lease
        self._pulse = pulse
        self._ended = threading.Event()
        self._lost: LostLeadership | None = None

    def run(self) -> None:
        wait = self._lease.ttl * RENEW_AT
        standstill = max(self._lease.ttl, SHORTEST_STANDSTILL)
        while not self._ended.wait(wait):
            if self._pulse.age() > standstill:
                log.error("lease_not_renewed", epoch=self._lease.epoch, why="the main loop stands still")
                continue
            try:
                self._lease.renew()
                wait = self._lease.ttl * RENEW_AT
            except StoreUnavailable as error:
                log.warning("lease_not_renewed", epoch=self._lease.epoch, why=str(error))
                wait = min(1.0, self._lease.ttl * 0.1)
            except LostLeadership as error:
                self._lost = error
                return
            except Exception:
                # Nobody would renew any more if this thread ended here.
                log.exception("lease_not_renewed", epoch=self._lease.epoch)
                wait = min(1.0, self._lease.ttl * 0.1)

    def check(self) -> None:
        """Raise when the lease is known to be lost.

        :raises LostLeadership: another scheduler has taken over.
        """
        if self._lost is not None:
            raise LostLeadership(str(self._lost)) from self._lost

    def stop(self) -> None:
        self._ended.set()
        self.join()
