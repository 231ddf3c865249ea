"""Builds what a grant carries: resolved parameters, ancestors' outputs, connections. Read after the rows are written.

In the transaction that grants, so that the outputs of an outcome in the same batch are seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from orchestrator.errors import ConfigurationError, TooLarge
from orchestrator.records import AttemptRecord, Plan, PlannedTask
from orchestrator.store.grant_sizes import OutputSizes
from orchestrator.store.text_safety import storable_json
from orchestrator.wire.messages import GrantSpec

_OUTPUTS = """
SELECT k.run_id::text, k.name, k.outputs
FROM jsonb_to_recordset(%s::jsonb) AS v(run_id uuid, name text)
JOIN task_runs k ON k.run_id = v.run_id AND k.name = v.name
WHERE k.state = 'success' AND k.outputs IS NOT NULL
"""
_RUNS = """
SELECT r.id::text, r.parameters, p.name FROM runs r JOIN pipelines p ON p.id = r.pipeline_id
WHERE r.id = ANY(%s::uuid[])
"""


@dataclass(frozen=True, slots=True)
class GrantedTask:
    """What the kernel knows of an attempt that is granted."""

    attempt: AttemptRecord
    tenant_id: str
    task: PlannedTask
    plan: Plan
    generation: int
    """Of the task run."""


def build_specs(
    connection: Connection,
    granted: Sequence[GrantedTask],
    connections: Mapping[str, Mapping[str, Any]],
    registry_url: str | None,
) -> dict[str, GrantSpec | ConfigurationError | TooLarge]:
    """Return the specification of each attempt, by its id; where one can't be built, the error that says why.

    :param connections: the site's named connections; a task gets those it names.
    """
    if not granted:
        return {}
    ancestors = {item.attempt.id: _ancestors(item.plan, item.task) for item in granted}
    sizes = OutputSizes(connection)
    specs: dict[str, GrantSpec | ConfigurationError | TooLarge] = {}
    for item in granted:
        if (refusal := sizes.refusal(item.attempt.run_id, item.task.name, ancestors[item.attempt.id])) is not None:
            specs[item.attempt.id] = refusal
    granted = [item for item in granted if item.attempt.id not in specs]
    wanted = {(item.attempt.run_id, name) for item in granted for name in ancestors[item.attempt.id]}
    outputs = _read_outputs(connection, wanted)
    runs = _read_runs(connection, {item.attempt.run_id for item in granted})
    for item in granted:
        run_id = item.attempt.run_id
        upstream = {name: outputs[run_id, name] for name in ancestors[item.attempt.id] if (run_id, name) in outputs}
        try:
            secrets = _connections(item.task, connections)
        except ConfigurationError as error:
            specs[item.attempt.id] = error
            continue
        specs[item.attempt.id] = _spec(item, upstream, runs[run_id], secrets, registry_url)
    return specs


def resolve_parameters(
    task: PlannedTask, upstream: Mapping[str, Mapping[str, Any]], run_parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the task's parameters with its inputs filled in: own value, then linked output, then run parameter.

    An input whose source left nothing (it was skipped, say) falls through to the run's parameter of that name.
    """
    resolved = dict(task.parameters)
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


def _spec(
    item: GrantedTask,
    upstream: Mapping[str, Mapping[str, Any]],
    run: tuple[Mapping[str, Any], str],
    connections: Mapping[str, Mapping[str, Any]],
    registry_url: str | None,
) -> GrantSpec:
    attempt, task = item.attempt, item.task
    run_parameters, pipeline = run
    return GrantSpec(
        attempt_id=attempt.id,
        token=attempt.token,
        run_id=attempt.run_id,
        tenant_id=item.tenant_id,
        task=task.name,
        number=attempt.number,
        operator=task.operator,
        parameters=resolve_parameters(task, upstream, run_parameters),
        run_parameters=run_parameters,
        upstream_outputs=upstream,
        connections=connections,
        resources=attempt.resources,
        devices=attempt.devices,
        timeout=task.timeout,
        grace=task.grace,
        exclusive=task.exclusive,
        on_drain=task.on_drain,
        on_worker_loss=task.on_worker_loss,
        generation=item.generation,
        registry_url=registry_url,
        pipeline=pipeline,
    )


def _connections(task: PlannedTask, connections: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    if missing := [name for name in task.connections if name not in connections]:
        raise ConfigurationError(
            f"The task {task.name!r} uses the connection {', '.join(missing)}, which the scheduler does not know; "
            "add it to CONNECTIONS and restart the scheduler."
        )
    return {name: connections[name] for name in task.connections}


def _ancestors(plan: Plan, task: PlannedTask) -> list[str]:
    """Return the names of all tasks upstream of this one, in the plan's order."""
    upstream = {planned.name: planned.upstream for planned in plan.tasks}
    found: set[str] = set()
    open_names = list(task.upstream)
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            open_names.extend(upstream[name])
    return [planned.name for planned in plan.tasks if planned.name in found]


def _read_outputs(connection: Connection, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    if not wanted:
        return {}
    document = storable_json([{"run_id": run_id, "name": name} for run_id, name in sorted(wanted)])
    rows = connection.exec_driver_sql(_OUTPUTS, (document,)).all()
    return {(row[0], row[1]): row[2] for row in rows}


def _read_runs(connection: Connection, run_ids: set[str]) -> dict[str, tuple[Mapping[str, Any], str]]:
    """Return each run's parameters and the name of its pipeline."""
    rows = connection.exec_driver_sql(_RUNS, (sorted(run_ids),)).all()
    return {row[0]: (row[1], row[2]) for row in rows}
