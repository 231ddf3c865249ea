"""Where task runs stand: the containers around them, and which tasks they see from there, by their rows' names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from orchestrator.records import Plan, PlannedTask

_CHAINS = text(
    "WITH RECURSIVE chain AS ("
    "SELECT id AS asked, 0 AS height, id, run_id, name, parent_id, map_index, map_key, item FROM task_runs "
    "WHERE id = ANY(CAST(:ids AS uuid[])) "
    "UNION ALL SELECT c.asked, c.height + 1, t.id, t.run_id, t.name, t.parent_id, t.map_index, t.map_key, t.item "
    "FROM chain c JOIN task_runs t ON t.id = c.parent_id) "
    "SELECT CAST(asked AS text) AS asked, CAST(id AS text) AS id, CAST(run_id AS text) AS run_id, name, "
    "CAST(parent_id AS text) AS parent_id, map_index, map_key, item FROM chain ORDER BY asked, height DESC"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A task run whose place is asked for, with the plan of its run."""

    task_run_id: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class Level:
    """One graph around a task run: the run's own, or the body of a container; the innermost holds it itself."""

    plan: Plan
    planned: PlannedTask
    """The task run itself, or the container around it."""
    id: str
    """Of the row of that."""
    name: str
    """Of that row."""
    prefix: str
    """What the names of all rows of this graph begin with."""
    map_index: int | None
    map_key: str
    item: Any
    ancestors: frozenset[str]
    """Names of all tasks upstream of it, in this graph."""
    plain: tuple[str, ...]
    """Of these, those that leave outputs in their own rows, in the plan's order."""

    def row_name(self, task: str) -> str:
        """Return the name of the row of a task of this graph."""
        return f"{self.prefix}{task}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task run stands."""

    task_run_id: str
    run_id: str
    levels: tuple[Level, ...]
    """The run's own graph first."""

    @property
    def own(self) -> Level:
        return self.levels[-1]

    @property
    def planned(self) -> PlannedTask:
        return self.own.planned

    def inward(self) -> Iterator[tuple[Level, Level]]:
        """Yield each container around the task run with the level inside of it, the innermost first."""
        for at in range(len(self.levels) - 1, 0, -1):
            yield self.levels[at - 1], self.levels[at]

    def level_of(self, task: str) -> Level | None:
        """Return the graph in which this name is an ancestor: the innermost that has it."""
        return next((level for level in reversed(self.levels) if task in level.ancestors), None)


class _Graph:
    """One plan, or body of a container, as all task runs of a batch look at it that stand there."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tasks = {task.name: task for task in plan.tasks}
        self._position = {name: at for at, name in enumerate(self.tasks)}
        self._seen: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {}

    def seen_by(self, planned: PlannedTask) -> tuple[frozenset[str], tuple[str, ...]]:
        """Return the names of all tasks upstream of this one, and those of them that leave outputs in their own rows,
        in the plan's order."""
        found = self._seen.get(planned.name)
        if found is None:
            ancestors = ancestors_of(self.tasks, planned.upstream)
            plain = sorted(
                (name for name in ancestors if not self.tasks[name].is_container), key=self._position.__getitem__
            )
            found = self._seen[planned.name] = ancestors, tuple(plain)
        return found


def find_places(connection: Connection, asked: Iterable[Asked]) -> dict[str, Place]:
    """Return where each task run stands, by its id; one whose row is not there is left out."""
    plans = {item.task_run_id: item.plan for item in asked}
    chains: dict[str, list[Any]] = {}
    for row in connection.execute(_CHAINS, {"ids": sorted(plans)}):
        chains.setdefault(row.asked, []).append(row)
    graphs: dict[int, _Graph] = {}
    return {id_: Place(id_, rows[0].run_id, _levels(rows, plans[id_], graphs)) for id_, rows in chains.items()}


def ancestors_of(tasks: Mapping[str, PlannedTask], upstream: Iterable[str]) -> frozenset[str]:
    """Return the names of all tasks upstream, however far."""
    found: set[str] = set()
    open_names = list(upstream)
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            open_names.extend(tasks[name].upstream)
    return frozenset(found)


def _levels(rows: Sequence[Any], plan: Plan, graphs: dict[int, _Graph]) -> tuple[Level, ...]:
    """Return the levels of a chain of rows, that of the run's own task first."""
    levels: list[Level] = []
    for row in rows:
        outer = levels[-1] if levels else None
        prefix = f"{outer.name}[{row.map_index}]." if outer is not None else ""
        if outer is not None:
            assert outer.planned.body is not None, f"{row.name} lies inside of {outer.name}, which is no container"
            plan = outer.planned.body
        if (graph := graphs.get(id(plan))) is None:
            graph = graphs[id(plan)] = _Graph(plan)
        # The body of a mapped task is that task alone, and its row is named after the container and the index.
        is_alone = outer is not None and not outer.planned.is_group
        planned = plan.tasks[0] if is_alone else graph.tasks[row.name.removeprefix(prefix)]
        ancestors, plain = graph.seen_by(planned)
        levels.append(
            Level(plan, planned, row.id, row.name, prefix, row.map_index, row.map_key, row.item, ancestors, plain)
        )
    return tuple(levels)
