"""Drain: a worker that takes nothing more, and what that means for each attempt it still runs.

Wanted by TERM, which ends the worker when it is empty, or by a command of the scheduler, which leaves it up: it stays,
draining, until it is undrained or told to end. What each task wishes is its ``on_drain``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.wire.messages import GrantSpec


@dataclass(frozen=True, slots=True)
class Stop:
    """An order to stop a tree: TERM, then KILL after ``grace`` seconds (``None``: the task's own)."""

    grace: float | None


class Drain:
    """Whether this worker is to be emptied, and how long it may wait for what runs.

    :param seconds: how long a drain waits when it is not told otherwise (``DRAIN_SECONDS``).
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._left_until: float | None = None
        self._commanded_until: float | None = None
        self._word: tuple[object, ...] = ()
        """The scheduler's word by which that was set."""
        self._is_hurried = False

    @property
    def is_leaving(self) -> bool:
        """Whether the worker ends when it is empty."""
        return self._left_until is not None

    @property
    def is_commanded(self) -> bool:
        """Whether the scheduler wants it emptied."""
        return self._commanded_until is not None

    @property
    def is_on(self) -> bool:
        return self.is_leaving or self.is_commanded

    def leave(self) -> None:
        """Take TERM: be emptied, then end. A second one hurries. Called from signal handlers, so it takes no lock."""
        if self._left_until is not None:
            self._is_hurried = True
        else:
            self._left_until = self._clock() + self._seconds

    def hurry(self) -> None:
        """Wait for nothing more, and end."""
        self._left_until = self._clock()
        self._is_hurried = True

    def command(self, wanted: bool, left: float | None, said: tuple[int, int]) -> bool:
        """Take the scheduler's word; returns whether it is news.

        :param left: seconds it still waits; ``None``: as long as our own setting allows, from the first word on.
        :param said: epoch and heartbeat that the word answers. It stands for a minute and is read every second, so the
            deadline counts from its first reading: a word of a leader that has died is not prolonged.
        """
        was = self.is_commanded
        word = (*said, left)
        if not wanted:
            self._commanded_until = None
        elif left is not None:
            if not was or word != self._word:
                self._commanded_until = self._clock() + max(left, 0.0)
        elif self._commanded_until is None:
            self._commanded_until = self._clock() + self._seconds
        self._word = word
        return was != wanted

    def order_for(self, spec: GrantSpec) -> Stop | None:
        """Return how this attempt is to be stopped now, or ``None`` while it may go on."""
        if not self.is_on:
            return None
        if spec.on_drain == "kill":
            return Stop(0.0)
        if spec.on_drain == "checkpoint" or self._is_hurried or self._clock() >= self._deadline():
            return Stop(None)
        return None

    def _deadline(self) -> float:
        ends = [end for end in (self._left_until, self._commanded_until) if end is not None]
        return min(ends, default=float("inf"))
