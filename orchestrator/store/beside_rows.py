"""What records take from elsewhere than their own rows: outputs that the rules ask for, memory that was learned."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, text

from orchestrator.kernel.shape import Shape, leaves_of
from orchestrator.records import Plan, PlannedTask, TaskRunRecord

# Fields that nothing names are left where they are: of all tasks together they may be gigabytes.
_OUTPUTS = text(
    "SELECT CAST(t.id AS text) AS id, CASE WHEN k.fields IS NULL OR jsonb_typeof(t.outputs) <> 'object' THEN t.outputs "
    "ELSE (SELECT COALESCE(jsonb_object_agg(f.key, f.value), '{}') FROM jsonb_each(t.outputs) AS f "
    "WHERE jsonb_exists(k.fields, f.key)) END AS outputs FROM task_runs t "
    "JOIN jsonb_to_recordset(CAST(:kept AS jsonb)) AS k(name text, fields jsonb) "
    "ON k.name = regexp_replace(t.name, '\\[[0-9]+\\]', '', 'g') "
    "WHERE t.run_id = ANY(CAST(:ids AS uuid[])) AND t.state = 'success' AND t.outputs IS NOT NULL"
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
        asked: dict[tuple[int, bool], str] = {}
        by_asked: dict[str, list[str]] = {}
        for run_id, plan in plans.items():
            kind = (id(plan), run_id in children)
            if kind not in asked:
                fields = kept_fields(plan, is_child=kind[1])
                asked[kind] = json.dumps([{"name": name, "fields": fields[name]} for name in sorted(fields)])
            if asked[kind] != "[]":
                by_asked.setdefault(asked[kind], []).append(run_id)
        self._outputs = {
            row.id: row.outputs
            for kept, ids in by_asked.items()
            for row in connection.execute(_OUTPUTS, {"ids": ids, "kept": kept})
        }

    def of(self, task_run_id: str) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self._outputs.get(task_run_id)
        return found

    def added_to(self, record: TaskRunRecord) -> TaskRunRecord:
        outputs = self.of(record.id)
        return record if outputs is None else replace(record, outputs=outputs)


def handing_on(
    runs: Iterable[tuple[str, str | None]], tasks: Iterable[TaskRunRecord], plans: Mapping[str, Plan]
) -> set[str]:
    """Return those of the runs whose outputs the rules read, as those of the task that the run is.

    :param runs: pairs of a run's id and of the task run that it is, those around others first.
    """
    found, by_id = set[str](), {task.id: task for task in tasks}
    fields: dict[tuple[int, bool], Mapping[str, object]] = {}
    for run_id, parent_id in runs:
        parent = by_id.get(parent_id or "")
        if parent is None:
            continue
        plan, is_child = plans[parent.run_id], parent.run_id in found
        kind = (id(plan), is_child)
        if kind not in fields:
            fields[kind] = kept_fields(plan, is_child=is_child)
        if planned_name(parent.name) in fields[kind]:
            found.add(run_id)
    return found


def kept_fields(plan: Plan, *, is_child: bool = False) -> dict[str, list[str] | None]:
    """Return the planned names of the tasks whose outputs the rules read in runs of this plan, with the fields that
    they read; ``None``: all of them."""
    if is_child:
        return dict(_kept(Shape(plan, keep=dict.fromkeys(plan.tasks[at].name for at in leaves_of(plan))), ""))
    has_expressions = any(
        task.when or task.map or task.repeat or task.child or task.approval or task.concurrency or task.rate_limit
        for _, task in planned_tasks(plan)
    )
    return dict(_kept(Shape(plan), "")) if has_expressions else {}


def _kept(shape: Shape, inside: str) -> Iterator[tuple[str, list[str] | None]]:
    for position, task in enumerate(shape.plan.tasks):
        name = f"{inside}.{task.name}" if inside else task.name
        body = shape.bodies[position]
        if body is not None:
            yield from _kept(body, name if task.is_group else inside)
        elif position in shape.kept:
            kept = shape.kept[position]
            yield name, None if kept is None else sorted(part for part in kept if isinstance(part, str))


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
