"""Which queued runs are not to be read from the rows now, because they could not start."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from orchestrator.limits import Holders, Key, Slot


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run that was looked at and could not start: ``slot`` was taken."""

    run_id: str
    slot: Slot
    rank: tuple[int, int]
    """Lower goes first: by priority, then in the order of creation."""
    pipeline_id: str
    around: frozenset[str] = frozenset()
    """The runs it is inside of, which it does not wait for."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """What the reader of queued runs leaves out."""

    runs: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    """To be read whatever holds them back, though their pipeline is paused: they are to be stopped."""


class HeldRuns:
    """The runs that were looked at, by the key they wait for. A new leader looks at them anew."""

    __slots__ = ("_by_key", "_runs")

    def __init__(self) -> None:
        self._runs: dict[str, HeldRun] = {}
        self._by_key: dict[Key, dict[str, HeldRun]] = {}

    def hold(self, held: HeldRun) -> None:
        self.forget(held.run_id)
        self._runs[held.run_id] = held
        self._by_key.setdefault(held.slot.key, {})[held.run_id] = held

    def forget(self, run_id: str) -> None:
        """Drop a run that has started or ended."""
        held = self._runs.pop(run_id, None)
        if held is not None:
            waiting = self._by_key[held.slot.key]
            del waiting[run_id]
            if not waiting:
                del self._by_key[held.slot.key]

    def left_out(self, holders: Holders, stopping: Iterable[str], paused: Collection[str] = ()) -> HeldBack:
        """Return what can't start now: of each key all but the first ones, as many as have a place. Each is named, for
        others of its pipeline may wait for another key, or for none.

        :param stopping: runs that are being stopped: who waits with ``cancel_running`` may stop the others.
        :param paused: pipelines whose runs don't start: whoever comes after them goes before them.
        """
        going = set(stopping)
        held: dict[str, HeldRun] = {}
        for key, waiting in self._by_key.items():
            coming = [one for one in waiting.values() if one.pipeline_id not in paused]
            held |= self._behind(key, coming, holders, going)
        return HeldBack(tuple(held))

    @staticmethod
    def _behind(key: Key, waiting: Iterable[HeldRun], holders: Holders, stopping: set[str]) -> dict[str, HeldRun]:
        taken = frozenset(holders.of(key))
        found: dict[str, HeldRun] = {}
        for place, one in enumerate(sorted(waiting, key=lambda one: one.rank)):
            others = taken - one.around
            may_stop = one.slot.on_limit == "cancel_running" and len(others - stopping) >= one.slot.limit
            if place >= one.slot.limit - len(others) and not may_stop:
                found[one.run_id] = one
        return found
