"""The resources of the API, in the order in which the documentation shows them."""

from __future__ import annotations

from api import (
    artifacts,
    commands,
    docs,
    explanations,
    health,
    keys,
    liveness,
    metrics,
    models,
    operators,
    pipelines,
    run_events,
    run_requests,
    run_tasks,
    runs,
    statistics,
    task_logs,
    task_requests,
    waits,
    workers,
)
from api.resource import Resource

RESOURCES: list[Resource] = [
    pipelines.blueprint,
    runs.blueprint,
    run_requests.blueprint,
    run_tasks.blueprint,
    task_requests.blueprint,
    explanations.blueprint,
    task_logs.blueprint,
    artifacts.blueprint,
    run_events.blueprint,
    waits.blueprint,
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
