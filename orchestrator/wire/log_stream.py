"""Log chunks on their way from workers to the artifact store, through a bounded stream.

The stream may lose chunks: Redis is flushed, or it is cut because nobody collects. So the collector says how much of
each log it has stored without a gap (``logged:<attempt>``), and the worker keeps the log until that is all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.errors import ForgedMessage, UnreadableMessage
from orchestrator.wire.group_stream import GroupStream
from orchestrator.wire.keys import Keys
from orchestrator.wire.messages import LOG, Refused
from orchestrator.wire.redis import Client, redis_errors
from orchestrator.wire.seal import Seal
from orchestrator.wire.strict_json import decode, encode

GROUP = "logs"
CHUNK_BYTES = 64 * 1024
_MAX_CHUNKS = 400
"""32 MiB of Redis at most, which takes 80 KiB for a full chunk; older chunks go first, rather than Redis being full."""
ENOUGH_CHUNKS = 200
"""From here on workers wait; what one of them sends blindly must not cut what others have sent."""
LOGGED_SECONDS = 3600
_HEAD_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of an attempt's output, at ``offset`` bytes from its beginning."""

    attempt_id: str
    tenant_id: str
    run_id: str
    offset: int
    content: bytes
    confirmed: int = 0
    """Everything before this byte is known to be stored; the collector's own note of it may be gone."""


@dataclass(frozen=True, slots=True)
class LogsSeen:
    """What has become of chunks that were sent."""

    room: int
    """How many more chunks the stream should be given now."""
    waiting: frozenset[str]
    """Those entries that are still on the stream."""
    stored: Mapping[str, int]
    """Attempt id → bytes stored without a gap; without those that the collector has said nothing of."""


class LogPublisher:
    """A worker's end."""

    def __init__(self, client: Client, keys: Keys, seal: Seal, incarnation: str) -> None:
        self._client = client
        self._keys = keys
        self._stream = keys.logs
        self._seal = seal
        self._incarnation = incarnation

    def publish(self, chunks: Iterable[LogChunk]) -> list[str]:
        """Send chunks of at most 64 KiB, in one round trip; returns the ids of their entries."""
        pipeline = self._client.pipeline(transaction=False)
        for chunk in chunks:
            values = asdict(chunk)
            content: bytes = values.pop("content")
            head = encode(values, _HEAD_LIMIT, "log chunk")
            mac = self._seal.report_mac(self._incarnation, LOG, _bound(head, content))
            pipeline.xadd(
                self._stream,
                {b"w": self._incarnation, b"b": head, b"d": content, b"m": mac},
                maxlen=_MAX_CHUNKS,
                approximate=True,
            )
        with redis_errors("sending logs"):
            return [entry_id.decode() for entry_id in pipeline.execute()]

    def look(self, attempt_ids: Iterable[str], entry_ids: Iterable[str]) -> LogsSeen:
        """Ask what has become of these attempts' logs and of these entries, in one round trip.

        The collector notes what it has stored before it removes the entries. So an entry that is not waiting and not
        counted as stored is lost, since we ask for the entries first.
        """
        attempts, entries = list(attempt_ids), list(entry_ids)
        pipeline = self._client.pipeline(transaction=False)
        for entry_id in entries:
            pipeline.xrange(self._stream, entry_id, entry_id, count=1)
        pipeline.xlen(self._stream)
        pipeline.mget([self._keys.logged(attempt_id) for attempt_id in attempts])
        with redis_errors("asking what became of logs"):
            *found, length, ends = pipeline.execute()
        return LogsSeen(
            room=max(0, ENOUGH_CHUNKS - length),
            waiting=frozenset(entry_id for entry_id, entry in zip(entries, found, strict=True) if entry),
            stored=_ends(attempts, ends),
        )


class LogStream:
    """The collector's end. One thread at a time."""

    def __init__(self, client: Client, keys: Keys, seal: Seal, consumer: str) -> None:
        self._client = client
        self._keys = keys
        self._stream = GroupStream(client, keys.logs, GROUP, consumer)
        self._seal = seal

    def ensure_group(self) -> None:
        self._stream.ensure_group()

    def take_over(self) -> None:
        """Have the next reads return all pending chunks first."""
        self._stream.take_over()

    def read(self, batch: int, block: float) -> list[tuple[str, LogChunk | Refused]]:
        """Return (entry id, chunk) pairs; acknowledge them once the chunks are stored."""
        return [(entry.id, self._chunk(entry.fields)) for entry in self._stream.read(batch, block)]

    def confirm(self, chunks: Iterable[LogChunk]) -> None:
        """Note how much of each log is stored without a gap, now that these chunks are; before they are acknowledged.

        Two collectors (one has just lost the lead) may overwrite each other's note with a lower one; then some chunks
        are sent again, and stored as the same objects.
        """
        in_order = sorted(chunks, key=lambda chunk: chunk.offset)
        if not in_order:
            return
        stored = self.stored(chunk.attempt_id for chunk in in_order)
        for chunk in in_order:
            end = max(stored.get(chunk.attempt_id, 0), chunk.confirmed)
            if chunk.offset <= end:
                end = max(end, chunk.offset + len(chunk.content))
            stored[chunk.attempt_id] = end
        pipeline = self._client.pipeline(transaction=False)
        for attempt_id, end in stored.items():
            pipeline.set(self._keys.logged(attempt_id), end, ex=LOGGED_SECONDS)
        with redis_errors("noting what is stored of logs"):
            pipeline.execute()

    def stored(self, attempt_ids: Iterable[str]) -> dict[str, int]:
        """Return how many bytes of these attempts' logs were noted as stored without a gap."""
        attempts = sorted(set(attempt_ids))
        if not attempts:
            return {}
        with redis_errors("reading what is stored of logs"):
            ends: Any = self._client.mget([self._keys.logged(attempt_id) for attempt_id in attempts])
        return dict(_ends(attempts, ends))

    def ack(self, ids: Iterable[str]) -> None:
        self._stream.ack(ids)

    def length(self) -> int:
        return self._stream.length()

    def _chunk(self, fields: dict[bytes, bytes]) -> LogChunk | Refused:
        head, content = fields.get(b"b", b""), fields.get(b"d", b"")
        try:
            incarnation = fields.get(b"w", b"").decode()
            self._seal.check_report(incarnation, LOG, _bound(head, content), fields.get(b"m", b""))
            values = decode(head, _HEAD_LIMIT, "log chunk")
            return LogChunk(
                values.text("attempt_id"),
                values.text("tenant_id"),
                values.text("run_id"),
                values.integer("offset"),
                content,
                values.integer("confirmed", 0),
            )
        except UnicodeDecodeError:
            return Refused("A log chunk whose worker is no UTF-8; dropped.")
        except (ForgedMessage, UnreadableMessage) as error:
            return Refused(str(error))


def _ends(attempt_ids: Iterable[str], raw: Iterable[bytes | None]) -> dict[str, int]:
    """Read the collector's notes; one that is no number counts as none."""
    found = zip(attempt_ids, raw, strict=True)
    return {attempt_id: int(end) for attempt_id, end in found if end is not None and end.isdigit()}


def _bound(head: bytes, content: bytes) -> bytes:
    return len(head).to_bytes(4) + head + content
