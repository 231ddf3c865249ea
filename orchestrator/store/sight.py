"""What a task run sees: the run's parameters, what is upstream of it and around it, read for its templates.

In one transaction, after the rows are written, so that the outputs of an outcome in the same batch are seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from orchestrator.errors import OrchestratorError, TooLarge
from orchestrator.expressions.paths import Lookup, Path, path_text, value_at
from orchestrator.expressions.templates import references, resolve
from orchestrator.records import PlannedTask
from orchestrator.store.grant_sizes import OutputSizes
from orchestrator.store.inside_outputs import InsideOutputs, Wanted
from orchestrator.store.places import Asked, Level, Place, find_places
from orchestrator.store.plans import PlanCache
from orchestrator.store.text_safety import storable_json

_OUTPUTS = """
SELECT k.run_id::text, k.name, k.outputs
FROM jsonb_to_recordset(%s::jsonb) AS v(run_id uuid, name text)
JOIN task_runs k ON k.run_id = v.run_id AND k.name = v.name
WHERE k.state = 'success' AND k.outputs IS NOT NULL
"""
_ROWS = """
SELECT k.run_id::text, k.name, k.id::text, k.state, k.child_run_id::text
FROM jsonb_to_recordset(%s::jsonb) AS v(run_id uuid, name text)
JOIN task_runs k ON k.run_id = v.run_id AND k.name = v.name
"""
_RUNS = """
SELECT r.id::text, r.parameters, p.name FROM runs r JOIN pipelines p ON p.id = r.pipeline_id
WHERE r.id = ANY(%s::uuid[])
"""

Name = tuple[str, str]
"""Run, and name of a task run in it."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one task run sees."""

    place: Place
    pipeline: str
    parameters: Mapping[str, Any]
    """The run's."""
    upstream: Mapping[str, Mapping[str, Any]]
    """Outputs of the ancestors that have succeeded, by the name they have in the plan. What containers have left is
    given to those that name it in a template."""
    values: Mapping[str, Any]
    """What the templates of its parameters may name."""
    too_large: Mapping[str, TooLarge] = field(default_factory=dict)
    """What its templates name that is more than can be given, by the path that leads there."""

    def resolved(self, value: Any, pointer: str = "") -> Any:
        """Fill the templates in.

        :raises TemplateError: a path leads nowhere, or too much would come in.
        :raises TooLarge: one leads to more than a task can be given.
        """
        return resolve(value, self._lookup(), pointer)

    def parameters_of_task(self) -> dict[str, Any]:
        """Return the task's parameters with their templates and inputs filled in.

        :raises TemplateError, TooLarge: as :meth:`resolved`.
        """
        task = self.place.planned
        given = {**task.parameters, **self.resolved(task.templated, "/parameters")}
        return resolve_parameters(task, self.upstream, self.parameters, given)

    def _lookup(self) -> Lookup:
        def found(path: Path) -> Any:
            named = path_text(path[:2])
            if named in self.too_large:
                raise self.too_large[named]
            return value_at(self.values, path)

        return found


def resolve_parameters(
    task: PlannedTask,
    upstream: Mapping[str, Mapping[str, Any]],
    run_parameters: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the task's parameters with its inputs filled in: own value, then linked output, then run parameter.

    An input whose source left nothing (it was skipped, say) falls through to the run's parameter of that name.

    :param given: its own parameters, where their templates are filled in already.
    """
    resolved = dict(task.parameters if given is None else given)
    for link in task.links:
        if link.parameter in resolved:
            continue
        made = upstream.get(link.source, {}).get(link.kind)
        uri = made.get("uri") if isinstance(made, Mapping) else None
        if uri is not None:
            resolved[link.parameter] = uri
        elif link.parameter in run_parameters:
            resolved[link.parameter] = run_parameters[link.parameter]
    for wanted in task.run_inputs:
        if wanted.parameter not in resolved and wanted.parameter in run_parameters:
            resolved[wanted.parameter] = run_parameters[wanted.parameter]
    return resolved


def look_around(
    connection: Connection, plans: PlanCache, asked: Sequence[Asked], *, keys: bool = False
) -> dict[str, Sight | OrchestratorError]:
    """Return what each task run sees, by its id, or why it can't be given that.

    :param keys: the keys of the cache will be filled in too.
    """
    found = find_places(connection, asked)
    read = {id_: references(place.planned.templated) for id_, place in found.items()}
    if keys:
        for id_, place in found.items():
            read[id_] |= references(list(place.planned.cache.key) if place.planned.cache is not None else [])
    sights: dict[str, Sight | OrchestratorError] = {}
    sizes = OutputSizes(connection)
    for id_, place in found.items():
        names = [level.row_name(name) for level in place.levels for name in level.plain]
        if (refusal := sizes.refusal(place.run_id, place.own.name, names)) is not None:
            sights[id_] = refusal
    places = {id_: place for id_, place in found.items() if id_ not in sights}
    outputs = _read_outputs(
        connection,
        {
            (place.run_id, level.row_name(name))
            for place in places.values()
            for level in place.levels
            for name in level.plain
        },
    )
    runs = _read_runs(connection, {place.run_id for place in places.values()})
    named = _Named(connection, plans, places, read, outputs)
    for id_, place in places.items():
        sights[id_] = _sight(place, runs[place.run_id], outputs, named)
    return sights


def _sight(
    place: Place, run: tuple[Mapping[str, Any], str], outputs: Mapping[Name, Mapping[str, Any]], named: _Named
) -> Sight:
    parameters, pipeline = run
    upstream: dict[str, Mapping[str, Any]] = {}
    for level in place.levels:
        for name in level.plain:
            if (left := outputs.get((place.run_id, level.row_name(name)))) is not None:
                upstream[name] = left
    values: dict[str, Any] = {
        "params": parameters,
        "run": {"id": place.run_id, "pipeline": pipeline},
        "tasks": named.tasks(place),
    }
    for container, level in place.inward():
        if container.planned.map is not None:
            values.setdefault("map", {"item": level.item, "index": level.map_index, "key": level.map_key})
        else:
            values.setdefault("repeat", {"index": level.map_index, "previous": named.previous(container)})
    return Sight(place, pipeline, parameters, upstream, values, named.too_large(place))


class _Named:
    """What templates name besides plain outputs: states, what containers and sub-runs have left, the round before."""

    def __init__(
        self,
        connection: Connection,
        plans: PlanCache,
        places: Mapping[str, Place],
        read: Mapping[str, frozenset[Path]],
        outputs: Mapping[Name, Mapping[str, Any]],
    ) -> None:
        self._outputs = outputs
        self._of: dict[str, list[tuple[str, Level, PlannedTask]]] = {
            id_: list(_tasks_named(place, read[id_])) for id_, place in places.items()
        }
        names = {
            (places[id_].run_id, level.row_name(name)) for id_, found in self._of.items() for name, level, _ in found
        }
        self._rows = _read_rows(connection, names)
        inside = InsideOutputs(connection, plans)
        wanted = list(self._containers(places, read))
        rounds = list(_rounds_before(places, read))
        self._left = inside.containers(wanted)
        self._before = inside.containers(rounds)
        self._subruns = inside.subruns(row.child_run_id for row in self._rows.values() if row.child_run_id is not None)

    def tasks(self, place: Place) -> dict[str, Any]:
        """Return ``{name: {"state", "outputs"}}`` of what the place's templates name."""
        return {name: self._task(place, level, planned) for name, level, planned in self._of[place.task_run_id]}

    def previous(self, repeat: Level) -> Any:
        """Return what the round before has left in this container; ``None`` in the first round."""
        left = self._before.get(repeat.id)
        return None if left is None else {"outputs": left}

    def too_large(self, place: Place) -> dict[str, TooLarge]:
        found: dict[str, TooLarge] = {}
        for name, level, _ in self._of[place.task_run_id]:
            row = self._rows.get((place.run_id, level.row_name(name)))
            if row is not None and isinstance(left := self._left.get(row.id), TooLarge):
                found[path_text(("tasks", name))] = left
        for container, _ in place.inward():
            if isinstance(left := self._before.get(container.id), TooLarge):
                found["repeat.previous"] = left
        return found

    def _task(self, place: Place, level: Level, planned: PlannedTask) -> dict[str, Any]:
        key = (place.run_id, level.row_name(planned.name))
        row = self._rows.get(key)
        if row is None:
            return {}
        if planned.is_container:
            left = self._left.get(row.id)
        elif row.child_run_id is not None:
            left = self._subruns.get(row.child_run_id) if row.state == "success" else None
        elif key in self._outputs:
            left = self._outputs[key]
        else:
            left = {} if row.state == "success" else None
        return {"state": row.state, "outputs": left}

    def _containers(self, places: Mapping[str, Place], read: Mapping[str, frozenset[Path]]) -> Iterable[Wanted]:
        """Yield the containers that templates name, with the indices that all of them are content with."""
        indices: dict[str, frozenset[int] | None] = {}
        tasks: dict[str, PlannedTask] = {}
        for id_, place in places.items():
            for name, level, planned in self._of[id_]:
                row = self._rows.get((place.run_id, level.row_name(name)))
                if row is None or not planned.is_container:
                    continue
                tasks[row.id] = planned
                asked, before = _indices(planned, name, read[id_]), indices.get(row.id, frozenset())
                indices[row.id] = None if asked is None or before is None else asked | before
        return [
            Wanted(id_, planned, path_text(("tasks", planned.name, "outputs")), indices[id_])
            for id_, planned in tasks.items()
        ]


def _tasks_named(place: Place, read: Iterable[Path]) -> Iterable[tuple[str, Level, PlannedTask]]:
    for name in sorted({str(path[1]) for path in read if path[0] == "tasks" and len(path) > 1}):
        level = place.level_of(name)
        if level is not None:
            yield name, level, next(task for task in level.plan.tasks if task.name == name)


def _indices(planned: PlannedTask, name: str, read: Iterable[Path]) -> frozenset[int] | None:
    """Return which indices of a map the paths go into, ``None``: they may need them all."""
    if planned.map is None:
        return None
    found: set[int] = set()
    for path in read:
        if path[:3] != ("tasks", name, "outputs"):
            if path[:2] == ("tasks", name) and path[2:] != ("state",):
                return None
            continue
        if len(path) < 4 or not isinstance(path[3], int) or path[3] < 0:
            return None
        found.add(path[3])
    return frozenset(found)


def _rounds_before(places: Mapping[str, Place], read: Mapping[str, frozenset[Path]]) -> Iterable[Wanted]:
    """Yield what ``repeat.previous`` means to each place that names it."""
    for id_, place in places.items():
        if not any(path[:2] == ("repeat", "previous") for path in read[id_]):
            continue
        for container, level in place.inward():
            if container.planned.repeat is not None:
                if level.map_index:
                    yield Wanted(container.id, container.planned, "repeat.previous", frozenset({level.map_index - 1}))
                break


def _read_outputs(connection: Connection, wanted: set[Name]) -> dict[Name, Mapping[str, Any]]:
    if not wanted:
        return {}
    rows = connection.exec_driver_sql(_OUTPUTS, (_names(wanted),)).all()
    return {(row[0], row[1]): row[2] for row in rows}


def _read_rows(connection: Connection, wanted: set[Name]) -> dict[Name, Any]:
    if not wanted:
        return {}
    return {(row.run_id, row.name): row for row in connection.exec_driver_sql(_ROWS, (_names(wanted),))}


def _names(wanted: Iterable[Name]) -> str:
    return storable_json([{"run_id": run_id, "name": name} for run_id, name in sorted(wanted)])


def _read_runs(connection: Connection, run_ids: set[str]) -> dict[str, tuple[Mapping[str, Any], str]]:
    """Return each run's parameters and the name of its pipeline."""
    rows = connection.exec_driver_sql(_RUNS, (sorted(run_ids),)).all()
    return {row[0]: (row[1], row[2]) for row in rows}
