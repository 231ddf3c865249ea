"""How far running attempts are: a key each, for people only; no rule reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.errors import UnreadableMessage
from orchestrator.wire.keys import Keys
from orchestrator.wire.redis import Client, redis_errors
from orchestrator.wire.strict_json import decode, encode

PROGRESS_SECONDS = 120
_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Progress:
    fraction: float | None = None
    """0 to 1, as the operator says; ``None`` when it says nothing."""
    message: str = ""
    memory: int = 0
    """Bytes in use now."""
    cpu_seconds: float = 0.0
    phase: str = ""
    """``setup`` until its operator runs, then ``running``; empty before its process has started."""


def publish_progress(client: Client, keys: Keys, attempts: Mapping[str, Progress]) -> None:
    """Replace the progress of these attempts, in one round trip."""
    pipeline = client.pipeline(transaction=False)
    for attempt_id, progress in attempts.items():
        values = {**asdict(progress), "message": progress.message[:500]}
        pipeline.set(keys.progress(attempt_id), encode(values, _LIMIT, "progress"), ex=PROGRESS_SECONDS)
    with redis_errors("publishing progress"):
        pipeline.execute()


def read_progress(client: Client, keys: Keys, attempt_ids: Sequence[str]) -> dict[str, Progress]:
    """Return what is known of these attempts; those that say nothing are left out."""
    if not attempt_ids:
        return {}
    with redis_errors("reading progress"):
        values: Any = client.mget([keys.progress(attempt_id) for attempt_id in attempt_ids])
    found: dict[str, Progress] = {}
    for attempt_id, raw in zip(attempt_ids, values, strict=True):
        if raw is None:
            continue
        try:
            fields = decode(raw, _LIMIT, "progress")
            found[attempt_id] = Progress(
                fields.number_or_none("fraction"),
                fields.text("message", ""),
                fields.integer("memory", 0),
                fields.number("cpu_seconds", 0.0),
                fields.text("phase", ""),
            )
        except UnreadableMessage:
            continue
    return found
