"""Which task runs a person means: by name, by index or key, and what runs again when they do.

The preview of a rerun is worked out here too (``rerun_plan``), so that it shows what will be done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.kernel.following import Following, left_to_run
from orchestrator.kernel.nodes import RunNode, Scope, TaskNode
from orchestrator.states import RERUN_OF_FAILED, TaskState


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs again."""

    nodes: tuple[TaskNode, ...]
    """In the order of the run's task runs; what a container of these is expanded into anew is not among them."""
    resumed: frozenset[TaskNode]
    """Containers among them that go on with what is inside of them."""
    setups: frozenset[TaskNode] = frozenset()
    """Those that run again because a teardown has taken down what they had set up, and others need it again."""
    cut: Mapping[TaskNode, int] = field(default_factory=dict)
    """Repeats among the resumed ones of which an earlier round runs again, with the first round that counts no more:
    it and all later ones stood on what that one had left."""

    def is_cut(self, node: TaskNode) -> bool:
        """Say whether it is inside of such a later round, at any depth."""
        return _is_cut(node, self.cut)


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
    at = _index_in(text)
    if at is not None and at < len(scopes) and (found := _at(node, scopes[at], text.partition("]")[2])):
        return found
    for scope in scopes:
        if text.startswith(f"[{scope.key}]") and (found := _at(node, scope, text[len(scope.key) + 2 :])):
            return found
    return []


def _index_in(text: str) -> int | None:
    """Return the index at the beginning of ``[3].train``; ``None``: if it is anything, it is a key."""
    label, bracket, _ = text[1:].partition("]")
    is_index = bool(bracket) and len(label) < 10 and label.isdecimal() and str(int(label)) == label
    return int(label) if is_index else None


def _at(node: TaskNode, scope: Scope, rest: str) -> list[TaskNode]:
    if not rest:
        return list(scope.tasks)
    if node.planned.is_group:
        return _in_scope(scope, rest[1:]) if rest.startswith(".") else []
    return _inside(scope.tasks[0], rest)


def to_run_again(run: RunNode, wanted: Any) -> Choice:
    """Return what runs again when a person asks for ``failed``, ``all`` or named tasks of a run that is over."""
    return with_all_below(run, chosen_by(run, wanted))


def chosen_by(run: RunNode, wanted: Any) -> list[TaskNode]:
    """Return the task runs that a rerun starts from."""
    if wanted == "all":
        return list(run.root.tasks)
    if wanted == "failed":
        return list(_broken(run.root))
    return [node for name in wanted for node in tasks_named(run, name)]


def with_all_below(run: RunNode, chosen: Iterable[TaskNode], following: Following | None = None) -> Choice:
    """Return what runs again with these.

    - All that is downstream of a chosen one runs again too, in its own scope and below each container around it. These
      containers go on with what is inside of them, so that of their indices only the chosen ones run again.
    - So does a map downstream whose indices stand one by one on those of such a container (``following``): of it the
      same ones run again, and those that have not succeeded.
    - Of a repeat that goes on with what is inside of it the rounds count no more that come after one that runs again.
    - Any other container that is downstream of a chosen task, or is chosen itself, expands anew.
    - What was set up and has been taken down is set up again, if anything that runs again works on it.

    :param following: of this run, for who asks more than once.
    """
    again, setups = _Again(Following(run) if following is None else following), set[TaskNode]()
    fresh, partly = again.fresh, again.partly
    looked_at = 0
    again.take(chosen)
    while looked_at < len(fresh):
        downs = [node for node in list(fresh)[looked_at:] if node.planned.setups and _has_torn_down(node)]
        looked_at = len(fresh)
        for down in downs:
            needed = [
                setup for setup in _setups_of(down) if setup not in fresh and _is_used(setup, down, fresh, partly)
            ]
            setups.update(needed)
            again.take(needed)
    cut = again.cut()
    anew = {
        node
        for node in (*fresh, *partly)
        if not any(owner in fresh for owner in _owners(node)) and not _is_cut(node, cut)
    }
    resumed = frozenset(node for node in partly if node in anew and node not in fresh)
    cut = {node: first for node, first in cut.items() if node in resumed}
    return Choice(tuple(node for node in run.tasks if node in anew), resumed, frozenset(setups), cut)


class _Again:
    """What runs again, as it is found."""

    __slots__ = ("_followers", "_following", "_joined", "_touched", "fresh", "partly")

    def __init__(self, following: Following) -> None:
        self.fresh: dict[TaskNode, None] = {}
        """What begins anew, as a whole."""
        self.partly: dict[TaskNode, None] = {}
        """Containers of which something inside does; if they are not fresh as well, they go on with it."""
        self._touched: set[Scope] = set()
        """Indices and rounds in which something runs again."""
        self._following = following
        self._followers: dict[TaskNode, list[TaskNode]] = {}
        """By container of which a part runs again, the maps below it of which then the same indices do."""
        self._joined: set[TaskNode] = set()
        """Such maps whose indices that have not succeeded run again too."""

    def take(self, nodes: Iterable[TaskNode]) -> None:
        """Add these and what is downstream of them; of the containers around them a part runs again."""
        open_nodes = list(nodes)
        while open_nodes:
            node = open_nodes.pop()
            if node in self.fresh:
                continue
            self.fresh[node] = None
            open_nodes += _below(node)
            for scope in node.scope.outward():
                owner = scope.owner
                if owner is None or scope in self._touched:
                    break
                self._touched.add(scope)
                if owner not in self.partly:
                    self.partly[owner] = None
                    open_nodes += self._below_part(owner)
                open_nodes += self._in_step_with(owner, scope.index)

    def cut(self) -> dict[TaskNode, int]:
        """Return the repeats that do not begin anew as a whole, with the first of the rounds that come after one in
        which something runs again."""
        found: dict[TaskNode, int] = {}
        for scope in self._touched:
            owner = scope.owner
            if owner is not None and owner.planned.repeat is not None and owner not in self.fresh:
                found[owner] = min(found.get(owner, scope.index + 1), scope.index + 1)
        return found

    def _below_part(self, owner: TaskNode) -> Iterator[TaskNode]:
        """Yield what runs again below a container of which any part does; told once, however many parts there are."""
        followers = self._followers[owner] = list[TaskNode]()
        for down in _below(owner):
            if not self._following.follows(down, owner):
                yield down
                continue
            followers.append(down)
            if down not in self._joined:
                self._joined.add(down)
                yield from left_to_run(down)

    def _in_step_with(self, owner: TaskNode, index: int) -> Iterator[TaskNode]:
        """Yield what runs again with this index of a container, of the maps that follow it."""
        for down in self._followers[owner]:
            if down.inside is not None and down not in self.fresh:
                yield from down.inside.scopes[index].tasks


def _below(node: TaskNode) -> list[TaskNode]:
    return [node.scope.tasks[at] for at in node.scope.shape.downstream[node.position]]


def _is_cut(node: TaskNode, cut: Mapping[TaskNode, int]) -> bool:
    around = node.scope.outward() if cut else ()
    return any(scope.owner in cut and scope.index >= cut[scope.owner] for scope in around if scope.owner is not None)


def _has_torn_down(node: TaskNode) -> bool:
    """Say whether a teardown has been at work; one that was cancelled before it began has not."""
    was_cut_off = node.state is TaskState.CANCELLED and node.attempts > 0
    return was_cut_off or node.state in (TaskState.SUCCESS, TaskState.FAILED)


def _setups_of(node: TaskNode) -> Iterator[TaskNode]:
    position, tasks = node.scope.shape.position, node.scope.tasks
    return (tasks[position[name]] for name in node.planned.setups if name in position)


def _is_used(setup: TaskNode, down: TaskNode, *taken: Collection[TaskNode]) -> bool:
    """Say whether a task between the two runs again: to tear down anew alone nothing has to be set up."""
    scope, found, open_nodes = setup.scope, set[int](), [down.position]
    while open_nodes:
        for at in scope.shape.upstream[open_nodes.pop()]:
            if at not in found:
                found.add(at)
                open_nodes.append(at)
    between, open_nodes = set[int](), [setup.position]
    while open_nodes:
        for at in scope.shape.downstream[open_nodes.pop()]:
            if at in found and at not in between:
                between.add(at)
                open_nodes.append(at)
    return any(scope.tasks[at] in some for at in between if not scope.shape.teardown[at] for some in taken)


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
