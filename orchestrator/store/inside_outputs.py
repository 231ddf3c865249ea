"""What containers and sub-runs have left: worked out from the rows inside of them whenever it is read, never stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from orchestrator.errors import TooLarge
from orchestrator.kernel.shape import Path, Shape, leaves_of
from orchestrator.records import Plan, PlannedTask
from orchestrator.states import TASK_TERMINAL, TaskState
from orchestrator.store.plans import PlanCache
from orchestrator.wire.messages import MAX_GRANT_BYTES

_PART_BYTES = 256 * 1024
_PART_ROWS = 1000

# Of repeats only the last round is asked for, of maps maybe some indices. A container that waits to expand anew has
# left nothing, though its rows are still those of before.
_INSIDE = text(
    "WITH RECURSIVE inside AS ("
    "SELECT t.* FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS w(id uuid, is_last boolean, indices jsonb) "
    "JOIN task_runs c ON c.id = w.id AND (c.state <> 'pending' OR c.resumed) "
    "JOIN task_runs t ON t.parent_id = w.id AND NOT t.superseded "
    "AND (w.indices IS NULL OR w.indices @> to_jsonb(t.map_index)) "
    "AND (NOT w.is_last OR t.map_index = (SELECT max(map_index) FROM task_runs m WHERE m.parent_id = w.id "
    "AND NOT m.superseded)) "
    "UNION ALL SELECT t.* FROM inside i JOIN task_runs t ON t.parent_id = i.id AND NOT t.superseded "
    "AND (i.state <> 'pending' OR i.resumed)) "
    "SELECT CAST(id AS text) AS id, CAST(parent_id AS text) AS parent_id, name, map_index, position, state, "
    "CAST(child_run_id AS text) AS child_run_id, pg_column_size(outputs) AS bytes FROM inside "
    "ORDER BY parent_id, map_index, position"
)
_WIDTHS = text(
    "SELECT CAST(c.id AS text) AS id, max(t.map_index) + 1 AS width FROM task_runs c "
    "JOIN task_runs t ON t.parent_id = c.id AND NOT t.superseded "
    "WHERE c.id = ANY(CAST(:ids AS uuid[])) AND (c.state <> 'pending' OR c.resumed) GROUP BY c.id"
)
_OUTPUTS = text(
    "SELECT CAST(id AS text) AS id, outputs, octet_length(CAST(outputs AS text)) AS bytes FROM task_runs "
    "WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'success'"
)
_CHILDREN = text(
    "SELECT CAST(id AS text) AS id, state, CAST(version_id AS text) AS version_id FROM runs "
    "WHERE id = ANY(CAST(:ids AS uuid[]))"
)
_OF_CHILDREN = text(
    "SELECT CAST(run_id AS text) AS run_id, CAST(id AS text) AS id, name, state, "
    "CAST(child_run_id AS text) AS child_run_id, pg_column_size(outputs) AS bytes FROM task_runs "
    "WHERE run_id = ANY(CAST(:ids AS uuid[])) AND parent_id IS NULL ORDER BY run_id, position"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A container whose outputs are asked for."""

    id: str
    planned: PlannedTask
    named: str
    """As its reader calls it, for errors."""
    indices: frozenset[int] | None = None
    """The only ones that are looked at; ``None``: all."""


@dataclass(slots=True)
class _Inside:
    """The rows inside of the wanted containers."""

    children: dict[str, dict[int, list[Any]]] = field(default_factory=dict)
    """Container → index → its rows by position."""
    outputs: dict[str, Any] = field(default_factory=dict)
    subruns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shapes: dict[int, Shape] = field(default_factory=dict)
    """Of bodies, by identity: thousands of indices share one."""

    def has_succeeded(self, body: Plan, rows: Sequence[Any]) -> bool:
        """Say whether a round of this body has, whose task runs are these."""
        states = [TaskState(row.state) for row in rows]
        if not all(state in TASK_TERMINAL for state in states):
            return False
        shape = self.shapes.get(id(body))
        if shape is None:
            shape = self.shapes[id(body)] = Shape(body)
        return shape.index_result(states, lambda path: self._has_succeeded_at(rows, path)) is TaskState.SUCCESS

    def _has_succeeded_at(self, rows: Sequence[Any], path: Path) -> bool:
        row, rest = rows[path[0]], path[1:]
        if row.state != TaskState.SUCCESS:
            return False
        return not rest or any(self._has_succeeded_at(own, rest) for own in self.children.get(row.id, {}).values())


class InsideOutputs:
    """Reads what containers have left, within one transaction."""

    def __init__(self, connection: Connection, plans: PlanCache) -> None:
        self._connection = connection
        self._plans = plans

    def containers(self, wanted: Sequence[Wanted]) -> dict[str, Any]:
        """Return by its id what each container has left, or a :class:`TooLarge` in its place.

        Of a map a list by index, of a repeat what its last round left: the outputs of the single task, or an object of
        the group's by task. ``None`` stands where an index did not succeed, or was not asked for.
        """
        if not wanted:
            return {}
        rows = self._connection.execute(_INSIDE, {"wanted": _document(wanted)}).all()
        by_parent: dict[str, list[Any]] = {}
        for row in rows:
            by_parent.setdefault(row.parent_id, []).append(row)
        widths = {row.id: row.width for row in self._connection.execute(_WIDTHS, {"ids": [item.id for item in wanted]})}
        found: dict[str, Any] = {}
        for item in wanted:
            own = list(_below(item.id, by_parent))
            try:
                inside = self._read(own, item.named)
            except TooLarge as error:
                found[item.id] = error
                continue
            found[item.id] = _left_by(item.planned, item.id, inside, widths.get(item.id, 0))
        return found

    def subruns(self, run_ids: Iterable[str], named: str = "a run") -> dict[str, Mapping[str, Any]]:
        """Return by its id what each run that is a task has left: ``{run_id, state, outputs: {leaf: its outputs}}``.

        :raises TooLarge: it is more than a grant can carry.
        """
        wanted = sorted(set(run_ids))
        if not wanted:
            return {}
        runs = {row.id: row for row in self._connection.execute(_CHILDREN, {"ids": wanted})}
        found = self._plans.get(self._connection, {row.version_id for row in runs.values()})
        tasks: dict[str, list[Any]] = {}
        for row in self._connection.execute(_OF_CHILDREN, {"ids": wanted}):
            tasks.setdefault(row.run_id, []).append(row)
        leaves = {
            run_id: [row for row in tasks.get(run_id, ()) if row.name in _leaves(found.readable.get(run.version_id))]
            for run_id, run in runs.items()
        }
        every = [row for rows in leaves.values() for row in rows]
        inner = self.subruns(filter(None, (row.child_run_id for row in every)), named)
        left = self._leaf_containers(runs, leaves, found.readable) | self._outputs(every, named)
        left |= {row.id: inner[row.child_run_id] for row in every if row.child_run_id in inner}
        return {
            run_id: {
                "run_id": run_id,
                "state": run.state,
                "outputs": {row.name: left.get(row.id) for row in leaves[run_id]},
            }
            for run_id, run in runs.items()
        }

    def _leaf_containers(
        self, runs: Mapping[str, Any], leaves: Mapping[str, Sequence[Any]], plans: Mapping[str, Plan]
    ) -> dict[str, Any]:
        wanted = []
        for run_id, rows in leaves.items():
            planned = {task.name: task for task in plans[runs[run_id].version_id].tasks} if rows else {}
            wanted += [Wanted(row.id, planned[row.name], row.name) for row in rows if planned[row.name].is_container]
        found = self.containers(wanted)
        for value in found.values():
            if isinstance(value, TooLarge):
                raise value
        return found

    def _read(self, rows: Sequence[Any], named: str) -> _Inside:
        inside = _Inside(outputs=self._outputs(rows, named))
        for row in rows:
            inside.children.setdefault(row.parent_id, {}).setdefault(row.map_index, []).append(row)
        inside.subruns = self.subruns(filter(None, (row.child_run_id for row in rows)), named)
        return inside

    def _outputs(self, rows: Sequence[Any], named: str) -> dict[str, Any]:
        """Read the outputs of these rows in parts, and no more of them than a grant can carry."""
        found: dict[str, Any] = {}
        total = 0
        for part in _parts([row for row in rows if row.state == TaskState.SUCCESS and row.bytes is not None]):
            for row in self._connection.execute(_OUTPUTS, {"ids": part}):
                total += row.bytes
                found[row.id] = row.outputs
            if total > MAX_GRANT_BYTES * 3 // 2:
                raise TooLarge(
                    f"{named} has more than the {MAX_GRANT_BYTES // 2**20} MB that a task can be given. Let the tasks "
                    "inside of it save what is large with context.artifacts, and return its URI."
                )
        return found


def _document(wanted: Iterable[Wanted]) -> str:
    return json.dumps(
        [
            {
                "id": item.id,
                "is_last": item.planned.repeat is not None and item.indices is None,
                "indices": None if item.indices is None else sorted(item.indices),
            }
            for item in wanted
        ]
    )


def _below(container: str, by_parent: Mapping[str, Sequence[Any]]) -> Iterator[Any]:
    for row in by_parent.get(container, ()):
        yield row
        yield from _below(row.id, by_parent)


def _parts(rows: Sequence[Any]) -> Iterator[list[str]]:
    """Cut the rows into parts that are read at once, by their compressed sizes."""
    part: list[str] = []
    size = 0
    for row in rows:
        part.append(row.id)
        size += row.bytes or 0
        if size >= _PART_BYTES or len(part) >= _PART_ROWS:
            yield part
            part, size = [], 0
    if part:
        yield part


def _left_by(planned: PlannedTask, container: str, inside: _Inside, width: int | None = None) -> Any:
    indices = inside.children.get(container, {})
    if planned.repeat is not None:
        return _left_at(planned, indices[max(indices)], inside) if indices else None
    if width is None:
        width = max(indices) + 1 if indices else 0
    return [_left_at(planned, indices[at], inside) if at in indices else None for at in range(width)]


def _left_at(planned: PlannedTask, rows: Sequence[Any], inside: _Inside) -> Any:
    """Return what one index or round has left; ``None`` where it did not succeed."""
    assert planned.body is not None
    if not planned.is_group:
        return _left_by_row(planned.body.tasks[0], rows[0], inside)
    if not inside.has_succeeded(planned.body, rows):
        return None
    return {task.name: _left_by_row(task, row, inside) for task, row in zip(planned.body.tasks, rows, strict=True)}


def _left_by_row(task: PlannedTask, row: Any, inside: _Inside) -> Any:
    if task.is_container:
        return _left_by(task, row.id, inside)
    if row.child_run_id is not None:
        return inside.subruns.get(row.child_run_id) if row.state == TaskState.SUCCESS else None
    # What succeeded and said nothing has left an empty object.
    return inside.outputs.get(row.id, {} if row.state == TaskState.SUCCESS else None)


def _leaves(plan: Plan | None) -> frozenset[str]:
    """Return the names of the tasks whose outputs a run of this plan leaves."""
    return frozenset() if plan is None else frozenset(plan.tasks[at].name for at in leaves_of(plan))
