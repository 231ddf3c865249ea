"""The breaker of an external service: after failures in a row nobody asks it for a while, then one task finds out.

Pure values; times are the leader's monotonic seconds. They live in the leader's memory alone, so a new leader finds
every circuit closed: at worst it lets as many tasks fail as the one before it did.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SERVICE_REASONS = frozenset({"unreachable", "unavailable", "store_unavailable", "rate_limited"})
"""Reasons of failed attempts that speak against a service which the task uses, not against the task."""
FAILURES = 5
"""So many failures in a row open the circuit,"""
WITHIN = 300.0
"""if they fall into so many seconds."""
FIRST_HOLD = 30.0
"""Seconds until a first task is let through; twice as many after each one that failed, up to"""
LONGEST_HOLD = 600.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """How one service does."""

    service: str
    failed_at: tuple[float, ...] = ()
    """The latest failures with no success since, while it is closed."""
    opened: int = 0
    """Times it was opened with no success since; 0: it is closed."""
    open_until: float = 0.0
    probe: str = ""
    """The attempt that finds out whether the service is back."""
    reason: str = ""
    """Of the failure that opened it."""

    @property
    def state(self) -> str:
        """``closed``, ``open``, or ``half_open`` while one attempt finds out."""
        if not self.opened:
            return "closed"
        return "half_open" if self.probe else "open"

    @property
    def failures(self) -> int:
        """Failures in a row: all that opened it, and one for each time that it stayed open."""
        return FAILURES - 1 + self.opened if self.opened else len(self.failed_at)

    def lets_through(self, now: float) -> bool:
        """Say whether an attempt that uses the service may be sent out."""
        return not self.opened or (not self.probe and now >= self.open_until)

    def sent(self, attempt_id: str) -> Circuit:
        """Note that an attempt was sent out: while the circuit is not closed it is the one that finds out."""
        return replace(self, probe=attempt_id) if self.opened else self

    def succeeded(self, attempt_id: str) -> Circuit:
        """Note that an attempt has succeeded. While open, only the one that was let through counts: the others may have
        asked the service long ago."""
        if not self.opened:
            return Circuit(self.service)
        return Circuit(self.service) if attempt_id == self.probe else self

    def failed(self, attempt_id: str, reason: str, now: float) -> Circuit:
        """Note that an attempt has failed by the service."""
        if self.opened:
            return _opened(self, reason, now) if attempt_id == self.probe else self
        failed_at = (*(at for at in self.failed_at if now - at <= WITHIN), now)[-FAILURES:]
        changed = replace(self, failed_at=failed_at, reason=reason)
        return _opened(changed, reason, now) if len(failed_at) >= FAILURES else changed

    def told_nothing(self, attempt_id: str) -> Circuit:
        """Note that an attempt has ended in a way that says nothing of the service: another may find out."""
        return replace(self, probe="") if attempt_id == self.probe else self


def _opened(circuit: Circuit, reason: str, now: float) -> Circuit:
    hold = min(LONGEST_HOLD, FIRST_HOLD * 2.0 ** min(circuit.opened, 20))
    return Circuit(circuit.service, opened=circuit.opened + 1, open_until=now + hold, reason=reason)
