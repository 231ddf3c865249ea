"""Fixtures of the tests on real stores: rows to work on, and an API."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, insert, select

from orchestrator.plan_json import plan_to_json
from orchestrator.records import Plan, PlannedTask
from orchestrator.store.tables import pipeline_versions, pipelines, runs, task_runs, tenants

if TYPE_CHECKING:
    from tests.integration.api_site import ApiSite
    from tests.integration.dag_site import DagSite


@dataclass(frozen=True, slots=True)
class SeededRun:
    """A queued run of the diamond a → b, c → d."""

    id: str
    tenant_id: str
    tasks: dict[str, str]
    """Task → id of its task run."""


_DIAMOND = Plan(
    (
        PlannedTask("a", "custom_script"),
        PlannedTask("b", "custom_script", upstream=("a",)),
        PlannedTask("c", "custom_script", upstream=("a",)),
        PlannedTask("d", "custom_script", upstream=("b", "c")),
    )
)


@pytest.fixture
def seed_run() -> Callable[..., SeededRun]:
    """Insert a queued run of a new pipeline, as the API would, and return its ids."""
    return _seed_run


def _seed_run(engine: Engine, *, priority: int = 0) -> SeededRun:
    pipeline_id, version_id, run_id = (str(uuid.uuid4()) for _ in range(3))
    tasks = {task.name: str(uuid.uuid4()) for task in _DIAMOND.tasks}
    with engine.begin() as connection:
        tenant_id = connection.execute(select(tenants.c.id).where(tenants.c.name == "seeded")).scalar()
        if tenant_id is None:
            tenant_id = str(uuid.uuid4())
            connection.execute(insert(tenants).values(id=tenant_id, name="seeded"))
        connection.execute(
            insert(pipelines).values(
                id=pipeline_id, tenant_id=tenant_id, name=f"p-{pipeline_id}", version_id=version_id
            )
        )
        connection.execute(
            insert(pipeline_versions).values(
                id=version_id,
                tenant_id=tenant_id,
                pipeline_id=pipeline_id,
                version=1,
                content_hash=version_id,
                plan=plan_to_json(_DIAMOND),
            )
        )
        connection.execute(
            insert(runs).values(
                id=run_id,
                tenant_id=tenant_id,
                pipeline_id=pipeline_id,
                version_id=version_id,
                state="queued",
                priority=priority,
            )
        )
        connection.execute(
            insert(task_runs),
            [
                {
                    "id": tasks[task.name],
                    "tenant_id": tenant_id,
                    "run_id": run_id,
                    "name": task.name,
                    "position": position,
                    "operator": task.operator,
                }
                for position, task in enumerate(_DIAMOND.tasks)
            ],
        )
    return SeededRun(run_id, tenant_id, tasks)


@pytest.fixture
def api(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[ApiSite]:
    """An API on an empty database, with a key for each role."""
    from tests.integration.api_site import open_site

    site = open_site(database_url, redis_url, tmp_path)
    yield site
    site.services.close()


@pytest.fixture
def dag(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[DagSite]:
    """A site for pipelines given as JSON: a leader and workers are started by the test."""
    from tests.integration.dag_site import open_site

    site = open_site(database_url, redis_url, tmp_path)
    yield site
    site.close()
