"""Replies to workers: grants, denials and answers in a list per incarnation, and the desired state in a key."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

from orchestrator.errors import ForgedMessage, UnreadableMessage
from orchestrator.records import GRANT_LIFETIME
from orchestrator.wire.keys import Keys
from orchestrator.wire.messages import (
    GRANT,
    MAX_GRANT_BYTES,
    Answer,
    Denial,
    DesiredState,
    Grant,
    GrantSpec,
    SealedGrant,
    control_body,
    grant_body,
    grant_from_body,
    read_control,
)
from orchestrator.wire.redis import LONGEST_BLOCK, Client, redis_errors
from orchestrator.wire.seal import Seal
from orchestrator.wire.strict_json import decode, encode

REPLY_SECONDS = 120
DESIRED_SECONDS = 60
_ENVELOPE_LIMIT = 2 * MAX_GRANT_BYTES


class ReplySender:
    """The leader's end. Each method is one round trip, however many messages it sends."""

    def __init__(self, client: Client, keys: Keys, seal: Seal) -> None:
        self._client = client
        self._keys = keys
        self._seal = seal

    def send(self, replies: Iterable[tuple[str, Grant | Denial | Answer]]) -> None:
        """Send replies, each to the incarnation beside it.

        :raises TooLarge: a grant is larger than the wire takes; nothing is sent. Check with :func:`grant_body` first.
        :raises StoreUnavailable: Redis does not answer; some may have been sent.
        """
        pipeline = self._client.pipeline(transaction=False)
        incarnations: set[str] = set()
        for incarnation, reply in replies:
            pipeline.rpush(self._keys.reply(incarnation), self._envelope(incarnation, reply))
            incarnations.add(incarnation)
        for incarnation in incarnations:
            pipeline.expire(self._keys.reply(incarnation), REPLY_SECONDS)
        with redis_errors("sending replies to workers"):
            pipeline.execute()

    def write_desired(self, states: Iterable[tuple[str, DesiredState]]) -> None:
        """Replace the desired state of each incarnation."""
        pipeline = self._client.pipeline(transaction=False)
        for incarnation, state in states:
            pipeline.set(self._keys.desired(incarnation), self._control(incarnation, state), ex=DESIRED_SECONDS)
        with redis_errors("writing desired states of workers"):
            pipeline.execute()

    def _envelope(self, incarnation: str, reply: Grant | Denial | Answer) -> bytes:
        if not isinstance(reply, Grant):
            return self._control(incarnation, reply)
        attempt_id = reply.spec.attempt_id
        box = self._seal.seal_grant(incarnation, attempt_id, reply.nonce, grant_body(reply.spec))
        values = {"k": GRANT, "attempt": attempt_id, "nonce": reply.nonce, "lifetime": GRANT_LIFETIME, "box": _b64(box)}
        return encode(values, _ENVELOPE_LIMIT, "grant")

    def _control(self, incarnation: str, message: Denial | Answer | DesiredState) -> bytes:
        kind, body = control_body(message)
        mac = self._seal.control_mac(incarnation, kind, body)
        return encode({"k": kind, "b": body.decode(), "m": _b64(mac)}, _ENVELOPE_LIMIT, kind)


class ReplyBox:
    """A worker's end.

    :ivar refused: messages dropped so far because they were forged or unreadable.
    """

    def __init__(self, client: Client, keys: Keys, seal: Seal, incarnation: str) -> None:
        self._client = client
        self._keys = keys
        self._seal = seal
        self._incarnation = incarnation
        self.refused = 0

    def take(self, timeout: float) -> SealedGrant | Denial | Answer | None:
        """Return the next reply, or ``None`` when none came in ``timeout`` seconds (at most 4) or it was forged."""
        seconds = max(0.01, min(timeout, LONGEST_BLOCK))
        with redis_errors("waiting for a reply"):
            found: Any = self._client.blpop([self._keys.reply(self._incarnation)], timeout=seconds)
        if found is None:
            return None
        try:
            reply = self._read(found[1])
        except (ForgedMessage, UnreadableMessage):
            self.refused += 1
            return None
        return None if isinstance(reply, DesiredState) else reply

    def open(self, grant: SealedGrant, *, age: float) -> GrantSpec:
        """Open a grant.

        :param age: seconds on the monotonic clock since the claim was sent with the grant's nonce.
        :raises ForgedMessage: not made for this incarnation and claim, or too old.
        """
        body = self._seal.open_grant(
            self._incarnation, grant.attempt_id, grant.nonce, grant.box, lifetime=grant.lifetime, age=age
        )
        spec = grant_from_body(body)
        if spec.attempt_id != grant.attempt_id:
            raise ForgedMessage(f"The grant of attempt {grant.attempt_id!r} holds another attempt; dropped.")
        return spec

    def desired(self) -> DesiredState | None:
        """Return what the leader wants of this worker, or ``None`` when nothing (authentic) is there."""
        with redis_errors("reading the desired state"):
            raw: Any = self._client.get(self._keys.desired(self._incarnation))
        if raw is None:
            return None
        try:
            state = self._read(raw)
        except (ForgedMessage, UnreadableMessage):
            self.refused += 1
            return None
        return state if isinstance(state, DesiredState) else None

    def _read(self, raw: bytes) -> SealedGrant | Denial | Answer | DesiredState:
        envelope = decode(raw, _ENVELOPE_LIMIT, "reply")
        kind = envelope.text("k")
        if kind == GRANT:
            return SealedGrant(
                envelope.text("attempt"),
                envelope.text("nonce"),
                envelope.number("lifetime"),
                _bytes(envelope.text("box")),
            )
        body = envelope.text("b").encode()
        self._seal.check_control(self._incarnation, kind, body, _bytes(envelope.text("m")))
        return read_control(kind, body)


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise UnreadableMessage("A reply whose seal is no base64.") from error
