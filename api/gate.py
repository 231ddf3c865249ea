"""How many requests are worked on at once: only as many as are answered soon, however slow the machine is just now.

Requests that are worked on together slow each other down: all of them are answered late, at no more per second than a
few at a time would be. So their number follows the time that they take (fewer at once when that is long, one more now
and then when it is short), and who gets no place in time is told to come back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST = 8
LEAST = 4
SOON = 0.25
"""Seconds: while answers take less, there is room for more at once."""
SLOW = 0.5
"""Seconds: answers that take longer come from too many at once."""
LONGEST = 5.0
"""Seconds after which a request takes nobody's place any more. What waits so long waits for none of what others need,
but for dead storage, say; when such requests have all the threads, ``hangs`` ends the process."""
_LESS = 0.7
_NEWEST = 0.2
"""How much the last answer counts in the time that an answer takes."""


class Gate:
    """Lets requests in while there is a place; safe for many threads.

    :param most: places, were all answers to come at once.
    :param clock: monotonic seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(most)
        self._least = min(float(LEAST), self._most)
        self._limit = min(float(FIRST), self._most)
        self._clock = clock
        self._place_free = threading.Condition()
        self._inside: dict[Place, None] = {}
        self._waiting = 0
        self._usual = SOON
        self._lessened_at = float("-inf")

    @property
    def places(self) -> int:
        """How many are let in at once, as things are now."""
        return int(self._limit)

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return self._waiting

    def enter(self, seconds: float) -> Place | None:
        """Take a place; ``None`` when none came free within so many seconds, or at once when none will."""
        with self._place_free:
            if not self._has_room():
                if (self._waiting + 1) * self._usual / self.places > seconds:
                    return None
                self._waiting += 1
                try:
                    if not self._place_free.wait_for(self._has_room, seconds):
                        return None
                finally:
                    self._waiting -= 1
            place = Place(self, self._clock())
            self._inside[place] = None
            return place

    def _has_room(self) -> bool:
        forgotten = self._clock() - LONGEST
        # Those that a client kept waiting are behind others of their age; they are found a little later.
        while self._inside and (first := next(iter(self._inside))).began < forgotten:
            del self._inside[first]
        return len(self._inside) < self.places

    def leave(self, place: Place) -> None:
        """Give the place back, and learn from how long it was held."""
        now = self._clock()
        with self._place_free:
            was_full = len(self._inside) >= self.places
            if place not in self._inside:
                return
            del self._inside[place]
            took = now - place.began
            self._usual += _NEWEST * (took - self._usual)
            # What takes long while there is room for all is slow by itself.
            if was_full:
                self._learn(took, place.began, now)
            self._place_free.notify()

    def _learn(self, took: float, began: float, now: float) -> None:
        if took < SOON:
            self._limit = min(self._most, self._limit + 1 / self._limit)
        elif took > SLOW and began >= self._lessened_at:
            # Those that began before there were fewer say nothing of how it is since.
            self._limit, self._lessened_at = max(self._least, self._limit * _LESS), now

    def step_out(self, place: Place) -> float | None:
        """Give the place to others for a while; return since when, or ``None`` if it is not held any more."""
        with self._place_free:
            if place not in self._inside:
                return None
            del self._inside[place]
            self._place_free.notify()
            return self._clock()

    def step_in(self, place: Place, stepped_out_at: float) -> None:
        """Let one go on that was in before, whether there is room or not: it has its body by now."""
        with self._place_free:
            place.began += self._clock() - stepped_out_at
            self._inside[place] = None


class Place:
    """What one request holds while it is worked on."""

    def __init__(self, gate: Gate, began: float) -> None:
        self._gate = gate
        self.began = began
        """Moved on by the seconds that its client took to send."""

    def leave(self) -> None:
        """Give it back."""
        self._gate.leave(self)

    @contextmanager
    def waiting_for_client(self) -> Iterator[None]:
        """Let another one have it while this lasts: a client that sends slowly is no work."""
        stepped_out_at = self._gate.step_out(self)
        try:
            yield
        finally:
            if stepped_out_at is not None:
                self._gate.step_in(self, stepped_out_at)
