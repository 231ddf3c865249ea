"""What the agent does beside talking: ship logs, adopt and clear up what other incarnations left on this host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from workers import leftovers
from workers.attempt_folder import AttemptFolder
from workers.gpus import Gpus
from workers.host import Host
from workers.keeping import Keeper
from workers.outcomes import OutcomeSender
from workers.running import Held, Running
from workers.shipping import Shipper
from workers.spool import Spool

KEEPING_SECONDS = 2.0
HOUSEKEEPING_SECONDS = 10.0
LONGEST_FAREWELL = 10.0
LAST_LOGS_SECONDS = 2.0
"""How long to wait at the end for the last logs to be stored; what is not is sent again by the next incarnation."""


class Courier:
    """The errands of one worker, each to be run by itself: that one fails keeps no other.

    :param may_adopt: whether attempts of a dead incarnation may be taken over now.
    :param wake: called when there may be outcomes to send.
    """

    def __init__(
        self,
        host: Host,
        shipper: Shipper,
        keeper: Keeper,
        running: Running,
        outcomes: OutcomeSender,
        spool: Spool,
        gpus: Gpus,
        *,
        may_adopt: Callable[[], bool],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._shipper = shipper
        self._keeper = keeper
        self._running = running
        self._outcomes = outcomes
        self._spool = spool
        self._gpus = gpus
        self._may_adopt = may_adopt
        self._wake = wake
        self._clock = clock
        self._kept_at = self._cleared_at = float("-inf")

    def due(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield what is to be done now, with its name."""
        now = self._clock()
        if now >= self._kept_at + KEEPING_SECONDS:
            self._kept_at = now
            yield "keeping", self.keep
        yield "shipping", self.ship
        yield "gpu_usage", self.note_gpu_usage
        if now >= self._cleared_at + HOUSEKEEPING_SECONDS:
            self._cleared_at = now
            yield "housekeeping", self.keep_house

    def ship(self) -> None:
        """Send one round of logs and progress."""
        self._shipper.ship()

    def adopt_abandoned(self) -> None:
        """Ship what settled incarnations left of logs."""
        for folder in leftovers.abandoned(self._host.folders):
            self._shipper.follow(folder, has_ended=True, is_answered=not self._spool.has(folder.attempt_id))

    def keep(self) -> None:
        """Adopt what has outlived another worker of this host; not while draining, or it would be stopped at once."""
        if self._keeper.look(may_take=self._may_adopt()):
            self._outcomes.look()
            self._wake()

    def keep_house(self) -> None:
        """Clear up after dead incarnations, find outcomes that wait, forget old ones."""
        for held in self._running.all():  # a full disk may have kept us from following it when it was granted
            folder = AttemptFolder(self._host.folders.attempts, held.spec.attempt_id)
            self._shipper.follow(folder, has_ended=held.ended.is_set())
        for folder in leftovers.settle_ended(self._host.folders, self._spool):
            answered = bool(folder.read(leftovers.ANSWERED))
            self._shipper.follow(folder, has_ended=True, is_answered=answered)
        self._outcomes.look()
        self._spool.forget_old()
        self._wake()

    def note_gpu_usage(self) -> None:
        """Note the peak of every attempt that holds a device."""
        for held in self._running.living():
            if held.spec.devices:
                self._note_peak(held)

    def _note_peak(self, held: Held) -> None:
        folder = AttemptFolder(self._host.folders.attempts, held.spec.attempt_id)
        used, known = self._gpus.used_memory(held.spec.devices), int(folder.read("gpu").get("memory", 0))
        if used > known and folder.path.exists():
            folder.write("gpu", {"memory": used})

    def ship_the_rest(self) -> None:
        """Send all logs that there are, as far as that is quick."""
        began = self._clock()
        while self._shipper.ship() and self._clock() < began + LONGEST_FAREWELL:
            time.sleep(0.01)
        began = self._clock()
        while self._shipper.has_unconfirmed() and self._clock() < began + LAST_LOGS_SECONDS:
            time.sleep(0.05)
            self._shipper.ship()
