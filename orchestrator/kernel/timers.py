"""The kernel's one heap of limits in time: of runs, of tasks, of dispatches, and of what a waiting line waits for."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from orchestrator.kernel.nodes import DEADLINE, TaskNode
from orchestrator.states import TASK_TERMINAL, TaskState

TASK_DEADLINE, MAX_QUEUED, GATE = DEADLINE, "max_queued", "gate"
KEPT = 1_000
"""Entries of the heap that may be outdated before it is made anew."""


class Timers:
    """Of each kind and id one timer at most; setting it again moves it, and what was moved or dropped never fires."""

    __slots__ = ("_at", "_heap")

    def __init__(self) -> None:
        self._at: dict[tuple[str, str], float] = {}
        self._heap: list[tuple[float, str, str]] = []

    def set(self, kind: str, id_: str, at: float) -> None:
        if self._at.get((kind, id_)) == at:
            return
        self._at[kind, id_] = at
        heapq.heappush(self._heap, (at, kind, id_))
        if len(self._heap) > 2 * len(self._at) + KEPT:
            self._heap = [(at, kind, id_) for (kind, id_), at in self._at.items()]
            heapq.heapify(self._heap)

    def drop(self, kind: str, id_: str) -> None:
        self._at.pop((kind, id_), None)

    def forget(self, id_: str) -> None:
        """Drop all timers of a task run."""
        if self._at:
            self._at.pop((TASK_DEADLINE, id_), None)
            self._at.pop((MAX_QUEUED, id_), None)

    def all(self) -> dict[tuple[str, str], float]:
        """Return when each fires, by kind and id."""
        return dict(self._at)

    def next_at(self) -> float | None:
        """Return when the next one fires."""
        while self._heap:
            at, kind, id_ = self._heap[0]
            if self._at.get((kind, id_)) == at:
                return at
            heapq.heappop(self._heap)
        return None

    def fire(self, now: float) -> Iterator[tuple[str, str]]:
        """Yield kind and id of each timer that is due, the earliest first; it is gone then."""
        while (at := self.next_at()) is not None and at <= now:
            _, kind, id_ = heapq.heappop(self._heap)
            del self._at[kind, id_]
            yield kind, id_


def set_timers(timers: Timers, node: TaskNode, now: float) -> None:
    """Set the timers of a task run as its state wants them, and drop those that it wants no more."""
    max_queued = node.planned.max_queued
    if node.planned.deadline is not None:
        if node.deadline_at is None or node.state in TASK_TERMINAL:
            timers.drop(TASK_DEADLINE, node.id)
        else:
            timers.set(TASK_DEADLINE, node.id, node.deadline_at)
    if max_queued is not None:
        if node.state in (TaskState.READY, TaskState.QUEUED):
            node.ready_since = now if node.ready_since is None else node.ready_since
            timers.set(MAX_QUEUED, node.id, node.ready_since + max_queued)
        else:
            timers.drop(MAX_QUEUED, node.id)
