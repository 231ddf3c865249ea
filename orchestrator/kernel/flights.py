"""The cache: a ready task asks for the outputs of an equal one first, and of equal tasks in flight only one runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice

from orchestrator.kernel.nodes import TaskNode
from orchestrator.records import CachePlan
from orchestrator.states import TASK_TERMINAL, TaskState

FlightKey = tuple[str, str, str]
"""Tenant, pipeline (empty: all of the tenant's), and the key of the cache."""
NEAR = 10
"""Followers at the head of their queue that are told by name whom they wait for, each time that it is another."""


class Flights:
    """Which ready tasks wait for an answer of the cache, or for another task that works on the same.

    A task asks whenever it is lined up and nothing is known of an answer: when it is ready, when its run goes on after
    a pause, and when a new leader finds it ready. Meanwhile an equal one may have left its outputs.

    Of equal tasks one leads and the others follow it, as far as that is of use: one that only reads leaves nothing to
    wait for and never leads, one that only writes takes nothing and never follows.
    """

    __slots__ = (
        "_answered",
        "_aside",
        "_asking",
        "_beside",
        "_followers",
        "_keys",
        "_leaders",
        "_stuck",
        "bereft",
        "unasked",
        "untold",
    )

    def __init__(self) -> None:
        self._asking: dict[str, TaskNode] = {}
        self._answered: dict[str, bool] = {}
        """Tasks for which the cache has nothing; whether there is a key: one without runs as if it had no cache."""
        self._leaders: dict[FlightKey, TaskNode] = {}
        self._followers: dict[FlightKey, OrderedDict[str, TaskNode]] = {}
        self._keys: dict[str, FlightKey] = {}
        """Of leaders and followers."""
        self._stuck: set[str] = set()
        """Leaders that no worker could take, or whose gate was shut, when they were looked at last."""
        self._aside: dict[FlightKey, dict[str, TaskNode]] = {}
        """Tasks that were stuck, and that let others lead: they stand in their lines all the same."""
        self._beside: dict[str, FlightKey] = {}
        """Of those."""
        self.bereft: dict[str, TaskNode] = {}
        """Stuck leaders beside which one stood that has gone: others of its kind may follow them."""
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

    def is_near(self, node: TaskNode) -> bool:
        """Say whether this follower is one of the next to take the place of the one it follows."""
        followers = self._followers.get(self._keys[node.id], OrderedDict[str, TaskNode]())
        return node.id in islice(followers, NEAR)

    def holds(self, node: TaskNode) -> bool:
        """Say whether a task that is ready must wait before it is lined up, and note what for."""
        cache = node.planned.cache
        if cache is None or self._answered.get(node.id) is False:
            return False
        self._forget_aside(node)
        if node.cache_key and cache.single_flight and self._joins(node, cache):
            return True
        if node.id in self._answered:
            return False
        self.ask(node)
        return True

    def _joins(self, node: TaskNode, cache: CachePlan) -> bool:
        """Let it lead or follow those that work on the same; says whether it follows."""
        key = _key_of(node)
        leader = self._leaders.get(key)
        if leader is None and cache.mode != "read":
            leader = self._leaders[key] = node
        if leader is node:
            self._keys[node.id] = key
        if leader is None or leader is node or cache.mode == "write":
            return False
        self._follow(key, node)
        return True

    def _follow(self, key: FlightKey, node: TaskNode) -> None:
        self._keys[node.id] = key
        self._followers.setdefault(key, OrderedDict())[node.id] = self.untold[node.id] = node
        self._asking.pop(node.id, None)
        self.unasked.pop(node.id, None)

    def ask(self, node: TaskNode) -> None:
        """Let it wait for an answer of the cache."""
        self._forget_aside(node)
        self._asking[node.id] = self.unasked[node.id] = node

    def is_asking(self, node: TaskNode) -> bool:
        return node.id in self._asking

    def answered(self, node: TaskNode, *, has_key: bool) -> None:
        """Note that the answer came, and that it does not end the task."""
        self._asking.pop(node.id, None)
        self.unasked.pop(node.id, None)
        self._answered[node.id] = has_key

    def found_flying(self, node: TaskNode) -> TaskNode | None:
        """Note a task that a new leader finds beyond the ready state; returns the ready one that has to follow it."""
        cache = node.planned.cache
        if cache is None or not cache.single_flight or cache.mode == "read" or not node.cache_key:
            return None
        if node.state in TASK_TERMINAL or node.state in (TaskState.PENDING, TaskState.READY):
            return None
        key = _key_of(node)
        before = self._leaders.get(key)
        if before is not None and before.state is not TaskState.READY:
            return None  # two of them were under way already, and this one neither leads nor follows
        self._keys[node.id], self._leaders[key] = key, node
        if before is None:
            return None
        if before.planned.cache is not None and before.planned.cache.mode == "write":
            del self._keys[before.id]
            return None
        self._follow(key, before)
        return before

    def leave(self, node: TaskNode, *, has_left_outputs: bool) -> list[TaskNode]:
        """Forget a task that has ended or does not go on.

        Returns those to which that makes a difference: if it has left outputs all that can use them, else the one that
        leads now; or all, where none of them can lead.
        """
        for ids in (self._asking, self.unasked, self.untold, self._answered, self.bereft):
            ids.pop(node.id, None)
        beside = self._forget_aside(node)
        if beside is not None and (left := self._leaders.get(beside)) is not None and self.is_stuck(left):
            self.bereft[left.id] = left
        self._stuck.discard(node.id)
        key = self._keys.pop(node.id, None)
        if key is None:
            return []
        if self._leaders.get(key) is not node:
            self._drop_follower(key, node)
            return []
        if not has_left_outputs and (heir := self._heir(key, lambda _: True)) is not None:
            self._enthrone(key, heir)
            return [heir]
        del self._leaders[key]
        found = self._unbound(key)
        if has_left_outputs:
            found += self._aside.get(key, {}).values()
        return found

    def stuck(self, node: TaskNode) -> bool:
        """Note that no worker could take this task, or that its gate is shut; says whether others wait for it."""
        key = self._keys.get(node.id)
        if key is None or self._leaders.get(key) is not node:
            return False
        self._stuck.add(node.id)
        return key in self._followers

    def is_stuck(self, node: TaskNode) -> bool:
        return node.id in self._stuck and node.state is TaskState.READY

    def beside(self, node: TaskNode) -> Iterator[TaskNode]:
        """Yield this leader and those that have let others lead: all that stand in lines."""
        yield node
        yield from self._aside.get(self._keys[node.id], {}).values()

    def make_way(self, node: TaskNode, is_another_kind: Callable[[TaskNode], bool]) -> TaskNode | None:
        """Let one that follows this stuck task, and is of another kind, lead in its place; returns that one."""
        key = self._keys[node.id]
        heir = self._heir(key, is_another_kind)
        if heir is not None:
            self._step_out(key, node)
            self._enthrone(key, heir)
        return heir

    def comes_back(self, node: TaskNode) -> bool:
        """A task that stood aside could be sent out now; says whether it has to leave its line for what others do.

        One that leads and stands in a line itself has not begun: it steps aside for this one.
        """
        key = self._forget_aside(node)
        if key is None:
            return False
        leader = self._leaders.get(key)
        if leader is not None and leader.state is TaskState.READY and leader.id not in self._asking:
            self._step_out(key, leader)
            self._enthrone(key, node)
            self._keys[node.id] = key
        return self.holds(node)

    def _step_out(self, key: FlightKey, node: TaskNode) -> None:
        """The answer it has had will be old when it comes back."""
        del self._keys[node.id]
        self._stuck.discard(node.id)
        self.bereft.pop(node.id, None)
        self._answered.pop(node.id, None)
        self._aside.setdefault(key, {})[node.id] = node
        self._beside[node.id] = key

    def _forget_aside(self, node: TaskNode) -> FlightKey | None:
        key = self._beside.pop(node.id, None)
        if key is not None:
            del self._aside[key][node.id]
            if not self._aside[key]:
                del self._aside[key]
        return key

    def _heir(self, key: FlightKey, suits: Callable[[TaskNode], bool]) -> TaskNode | None:
        """Return the follower that may lead next."""
        for node in self._followers.get(key, {}).values():
            cache = node.planned.cache
            if cache is not None and cache.mode != "read" and suits(node):
                return node
        return None

    def _enthrone(self, key: FlightKey, node: TaskNode) -> None:
        """Let this one lead. Those next to it are told; all of a long queue, each time, would be told n² times."""
        self._leaders[key] = node
        self._drop_follower(key, node)
        self.untold.pop(node.id, None)
        for follower in islice(self._followers.get(key, {}).values(), NEAR):
            self.untold[follower.id] = follower

    def _drop_follower(self, key: FlightKey, node: TaskNode) -> None:
        followers = self._followers.get(key)
        if followers is not None:
            followers.pop(node.id, None)
            if not followers:
                del self._followers[key]

    def _unbound(self, key: FlightKey) -> list[TaskNode]:
        followers = list(self._followers.pop(key, {}).values())
        for follower in followers:
            self._keys.pop(follower.id, None)
            self.untold.pop(follower.id, None)
        return followers


def _key_of(node: TaskNode) -> FlightKey:
    cache, run = node.planned.cache, node.run
    shared = cache is not None and cache.scope == "tenant"
    return (run.tenant_id, "" if shared else run.pipeline_id, node.cache_key)
