"""What is inside of a container: its indices or rounds, and what they have come to so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.states import TaskState

if TYPE_CHECKING:
    from orchestrator.kernel.nodes import Scope


class Inside:
    """What a container has expanded into."""

    __slots__ = ("bad", "former", "good", "hosts", "left", "live", "next", "open", "scopes", "skipped")

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        """By index, or round after round."""
        self.former: dict[int, Scope] = {}
        """By index those of an earlier expansion that count no more; their rows are used again where they fit."""
        self.hosts: dict[str, None] = {}
        """Hosts that alone hold outputs of its task runs."""
        self.clear_counts()

    def clear_counts(self) -> None:
        self.left: list[Any] | None = None
        """Of a map, what its indices have left so far; of a repeat, the round that was asked for last and what it has
        left. Put together once for all that read it; ``None``: not yet."""
        self.open = 0
        """Task runs in here that are not over, at any depth."""
        self.good = self.bad = self.skipped = 0
        """Indices that have ended so."""
        self.live = 0
        """Indices that were started and have not ended."""
        self.next = 0
        """The first index that may not have been started."""

    def counts(self) -> tuple[int, int, int, int, int]:
        return (self.open, self.good, self.bad, self.skipped, self.live)

    @property
    def ended(self) -> int:
        return self.good + self.bad + self.skipped

    def count(self, result: TaskState) -> None:
        if result is TaskState.SUCCESS:
            self.good += 1
        elif result is TaskState.SKIPPED:
            self.skipped += 1
        else:
            self.bad += 1
