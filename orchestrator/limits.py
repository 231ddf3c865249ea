"""Limits on how much goes on at once and how often: their keys worked out, who holds a slot, when the last ones went.

Pure values and two small indexes. Slots are not stored: they are those of the attempts and runs that are alive, so they
cannot leak, and a leader that is rebuilt from rows finds the same ones. For how long a dispatch counts is said by the
row of its attempt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from orchestrator.errors import TemplateError
from orchestrator.expressions.paths import Lookup
from orchestrator.expressions.templates import resolve_text
from orchestrator.expressions.texts import Texts
from orchestrator.records import ConcurrencyLimit, RateLimit

Key = tuple[str, str, str]
"""Tenant, what is counted (:data:`RUNS`, :data:`PIPELINE`, :data:`ATTEMPTS` or :data:`DISPATCHES`) and the value."""

RUNS, PIPELINE, ATTEMPTS, DISPATCHES = "runs", "pipeline", "attempts", "dispatches"
NAMED = 3
"""Holders that a sentence names."""
LONGEST_KEY = 500
"""Characters of a key that is worked out: it stands in the rows of attempts and in what those are told that wait."""
SHOWN = 60
KEYS_KEPT = 1_000
"""Keys of rate limits that are remembered before the idle ones among them are forgotten."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One limit with its key worked out. Keys hold for all pipelines of a tenant, so that two can exclude each other;
    ``{{ run.pipeline }}`` in the template makes it one pipeline's own."""

    key: Key
    limit: int
    on_limit: str = "queue"

    @property
    def named(self) -> str:
        return f"pipeline {self.key[2]}" if self.key[1] == PIPELINE else f"key {self.key[2]!r}"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``units`` dispatches within any ``per`` seconds."""

    key: Key
    units: int
    per: float


def slots_of(
    limits: Iterable[ConcurrencyLimit], tenant_id: str, kind: str, lookup: Lookup, texts: Texts | None = None
) -> tuple[Slot, ...]:
    """Work out the keys; a limit whose key is null is left out.

    :param texts: is charged for what is read.

    :raises TemplateError: a path in a key leads nowhere, or the key is too long.
    """
    found = ((limit, _worked_out(limit.key, lookup, "/concurrency", texts)) for limit in limits)
    return tuple(
        Slot((tenant_id, kind, value), limit.limit, limit.on_limit) for limit, value in found if value is not None
    )


def rate_of(limit: RateLimit | None, tenant_id: str, lookup: Lookup, texts: Texts | None = None) -> Rate | None:
    """Work out the key of a rate limit; ``None`` when there is none, or its key is null.

    :param texts: is charged for what is read.

    :raises TemplateError: a path in the key leads nowhere, or the key is too long.
    """
    value = None if limit is None else _worked_out(limit.key, lookup, "/rate_limit", texts)
    if limit is None or value is None:
        return None
    return Rate((tenant_id, DISPATCHES, value), limit.units, limit.per)


def _worked_out(key: str, lookup: Lookup, pointer: str, texts: Texts | None) -> str | None:
    text = resolve_text(key, lookup, pointer, LONGEST_KEY, texts)
    if text is not None and len(text) > LONGEST_KEY:
        raise TemplateError(
            f"The key at {pointer} has more than {LONGEST_KEY} characters, which begin with {text[:SHOWN]!r}. Name "
            "what is limited, not what is in it.",
            pointer,
        )
    return text


class Holders:
    """Who holds the slots of each key, the oldest first."""

    __slots__ = ("_by_key", "_keys_of")

    def __init__(self) -> None:
        self._by_key: dict[Key, dict[str, None]] = {}
        self._keys_of: dict[str, tuple[Key, ...]] = {}

    def take(self, holder: str, slots: Iterable[Slot]) -> None:
        """Let the holder have a slot of each key; taken twice is taken once."""
        keys = tuple(dict.fromkeys(slot.key for slot in slots))
        if keys and holder not in self._keys_of:
            self._keys_of[holder] = keys
            for key in keys:
                self._by_key.setdefault(key, {})[holder] = None

    def free(self, holder: str) -> bool:
        """Give back what it holds; says whether it held any."""
        keys = self._keys_of.pop(holder, ())
        for key in keys:
            holders = self._by_key[key]
            del holders[holder]
            if not holders:
                del self._by_key[key]
        return bool(keys)

    def of(self, key: Key) -> Collection[str]:
        """Return who holds a slot of the key."""
        return self._by_key.get(key, {}).keys()


class _Log:
    """The dispatches of one key that may still count for any of the limits that use it."""

    __slots__ = ("per", "sent", "units")

    def __init__(self) -> None:
        self.sent: deque[float] = deque()
        self.units = 0
        self.per = 0.0

    def note(self, rate: Rate, now: float) -> None:
        self.units, self.per = max(self.units, rate.units), max(self.per, rate.per)
        self.sent.append(now)
        while len(self.sent) > self.units:
            self.sent.popleft()

    def is_over(self, now: float) -> bool:
        return self.sent[-1] + self.per <= now


class Dispatches:
    """When the latest attempts of each rate limit's key were sent out.

    As many are remembered as a limit has units, so that no window of its length holds more than them, wherever it
    begins. A new leader learns them from the rows of the attempts.
    """

    __slots__ = ("_logs", "_most")

    def __init__(self) -> None:
        self._logs: dict[Key, _Log] = {}
        self._most = KEYS_KEPT
        """Keys with which it is looked next for idle ones: twice as many as were found live, so that it is not looked
        for each new key."""

    def note(self, rate: Rate, now: float) -> Rate:
        """Note a dispatch; returns for how long and how many it counts, for all limits that use its key."""
        if len(self._logs) >= self._most and rate.key not in self._logs:
            self._logs = {key: log for key, log in self._logs.items() if not log.is_over(now)}
            self._most = max(KEYS_KEPT, 2 * len(self._logs))
        log = self._logs.setdefault(rate.key, _Log())
        log.note(rate, now)
        return Rate(rate.key, log.units, log.per)

    def next_at(self, rate: Rate, now: float) -> float:
        """Return when the next one may go; ``now`` for at once."""
        log = self._logs.get(rate.key)
        if log is None or len(log.sent) < rate.units:
            return now
        return max(now, log.sent[-rate.units] + rate.per)


def sentence(slot: Slot, holders: Iterable[str]) -> str:
    """Say what is full and who holds it."""
    names = list(holders)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    held = ", ".join(names[:NAMED])
    what = "run" if slot.key[1] in (RUNS, PIPELINE) else "attempt"
    text = f"{slot.named} allows {slot.limit} {what}{'' if slot.limit == 1 else 's'} at once; held by {held}{more}."
    return text[0].upper() + text[1:]
