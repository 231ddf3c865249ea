"""What to do after a round has failed: how long to wait, how few reports and commands to try, when to give up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from orchestrator.events import Event, OutcomeReceived
from orchestrator.records import Outcome
from orchestrator.states import AttemptState
from orchestrator.store.loader import MOST_TASKS
from scheduler.inbox import BATCH

LONGEST_BACK_OFF = 1.0
TRIES = 3
"""A report that fails so often, each time alone, is dropped and counted: it must not stop all others. Its worker sends
it again, for nobody has answered."""
ROUNDS = 20
"""After so many failed rounds in a row the process ends; its supervisor starts another."""
PUT_OFF_SECONDS = 60.0
"""For so long a command or a run waits whose round has failed :data:`TRIES` times, each time with no other; after each
further failure for twice as long as the last time."""
LONGEST_PUT_OFF = 3600.0
UNUSABLE = Outcome(
    AttemptState.FAILED,
    reason="unusable_report",
    message="What the task reported could not be stored; the scheduler's log says why.",
    retryable=False,
)


K = TypeVar("K", bound=Hashable)


class _PutOff(Generic[K]):
    """What has failed alone, again and again, and waits while others are tried."""

    def __init__(self) -> None:
        self._failed: Counter[K] = Counter()
        self._until: dict[K, float] = {}

    def note(self, key: K, now: float) -> bool:
        """Note that it failed alone; says whether it waits from now on."""
        self._failed[key] += 1
        more = self._failed[key] - TRIES
        if more < 0:
            return False
        # The exponent is bounded as well: who fails for weeks must not overflow.
        self._until[key] = now + min(LONGEST_PUT_OFF, PUT_OFF_SECONDS * 2 ** min(more, 10))
        return True

    def waiting(self, now: float) -> frozenset[K]:
        self._until = {key: until for key, until in self._until.items() if until > now}
        return frozenset(self._until)


class Troubles:
    """The memory of failures within a term."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._careful = 0
        self._batch = BATCH
        self._failed: Counter[str] = Counter()
        self._unusable: set[str] = set()
        self._tasks = MOST_TASKS
        self._commands = _PutOff[int]()
        self._runs = _PutOff[str]()

    @property
    def batch(self) -> int:
        """Reports to take in the next round: one by one for a while after a failure that nobody foresaw, half as many
        after each round that may have been too large, and slowly more again."""
        return 1 if self._careful else self._batch

    @property
    def most_tasks(self) -> int:
        """For runs of how many tasks to take commands in the next round, and how many tasks of queued runs: one command
        or one run after a failure, for the round may have been too large, and then more with each that passes."""
        return self._tasks

    def passed(self) -> None:
        """A round went well; to have made the memory anew is none."""
        self._in_a_row = 0
        self._tasks = min(2 * self._tasks, MOST_TASKS)
        if self._careful:
            self._careful -= 1
            return
        self._batch = min(BATCH, self._batch + max(1, self._batch // 8))
        if self._batch == BATCH:
            self._failed.clear()

    def back_off(self) -> float:
        """Return the seconds to wait after a failure."""
        self._in_a_row += 1
        self._tasks = 1
        return float(min(LONGEST_BACK_OFF, 0.05 * 2 ** min(self._in_a_row, 6)))

    def may_go_on(self, reports: Sequence[str]) -> bool:
        """Note a failure that nobody foresaw; say whether another round makes sense."""
        self._careful = BATCH
        self._failed.update(reports[:1] if len(reports) == 1 else ())
        return self._in_a_row < ROUNDS

    def ask_less(self, reports: Sequence[str]) -> bool:
        """Note that PostgreSQL did not answer a round, or that a row was not as we knew it; say whether another round
        makes sense, if it was the latter. It may have been too much for one transaction."""
        if reports:
            self._batch = max(1, min(self._batch, len(reports)) // 2)
        self._failed.update(reports if len(reports) == 1 else ())
        return self._in_a_row < ROUNDS

    def note_taken(self, commands: Sequence[int], runs: Sequence[str], now: float) -> bool:
        """Note the commands of a failed round, and the runs that were to start in it. One that fails alone, again and
        again, must not stop all others, and is not refused either: it may be the machine that is too slow at the
        moment. Says whether it is put off now."""
        if len(commands) + len(runs) != 1:
            return False
        is_put_off = self._commands.note(commands[0], now) if commands else self._runs.note(runs[0], now)
        if is_put_off:
            self._in_a_row = 0
        return is_put_off

    def put_off(self, now: float) -> frozenset[int]:
        """Return the commands that wait."""
        return self._commands.waiting(now)

    def put_off_runs(self, now: float) -> frozenset[str]:
        """Return the runs that wait."""
        return self._runs.waiting(now)

    def hopeless(self, reports: Sequence[str], events: Sequence[Event], *, may_mend: bool = True) -> list[str]:
        """Return the report of the failed round when it is to be dropped.

        :param may_mend: an outcome that was tried, alone, often enough is first tried as a plain failure
            (:meth:`mend`), so that its attempt ends all the same. Not where PostgreSQL did not answer, for that may be
            the machine, and would cost a success.
        """
        if len(reports) != 1 or self._failed[reports[0]] < TRIES:
            return []
        # That is no failure without an end: the others come next.
        self._in_a_row = 0
        unusable = {event.attempt_id for event in events if isinstance(event, OutcomeReceived)} - self._unusable
        if not unusable or not may_mend:
            del self._failed[reports[0]]
            return list(reports)
        self._unusable |= unusable
        del self._failed[reports[0]]
        return []

    def mend(self, events: Sequence[Event]) -> list[Event]:
        """Return the events with outcomes that could not be committed replaced by a failure that says so."""
        return [
            replace(event, outcome=UNUSABLE)
            if isinstance(event, OutcomeReceived) and event.attempt_id in self._unusable
            else event
            for event in events
        ]
