"""Log chunks on their way from workers to the artifact store, through a stream that is cut when nobody collects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from orchestrator.errors import ForgedMessage, UnreadableMessage
from orchestrator.wire.group_stream import GroupStream
from orchestrator.wire.keys import Keys
from orchestrator.wire.messages import LOG, Refused
from orchestrator.wire.redis import Client, redis_errors
from orchestrator.wire.seal import Seal
from orchestrator.wire.strict_json import decode, encode

GROUP = "logs"
CHUNK_BYTES = 64 * 1024
_MAX_CHUNKS = 2000
"""About 128 MiB at most; older chunks go first. A log with a gap is better than a full Redis."""
_HEAD_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of an attempt's output, at ``offset`` bytes from its beginning."""

    attempt_id: str
    tenant_id: str
    run_id: str
    offset: int
    content: bytes


class LogPublisher:
    """A worker's end."""

    def __init__(self, client: Client, keys: Keys, seal: Seal, incarnation: str) -> None:
        self._client = client
        self._stream = keys.logs
        self._seal = seal
        self._incarnation = incarnation

    def publish(self, chunks: Iterable[LogChunk]) -> None:
        """Send chunks of at most 64 KiB, in one round trip."""
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
            pipeline.execute()


class LogStream:
    """The collector's end. One thread at a time."""

    def __init__(self, client: Client, keys: Keys, seal: Seal, consumer: str) -> None:
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
            )
        except UnicodeDecodeError:
            return Refused("A log chunk whose worker is no UTF-8; dropped.")
        except (ForgedMessage, UnreadableMessage) as error:
            return Refused(str(error))


def _bound(head: bytes, content: bytes) -> bytes:
    return len(head).to_bytes(4) + head + content
