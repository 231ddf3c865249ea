"""What expressions and templates of the rules may name: parameters, the run, tasks that are visible, map and repeat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.kernel.inside import Inside
from orchestrator.kernel.nodes import Scope, TaskNode
from orchestrator.states import TaskState


class _Tasks(Mapping[str, Any]):
    """The tasks that are visible in a scope, by name; each is looked for only when it is named."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __getitem__(self, name: str) -> Any:
        for scope in self._scope.outward():
            position = scope.shape.position.get(name)
            if position is not None:
                return _Task(scope.tasks[position])
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for scope in self._scope.outward() for name in scope.shape.position))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Task(Mapping[str, Any]):
    """A task's state and outputs; these are put together only when they are read, for a map may have left many."""

    __slots__ = ("_node",)

    def __init__(self, node: TaskNode) -> None:
        self._node = node

    def __getitem__(self, name: str) -> Any:
        if name == "state":
            return str(self._node.state)
        if name == "outputs":
            return outputs_of(self._node)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(("state", "outputs"))

    def __len__(self) -> int:
        return 2


def values_in(scope: Scope) -> dict[str, Any]:
    """Return what a task of this scope may name."""
    run = scope.run
    found: dict[str, Any] = {
        "params": run.parameters,
        "run": {"id": run.id, "pipeline": run.pipeline},
        "tasks": _Tasks(scope),
    }
    for around in scope.outward():
        if around.owner is None:
            continue
        if around.owner.planned.repeat is not None:
            found.setdefault("repeat", _round(around))
        else:
            found.setdefault("map", {"item": around.item, "index": around.index, "key": around.key})
    return found


def values_after(scope: Scope) -> dict[str, Any]:
    """Return what the ``until`` of a repeat may name, this round of which has ended."""
    found = values_in(scope)
    if len(scope.tasks) == 1:
        found["outputs"] = outputs_of(scope.tasks[0])
    return found


def outputs_of(node: TaskNode) -> Any:
    """Return what the task has left, as far as it is kept: of a map a list by index, of a repeat what its last round
    has left, with null where an index did not succeed. Of one that is to expand anew nothing is left."""
    if node.body is None:
        return node.outputs if node.state is TaskState.SUCCESS else None
    inside = None if node.state is TaskState.PENDING and not node.resumed else node.inside
    if node.planned.repeat is not None:
        return _left_by_round(inside, inside.scopes[-1]) if inside is not None and inside.scopes else None
    if inside is None:
        return []
    if inside.left is None:
        inside.left = [_left_by(scope) for scope in inside.scopes]
    return inside.left


def _left_by_round(inside: Inside, scope: Scope) -> Any:
    """Return what a round has left, put together once: all tasks of the next one may ask for it."""
    if scope.result is not TaskState.SUCCESS:
        return None
    if inside.left is None or inside.left[0] is not scope:
        inside.left = [scope, _left_by(scope)]
    return inside.left[1]


def _left_by(scope: Scope) -> Any:
    if scope.result is not TaskState.SUCCESS or scope.owner is None:
        return None
    if scope.owner.planned.is_group:
        return {node.planned.name: outputs_of(node) for node in scope.tasks}
    return outputs_of(scope.tasks[0])


def _round(scope: Scope) -> Mapping[str, Any]:
    owner = scope.owner
    if owner is None or owner.inside is None or not scope.index:
        return {"index": scope.index, "previous": None}
    before = owner.inside.scopes[scope.index - 1]
    return {"index": scope.index, "previous": {"outputs": _left_by_round(owner.inside, before)}}
