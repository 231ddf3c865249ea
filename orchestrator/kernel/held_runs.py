"""Which queued runs are not to be read from the rows now, because they could not start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.limits import Holders, Key, Slot

MOST_OF_A_PIPELINE = 100
"""Runs of one pipeline that are remembered; with so many the whole pipeline is left out but for those whose turn it
is."""


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
    pipelines: tuple[str, ...] = ()
    """All runs of these,"""
    but: tuple[str, ...] = ()
    """save for these."""
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

    def left_out(self, holders: Holders, stopping: Iterable[str]) -> HeldBack:
        """Return what can't start now: of each key all but the first ones, as many as have a place.

        :param stopping: runs that are being stopped: who waits with ``cancel_running`` may stop the others.
        """
        going = set(stopping)
        held: dict[str, HeldRun] = {}
        for key, waiting in self._by_key.items():
            held |= self._behind(key, waiting, holders, going)
        counts: dict[str, int] = {}
        for one in held.values():
            counts[one.pipeline_id] = counts.get(one.pipeline_id, 0) + 1
        full = tuple(pipeline for pipeline, count in counts.items() if count >= MOST_OF_A_PIPELINE)
        free = tuple(one.run_id for one in self._runs.values() if one.run_id not in held and one.pipeline_id in full)
        return HeldBack(tuple(run_id for run_id, one in held.items() if one.pipeline_id not in full), full, free)

    @staticmethod
    def _behind(key: Key, waiting: Mapping[str, HeldRun], holders: Holders, stopping: set[str]) -> dict[str, HeldRun]:
        taken = frozenset(holders.of(key))
        found: dict[str, HeldRun] = {}
        for place, one in enumerate(sorted(waiting.values(), key=lambda one: one.rank)):
            others = taken - one.around
            may_stop = one.slot.on_limit == "cancel_running" and len(others - stopping) >= one.slot.limit
            if place >= one.slot.limit - len(others) and not may_stop:
                found[one.run_id] = one
        return found
