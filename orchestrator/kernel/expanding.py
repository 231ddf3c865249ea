"""How much may begin in one round of the leader, and how much containers may expand into in all.

What is over the bound of a round waits for the next: task runs of containers, characters of what was worked out for
them, for messages and for the parameters of sub-runs, and what was read for all of that and for the keys of limits,
whatever came of it. A round is one transaction. Without a bound it would be kept open
for longer than PostgreSQL lets it be, its effects would fill the leader's memory, and whoever leads next would begin
with the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.expressions.texts import Texts
from orchestrator.kernel.leftovers import LeftOver
from orchestrator.sweep import MAX_EXPANDED, MAX_TASK_RUNS

if TYPE_CHECKING:
    from orchestrator.kernel.changes import Changes
    from orchestrator.kernel.nodes import TaskNode

EXPANSION = "expansion"
"""Reason of what could begin, and whose turn comes in the next round."""
TOO_MANY = "too_many_items"
"""Reason of a container that would expand into too much."""
MOST_IN_ROUND = MAX_EXPANDED
MOST_CHARACTERS = 16 * 2**20
"""Of JSON in the keys and items of all the task runs that one map makes, for each has a copy of its own; and in all
that is worked out in one round."""
MOST_READ = 8 * 2**20
"""Characters that are read in one round, and what else that costs: some 0.2 s. What was begun is ended."""
BUILT = 100
"""What it costs, in characters that are read, to build an item of a map."""
WEIGHT_OF_PARAMETERS = 4
"""How often the characters of a sub-run's parameters count: it is made after the round, a hundred in one transaction,
and they are kept until then. So no more of the largest are asked for in a round than are made in one."""


class Expanding(LeftOver):
    """What has begun in this round, in task runs and characters, and the task runs that are left over."""

    __slots__ = ("_at", "_characters", "_looked_at", "_made", "texts")

    def __init__(self) -> None:
        super().__init__()
        self._at = self._looked_at = float("-inf")
        self._made = self._characters = 0
        self.texts = Texts()
        """What was read in this round. Texts are remembered as long as somebody waits: as a rule all read the same."""

    def is_full(self, now: float) -> bool:
        """Say whether nothing more is worked out in this round: others wait already, or enough was read."""
        self._begin(now)
        return bool(self._waiting) or self.texts.read >= MOST_READ

    def take(self, count: int, characters: int, now: float) -> bool:
        """Return whether there is room for so many task runs and so much text in this round; none, when others wait for
        it already.

        All that is decided in a round is decided at the same moment. The first one has room whatever it comes to.
        """
        self._begin(now)
        if self._waiting or (self._made and self._made + count > MOST_IN_ROUND):
            return False
        if self._characters and self._characters + characters > MOST_CHARACTERS:
            return False
        self._made += count
        self._characters += characters
        return True

    def left_over(self, now: float) -> Sequence[TaskNode]:
        """Return, once in a round, what has waited for it: one of each run in turn, the first one first."""
        self._begin(now)
        if now == self._looked_at:
            return ()
        self._looked_at = now
        found, self._waiting = _in_turn(self._waiting.values()), {}
        return found

    def _begin(self, now: float) -> None:
        if now != self._at:
            self._at, self._made, self._characters = now, 0, 0
            if self._waiting:
                self.texts.read = 0
            else:
                self.texts = Texts()


def _in_turn(nodes: Iterable[TaskNode]) -> Sequence[TaskNode]:
    before = Counter[str]()
    turns: list[tuple[int, TaskNode]] = []
    for node in nodes:
        turns.append((before[node.run.id], node))
        before[node.run.id] += 1
    return [node for _, node in sorted(turns, key=lambda turn: turn[0])]


def has_room(changes: Changes, count: int, characters: int = 0) -> bool:
    """Say whether so many task runs may be made in this round, and so much may be worked out."""
    return changes.kernel.expanding.take(count, characters, changes.now)


def is_put_off(changes: Changes, node: TaskNode) -> bool:
    """Let a task run wait for the next round where others wait already, or enough was read: then nothing is worked out
    for it now."""
    if changes.kernel.expanding.is_full(changes.now):
        put_off(changes, node)
        return True
    return False


def put_off(changes: Changes, node: TaskNode) -> None:
    """Let a task run that is to begin wait for the next round."""
    changes.kernel.expanding.wait(node)
    changes.explain(node, EXPANSION, "Others come first; its turn is the next.")


def go_on(changes: Changes) -> None:
    """Look again at what had no room in the round before."""
    kernel = changes.kernel
    left = kernel.expanding.left_over(changes.now)
    kernel.unsettled.extend(node for node in reversed(left) if kernel.tasks.get(node.id) is node)


def too_many(node: TaskNode, indices: int) -> str:
    """Return why a container can't have so many indices or rounds, as a sentence; empty: it can."""
    assert node.body is not None
    size, run = len(node.body.plan.tasks), node.run
    if node.planned.map is not None and indices * size > MAX_EXPANDED:
        return (
            f"The map has {indices} items for {size} tasks each, which makes {indices * size} task runs; at most "
            f"{MAX_EXPANDED} are allowed. Go over fewer, or take fewer tasks into the group."
        )
    known = set[int]()
    if node.inside is not None:
        known = {*node.inside.former, *range(len(node.inside.scopes))}
    made = sum(index not in known for index in range(indices)) * size
    if len(run.tasks) + made > MAX_TASK_RUNS:
        return (
            f"Run {run.id} has {len(run.tasks)} task runs and would have {len(run.tasks) + made}; at most "
            f"{MAX_TASK_RUNS} are allowed. Go over fewer, or let a run of its own do a part (pipeline)."
        )
    return ""


class Room:
    """The characters that the keys and items of one expansion may still come to."""

    __slots__ = ("_left", "_size", "texts")

    def __init__(self, node: TaskNode, texts: Texts) -> None:
        assert node.body is not None
        self._size = len(node.body.plan.tasks)
        self._left = MOST_CHARACTERS
        self.texts = texts
        """Is charged for what is read."""

    @property
    def taken(self) -> int:
        return MOST_CHARACTERS - self._left

    def key_of(self, value: Any) -> str | None:
        """Return a value as the key of an index; ``None``: it does not fit."""
        return self.texts.of(value, self._left // self._size)

    def take(self, key: str, item: Any) -> bool:
        """Return whether the rows of this index still fit."""
        text = json.dumps(item, ensure_ascii=False, default=str)
        self.texts.read += len(text)
        self._left -= self._size * (len(key) + len(text))
        return self._left >= 0


TOO_LARGE = (
    f"The keys and items of the map come to more than {MOST_CHARACTERS >> 20} Mi characters of JSON, counted for each "
    "task run that gets one. Go over fewer or smaller ones, such as the URIs of files."
)
