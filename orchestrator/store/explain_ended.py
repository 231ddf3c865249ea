"""Reads from the rows what has made a run fail: the tasks to blame, and inside of containers the indices or rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from orchestrator.kernel.shape import Path, Shape
from orchestrator.records import Plan
from orchestrator.states import TaskState
from orchestrator.store.tables import task_runs as t

_BROKEN = (TaskState.FAILED.value, TaskState.CANCELLED.value)
_SHOWN = (t.c.id, t.c.name, t.c.state, t.c.reason, t.c.message, t.c.position, t.c.map_index, t.c.ended_at)


@dataclass(frozen=True, slots=True)
class Blamed:
    """Task runs because of which a run has failed."""

    rows: Sequence[Any]
    """The first to end first; of a container the task runs inside of it that failed, if there are any."""
    more: int
    """Further ones, as far as they were counted."""


def blamed_for(connection: Connection, run_id: str, plan: Plan, most: int) -> Blamed:
    """Return the task runs because of which a run of this plan, which is over, has failed.

    :param most: how many of them to return.
    """
    own = connection.execute(select(*_SHOWN).where(t.c.run_id == run_id, t.c.parent_id.is_(None))).all()
    search = _Search(connection, most)
    search.look_at(Shape(plan), own)
    search.found.sort(key=lambda row: (row.ended_at is None, row.ended_at, row.name))
    return Blamed(search.found, search.more)


class _Search:
    """Goes down from the run's own tasks into its containers, until enough was found."""

    def __init__(self, connection: Connection, most: int) -> None:
        self._connection = connection
        self._most = most
        self.found: list[Any] = []
        self.more = 0

    def look_at(self, shape: Shape, rows: Iterable[Any]) -> None:
        """Take from one graph that has failed what it failed by."""
        at = {row.position: row for row in rows}
        if len(at) != len(shape.plan.tasks):
            return
        for position in shape.failing(
            [TaskState(at[n].state) for n in range(len(at))], lambda path: self._has_succeeded_at(at, path)
        ):
            row, body = at[position], shape.bodies[position]
            if len(self.found) >= self._most:
                self.more += 1
                continue
            before = len(self.found) + self.more
            if body is not None and row.state in _BROKEN:
                self._look_inside(row.id, body, is_repeat=shape.plan.tasks[position].repeat is not None)
            if len(self.found) + self.more == before:
                self.found.append(row)

    def _has_succeeded_at(self, at: Mapping[int, Any], path: Path) -> bool:
        """Say whether the task at this path inside of these has succeeded, in any index, and the containers around."""
        outer = at[path[0]]
        ids = [outer.id] if outer.state == TaskState.SUCCESS else []
        for position in path[1:]:
            inside = t.c.parent_id.in_(ids) & ~t.c.superseded & (t.c.position == position)
            ids = list(self._connection.scalars(select(t.c.id).where(inside, t.c.state == TaskState.SUCCESS.value)))
        return bool(ids)

    def _look_inside(self, container: str, body: Shape, *, is_repeat: bool) -> None:
        """Look at the indices of a container in which something failed; of a repeat at its last round."""
        inside = (t.c.parent_id == container) & ~t.c.superseded
        of_index = t.c.map_index
        if is_repeat:
            wanted = list(self._connection.scalars(select(func.max(of_index)).where(inside)))
        else:
            query = select(of_index).where(inside, t.c.state.in_(_BROKEN)).distinct().order_by(of_index)
            wanted = list(self._connection.scalars(query))
        room = self._most - len(self.found)
        self.more += len(wanted[room:])
        indices: dict[int, list[Any]] = {}
        for row in self._connection.execute(select(*_SHOWN).where(inside, of_index.in_(wanted[:room]))):
            indices.setdefault(row.map_index, []).append(row)
        for index in sorted(indices):
            self.look_at(body, indices[index])


def count_states(connection: Connection, run_id: str) -> Mapping[str, int]:
    """Return how many of the run's own tasks are in which state."""
    query = select(t.c.state, func.count()).where(t.c.run_id == run_id, t.c.parent_id.is_(None)).group_by(t.c.state)
    return {row[0]: int(row[1]) for row in connection.execute(query)}
