"""The lines of ready tasks: one per kind of ask and gate, so that a blocked kind is looked at once, not per task."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

from orchestrator.kernel.gates import Gate
from orchestrator.kernel.nodes import TaskNode
from orchestrator.placement import Ask, Wait
from orchestrator.states import TaskState

Rank = tuple[int, int, int, int, int]


class Line:
    """Ready tasks with equal asks and gates, best first. Tasks that left the ready state are passed over when met."""

    __slots__ = ("ask", "blocked_in", "entries", "gate", "rests", "told", "unexplained")

    def __init__(self, ask: Ask, gate: Gate) -> None:
        self.ask = ask
        self.gate = gate
        self.entries: list[tuple[Rank, TaskNode]] = []
        self.blocked_in = 0
        """Last round in which its head could not be placed: as long as nothing is freed that holds for all of it."""
        self.rests = False
        """Whether it is passed over until its turn comes: see :class:`Waiting`."""
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
    return node.state is TaskState.READY and node.ticket == rank[-1] and node.dispatches


class Waiting:
    """All lines. ``stirred`` says that a pass over them could place something.

    Thousands of lines may ask the same and differ by their gates. While nobody can take what they ask, those that know
    it rest: of each ask only the best of them is woken when something was freed, and the next one when that was placed.
    """

    __slots__ = ("asks", "awake", "full", "left", "lines", "resting", "round", "stirred", "tickets")

    def __init__(self) -> None:
        self.lines: dict[tuple[Ask, Gate], Line] = {}
        self.awake: dict[Line, None] = {}
        """Lines that are looked at in each pass."""
        self.resting: dict[Ask, list[tuple[Rank, Line]]] = {}
        """The others, of each ask the one with the best head first."""
        self.asks: Counter[Ask] = Counter()
        """How many lines there are of each ask."""
        self.left: set[Ask] = set()
        """Asks the last line of which was closed lately."""
        self.full: dict[Ask, Wait] = {}
        """Asks that nobody can take in this round, and what they wait for."""
        self.round = 1
        """Counts how often something was freed."""
        self.tickets = 0
        self.stirred = False

    def add(self, node: TaskNode, ask: Ask, gate: Gate) -> None:
        """Queue the task up: run priority, then run order, then the longest remaining path."""
        line = self.lines.get((ask, gate))
        if line is None:
            line = self.lines[ask, gate] = Line(ask, gate)
            self.asks[ask] += 1
        self.tickets += 1
        node.ticket, node.ask = self.tickets, ask
        run = node.run
        rank = (-run.priority, run.order, -node.remaining, node.position, node.ticket)
        heapq.heappush(line.entries, (rank, node))
        line.unexplained.append(node)
        line.rests, self.awake[line] = False, None
        self.stirred = True

    def drop(self, node: TaskNode) -> None:
        """Take a task out that is ready and must wait for something else first."""
        node.ticket, node.ask = 0, None

    def close(self, line: Line) -> None:
        """Forget a line nobody stands in; it may be among the resting ones more than once, and is passed over there."""
        line.rests = False
        del self.lines[line.ask, line.gate]
        self.awake.pop(line, None)
        self.asks[line.ask] -= 1
        if not self.asks[line.ask]:
            del self.asks[line.ask]
            self.left.add(line.ask)

    def unblock(self) -> None:
        """Something was freed, or a worker changed: every line may move."""
        self.stirred = True
        self.round += 1
        self.full.clear()

    def may_rest(self, line: Line) -> bool:
        """Say whether the line need not be looked at: nobody can take what it asks, which it was told, and its gate
        would let it wait anyhow."""
        return line.ask in self.full and line.gate.only_waits and line.told is not None and line.told.for_capacity

    def rest(self, line: Line, rank: Rank) -> None:
        line.rests = True
        self.awake.pop(line, None)
        heapq.heappush(self.resting.setdefault(line.ask, []), (rank, line))

    def woken(self, ask: Ask) -> tuple[Rank, Line] | None:
        """Wake the resting line of this ask that has the best head, unless nobody can take it."""
        resting = self.resting.get(ask)
        while resting and ask not in self.full:
            rank, line = heapq.heappop(resting)
            head = line.head()
            if not line.rests:
                continue
            if head is None:
                self.close(line)
            elif head[0] != rank:
                heapq.heappush(resting, (head[0], line))
            else:
                line.rests, self.awake[line] = False, None
                return rank, line
        if resting is not None and not resting:
            del self.resting[ask]
        return None
