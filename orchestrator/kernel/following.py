"""Which maps go over what another map has left, one index for each of its indices: where one of those runs again, so
does one of these, and the others stay as they are.

That holds only where nothing else can have changed for the others: an index that may read all that the other map has
left, or that stands on something else by now, runs again with all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.documents import is_same_json
from orchestrator.expressions import Path, lookup_in
from orchestrator.expressions.templates import references, resolve, whole_path
from orchestrator.kernel.guarded import FORESEEN, Unforeseen, guarded
from orchestrator.kernel.nodes import MARKED, RunNode, Scope, TaskNode
from orchestrator.kernel.reading import paths_of_body, paths_of_task
from orchestrator.kernel.values import values_in
from orchestrator.records import PlannedTask
from orchestrator.states import TaskState
from orchestrator.sweep import items

REUSED = "reused"
"""Reason of what a new run has taken over from the one that it is a rerun of."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a map reads of the tasks around it."""

    by_index: frozenset[str]
    """Tasks of whose list of outputs each index takes the entry in its own place."""
    otherwise: frozenset[str]
    """Tasks that it, or anything inside of it, names in any other way; the empty name: whatever there is."""


def reading_of(task: PlannedTask) -> Reading:
    """Return what a map reads; of what is no map nothing is taken by index."""
    if task.map is None or task.body is None:
        return Reading(frozenset(), frozenset())
    over = task.map.over
    columns = over.get("zip") if isinstance(over, Mapping) else [over]
    values = list(columns.values()) if isinstance(columns, Mapping) else columns if isinstance(columns, list) else []
    lists = {at: name for at, value in enumerate(values) if (name := _whole_list(value))}
    by_index = frozenset(lists.values())
    rest = [value for at, value in enumerate(values) if at not in lists] if by_index else [over]
    own = replace(task, map=replace(task.map, over=rest))
    return Reading(by_index, frozenset((*_names(paths_of_task(own)), *_named_inside(task))))


def _whole_list(value: object) -> str:
    """Return the task of whose outputs, and of nothing else, this is all; empty: it is something else."""
    path = whole_path(value)
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

    __slots__ = ("_has_marks", "_known", "_readings")

    def __init__(self, run: RunNode) -> None:
        self._has_marks = any(node.reason == MARKED for node in run.tasks)
        self._known: dict[tuple[TaskNode, TaskNode], bool] = {}
        self._readings: dict[int, Reading] = {}

    def follows(self, node: TaskNode, above: TaskNode) -> bool:
        """Say whether of the map ``node`` only those indices need run again that stand where those do of ``above``,
        right upstream of it, that run again; and those that have not succeeded.

        Whatever else is upstream of it and runs again makes it run again as a whole: this is asked of each of its
        upstreams that does.
        """
        if node.planned.map is None or above.planned.map is None or self._has_marks:
            return False
        if (node, above) not in self._known:
            self._known[node, above] = self._look_at(node, above)
        return self._known[node, above]

    def _look_at(self, node: TaskNode, above: TaskNode) -> bool:
        inside, before = node.inside, above.inside
        if inside is None or before is None or len(inside.scopes) != len(before.scopes) or node.planned.teardown:
            return False
        if (reading := self._readings.get(id(node.planned))) is None:
            reading = self._readings[id(node.planned)] = reading_of(node.planned)
        if above.planned.name not in reading.by_index or not _reads_no_other_container(node, reading):
            return False
        return _is_in_step(node, [scope for scope in inside.scopes if scope.result is TaskState.SUCCESS])


def _reads_no_other_container(node: TaskNode, reading: Reading) -> bool:
    """Say whether of containers it takes nothing but its items. Other tasks are no matter: where one of these runs
    again, so does all that is below it."""
    if "" in reading.otherwise:
        return False
    named = (node.visible(name) for name in reading.otherwise)
    return all(other is None or other.body is None for other in named)


def _is_in_step(node: TaskNode, good: Sequence[Scope]) -> bool:
    """Say whether those indices of a map that have succeeded stand on what there is now; else they would be left
    behind.

    It was decided by them, or was to go on with them. Of what another run has left nobody knows what it stood on.
    """
    if node.has_ended_undecided and not node.resumed:
        return False
    if any(task.reason == REUSED for scope in good for task in scope.tasks):
        return False
    try:
        return guarded(lambda: _are_as_now(node, good))
    except (*FORESEEN, Unforeseen):
        # It is told when the map itself comes to it.
        return False


def _are_as_now(node: TaskNode, good: Sequence[Scope]) -> bool:
    map_ = node.planned.map
    assert map_ is not None
    now = items(resolve(map_.over, lookup_in(values_in(node.scope)), "/map/over"), map_.max_size)
    return all(scope.index < len(now) and is_same_json(scope.item, now[scope.index]) for scope in good)


def left_to_run(node: TaskNode) -> Iterator[TaskNode]:
    """Yield the tasks of a map's indices that have not succeeded: they run again with whatever else does."""
    for scope in [] if node.inside is None else node.inside.scopes:
        if scope.result is not TaskState.SUCCESS:
            yield from scope.tasks
