"""Which maps go over what another map has left, one index for each of its indices: where one of those runs again, so
does one of these, and the others stay as they are.

That holds only where nothing else can have changed for the others: an index that may read all that the other map has
left, or that stands on something else by now, runs again with all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.documents import canonical_json
from orchestrator.expressions import Path, lookup_in
from orchestrator.expressions.remembered import LONGEST
from orchestrator.expressions.templates import references, resolve, whole_path
from orchestrator.expressions.texts import Texts
from orchestrator.kernel.expanding import MOST_READ
from orchestrator.kernel.guarded import FORESEEN, Unforeseen, guarded
from orchestrator.kernel.nodes import MARKED, RunNode, Scope, TaskNode
from orchestrator.kernel.reading import paths_of_body, paths_of_task
from orchestrator.kernel.values import outputs_of, values_in
from orchestrator.records import MapPlan, PlannedTask
from orchestrator.states import TaskState

REUSED = "reused"
"""Reason of what a new run has taken over from the one that it is a rerun of."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a map reads of the tasks around it."""

    by_index: frozenset[str]
    """Tasks of whose list of outputs each index takes the entry in its own place."""
    otherwise: frozenset[str]
    """Tasks that it, or anything inside of it, names in any other way; the empty name: whatever there is."""


def goes_by_index(task: PlannedTask) -> bool:
    """Say whether it is a map that goes over all that others have left, one index for each of theirs."""
    return task.map is not None and any(map(_whole_list, _lists_of(task.map).values()))


def reading_of(task: PlannedTask) -> Reading:
    """Return what a map reads; of what is no map nothing is taken by index. Looks at all that is inside of it."""
    if task.map is None or task.body is None:
        return Reading(frozenset(), frozenset())
    lists = _lists_of(task.map)
    by_index = frozenset(filter(None, map(_whole_list, lists.values())))
    rest: Any = [value for value in lists.values() if not _whole_list(value)] if by_index else task.map.over
    own = replace(task, map=replace(task.map, over=rest))
    return Reading(by_index, frozenset((*_names(paths_of_task(own)), *_named_inside(task))))


def _lists_of(map_: MapPlan) -> Mapping[str, Any]:
    """Return the lists of which a map takes one entry for each index: those of a zip by name, else what it goes over by
    the empty name."""
    if not isinstance(map_.over, Mapping):
        return {"": map_.over}
    zipped = map_.over.get("zip")
    return zipped if isinstance(zipped, Mapping) else {}


def _whole_list(value: object) -> str:
    """Return the task of whose outputs, and of nothing else, this is all; empty: it is something else, or a text that
    is too long to be remembered, so that it would be read for each index around."""
    path = whole_path(value) if isinstance(value, str) and len(value) <= LONGEST else None
    return str(path[1]) if path is not None and len(path) == 3 and path[::2] == ("tasks", "outputs") else ""


def _named_inside(task: PlannedTask) -> set[str]:
    """Return the tasks outside of a container that anything inside of it names."""
    assert task.body is not None
    found = _names(paths_of_body(task)[0])
    for inner in task.body.tasks:
        found |= _names(paths_of_task(inner)) | _names(references(inner.templated))
        found |= {link.source for link in inner.links}
        if inner.cache is not None:
            found |= _names(references(list(inner.cache.key)))
        if inner.body is not None:
            found |= _named_inside(inner)
    return found - {inner.name for inner in task.body.tasks}


def _names(paths: Iterable[Path]) -> set[str]:
    return {str(path[1]) if len(path) > 1 else "" for path in paths if path[0] == "tasks"}


class Following:
    """Tells of the maps of one run that is over which of them follow which; looked at once for all of their indices."""

    __slots__ = ("_known", "_left", "_marked", "_readings", "_texts")

    def __init__(self, run: RunNode) -> None:
        marked = [node for node in run.tasks if node.reason == MARKED and node.counts_for_its_run]
        around = (scope.owner for node in marked for scope in node.scope.outward())
        self._marked = {*marked, *(owner for owner in around if owner is not None)}
        """What a person has marked, and the containers around it."""
        self._known: dict[TaskNode, bool] = {}
        self._readings: dict[int, Reading] = {}
        self._texts = Texts()
        """What was read to put together the lists that are not left by a map."""
        self._left: dict[TaskNode, list[bytes]] = {}
        """By map what its indices have left, as JSON: others may go over it too."""

    def follows(self, node: TaskNode, above: TaskNode) -> bool:
        """Say whether of the map ``node`` only those indices need run again that stand where those do of ``above``,
        right upstream of it, that run again; and those that have not succeeded.

        Whatever else is upstream of it and runs again makes it run again as a whole: this is asked of each of its
        upstreams that does.
        """
        inside, before = node.inside, above.inside
        if node.planned.map is None or above.planned.map is None or inside is None or before is None:
            return False
        if len(inside.scopes) != len(before.scopes) or above.planned.name not in self._reading_of(node).by_index:
            return False
        if node not in self._known:
            self._known[node] = self._may_go_on(node)
        return self._known[node]

    def _reading_of(self, node: TaskNode) -> Reading:
        if (reading := self._readings.get(id(node.planned))) is None:
            reading = self._readings[id(node.planned)] = reading_of(node.planned)
        return reading

    def _may_go_on(self, node: TaskNode) -> bool:
        """Say whether a map may keep indices at all, whichever of the maps that it goes over run again in part."""
        reading = self._reading_of(node)
        if node.planned.teardown or not _reads_no_other_container(node, reading):
            return False
        return not self._reads_marked(node, reading) and self._is_in_step(node)

    def _reads_marked(self, node: TaskNode, reading: Reading) -> bool:
        """Say whether a person has marked any of what the map may read, also of the rounds around it: of its indices
        some may have run before that, and some after."""
        if not self._marked:
            return False
        names = {*reading.by_index, *reading.otherwise, *node.planned.upstream}
        owners = (scope.owner for scope in node.scope.outward())
        rounds = (owner for owner in owners if owner is not None and owner.planned.repeat is not None)
        return any(other in self._marked for other in (*map(node.visible, names), *rounds))

    def _is_in_step(self, node: TaskNode) -> bool:
        """Say whether those indices of a map that have succeeded stand on what there is now; else they would be left
        behind.

        It was decided by them, or was to go on with them. Of what another run has left nobody knows what it stood on.
        """
        assert node.inside is not None
        if node.has_ended_undecided and not node.resumed:
            return False
        good = [scope for scope in node.inside.scopes if scope.result is TaskState.SUCCESS]
        if any(task.reason == REUSED for scope in good for task in scope.tasks):
            return False
        try:
            return guarded(lambda: self._are_as_now(node, good))
        except (*FORESEEN, Unforeseen):
            # It is told when the map itself comes to it.
            return False

    def _are_as_now(self, node: TaskNode, good: Sequence[Scope]) -> bool:
        """Compare the items of these indices with what stands in their places now. It costs less than it has cost to
        read them: what is left by other maps is written once for all that go over it."""
        assert node.planned.map is not None
        assert node.inside is not None
        lists = {name: self._list_now(node, value) for name, value in _lists_of(node.planned.map).items()}
        if any(len(found) != len(node.inside.scopes) for found in lists.values()):
            return False
        return all(_is_as_now(scope, lists) for scope in good)

    def _list_now(self, node: TaskNode, value: Any) -> Sequence[bytes]:
        """Return as JSON what a map takes its entries from; empty: it is no list, or too much was read already."""
        if name := _whole_list(value):
            above = node.visible(name)
            return [] if above is None else self._left_by(above)
        if self._texts.read > MOST_READ:
            return []
        return _written(resolve(value, lookup_in(values_in(node.scope)), "/map/over", texts=self._texts))

    def _left_by(self, above: TaskNode) -> Sequence[bytes]:
        if above not in self._left:
            self._left[above] = _written(outputs_of(above))
        return self._left[above]


def _written(value: Any) -> list[bytes]:
    return [canonical_json(entry) for entry in value] if isinstance(value, (list, tuple)) else []


def _is_as_now(scope: Scope, lists: Mapping[str, Sequence[bytes]]) -> bool:
    item = {"": scope.item} if "" in lists else scope.item
    if not isinstance(item, Mapping) or item.keys() != lists.keys():
        return False
    return all(canonical_json(item[name]) == found[scope.index] for name, found in lists.items())


def _reads_no_other_container(node: TaskNode, reading: Reading) -> bool:
    """Say whether of containers it takes nothing but its items. Other tasks are no matter: where one of these runs
    again, so does all that is below it."""
    if "" in reading.otherwise:
        return False
    named = (node.visible(name) for name in reading.otherwise)
    return all(other is None or other.body is None for other in named)


def left_to_run(node: TaskNode) -> Iterator[TaskNode]:
    """Yield the tasks of a map's indices that have not succeeded: they run again with whatever else does."""
    for scope in [] if node.inside is None else node.inside.scopes:
        if scope.result is not TaskState.SUCCESS:
            yield from scope.tasks
