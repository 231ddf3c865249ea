"""Builds what a grant carries: resolved parameters, ancestors' outputs, connections. Read after the rows are written.

In the transaction that grants, so that the outputs of an outcome in the same batch are seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from orchestrator.artifacts.port import is_artifact
from orchestrator.documents import all_texts
from orchestrator.errors import (
    ArtifactMissing,
    ConfigurationError,
    OrchestratorError,
    TemplateError,
    TooLarge,
    UnreadableMessage,
)
from orchestrator.records import AttemptRecord, Plan, PlannedTask
from orchestrator.store.artifact_queries import artifact_fates
from orchestrator.store.places import Asked
from orchestrator.store.plans import PlanCache
from orchestrator.store.sight import Sight, look_around
from orchestrator.wire.messages import GrantSpec, grant_body

_REASONS: Mapping[type[OrchestratorError], str] = {TemplateError: "template", ArtifactMissing: "artifact_missing"}


@dataclass(frozen=True, slots=True)
class GrantedTask:
    """What the kernel knows of an attempt that is granted."""

    attempt: AttemptRecord
    tenant_id: str
    task: PlannedTask
    plan: Plan
    """Of its run."""
    generation: int
    """Of the task run."""


def reason_of(error: OrchestratorError) -> str:
    """Return the reason of an attempt that no grant can be made for."""
    return _REASONS.get(type(error), "grant")


def build_specs(
    connection: Connection,
    granted: Sequence[GrantedTask],
    connections: Mapping[str, Mapping[str, Any]],
    registry_url: str | None,
    plans: PlanCache | None = None,
) -> dict[str, GrantSpec | OrchestratorError]:
    """Return the specification of each attempt, by its id; where one can't be built, the error that says why.

    :param connections: the site's named connections; a task gets those it names.
    :param plans: where the plans of runs that are tasks are looked up.
    """
    if not granted:
        return {}
    asked = [Asked(item.attempt.task_run_id, item.plan) for item in granted]
    sights = look_around(connection, PlanCache() if plans is None else plans, asked)
    specs = {
        item.attempt.id: _built(item, sights[item.attempt.task_run_id], connections, registry_url) for item in granted
    }
    return _without_removed(connection, specs)


def _built(
    item: GrantedTask,
    sight: Sight | OrchestratorError,
    connections: Mapping[str, Mapping[str, Any]],
    registry_url: str | None,
) -> GrantSpec | OrchestratorError:
    if isinstance(sight, OrchestratorError):
        return sight
    try:
        spec = _spec(item, sight, _connections(item.task, connections), registry_url)
    except (TemplateError, TooLarge, ConfigurationError) as error:
        return error
    try:
        grant_body(spec)
    except TooLarge as error:
        return TooLarge(f"{error} {_largest(spec)}")
    except UnreadableMessage as error:
        return error
    return spec


def _spec(
    item: GrantedTask, sight: Sight, connections: Mapping[str, Mapping[str, Any]], registry_url: str | None
) -> GrantSpec:
    attempt, task = item.attempt, item.task
    return GrantSpec(
        attempt_id=attempt.id,
        token=attempt.token,
        run_id=attempt.run_id,
        tenant_id=item.tenant_id,
        task=sight.place.own.name,
        number=attempt.number,
        operator=task.operator,
        parameters=sight.parameters_of_task(),
        run_parameters=sight.parameters,
        upstream_outputs=sight.upstream,
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
        pipeline=sight.pipeline,
        progress_timeout=task.progress_timeout,
        outputs_schema=task.outputs_schema,
    )


def _connections(task: PlannedTask, connections: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    if missing := [name for name in task.connections if name not in connections]:
        raise ConfigurationError(
            f"The task {task.name!r} uses the connection {', '.join(missing)}, which the scheduler does not know; "
            "add it to CONNECTIONS and restart the scheduler."
        )
    return {name: connections[name] for name in task.connections}


def _largest(spec: GrantSpec) -> str:
    """Say which part of a grant that is too large takes the most."""
    parts = {f"the parameter {name!r}": value for name, value in spec.parameters.items()}
    parts |= {f"the outputs of task {name!r}": value for name, value in spec.upstream_outputs.items()}
    sizes = {name: len(json.dumps(value)) for name, value in parts.items()}
    name, size = max(sizes.items(), key=lambda part: part[1], default=("nothing", 0))
    return f"The largest part is {name} with {size} bytes; save it with context.artifacts and pass its URI."


def _without_removed(
    connection: Connection, specs: Mapping[str, GrantSpec | OrchestratorError]
) -> dict[str, GrantSpec | OrchestratorError]:
    """Return the specifications, with an error for those whose parameters name an artifact that was removed."""
    named = {
        (spec.tenant_id, uri)
        for spec in specs.values()
        if isinstance(spec, GrantSpec)
        for uri in all_texts(spec.parameters)
        if is_artifact(uri)
    }
    fates = artifact_fates(connection, named)
    found = dict(specs)
    for attempt_id, spec in specs.items():
        if fates and isinstance(spec, GrantSpec):
            uris = filter(is_artifact, all_texts(spec.parameters))
            if fate := next(filter(None, (fates.get((spec.tenant_id, uri)) for uri in uris)), None):
                found[attempt_id] = ArtifactMissing(fate)
    return found
