"""Which task runs a person means: by name, by index or key, and what runs again when they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.kernel.nodes import RunNode, Scope, TaskNode
from orchestrator.states import RERUN_OF_FAILED, TaskState


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs again."""

    nodes: tuple[TaskNode, ...]
    """In the order of the run's task runs."""
    resumed: frozenset[TaskNode]
    """Containers among them that go on with what is inside of them."""


def tasks_named(run: RunNode, name: str) -> list[TaskNode]:
    """Return the task runs of this name: ``train``, ``train[3]``, ``folds[2].train``; with the key of an item in place
    of its index; and all of an index for ``folds[2]``."""
    return _in_scope(run.root, name)


def _in_scope(scope: Scope, text: str) -> list[TaskNode]:
    position = scope.shape.position.get(text)
    if position is not None:
        return [scope.tasks[position]]
    name, bracket, rest = text.partition("[")
    position = scope.shape.position.get(name)
    return _inside(scope.tasks[position], bracket + rest) if bracket and position is not None else []


def _inside(node: TaskNode, text: str) -> list[TaskNode]:
    scopes = [] if node.inside is None else node.inside.scopes
    for labels in (((str(scope.index), scope) for scope in scopes), ((scope.key, scope) for scope in scopes)):
        for label, scope in labels:
            if text.startswith(f"[{label}]") and (found := _at(node, scope, text[len(label) + 2 :])):
                return found
    return []


def _at(node: TaskNode, scope: Scope, rest: str) -> list[TaskNode]:
    if not rest:
        return list(scope.tasks)
    if node.planned.is_group:
        return _in_scope(scope, rest[1:]) if rest.startswith(".") else []
    return _inside(scope.tasks[0], rest)


def to_run_again(run: RunNode, wanted: Any) -> Choice:
    """Return what runs again when a person asks for ``failed``, ``all`` or named tasks of a run that is over.

    - All that is downstream of a chosen one runs again too, in its own scope and below each container around it. These
      containers go on with what is inside of them, so that of their indices only the chosen ones run again.
    - A container that is chosen itself, or is downstream of a chosen task, expands anew.
    """
    if wanted == "all":
        chosen = list(run.root.tasks)
    elif wanted == "failed":
        chosen = list(_broken(run.root))
    else:
        chosen = [node for name in wanted for node in tasks_named(run, name)]
    fresh, resumed = set[TaskNode](), set[TaskNode]()
    for node in chosen:
        _take(node, fresh, resumed)
    resumed -= fresh
    anew = {node for node in fresh | resumed if not any(owner in fresh for owner in _owners(node))}
    return Choice(tuple(node for node in run.tasks if node in anew), frozenset(resumed & anew))


def _take(node: TaskNode, fresh: set[TaskNode], resumed: set[TaskNode]) -> None:
    fresh.update(with_descendants([node]))
    for owner in _owners(node):
        resumed.add(owner)
        fresh.update(task for task in with_descendants([owner]) if task is not owner)


def with_descendants(nodes: Iterable[TaskNode]) -> list[TaskNode]:
    """Return these tasks of one scope and everything downstream of them there."""
    found: dict[TaskNode, None] = {}
    open_nodes = list(nodes)
    while open_nodes:
        node = open_nodes.pop()
        if node not in found:
            found[node] = None
            scope = node.scope
            open_nodes.extend(scope.tasks[at] for at in scope.shape.downstream[node.position])
    return list(found)


def _owners(node: TaskNode) -> Iterator[TaskNode]:
    for scope in node.scope.outward():
        if scope.owner is not None:
            yield scope.owner


def _broken(scope: Scope) -> Iterator[TaskNode]:
    """Yield what a rerun of what failed starts from: of a container that failed its failed indices, if it was these."""
    for node in scope.tasks:
        if node.state not in RERUN_OF_FAILED:
            continue
        inside = [] if node.inside is None else [one for one in node.inside.scopes if one.result is TaskState.FAILED]
        below = [broken for one in inside for broken in _broken(one)]
        yield from below or [node]
