"""The worker's heartbeat: the whole of what is known of it, every few seconds, and when it was last heard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from orchestrator import __version__
from orchestrator.config import Settings
from orchestrator.records import Heartbeat
from workers import capacity
from workers.gpus import Gpus
from workers.packages import environment_digest
from workers.running import Running

KNOWN_SECONDS = 3.0
"""After so long the leader has read a heartbeat, if it reads any: it looks every second."""


class HeartbeatSink(Protocol):
    """The part of ``HeartbeatPublisher`` that a beat needs."""

    def publish(self, heartbeat: Heartbeat) -> None: ...


@dataclass(frozen=True, slots=True)
class Me:
    """Who this incarnation is."""

    incarnation: str
    host_id: str
    boot_id: str
    hostname: str
    name: str
    slots: int
    queues: tuple[str, ...]
    store_scope: str
    labels: Mapping[str, str]


class Beat:
    """Publishes heartbeats, and knows until when the leader must believe us alive."""

    def __init__(
        self,
        me: Me,
        settings: Settings,
        sink: HeartbeatSink,
        running: Running,
        gpus: Gpus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.me = me
        self._settings = settings
        self._sink = sink
        self._running = running
        self._gpus = gpus
        self._clock = clock
        self._seq = 0
        self._sent_at: dict[int, float] = {}
        self._heard_at: float | None = None
        self._heard_seq = 0
        self._draining_since: tuple[int, float] | None = None
        """Sequence number and time of the first heartbeat in a row that said so."""

    @property
    def unheard_limit(self) -> float:
        """Seconds after which an exclusive attempt stops itself: well before the leader gives it to another host."""
        lease = self._settings.worker_lease
        return max(lease - 10.0, lease * 2 / 3)

    def publish(self, *, draining: bool) -> None:
        """Publish the next heartbeat.

        :raises StoreUnavailable: Redis does not answer.
        """
        me = self.me
        self._seq += 1
        # Read before the attempts are listed and sent: the leader's lease can't be younger than this.
        self._sent_at[self._seq] = now = self._clock()
        for seq in takewhile(lambda seq: self._sent_at[seq] < now - self.unheard_limit, list(self._sent_at)):
            del self._sent_at[seq]  # to have been heard so long ago would allow nothing any more
        self._sink.publish(
            Heartbeat(
                worker_id=me.incarnation,
                host_id=me.host_id,
                boot_id=me.boot_id,
                hostname=me.hostname,
                name=me.name,
                seq=self._seq,
                queues=me.queues,
                slots=me.slots,
                capacity=capacity.measure(self._settings, self._gpus.devices()),
                labels=me.labels,
                running=self._running.tokens(),
                started=self._running.started_ids(),
                dead=self._running.dead_ids(),
                draining=draining,
                store_scope=me.store_scope,
                version=__version__,
                environment=environment_digest(),
            )
        )
        if not draining:
            self._draining_since = None
        elif self._draining_since is None:
            self._draining_since = self._seq, self._clock()

    def is_draining_known(self) -> bool:
        """Say whether the leader must know by now that we take nothing: it has read it, or had the time to."""
        if self._draining_since is None:
            return False
        seq, said_at = self._draining_since
        return self._heard_seq >= seq or self._clock() - said_at >= KNOWN_SECONDS

    def heard(self, seq: int) -> None:
        """Note that the leader has read our heartbeat ``seq``."""
        self._heard_seq = max(self._heard_seq, min(seq, self._seq))
        if (sent_at := self._sent_at.get(seq)) is not None:
            self._heard_at = max(sent_at, self._heard_at or sent_at)
            self._sent_at = {number: at for number, at in self._sent_at.items() if number >= seq}

    @property
    def next_seq(self) -> int:
        """The number of the first heartbeat that shows what we hold now."""
        return self._seq + 1

    def is_heard(self, seq: int) -> bool:
        """Say whether the leader has read that heartbeat, or a later one."""
        return self._heard_seq >= seq

    def fresh_until(self) -> float:
        """Return until when (CLOCK_MONOTONIC) exclusive attempts may run without another word of the leader."""
        heard_at = self._clock() if self._heard_at is None else self._heard_at
        return heard_at + self.unheard_limit
