"""Task runs that are left over from a round of the leader, because it had no room for them: they wait for the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.kernel.nodes import TaskNode


class LeftOver:
    """Task runs that wait for a round with room for them, the first one first."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[str, TaskNode] = {}

    @property
    def is_due(self) -> bool:
        """Whether there is something to go on with at once."""
        return bool(self._waiting)

    def wait(self, node: TaskNode) -> None:
        """Let a task run wait for its turn. One that was made of the same row before keeps its place for this one."""
        self._waiting[node.id] = node

    def awaits(self, node: TaskNode) -> bool:
        """Say whether this one waits for its turn."""
        return self._waiting.get(node.id) is node

    def forget(self, node: TaskNode) -> None:
        self._waiting.pop(node.id, None)
