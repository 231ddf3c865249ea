"""The stream of reports: what the scheduler reads, and what workers and the API write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ForgedMessage, UnreadableMessage
from orchestrator.records import Outcome
from orchestrator.wire.group_stream import Entry, GroupStream
from orchestrator.wire.keys import Keys
from orchestrator.wire.messages import (
    CLAIM,
    GOODBYE,
    OUTCOME,
    WAKE,
    Refused,
    Report,
    Wake,
    claim_body,
    outcome_body,
    read_report,
)
from orchestrator.wire.redis import Client, redis_errors
from orchestrator.wire.seal import Seal

GROUP = "scheduler"
_WAKES_ENOUGH = 10_000


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One entry, authenticated and decoded; ``report`` is :class:`Refused` where that failed."""

    id: str
    report: Report


class EventStream:
    """The scheduler's end of the stream. One thread at a time.

    :param consumer: name of this scheduler process, of its own per start.
    """

    def __init__(self, client: Client, keys: Keys, seal: Seal, consumer: str) -> None:
        self._stream = GroupStream(client, keys.events, GROUP, consumer)
        self._seal = seal

    def ensure_group(self) -> None:
        """Make the consumer group if it is missing. At start, and when Redis was reset."""
        self._stream.ensure_group()

    def take_over(self) -> None:
        """Have the next reads return all pending entries first, whoever they were delivered to."""
        self._stream.take_over()

    def read(self, batch: int, block: float) -> list[StreamEntry]:
        """Return up to ``batch`` entries in their order; wait up to ``block`` seconds when there are none."""
        return [StreamEntry(entry.id, self._report(entry)) for entry in self._stream.read(batch, block)]

    def ack(self, ids: Iterable[str]) -> None:
        """Acknowledge and delete entries, after the commit of what they led to."""
        self._stream.ack(ids)

    def length(self) -> int:
        """Return how many entries are not yet acknowledged."""
        return self._stream.length()

    def oldest_unread_age(self) -> float:
        """Return the age in seconds of the oldest entry not yet acknowledged; 0 when there is none."""
        return self._stream.oldest_unread_age()

    def _report(self, entry: Entry) -> Report:
        try:
            kind = entry.fields.get(b"k", b"").decode()
            if kind == WAKE:
                return Wake()
            incarnation = entry.fields.get(b"w", b"").decode()
            body = entry.fields.get(b"b", b"")
            self._seal.check_report(incarnation, kind, body, entry.fields.get(b"m", b""))
            return read_report(kind, incarnation, body)
        except UnicodeDecodeError:
            return Refused("An entry whose kind or worker is no UTF-8; dropped.")
        except (ForgedMessage, UnreadableMessage) as error:
            return Refused(str(error))


class Reporter:
    """A worker's end of the stream. Everything may be sent any number of times."""

    def __init__(self, client: Client, keys: Keys, seal: Seal, incarnation: str) -> None:
        self._client = client
        self._stream = keys.events
        self._seal = seal
        self._incarnation = incarnation

    def claim(self, attempt_id: str, seq: int, nonce: str) -> str:
        """Ask for the attempt; sent again with the same nonce until it is granted or denied. Returns the entry's id."""
        return self._send(CLAIM, claim_body(attempt_id, seq, nonce))

    def outcome(self, attempt_id: str, token: str, ran_on: str, outcome: Outcome) -> None:
        """Report an end; sent again until it is answered. ``ran_on``: the incarnation that ran it."""
        self._send(OUTCOME, outcome_body(attempt_id, token, ran_on, outcome))

    def outcome_from_spool(self, body: bytes) -> str:
        """Report an end as it stands in a spool file (the bytes of ``outcome_body``). Returns the entry's id."""
        return self._send(OUTCOME, body)

    def is_unread(self, entry_id: str) -> bool:
        """Say whether an entry of ours still waits on the stream: it will be read, so sending it again adds nothing."""
        with redis_errors("looking for a report that waits"):
            return bool(self._client.xrange(self._stream, entry_id, entry_id, count=1))

    def goodbye(self) -> None:
        """Say that this incarnation ends now and that nothing of it lives on."""
        self._send(GOODBYE, b"{}")

    def _send(self, kind: str, body: bytes) -> str:
        mac = self._seal.report_mac(self._incarnation, kind, body)
        with redis_errors(f"sending a {kind}"):
            added: Any = self._client.xadd(self._stream, {b"k": kind, b"w": self._incarnation, b"b": body, b"m": mac})
        return str(added.decode())


def wake(client: Client, keys: Keys) -> None:
    """Tell the leader that there is something new in the rows; losing it costs a second at most.

    :raises StoreUnavailable: callers may ignore it, the rows are committed.
    """
    with redis_errors("waking the scheduler"):
        # Nobody reads while all schedulers are down; then more wakes would only fill the memory.
        if client.xlen(keys.events) < _WAKES_ENOUGH:
            client.xadd(keys.events, {b"k": WAKE})
