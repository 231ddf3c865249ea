"""Gathers what has happened: reports on the stream, heartbeats, the state of Redis itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.effects import Count
from orchestrator.errors import StoreUnavailable
from orchestrator.events import Event, HeartbeatSeen, RedisAway, RedisBack
from orchestrator.logs import get_logger
from orchestrator.records import Heartbeat
from orchestrator.wire.generation import GenerationCounter
from orchestrator.wire.heartbeats import HeartbeatReader
from orchestrator.wire.keys import Keys
from orchestrator.wire.messages import Refused, Wake
from orchestrator.wire.redis import Client, RedisFull
from orchestrator.wire.seal import Seal
from orchestrator.wire.stream import EventStream, StreamEntry

log = get_logger(__name__)

BATCH = 200
PROBE_SECONDS = 0.5
GENERATION_SECONDS = 1.0


@dataclass(slots=True)
class Gathered:
    """What one round found."""

    events: list[Event] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    """Ids on the stream, to be acknowledged after the commit."""
    heartbeats: list[Heartbeat] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    woken: bool = False
    """The API says that there are new runs or commands."""
    claims_waiting: bool = False
    read_until: float = -math.inf
    """Reports that were sent before this moment of our clock have been read."""


class Inbox:
    """The leader's ears. One per term; one thread.

    While Redis is away it says so once, probes, and says when it is back and whether it has lost what it held. A full
    Redis counts as away, for no worker can be told anything, but what it holds is taken in.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        seal: Seal,
        consumer: str,
        *,
        heartbeat: float,
        redispatch: float,
        clock: Callable[[], float] = time.monotonic,
        batch: int = BATCH,
    ) -> None:
        self._stream = EventStream(client, keys, seal, consumer)
        self._heartbeats = HeartbeatReader(client, keys, seal)
        self._generation = GenerationCounter(client, keys)
        self._heartbeat_every = min(1.0, heartbeat / 2)
        self._redispatch = redispatch
        self._clock = clock
        self._batch = batch
        self._available: bool | None = None
        self._is_full = False
        self._hints_lost = False
        self._untold_reset = False
        self._answered_at: float | None = None
        self._away_since: float | None = None
        """When Redis answered last before it went away; kept until a committed round has been told of its return."""
        self._read_until = -math.inf
        self._unread_due = 0.0
        self._generation_due = 0.0
        self._heartbeats_due = 0.0
        self._unacknowledged: list[str] = []
        self._events: list[Event] = []

    @property
    def available(self) -> bool:
        """Whether Redis answered last time."""
        return bool(self._available)

    @property
    def generation(self) -> int:
        return self._generation.value

    def start_over(self, *, messages_in_doubt: bool) -> None:
        """Hear everything again that is not acknowledged: the memory was dropped, or a new term begins.

        Afterwards it is known whether Redis answers.

        :param messages_in_doubt: something may have been committed whose messages were not sent (by a leader that
            died in between, too): all unclaimed hints are sent again.
        """
        self._stream.take_over()
        self._heartbeats.forget()
        self._heartbeats_due = 0.0
        self._read_until, self._unread_due = -math.inf, 0.0
        self._events = [RedisAway(self._away_since)] if self._available is False else []
        self._untold_reset = self._untold_reset or messages_in_doubt
        try:
            self._probe()
        except StoreUnavailable as error:
            self.lost(error)
        if self._available and (self._untold_reset or self._away_since is not None):
            self._events = [RedisBack(self._untold_reset, self._away_since)]

    def take_news(self) -> list[Event]:
        """Return what is known of Redis and not told yet; what was heard of the workers comes with :meth:`gather`."""
        news, self._events = self._events, []
        return news

    def hints_lost(self) -> None:
        """Note that some hints may not have arrived: all unclaimed ones are sent again when Redis is back."""
        self._hints_lost = True

    def lost(self, error: StoreUnavailable) -> None:
        """Note that Redis did not answer."""
        if self._available is not False:
            log.warning("redis_away", why=str(error))
            self._away_since = self._clock() if self._answered_at is None else self._answered_at
            self._events.append(RedisAway(self._away_since))
        self._available = False
        self._is_full = isinstance(error, RedisFull)
        self._generation_due = self._clock() + PROBE_SECONDS

    def gather(self, block: float, batch: int | None = None) -> Gathered:
        """Return what has happened, waiting up to ``block`` seconds on the stream when nothing has.

        Does not wait while Redis is away.
        """
        found = Gathered()
        try:
            self._probe()
            if self._available:
                self._acknowledge_late()
                self._measure(found)
                self._read_heartbeats(found)
                self._read_stream(found, 0.0 if self._events or found.heartbeats else block, batch or self._batch)
            elif self._is_full:
                # Taking in what it holds is what makes room again.
                self._acknowledge_late()
                self._read_stream(found, 0.0, batch or self._batch)
            if self._available:
                self._answered_at = self._clock()
        except StoreUnavailable as error:
            self.lost(error)
        found.events[:0] = self.take_news()
        return found

    def acknowledge(self, ids: list[str]) -> None:
        """Acknowledge entries whose effects are committed; when Redis does not answer, later."""
        if not self._events:
            self._untold_reset = False
            if self._available:
                self._away_since = None
        self.drop(ids)

    def drop(self, ids: list[str]) -> None:
        """Acknowledge entries, though nothing was committed: their senders repeat what is not answered."""
        self._unacknowledged += ids
        if self._unacknowledged and (self._available or self._is_full):
            try:
                self._acknowledge_late()
            except StoreUnavailable as error:
                self.lost(error)

    def _acknowledge_late(self) -> None:
        if self._unacknowledged:
            self._stream.ack(self._unacknowledged)
            self._unacknowledged = []

    def _probe(self) -> None:
        """Raise the generation counter; it tells whether Redis answers, and whether it was reset."""
        if self._clock() < self._generation_due:
            return
        was_reset = self._generation.advance()
        self._generation_due = self._clock() + GENERATION_SECONDS
        if was_reset:
            self._stream.ensure_group()
        if self._available and not was_reset:
            return
        if self._available is not None:
            log.warning("redis_back", reset=was_reset)
        self._available, self._is_full = True, False
        reset, self._hints_lost = was_reset or self._hints_lost or self._untold_reset, False
        self._stream.take_over()
        self._heartbeats_due = 0.0
        self._untold_reset = self._untold_reset or reset
        self._events.append(RedisBack(reset, self._away_since))

    def _measure(self, found: Gathered) -> None:
        """Say up to when reports are read. Once a second; measured before the stream is read."""
        if (now := self._clock()) >= self._unread_due:
            self._read_until = now - self._stream.oldest_unread_age()
            self._unread_due = now + GENERATION_SECONDS
        found.read_until = self._read_until

    def _read_heartbeats(self, found: Gathered) -> None:
        if self._clock() < self._heartbeats_due:
            return
        read = self._heartbeats.read_changed()
        self._heartbeats_due = self._clock() + self._heartbeat_every
        found.heartbeats.extend(read.heartbeats)
        found.events.extend(HeartbeatSeen(heartbeat) for heartbeat in read.heartbeats)
        for why in read.refused:
            log.warning("heartbeat_refused", why=why)
            found.counts.append(Count("forged_heartbeat", why))

    def _read_stream(self, found: Gathered, block: float, batch: int) -> None:
        entries = self._stream.read(batch, block)
        for entry in entries:
            found.entries.append(entry.id)
            self._sort(entry, found)
        if len(entries) >= batch:
            # Only a full batch can leave claims unread behind it.
            found.claims_waiting = self._stream.oldest_unread_age() > self._redispatch

    @staticmethod
    def _sort(entry: StreamEntry, found: Gathered) -> None:
        match entry.report:
            case Wake():
                found.woken = True
            case Refused(why):
                log.warning("report_refused", why=why)
                found.counts.append(Count("forged_message", why))
            case event:
                found.events.append(event)
