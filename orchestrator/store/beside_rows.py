"""What records take from elsewhere than their own rows: outputs that the rules ask for, memory that was learned."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace

from sqlalchemy import Connection, text

from orchestrator.kernel.shape import Shape
from orchestrator.records import Plan, PlannedTask, TaskRunRecord

_OUTPUTS = text(
    "SELECT CAST(id AS text) AS id, outputs FROM task_runs WHERE run_id = ANY(CAST(:ids AS uuid[])) "
    "AND state = 'success' AND outputs IS NOT NULL AND regexp_replace(name, '\\[[0-9]+\\]', '', 'g') = ANY(:names)"
)
_LEARNED = text(
    "SELECT CAST(pipeline_id AS text) AS pipeline_id, task, memory FROM learned_memory "
    "WHERE pipeline_id = ANY(CAST(:ids AS uuid[]))"
)
_INDEX = re.compile(r"\[\d+\]")


class KeptOutputs:
    """Outputs that expressions of the rules ask for.

    :param plans: by run id.
    :param children: ids of the runs among them that are tasks of others, which hand on what their leaves have left.
    """

    def __init__(self, connection: Connection, plans: Mapping[str, Plan], children: Container[str] = ()) -> None:
        names: dict[tuple[int, bool], frozenset[str]] = {}
        by_names: dict[frozenset[str], list[str]] = {}
        for run_id, plan in plans.items():
            kind = (id(plan), run_id in children)
            if kind not in names:
                names[kind] = kept_names(plan, is_child=kind[1])
            if kept := names[kind]:
                by_names.setdefault(kept, []).append(run_id)
        self._outputs = {
            row.id: row.outputs
            for kept, ids in by_names.items()
            for row in connection.execute(_OUTPUTS, {"ids": ids, "names": sorted(kept)})
        }

    def added_to(self, record: TaskRunRecord) -> TaskRunRecord:
        outputs = self._outputs.get(record.id)
        return record if outputs is None else replace(record, outputs=outputs)


def kept_names(plan: Plan, *, is_child: bool = False) -> frozenset[str]:
    """Return the planned names of the tasks whose outputs the rules read in runs of this plan."""
    if is_child:
        above = {name for task in plan.tasks for name in task.upstream}
        return frozenset(_kept(Shape(plan, keep=(task.name for task in plan.tasks if task.name not in above)), ""))
    has_expressions = any(
        task.when or task.map or task.repeat or task.child or task.approval or task.concurrency
        for _, task in planned_tasks(plan)
    )
    return frozenset(_kept(Shape(plan), "")) if has_expressions else frozenset()


def _kept(shape: Shape, inside: str) -> Iterator[str]:
    for position, task in enumerate(shape.plan.tasks):
        name = f"{inside}.{task.name}" if inside else task.name
        body = shape.bodies[position]
        if body is not None:
            yield from _kept(body, name if task.is_group else inside)
        elif position in shape.kept:
            yield name


def learned_of(connection: Connection, plans: Iterable[tuple[str, Plan]]) -> Mapping[str, Mapping[str, int]]:
    """Return what has been learned of the tasks that ask for it, by pipeline and planned name.

    :param plans: pairs of a pipeline's id and the plan of one of its runs.
    """
    wanted = {id_ for id_, plan in plans if any(task.memory_auto for _, task in planned_tasks(plan))}
    found: dict[str, dict[str, int]] = {}
    for row in connection.execute(_LEARNED, {"ids": sorted(wanted)}) if wanted else ():
        found.setdefault(row.pipeline_id, {})[row.task] = row.memory
    return found


def with_learned(records: Iterable[TaskRunRecord], plan: Plan, learned: Mapping[str, int]) -> tuple[TaskRunRecord, ...]:
    """Return the records with the memory that was learned, where a task asks for it and has not been tried yet."""
    asking = {name for name, task in planned_tasks(plan) if task.memory_auto and name in learned}
    return tuple(
        replace(record, memory=learned[name])
        if record.memory is None and record.attempts == 0 and (name := planned_name(record.name)) in asking
        else record
        for record in records
    )


def planned_name(name: str) -> str:
    """Return what a task run is called in the plan: ``folds.train`` for ``folds[2].train[0]``."""
    return _INDEX.sub("", name)


def planned_of(plan: Plan, name: str) -> PlannedTask | None:
    """Return what the plan says of a task run of this name; ``None``: it has no such task."""
    for task in plan.tasks:
        if name == task.name:
            return task
        index = _INDEX.match(name, len(task.name)) if name.startswith(task.name) else None
        if index is None or task.body is None:
            continue
        rest = name[index.end() :]
        if task.is_group:
            return planned_of(task.body, rest.removeprefix(".")) if rest.startswith(".") else None
        return planned_of(task.body, task.body.tasks[0].name + rest)
    return None


def planned_tasks(plan: Plan, inside: str = "") -> Iterator[tuple[str, PlannedTask]]:
    """Yield all tasks of the plan with their planned names, those inside containers too."""
    for task in plan.tasks:
        name = f"{inside}.{task.name}" if inside else task.name
        yield name, task
        if task.body is not None:
            if task.is_group:
                yield from planned_tasks(task.body, name)
            else:
                yield from planned_tasks(task.body, inside)
