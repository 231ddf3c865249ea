"""Heartbeats: a key per incarnation that its worker replaces and the leader reads; state, not a log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ForgedMessage, UnreadableMessage
from orchestrator.records import Heartbeat
from orchestrator.wire.heartbeat_json import heartbeat_body, heartbeat_from_body
from orchestrator.wire.keys import Keys
from orchestrator.wire.messages import HEARTBEAT
from orchestrator.wire.redis import Client, redis_errors
from orchestrator.wire.seal import Seal

HEARTBEAT_SECONDS = 60
_MAC_BYTES = 32
_BATCH = 500


class HeartbeatPublisher:
    """A worker's end."""

    def __init__(self, client: Client, keys: Keys, seal: Seal) -> None:
        self._client = client
        self._keys = keys
        self._seal = seal

    def publish(self, heartbeat: Heartbeat) -> None:
        """Replace this incarnation's heartbeat and list the incarnation as live, in one round trip."""
        body = heartbeat_body(heartbeat)
        mac = self._seal.report_mac(heartbeat.worker_id, HEARTBEAT, body)
        with redis_errors("publishing a heartbeat"):
            pipeline = self._client.pipeline(transaction=False)
            pipeline.set(self._keys.heartbeat(heartbeat.worker_id), mac + body, ex=HEARTBEAT_SECONDS)
            pipeline.sadd(self._keys.live, heartbeat.worker_id)
            pipeline.execute()

    def withdraw(self, incarnation: str) -> None:
        """Remove the heartbeat of an incarnation that has said goodbye."""
        with redis_errors("withdrawing a heartbeat"):
            pipeline = self._client.pipeline(transaction=False)
            pipeline.srem(self._keys.live, incarnation)
            pipeline.delete(self._keys.heartbeat(incarnation))
            pipeline.execute()


@dataclass(frozen=True, slots=True)
class HeartbeatsRead:
    heartbeats: tuple[Heartbeat, ...]
    """Those that differ from what was read last."""
    refused: tuple[str, ...] = ()
    """Sentences about forged or unreadable ones; each is told once."""


class HeartbeatReader:
    """The leader's end. One thread at a time."""

    def __init__(self, client: Client, keys: Keys, seal: Seal) -> None:
        self._client = client
        self._keys = keys
        self._seal = seal
        self._last: dict[str, bytes] = {}

    def read_changed(self) -> HeartbeatsRead:
        """Return the heartbeats that are new since the last call; all of them at the first.

        Which incarnations have fallen silent is the kernel's question: it counts on its own clock.
        """
        found: list[Heartbeat] = []
        refused: list[str] = []
        current: dict[str, bytes] = {}
        for incarnation, raw in self._all():
            current[incarnation] = raw
            if self._last.get(incarnation) == raw:
                continue
            try:
                found.append(self._open(incarnation, raw))
            except (ForgedMessage, UnreadableMessage) as error:
                refused.append(str(error))
        self._last = current
        return HeartbeatsRead(tuple(found), tuple(refused))

    def forget(self) -> None:
        """Have the next call return every heartbeat: the kernel was rebuilt."""
        self._last = {}

    def _all(self) -> list[tuple[str, bytes]]:
        with redis_errors("reading heartbeats"):
            members: Any = self._client.smembers(self._keys.live)
            names = sorted(member.decode(errors="replace") for member in members)
            pairs: list[tuple[str, bytes]] = []
            silent: list[str] = []
            for start in range(0, len(names), _BATCH):
                part = names[start : start + _BATCH]
                values: Any = self._client.mget([self._keys.heartbeat(name) for name in part])
                pairs += [(name, raw) for name, raw in zip(part, values, strict=True) if raw is not None]
                silent += [name for name, raw in zip(part, values, strict=True) if raw is None]
            if silent:
                # Its key lived for a minute; should it come back, its next heartbeat lists it again.
                self._client.srem(self._keys.live, *silent)
        return pairs

    def _open(self, incarnation: str, raw: bytes) -> Heartbeat:
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        self._seal.check_report(incarnation, HEARTBEAT, body, mac)
        heartbeat = heartbeat_from_body(body)
        if heartbeat.worker_id != incarnation:
            raise ForgedMessage(f"A heartbeat of {heartbeat.worker_id!r} stands under the name of {incarnation!r}.")
        return heartbeat
