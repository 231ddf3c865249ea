"""What a rerun would do, before it does it: which task runs run again, which are kept, and what of those is missing.

Pure. The preview that is shown and the request that is made are worked out by this one function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import InvalidDefinition, Problem
from orchestrator.kernel.shape import Shape
from orchestrator.records import Plan, PlannedTask
from orchestrator.states import RERUN_OF_FAILED, TaskState

FAILED, ALL = "failed", "all"
KEPT = frozenset({TaskState.SUCCESS, TaskState.SKIPPED})

Chosen = str | Sequence[str]
"""``failed``, ``all``, or names of task runs: ``train``, ``train[3]``, ``folds[2].train``; with the key of an item in
place of its index, and ``folds[2]`` for all of an index."""
_Scope = tuple[str | None, int | None]


@dataclass(frozen=True, slots=True)
class PastTask:
    """A task run of the run that is to run again."""

    id: str
    name: str
    state: TaskState
    parent_id: str | None = None
    map_index: int | None = None
    map_key: str = ""


@dataclass(frozen=True, slots=True)
class RerunPlan:
    """What a rerun would do."""

    chosen: tuple[str, ...]
    """Where it starts: what was asked for, and what has to join because its outputs are gone."""
    again: tuple[str, ...]
    """All that runs again; what a container of these is expanded into anew is not listed."""
    reused: tuple[str, ...]
    """What has succeeded (or was skipped) and is kept."""
    kept: tuple[str, ...]
    """What did not succeed and is kept all the same, for nobody has chosen it."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """By the name of a task run that joins for it, a sentence about what is gone."""
    why: Mapping[str, str] = field(default_factory=dict, compare=False)
    """By the name of each task run that runs again, a word: ``chosen``, ``gone``, ``inside`` (a part of what is inside
    of it runs again), ``downstream``; of a new run also ``not_succeeded``, ``changed`` and ``parameters``."""


def plan_rerun(
    plan: Plan, past: Sequence[PastTask], chosen: Chosen, gone: Mapping[str, str] | None = None
) -> RerunPlan:
    """Work out what a rerun of a run of this plan would do.

    A task run that is chosen takes with it all that is downstream of it; inside of a container, of its own index and of
    the container. A container that is chosen itself, or is downstream of what is, is expanded anew.

    :param past: all task runs that count.
    :param gone: by the name of a task run, a sentence about an output of it that is not there any more. One that
        something that runs again may read runs again too.
    :raises InvalidDefinition: there is no task run of a name that was chosen.
    """
    rows = _Rows(plan, past)
    starts = list(_starts(rows, chosen))
    missing: dict[str, str] = {}
    while True:
        anew, partly = rows.affected(starts)
        joining = [row for row in rows.read_by(anew, partly) if row.name in (gone or {}) and row.id not in anew]
        if not joining:
            break
        missing.update({row.name: (gone or {})[row.name] for row in joining})
        starts += joining
    again = [row for row in rows.all if (row.id in anew or row.id in partly) and row.parent_id not in anew]
    chosen_ids = {row.id for row in starts}

    def why(row: PastTask) -> str:
        if row.id in partly:
            return "inside"
        if row.id not in chosen_ids:
            return "downstream"
        return "gone" if row.name in missing else "chosen"

    kept = [row for row in rows.all if row.id not in anew and row.id not in partly]
    return RerunPlan(
        tuple(dict.fromkeys(row.name for row in starts)),
        tuple(row.name for row in again),
        tuple(row.name for row in kept if row.state in KEPT),
        tuple(row.name for row in kept if row.state not in KEPT),
        missing,
        {row.name: why(row) for row in again},
    )


def _starts(rows: _Rows, chosen: Chosen) -> Iterator[PastTask]:
    if chosen == ALL:
        yield from rows.scopes.get((None, None), {}).values()
    elif chosen == FAILED:
        yield from rows.failed_in((None, None))
    else:
        found = [rows.named(name) for name in chosen]
        unknown = [
            Problem(f"/from/{at}", f"The run has no task {name!r}.") for at, name in enumerate(chosen) if not found[at]
        ]
        if unknown:
            raise InvalidDefinition(unknown)
        yield from (row for named in found for row in named)


class _Rows:
    """The task runs of a run, by where they stand."""

    def __init__(self, plan: Plan, past: Sequence[PastTask]) -> None:
        self.all = past
        self._by_id = {row.id: row for row in past}
        self.scopes: dict[_Scope, dict[str, PastTask]] = {}
        """By container and index: the task runs there, by their names in the plan."""
        self._planned: dict[str, PlannedTask] = {}
        self._inside: dict[str, list[PastTask]] = {}
        self._downstream: dict[int, dict[str, list[str]]] = {}
        self._plans: dict[_Scope, Plan] = {}
        self._shapes: dict[int, Shape] = {}
        for row in past:
            if row.parent_id is not None:
                self._inside.setdefault(row.parent_id, []).append(row)
        self._place(plan, (None, None), [row for row in past if row.parent_id is None], "")

    def _place(self, plan: Plan, scope: _Scope, rows: Iterable[PastTask], prefix: str) -> None:
        planned = {task.name: task for task in plan.tasks}
        self._plans[scope] = plan
        here = self.scopes[scope] = {}
        for row in rows:
            # Alone in the body of a container, it is named after that and its index.
            name = row.name.removeprefix(prefix) if not prefix or row.name.startswith(prefix) else plan.tasks[0].name
            here[name] = row
            task = self._planned[row.id] = planned[name]
            if task.body is None:
                continue
            indices: dict[int | None, list[PastTask]] = {}
            for inner in self._inside.get(row.id, ()):
                indices.setdefault(inner.map_index, []).append(inner)
            for index, inners in indices.items():
                self._place(task.body, (row.id, index), inners, f"{row.name}[{index}].")

    def named(self, text: str, scope: _Scope = (None, None)) -> list[PastTask]:
        """Return the task runs that a person means by this name, in this graph."""
        here = self.scopes.get(scope, {})
        if text in here:
            return [here[text]]
        name, bracket, rest = text.partition("[")
        return self._named_inside(here[name], bracket + rest) if bracket and name in here else []

    def _named_inside(self, row: PastTask, text: str) -> list[PastTask]:
        inside = self._inside.get(row.id, ())
        by_index = [(str(inner.map_index), inner.map_index) for inner in inside]
        by_key = [(inner.map_key, inner.map_index) for inner in inside]
        for label, index in dict.fromkeys((*by_index, *by_key)):
            if text.startswith(f"[{label}]") and (found := self._named_at(row, index, text[len(label) + 2 :])):
                return found
        return []

    def _named_at(self, row: PastTask, index: int | None, rest: str) -> list[PastTask]:
        here = self.scopes[row.id, index]
        if not rest:
            return list(here.values())
        if self._planned[row.id].is_group:
            return self.named(rest[1:], (row.id, index)) if rest.startswith(".") else []
        return self._named_inside(next(iter(here.values())), rest)

    def failed_in(self, scope: _Scope) -> Iterator[PastTask]:
        """Yield what has failed; of a container the task runs inside of it that did, if there are any."""
        for row in self.scopes.get(scope, {}).values():
            if row.state not in RERUN_OF_FAILED:
                continue
            inner = [
                failed
                for index in dict.fromkeys(one.map_index for one in self._inside.get(row.id, ()))
                if self._has_failed((row.id, index))
                for failed in self.failed_in((row.id, index))
            ]
            yield from inner or [row]

    def _has_failed(self, scope: _Scope) -> bool:
        """Say whether this index or round has; what failed in one that succeeded was handled or does not count."""
        plan, here = self._plans[scope], self.scopes[scope]
        shape = self._shapes.get(id(plan))
        if shape is None:
            shape = self._shapes[id(plan)] = Shape(plan)
        states = [here[task.name].state for task in plan.tasks if task.name in here]
        return len(states) == len(plan.tasks) and shape.index_result(states) is TaskState.FAILED

    def affected(self, starts: Iterable[PastTask]) -> tuple[set[str], set[str]]:
        """Return what runs again, with all inside of it, and the containers of which only a part does."""
        anew: set[str] = set()
        partly: set[str] = set()
        open_rows = list(starts)
        while open_rows:
            row = open_rows.pop()
            if row.id not in anew:
                self._take(row, anew)
                open_rows += self._below(row)
            if row.parent_id is not None and row.parent_id not in anew and row.parent_id not in partly:
                container = self._by_id[row.parent_id]
                partly.add(container.id)
                open_rows += self._below(container)
                while container.parent_id is not None and container.parent_id not in partly:
                    container = self._by_id[container.parent_id]
                    partly.add(container.id)
                    open_rows += self._below(container)
        return anew, partly - anew

    def _take(self, row: PastTask, anew: set[str]) -> None:
        anew.add(row.id)
        for inner in self._inside.get(row.id, ()):
            self._take(inner, anew)

    def _below(self, row: PastTask) -> list[PastTask]:
        """Return what is directly downstream, in the same graph."""
        scope = (row.parent_id, row.map_index)
        names = self._edges(self._plans[scope]).get(self._planned[row.id].name, ())
        here = self.scopes[scope]
        return [here[name] for name in names if name in here]

    def _edges(self, plan: Plan) -> Mapping[str, Sequence[str]]:
        found = self._downstream.get(id(plan))
        if found is None:
            found = self._downstream[id(plan)] = {}
            for task in plan.tasks:
                for name in task.upstream:
                    found.setdefault(name, []).append(task.name)
        return found

    def read_by(self, anew: set[str], partly: set[str]) -> list[PastTask]:
        """Return the kept task runs whose outputs something that runs again may read, with all inside of them."""
        found: set[str] = set()
        open_rows = [row for row in self.all if row.id in anew or row.id in partly]
        seen = {row.id for row in open_rows}
        while open_rows:
            row = open_rows.pop()
            here = self.scopes[row.parent_id, row.map_index]
            for name in self._planned[row.id].upstream:
                if (up := here.get(name)) is not None and up.id not in seen:
                    seen.add(up.id)
                    open_rows.append(up)
                    if up.id not in anew:
                        self._take(up, found)
        return [row for row in self.all if row.id in found and row.id not in partly]
