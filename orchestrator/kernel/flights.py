"""The cache: a ready task asks for the outputs of an equal one first, and of equal tasks in flight only one runs."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.kernel.nodes import TaskNode
from orchestrator.states import TASK_TERMINAL, TaskState

FlightKey = tuple[str, str, str]
"""Tenant, pipeline (empty: all of the tenant's), and the key of the cache."""


class Flights:
    """Which ready tasks wait for an answer of the cache, or for another task that works on the same."""

    __slots__ = ("_asking", "_followers", "_keys", "_leaders", "_uncached", "unasked", "untold")

    def __init__(self) -> None:
        self._asking: dict[str, TaskNode] = {}
        self._uncached: set[str] = set()
        """Tasks whose key can't be worked out: they run as if they had no cache."""
        self._leaders: dict[FlightKey, TaskNode] = {}
        self._followers: dict[FlightKey, dict[str, TaskNode]] = {}
        self._keys: dict[str, FlightKey] = {}
        """Of leaders and followers."""
        self.unasked: dict[str, TaskNode] = {}
        """Of those that wait for an answer, the ones the question of which was not asked yet."""
        self.untold: dict[str, TaskNode] = {}
        """Followers that were not told whom they wait for."""

    def waits(self, node: TaskNode) -> bool:
        """Say whether the ready task stands in no line, because it waits for an answer or for another task."""
        return node.id in self._asking or (node.id in self._keys and self.leader_of(node) is not node)

    def leader_of(self, node: TaskNode) -> TaskNode | None:
        """Return the task that works for this one; itself, if it is the one."""
        return self._leaders.get(self._keys[node.id]) if node.id in self._keys else None

    def holds(self, node: TaskNode) -> bool:
        """Say whether a task that is ready must wait before it is lined up, and note what for."""
        cache = node.planned.cache
        if cache is None or node.id in self._uncached:
            return False
        if not node.cache_key:
            self.ask(node)
            return True
        if not cache.single_flight:
            return False
        key = _key_of(node)
        self._keys[node.id] = key
        leader = self._leaders.setdefault(key, node)
        if leader is node:
            return False
        self._followers.setdefault(key, {})[node.id] = self.untold[node.id] = node
        return True

    def ask(self, node: TaskNode) -> None:
        """Let it wait for an answer of the cache."""
        self._asking[node.id] = self.unasked[node.id] = node

    def answered(self, node: TaskNode, *, has_key: bool) -> bool:
        """Note that the answer came; says whether it was waited for."""
        self.unasked.pop(node.id, None)
        if not has_key:
            self._uncached.add(node.id)
        return self._asking.pop(node.id, None) is not None

    def found_flying(self, node: TaskNode) -> TaskNode | None:
        """Note a task that a new leader finds beyond the ready state; returns the ready one that has to follow it."""
        cache = node.planned.cache
        if cache is None or not cache.single_flight or not node.cache_key or node.state in TASK_TERMINAL:
            return None
        if node.state in (TaskState.PENDING, TaskState.READY):
            return None
        key = _key_of(node)
        self._keys[node.id] = key
        before = self._leaders.get(key)
        if before is not None and before.state is not TaskState.READY:
            return None  # two of them were under way already
        self._leaders[key] = node
        if before is not None:
            self._followers.setdefault(key, {})[before.id] = self.untold[before.id] = before
        return before

    def leave(self, node: TaskNode) -> list[TaskNode]:
        """Forget a task that has ended or does not go on; returns those that waited for it, and now for nobody."""
        for ids in (self._asking, self.unasked, self.untold):
            ids.pop(node.id, None)
        self._uncached.discard(node.id)
        key = self._keys.pop(node.id, None)
        if key is None:
            return []
        if self._leaders.get(key) is not node:
            followers = self._followers.get(key, {})
            followers.pop(node.id, None)
            if not followers:
                self._followers.pop(key, None)
            return []
        del self._leaders[key]
        return list(self._unbound(key))

    def _unbound(self, key: FlightKey) -> Iterator[TaskNode]:
        for follower in self._followers.pop(key, {}).values():
            self._keys.pop(follower.id, None)
            self.untold.pop(follower.id, None)
            yield follower


def _key_of(node: TaskNode) -> FlightKey:
    cache, run = node.planned.cache, node.run
    shared = cache is not None and cache.scope == "tenant"
    return (run.tenant_id, "" if shared else run.pipeline_id, node.cache_key)
