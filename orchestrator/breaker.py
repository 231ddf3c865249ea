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
    probes: tuple[str, ...] = ()
    """The attempts that find out whether the service is back, the latest last."""
    probed_until: float = 0.0
    """When another one goes if the latest has told nothing until then."""
    reason: str = ""
    """Of the failure that opened it."""

    @property
    def state(self) -> str:
        """``closed``, ``open``, or ``half_open`` while one attempt finds out."""
        if not self.opened:
            return "closed"
        return "half_open" if self.probes else "open"

    @property
    def failures(self) -> int:
        """Failures in a row: all that opened it, and one for each time that it stayed open."""
        return FAILURES - 1 + self.opened if self.opened else len(self.failed_at)

    def lets_through(self, now: float) -> bool:
        """Say whether an attempt that uses the service may be sent out."""
        return not self.opened or now >= self.next_at

    @property
    def next_at(self) -> float:
        """When the next attempt may be sent out, while it is not closed."""
        return max(self.open_until, self.probed_until)

    def sent(self, attempt_id: str, now: float) -> Circuit:
        """Note that an attempt was sent out: while the circuit is not closed it is one that finds out. It may take days
        to end, so the others do not wait for that alone."""
        if not self.opened:
            return self
        return replace(self, probes=(*self.probes, attempt_id), probed_until=now + LONGEST_HOLD)

    def succeeded(self, attempt_id: str) -> Circuit:
        """Note that an attempt has succeeded. While open, only those that were let through count: the others may have
        asked the service long ago."""
        if not self.opened:
            return Circuit(self.service)
        return Circuit(self.service) if attempt_id in self.probes else self

    def failed(self, attempt_id: str, reason: str, now: float) -> Circuit:
        """Note that an attempt has failed by the service. While open, those that were let through after it still find
        out; those before it have asked the service earlier than that, and nothing they say counts any more."""
        if self.opened:
            if attempt_id not in self.probes:
                return self
            later = self.probes[self.probes.index(attempt_id) + 1 :]
            opened = _opened(self, reason, now)
            return replace(opened, probes=later, probed_until=self.probed_until) if later else opened
        failed_at = (*(at for at in self.failed_at if now - at <= WITHIN), now)[-FAILURES:]
        changed = replace(self, failed_at=failed_at, reason=reason)
        return _opened(changed, reason, now) if len(failed_at) >= FAILURES else changed

    def told_nothing(self, attempt_id: str) -> Circuit:
        """Note that an attempt has ended in a way that says nothing of the service: another may find out."""
        if attempt_id not in self.probes:
            return self
        left = tuple(probe for probe in self.probes if probe != attempt_id)
        return replace(self, probes=left, probed_until=0.0 if attempt_id == self.probes[-1] else self.probed_until)


def _opened(circuit: Circuit, reason: str, now: float) -> Circuit:
    hold = min(LONGEST_HOLD, FIRST_HOLD * 2.0 ** min(circuit.opened, 20))
    return Circuit(circuit.service, opened=circuit.opened + 1, open_until=now + hold, reason=reason)
