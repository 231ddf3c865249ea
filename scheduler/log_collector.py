"""Moves log chunks from Redis to the artifact store, on a thread and connection of its own; never blocks a task."""

from __future__ import annotations

import threading
from collections import Counter

from orchestrator.artifacts import ArtifactStore
from orchestrator.effects import Count
from orchestrator.errors import ForbiddenPath, OrchestratorError
from orchestrator.logs import get_logger
from orchestrator.wire.keys import Keys
from orchestrator.wire.log_stream import LogChunk, LogStream
from orchestrator.wire.messages import Refused
from orchestrator.wire.redis import Client, RedisFull
from orchestrator.wire.seal import Seal

log = get_logger(__name__)

BATCH = 100
BLOCK = 0.5
LONGEST_BACK_OFF = 5.0


def log_key(chunk: LogChunk) -> str:
    """Return the key of a chunk: sorted by name, the chunks of an attempt are in order."""
    return f"logs/{chunk.tenant_id}/{chunk.run_id}/{chunk.attempt_id}/{chunk.offset:015d}"


class LogCollector(threading.Thread):
    """Runs beside the leader. A chunk stored twice is the same object or a longer one at its place, so nothing needs to
    be exactly once."""

    def __init__(self, client: Client, keys: Keys, seal: Seal, artifacts: ArtifactStore, consumer: str) -> None:
        super().__init__(name="log-collector", daemon=True)
        self._stream = LogStream(client, keys, seal, consumer)
        self._artifacts = artifacts
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._latest: dict[str, str] = {}

    def run(self) -> None:
        failures = 0
        while not self._ended.is_set():
            try:
                self.collect(BLOCK)
                failures = 0
            except OrchestratorError as error:
                failures += 1
                self._count("log_delayed", str(error))
                if failures == 1:
                    log.warning("logs_delayed", why=str(error))
                self._stream.take_over()
                self._ended.wait(min(LONGEST_BACK_OFF, 0.2 * 2 ** min(failures, 5)))
            except Exception as error:
                failures += 1
                self._count("log_delayed", repr(error))
                log.exception("log_collector_failed")
                self._stream.take_over()
                self._ended.wait(LONGEST_BACK_OFF)

    def collect(self, block: float) -> int:
        """Store the next chunks, note that, then acknowledge them; return how many there were.

        :raises StoreUnavailable: Redis or the artifact store does not answer; the chunks stay on the stream.
        """
        entries = self._stream.read(BATCH, block)
        stored = self._stream.stored(chunk.attempt_id for _, chunk in entries if isinstance(chunk, LogChunk))
        done: list[LogChunk] = []
        for _, chunk in entries:
            if isinstance(chunk, Refused):
                self._count("forged_log", chunk.why)
                continue
            if chunk.offset + len(chunk.content) <= stored.get(chunk.attempt_id, 0):
                continue  # an old entry, claimed late: a longer chunk may lie at its place by now
            try:
                self._artifacts.put_bytes(log_key(chunk), chunk.content)
            except ForbiddenPath as error:  # counts as stored: sent again it would be refused again
                self._count("refused_log", str(error))
            done.append(chunk)
        try:
            self._stream.confirm(done)
        except RedisFull as error:
            # Acknowledging makes room. Without the note the workers send these chunks again, and they are stored as
            # the same objects.
            self._count("log_unconfirmed", str(error))
        self._stream.ack(id_ for id_, _ in entries)
        return len(entries)

    def take_counts(self) -> list[Count]:
        """Return what was refused or delayed since the last call, for the counters in the rows."""
        with self._lock:
            counts = [Count(what, self._latest[what]) for what, number in self._refused.items() for _ in range(number)]
            self._refused.clear()
        return counts

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _count(self, what: str, detail: str) -> None:
        with self._lock:
            self._refused[what] += 1
            self._latest[what] = detail
