"""The lines of ready tasks: one line per kind of ask, so that a blocked kind is looked at once, not task by task."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from orchestrator.kernel.nodes import TaskNode
from orchestrator.placement import Ask, Wait
from orchestrator.states import TaskState

Rank = tuple[int, int, int, int, int]


class Line:
    """Ready tasks with equal asks, best first. Tasks that left the ready state are passed over when met."""

    __slots__ = ("ask", "blocked", "entries", "told", "unexplained")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.entries: list[tuple[Rank, TaskNode]] = []
        self.blocked: Wait | None = None
        """Why its head can't be placed; as long as nothing is freed that holds for all of the line."""
        self.told: Wait | None = None
        """What its tasks were told last."""
        self.unexplained: list[TaskNode] = []
        """Tasks that have not been told what they wait for."""

    def head(self) -> tuple[Rank, TaskNode] | None:
        while self.entries:
            entry = self.entries[0]
            if is_waiting(entry):
                return entry
            heapq.heappop(self.entries)
        return None

    def members(self) -> Iterator[TaskNode]:
        return (entry[1] for entry in self.entries if is_waiting(entry))


def is_waiting(entry: tuple[Rank, TaskNode]) -> bool:
    """Say whether this entry still stands for its task: ready, of a run that dispatches, and not queued up anew."""
    rank, node = entry
    return node.state is TaskState.READY and node.ticket == rank[-1] and node.run.dispatches


class Waiting:
    """All lines. ``stirred`` says that a pass over them could place something."""

    __slots__ = ("lines", "stirred", "tickets")

    def __init__(self) -> None:
        self.lines: dict[Ask, Line] = {}
        self.tickets = 0
        self.stirred = False

    def add(self, node: TaskNode, ask: Ask) -> None:
        """Queue the task up: run priority, then run order, then the longest remaining path."""
        line = self.lines.get(ask)
        if line is None:
            line = self.lines[ask] = Line(ask)
        self.tickets += 1
        node.ticket, node.ask = self.tickets, ask
        run = node.run
        rank = (-run.priority, run.order, -node.remaining, node.position, node.ticket)
        heapq.heappush(line.entries, (rank, node))
        line.unexplained.append(node)
        self.stirred = True

    def unblock(self) -> None:
        """Something was freed, or a worker changed: every line may move."""
        self.stirred = True
        for line in self.lines.values():
            line.blocked = None
