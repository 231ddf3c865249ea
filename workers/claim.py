"""Claims: a hint names an attempt, the scheduler grants it or not; nothing runs without a grant (DESIGN §4)."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.errors import ForgedMessage, StoreUnavailable, UnreadableMessage
from orchestrator.logs import get_logger
from orchestrator.nonces import claim_of, nth, sending_of
from orchestrator.wire.messages import Denial, GrantSpec, SealedGrant

log = get_logger(__name__)

FIRST_DELAY = 3.0
LONGEST_DELAY = 10.0


class ClaimSender(Protocol):
    """The part of ``Reporter`` that claims need."""

    def claim(self, attempt_id: str, seq: int, nonce: str) -> str: ...

    def is_unread(self, entry_id: str) -> bool: ...


class GrantOpener(Protocol):
    """The part of ``ReplyBox`` that claims need."""

    def open(self, grant: SealedGrant, *, age: float) -> GrantSpec: ...


@dataclass(slots=True)
class OpenClaim:
    """One claim that waits for its answer."""

    attempt_id: str
    nonce: str
    entry: str = ""
    """What was sent last, on the stream."""
    is_due: bool = True
    """Whether it is to be sent even if what was sent last is unread; may be set while it is being sent."""
    sent_at: list[float] = field(default_factory=list)
    """When each sending began; a grant ages from the one that it answers."""
    spec: GrantSpec | None = None
    denied: str = ""
    woken: threading.Event = field(default_factory=threading.Event)

    @property
    def is_answered(self) -> bool:
        return self.spec is not None or self.denied != ""

    def began(self, nonce: str) -> float:
        """Return when the sending began that this nonce is of; one that does not say counts as the first."""
        sending = min(max(1, sending_of(nonce)), len(self.sent_at))
        return self.sent_at[sending - 1]


class Claims:
    """All open claims of this worker.

    :param on_grant: called, from the thread that reads replies, before the claimant goes on: from then on the attempt
        is ours and must show in every heartbeat.
    """

    def __init__(
        self,
        sender: ClaimSender,
        opener: GrantOpener,
        on_grant: Callable[[GrantSpec], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sender = sender
        self._opener = opener
        self._on_grant = on_grant
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, OpenClaim] = {}
        self._given_up = False

    def ask(self, attempt_id: str, seq: int) -> GrantSpec | None:
        """Claim the attempt and wait until it is granted.

        ``None`` when it is denied, when it is being claimed already, or when we leave. However long the control plane
        is away: every live leader answers, and whoever let go of a claim that is still read would be granted an
        attempt that nobody starts.
        """
        claim = OpenClaim(attempt_id, secrets.token_hex(16))
        with self._lock:
            if attempt_id in self._open:
                return None
            self._open[attempt_id] = claim
        delay = FIRST_DELAY
        try:
            while not claim.is_answered and not self._given_up:
                self._send(claim, seq)
                claim.woken.wait(delay)
                claim.woken.clear()
                delay = min(delay * 2, LONGEST_DELAY)
        finally:
            with self._lock:
                del self._open[attempt_id]
        if claim.spec is None:
            log.info("claim_not_granted", attempt_id=attempt_id, reason=claim.denied or "leaving")
        return claim.spec

    def deliver(self, reply: SealedGrant | Denial) -> bool:
        """Take a reply; returns whether a claim was waiting for it."""
        with self._lock:
            claim = self._open.get(reply.attempt_id)
            if claim is None or claim.nonce != claim_of(reply.nonce) or claim.is_answered or not claim.sent_at:
                return False
            if isinstance(reply, Denial):
                claim.denied = reply.reason or "denied"
            else:
                age = self._clock() - claim.began(reply.nonce)
                try:
                    spec = self._opener.open(reply, age=age)
                except (ForgedMessage, UnreadableMessage) as error:
                    log.warning("grant_refused", attempt_id=reply.attempt_id, error=str(error))
                    if age > reply.lifetime:  # the claim waited longer than a grant is good for: ask for a fresh one
                        claim.is_due = True
                        claim.woken.set()
                    return False
                self._on_grant(spec)
                claim.spec = spec
        claim.woken.set()
        return True

    def resend(self) -> None:
        """Send all open claims again now: Redis was reset."""
        with self._lock:
            waiting = list(self._open.values())
        for claim in waiting:
            claim.is_due = True
            claim.woken.set()

    def give_up(self) -> None:
        """Let go of all open claims, and make no new one: the worker leaves."""
        with self._lock:
            self._given_up = True
            waiting = list(self._open.values())
        for claim in waiting:
            claim.woken.set()

    def _send(self, claim: OpenClaim, seq: int) -> None:
        try:
            if not claim.is_due and claim.entry and self._sender.is_unread(claim.entry):
                return
            claim.is_due = False
            claim.sent_at.append(self._clock())
            claim.entry = self._sender.claim(claim.attempt_id, seq, nth(claim.nonce, len(claim.sent_at)))
        except StoreUnavailable as error:
            log.warning("claim_not_sent", attempt_id=claim.attempt_id, error=str(error))
