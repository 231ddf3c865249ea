"""The time limits of one attempt, as its supervisor keeps them: set-up, time limit, silence."""

from __future__ import annotations

from dataclasses import dataclass

from workers import verdict


@dataclass(slots=True)
class TimeLimits:
    """When which limit is passed; all times are seconds on the monotonic clock.

    Set-up is what happens before the operator runs: its process starts, imports it and checks its parameters. It has a
    limit of its own, which is ours: neither the time limit of the task nor its silence counts until it is over.
    """

    started: float
    setup: float
    """Seconds that set-up may take."""
    timeout: float | None
    """Seconds that the operator may run."""
    silence: float | None
    """Seconds without a log line, a report of progress or a checkpoint."""
    begun: float | None = None
    """When the operator began to run."""
    heard: float = 0.0

    def begin(self, now: float) -> None:
        """Note that set-up is over."""
        self.begun = self.heard = now

    def hear(self, now: float) -> None:
        """Note a sign of life."""
        self.heard = now

    def setup_seconds(self, now: float) -> float:
        """Return how long set-up took, or has taken so far."""
        return (now if self.begun is None else self.begun) - self.started

    def passed(self, now: float) -> str:
        """Return the first limit that is passed, as the reason to stop; empty: none."""
        if self.begun is None:
            return verdict.SETUP_TIMEOUT if now >= self.started + self.setup else ""
        if self.timeout is not None and now >= self.begun + self.timeout:
            return verdict.TIMEOUT
        if self.silence is not None and now >= self.heard + self.silence:
            return verdict.NO_PROGRESS
        return ""
