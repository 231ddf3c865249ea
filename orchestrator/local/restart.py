"""When a process that ended is started again: at once is a storm, never is an outage."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY = 1.0
LONGEST_DELAY = 30.0
STEADY_SECONDS = 60.0
"""A process that lived this long has recovered; its next end counts as the first."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often a process ended in a row without ever running steadily."""

    count: int = 0

    def after_end(self, lived_seconds: float) -> Restarts:
        """Count one more end of a process that lived this long."""
        return Restarts(1 if lived_seconds >= STEADY_SECONDS else self.count + 1)

    @property
    def delay(self) -> float:
        """Seconds to wait before the next start: doubled each time, up to a cap."""
        return 0.0 if self.count == 0 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.count - 1, 16))
