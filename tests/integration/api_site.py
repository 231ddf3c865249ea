"""An API on a real database and Redis, with a key for each role and a second tenant, for the tests of the API."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from flask import Flask
from sqlalchemy import Engine, insert, text
from werkzeug.test import TestResponse

from api.app import create_app
from api.services import EXTENSION, Services
from orchestrator.config import Settings
from orchestrator.store.api_keys import Role, create_key
from orchestrator.store.bootstrap import ensure_tenant_and_admin
from orchestrator.store.tables import tenants

DEFINITION: dict[str, Any] = {
    "name": "two-scripts",
    "description": "One script after another",
    "owner": "tests",
    "tasks": [
        {"name": "first", "operator": "custom_script", "parameters": {"script_content": "print(1)"}},
        {
            "name": "second",
            "operator": "custom_script",
            "upstream_tasks": ["first"],
            "parameters": {"script_content": "print(2)"},
        },
    ],
}


@dataclass(slots=True)
class ApiSite:
    """The application under test; ``call`` sends one request with the key of a role."""

    app: Flask
    settings: Settings
    tenant_id: str
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def services(self) -> Services:
        return cast("Services", self.app.extensions[EXTENSION])

    @property
    def engine(self) -> Engine:
        return self.services.engine

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: str = "admin",
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
        **options: Any,
    ) -> TestResponse:
        """Send one request; ``body`` goes as JSON, ``raw`` as it is."""
        sent = {"Authorization": f"Bearer {self.keys[role] if key is None else key}", **(headers or {})}
        if body is not None or raw is not None:
            sent.setdefault("Content-Type", "application/json")
            options["data"] = raw if raw is not None else json.dumps(body)
        return self.app.test_client().open(path, method=method, headers=sent, **options)

    def saved(self, name: str = "two-scripts", **changes: Any) -> dict[str, Any]:
        """Save a pipeline and return it."""
        response = self.call("POST", "/api/v1/pipelines", {**DEFINITION, "name": name, **changes})
        assert response.status_code in (200, 201), response.text
        return cast("dict[str, Any]", response.json)

    def started(self, name: str = "two-scripts", **body: Any) -> dict[str, Any]:
        """Start a run of a saved pipeline and return it."""
        response = self.call("POST", "/api/v1/runs", {"pipeline_name": name, **body})
        assert response.status_code == 201, response.text
        return cast("dict[str, Any]", response.json)

    def sql(self, statement: str, **values: Any) -> None:
        """Change rows as the leader would."""
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)

    def count(self, statement: str, **values: Any) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(text(statement), values).scalar_one())

    def add_attempt(self, run_id: str, task: str, state: str = "running") -> str:
        """Insert a host, a worker and the first attempt of a task, as dispatch would."""
        attempt_id = str(uuid.uuid4())
        self.sql(
            "INSERT INTO hosts (id, hostname, boot_id, cpu, memory) "
            "VALUES ('h1', 'host-1', 'b', 4000, 8000000000) ON CONFLICT DO NOTHING"
        )
        self.sql(
            "INSERT INTO workers (id, host_id, name, state, queues, slots, boot_id) VALUES "
            "('w1', 'h1', 'cpu@host-1', 'online', '{cpu}', 2, 'b') ON CONFLICT DO NOTHING"
        )
        self.sql(
            "INSERT INTO attempts (id, tenant_id, run_id, task_run_id, number, state, token, queue, host_id, "
            "worker_id, cpu, memory, gpus) SELECT :id, tenant_id, run_id, id, 1, :state, :token, 'cpu', 'h1', 'w1', "
            "500, 1000000, 0 FROM task_runs WHERE run_id = :run AND name = :task",
            id=attempt_id,
            state=state,
            token=secrets.token_hex(),
            run=run_id,
            task=task,
        )
        self.sql(
            "UPDATE task_runs SET attempts = 1, attempt_id = :id, state = 'running' WHERE run_id = :run "
            "AND name = :task",
            id=attempt_id,
            run=run_id,
            task=task,
        )
        self.sql(
            "INSERT INTO reservations (attempt_id, host_id, worker_id, cpu, memory, gpus) "
            "VALUES (:id, 'h1', 'w1', 500, 1000000, 0)",
            id=attempt_id,
        )
        return attempt_id


def open_site(database_url: str, redis_url: str, folder: Path, **changes: Any) -> ApiSite:
    """Build the application with its tenant and keys."""
    admin = secrets.token_urlsafe(32)
    settings = replace(
        Settings(
            database_url=database_url,
            redis_url=redis_url,
            redis_task_queue=f"t{secrets.token_hex(4)}",
            secret_key=secrets.token_hex(32),
            admin_key=admin,
            worker_key=secrets.token_hex(32),
            data_dir=folder,
            database_pool_size=4,
            log_level="ERROR",
            rate_limit_per_second=100_000.0,
        ),
        **changes,
    )
    app = create_app(settings)
    site = ApiSite(app, settings, "")
    with site.engine.begin() as connection:
        site.tenant_id = ensure_tenant_and_admin(connection, admin)
        other = str(uuid.uuid4())
        connection.execute(insert(tenants).values(id=other, name="other"))
        for role in Role:
            site.keys[role.word] = create_key(connection, site.tenant_id, role.word, role, None)[1]
        site.keys["foreign"] = create_key(connection, other, "foreign", Role.ADMIN, None)[1]
    return site
