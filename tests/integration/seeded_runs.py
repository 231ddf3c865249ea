"""Rows to begin with: queued runs, as the API would have written them."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, text

from orchestrator.plan_json import plan_to_json
from orchestrator.records import Plan, PlannedTask, Resources, RetryPolicy

SMALL = Resources(cpu=100, memory=2**20)
ONCE = RetryPolicy(retries=0)


@dataclass
class SeededRun:
    id: str
    tenant_id: str
    tasks: dict[str, str] = field(default_factory=dict)
    """Name → id of the task run."""


def planned(name: str, *upstream: str) -> PlannedTask:
    return PlannedTask(name, "custom_script", upstream=upstream, resources=SMALL, retry=ONCE, grace=1.0)


DIAMOND = Plan((planned("a"), planned("b", "a"), planned("c", "a"), planned("d", "b", "c")))


def seed_run(
    engine: Engine, *, plan: Plan = DIAMOND, priority: int = 0, parameters: dict[str, object] | None = None
) -> SeededRun:
    """Insert a queued run of a plan; the same plan is the same pipeline."""
    document = json.dumps(plan_to_json(plan))
    values = {
        "name": hashlib.sha256(document.encode()).hexdigest()[:16],
        "plan": document,
        "priority": priority,
        "parameters": json.dumps(parameters or {}),
        "run": str(uuid.uuid4()),
    }
    with engine.begin() as connection:
        values["tenant"] = _tenant(connection)
        values["pipeline"], values["version"] = _pipeline(connection, values)
        connection.execute(
            text(
                "INSERT INTO runs (id, tenant_id, pipeline_id, version_id, state, priority, parameters) "
                "VALUES (:run, :tenant, :pipeline, :version, 'queued', :priority, CAST(:parameters AS jsonb))"
            ),
            values,
        )
        tasks = _task_runs(connection, values, [task.name for task in plan.tasks])
    return SeededRun(str(values["run"]), str(values["tenant"]), tasks)


def _tenant(connection: Connection) -> str:
    statement = (
        "INSERT INTO tenants (id, name) VALUES (:id, 'default') "
        "ON CONFLICT (name) DO UPDATE SET name = 'default' RETURNING CAST(id AS text)"
    )
    return str(connection.execute(text(statement), {"id": str(uuid.uuid4())}).scalar_one())


def _pipeline(connection: Connection, values: dict[str, object]) -> tuple[str, str]:
    known = connection.execute(
        text("SELECT id, version_id FROM pipelines WHERE name = :name AND tenant_id = :tenant"), values
    ).first()
    if known is not None:
        return str(known.id), str(known.version_id)
    ids = {**values, "pipeline": str(uuid.uuid4()), "version": str(uuid.uuid4())}
    connection.execute(
        text("INSERT INTO pipelines (id, tenant_id, name, version_id) VALUES (:pipeline, :tenant, :name, :version)"),
        ids,
    )
    connection.execute(
        text(
            "INSERT INTO pipeline_versions (id, tenant_id, pipeline_id, version, content_hash, plan) "
            "VALUES (:version, :tenant, :pipeline, 1, :name, CAST(:plan AS jsonb))"
        ),
        ids,
    )
    return str(ids["pipeline"]), str(ids["version"])


def _task_runs(connection: Connection, values: dict[str, object], names: Sequence[str]) -> dict[str, str]:
    tasks = {name: str(uuid.uuid4()) for name in names}
    connection.execute(
        text(
            "INSERT INTO task_runs (id, tenant_id, run_id, name, position, operator) "
            "VALUES (:id, :tenant, :run, :name, :position, 'custom_script')"
        ),
        [
            {"id": task_id, "tenant": values["tenant"], "run": values["run"], "name": name, "position": position}
            for position, (name, task_id) in enumerate(tasks.items())
        ],
    )
    return tasks
