"""Sends spooled outcomes until the scheduler answers: its own, and those of ended incarnations of this host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.logs import get_logger
from orchestrator.states import AttemptState
from orchestrator.wire.messages import Answer
from workers.spool import Spool

log = get_logger(__name__)

FIRST_DELAY = 2.0
LONGEST_DELAY = 30.0
ROUND_SECONDS = 5.0
HOLD_SECONDS = 0.1


class OutcomeReporter(Protocol):
    """The part of ``Reporter`` that outcomes need."""

    def outcome_from_spool(self, body: bytes) -> str: ...

    def is_unread(self, entry_id: str) -> bool: ...


@dataclass(slots=True)
class _Due:
    at: float
    delay: float
    entry: str = ""
    """What was sent last, on the stream."""


class OutcomeSender:
    """When to send which outcome.

    :param is_ended: says whether no process of another incarnation lives that would send its outcomes itself.
    """

    def __init__(
        self,
        spool: Spool,
        reporter: OutcomeReporter,
        incarnation: str,
        is_ended: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._reporter = reporter
        self._incarnation = incarnation
        self._is_ended = is_ended
        self._clock = clock
        self._lock = threading.Lock()
        self._due: dict[str, _Due] = {}

    def add(self, attempt_id: str) -> None:
        """Send this one now."""
        with self._lock:
            self._due.setdefault(attempt_id, _Due(self._clock(), FIRST_DELAY))

    def look(self) -> None:
        """Find what waits in the spool: ours, and what ended incarnations left."""
        for spooled in self._spool.waiting():
            ours = spooled.worker_id == self._incarnation
            if spooled.attempt_id not in self._due and (ours or self._is_ended(spooled.worker_id)):
                self.add(spooled.attempt_id)

    def hurry(self) -> None:
        """Send all of them again now: Redis was reset."""
        with self._lock:
            for due in self._due.values():
                due.at = self._clock()
                due.delay = FIRST_DELAY
                due.entry = ""

    def send_due(self, may_say_preempted: Callable[[], bool] = lambda: True) -> None:
        """Send those whose time has come; 2, 4, 8 … 30 s later they are sent again.

        Not those that still wait on the stream: while no scheduler reads, they would only fill Redis. One round is
        bounded in time: whoever calls has a heartbeat to send.

        :param may_say_preempted: whether the scheduler knows that we leave; else it might dispatch a preempted attempt
            to us again.
        :raises StoreUnavailable: Redis does not answer; they stay due.
        """
        now = self._clock()
        with self._lock:
            ready = [(attempt_id, due) for attempt_id, due in self._due.items() if due.at <= now]
        ready.sort(key=lambda one: one[1].at)  # or in a slow round the same few would come first again and again
        for attempt_id, due in ready:
            if self._clock() - now > ROUND_SECONDS:
                return
            spooled = self._spool.read(attempt_id)
            if spooled is None:  # another worker of this host has sent it, and was answered
                self._forget(attempt_id)
                continue
            if spooled.outcome.state is AttemptState.PREEMPTED and not may_say_preempted():
                due.at = now + HOLD_SECONDS
                continue
            if not due.entry or not self._reporter.is_unread(due.entry):
                due.entry = self._reporter.outcome_from_spool(spooled.body)
            due.at = self._clock() + due.delay
            due.delay = min(due.delay * 2, LONGEST_DELAY)

    def next_at(self) -> float | None:
        """Return when the next one is due."""
        with self._lock:
            return min((due.at for due in self._due.values()), default=None)

    def take_answer(self, answer: Answer) -> bool:
        """Note an answer; returns whether an outcome with this token was waiting for it."""
        spooled = self._spool.read(answer.attempt_id)
        if spooled is None or spooled.token != answer.token:
            return False
        self._spool.answer(answer.attempt_id, answer.verdict)
        self._forget(answer.attempt_id)
        return True

    def _forget(self, attempt_id: str) -> None:
        with self._lock:
            self._due.pop(attempt_id, None)
