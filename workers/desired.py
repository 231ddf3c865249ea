"""Follows the desired state: what the leader wants of this worker, repeated with every heartbeat until it is so."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.logs import get_logger
from orchestrator.wire.mailbox import ReplyBox
from orchestrator.wire.messages import DesiredState
from workers import verdict
from workers.beat import Beat
from workers.drain import Drain
from workers.running import Running
from workers.trees import Trees

log = get_logger(__name__)


class Follower:
    """Brings about what is wanted: trees stopped, deaths confirmed, a drain begun or taken back.

    :param is_dead_here: whether an attempt of an ended incarnation can do nothing on this host any more.
    :param send_again: sends open claims and outcomes again, for Redis was reset.
    :param note_change: has the next heartbeat go out at once.
    """

    def __init__(
        self,
        box: ReplyBox,
        beat: Beat,
        running: Running,
        trees: Trees,
        drain: Drain,
        *,
        is_dead_here: Callable[[str, str], bool],
        send_again: Callable[[], None],
        note_change: Callable[[], None],
    ) -> None:
        self._box = box
        self._beat = beat
        self._running = running
        self._trees = trees
        self._drain = drain
        self._is_dead_here = is_dead_here
        self._send_again = send_again
        self._note_change = note_change
        self._generation = 0
        self._latest = (0, 0)
        """Epoch and heartbeat of the latest word."""

    def follow(self) -> None:
        """Read what is wanted and bring it about; the word of an earlier leader, and an earlier word, are ignored.

        An old word is authentic, and who reaches Redis may have kept it. Of one leader, the heartbeats that it answers
        only grow; a new one begins with whatever it has read.

        :raises StoreUnavailable: Redis does not answer.
        """
        desired = self._box.desired()
        if desired is None or (desired.epoch, desired.hb_seq) < self._latest:
            return
        self._latest = desired.epoch, desired.hb_seq
        self._beat.heard(desired.hb_seq)
        if desired.gen < self._generation:
            log.warning("redis_was_reset", generation=desired.gen)
            self._send_again()
        self._generation = desired.gen
        self.apply(desired)

    def apply(self, desired: DesiredState) -> None:
        """Bring it about; all of it may be told again and again."""
        for attempt_id in desired.fence:
            self._trees.stop(attempt_id, verdict.FENCED, 0.0)
        for attempt_id, grace in desired.cancel:
            self._trees.stop(attempt_id, verdict.CANCELLED, grace)
        for attempt_id, incarnation in desired.confirm:
            if self._is_dead_here(attempt_id, incarnation):
                self._running.confirm_dead(attempt_id)
        if any(held.spec.exclusive for held in self._running.living()):
            self._trees.refresh(self._beat.fresh_until())
        if self._drain.command(desired.drain, desired.drain_left, (desired.epoch, desired.hb_seq)):
            log.info("drain" if desired.drain else "undrain", seconds=desired.drain_left)
            self._note_change()

    def empty(self) -> None:
        """While we drain, stop what may not, or no longer, be waited for; the order is repeated while it stands."""
        for held in self._running.living():
            if (order := self._drain.order_for(held.spec)) is not None:
                self._trees.stop(held.spec.attempt_id, verdict.PREEMPTED, order.grace)
