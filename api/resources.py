"""The resources of the API, in the order in which the documentation shows them."""

from __future__ import annotations

from api import (
    commands,
    docs,
    health,
    keys,
    liveness,
    metrics,
    models,
    operators,
    pipelines,
    run_events,
    run_tasks,
    runs,
    statistics,
    task_logs,
    workers,
)
from api.resource import Resource

RESOURCES: list[Resource] = [
    pipelines.blueprint,
    runs.blueprint,
    run_tasks.blueprint,
    task_logs.blueprint,
    run_events.blueprint,
    commands.blueprint,
    operators.blueprint,
    workers.blueprint,
    models.blueprint,
    keys.blueprint,
    metrics.blueprint,
    health.blueprint,
    statistics.blueprint,
    liveness.blueprint,
    docs.blueprint,
]
