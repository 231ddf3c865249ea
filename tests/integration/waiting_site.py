"""Runs that wait and map, for the tests of the API: saved and started over REST, moved on as the leader would."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from tests.integration.api_site import ApiSite

SCRIPT: dict[str, Any] = {"operator": "custom_script", "parameters": {"script_content": "print(1)"}}
APPROVAL = {
    "message": "Where may it go?",
    "input": {
        "type": "object",
        "required": ["stage"],
        "additionalProperties": False,
        "properties": {"stage": {"enum": ["staging", "production"]}, "share": {"type": "number", "maximum": 1}},
    },
}
EVENT = {"payload": {"type": "object", "required": ["rows"], "properties": {"rows": {"type": "integer", "minimum": 1}}}}
WAITING: list[dict[str, Any]] = [
    {"name": "load", **SCRIPT},
    {"name": "ask", "upstream_tasks": ["load"], "approval": APPROVAL},
    {"name": "export", "event": EVENT},
    {"name": "any", "event": {}},
]
MAPPED: list[dict[str, Any]] = [
    {"name": "load", **SCRIPT},
    {"name": "train", "upstream_tasks": ["load"], "map": {"over": [1, 2, 3]}, **SCRIPT},
    {"name": "sum", "upstream_tasks": ["train"], **SCRIPT},
]
GROUP: list[dict[str, Any]] = [
    {
        "name": "folds",
        "map": {"over": [1, 2], "max_parallel": 1},
        "tasks": [
            {"name": "train", **SCRIPT},
            {"name": "ask", "upstream_tasks": ["train"], "approval": APPROVAL},
        ],
    },
]


def running(api: ApiSite, tasks: list[dict[str, Any]], name: str = "waiting", **changes: Any) -> str:
    """Save a pipeline of these tasks, start a run of it, and let it be under way."""
    api.saved(name, tasks=tasks, **changes)
    run_id = str(api.started(name)["id"])
    set_run(api, run_id, "running")
    return run_id


def set_run(api: ApiSite, run_id: str, state: str) -> None:
    ended = "now()" if state in {"success", "failed", "cancelled"} else "NULL"
    api.sql(f"UPDATE runs SET state = :state, ended_at = {ended} WHERE id = :id", state=state, id=run_id)


def set_task(api: ApiSite, run_id: str, name: str, state: str, reason: str = "", outputs: Any = None) -> None:
    api.sql(
        "UPDATE task_runs SET state = :state, reason = :reason, outputs = CAST(:outputs AS jsonb) "
        "WHERE run_id = :run AND name = :name",
        run=run_id,
        name=name,
        state=state,
        reason=reason,
        outputs=None if outputs is None else json.dumps(outputs),
    )


def wait_for_event(api: ApiSite, run_id: str, name: str) -> str:
    """Let a task wait for its event, and return the token."""
    token = str(uuid.uuid4())
    set_task(api, run_id, name, "waiting", "event")
    api.sql("UPDATE task_runs SET wait_token = :token WHERE run_id = :run AND name = :name", run=run_id, name=name,
            token=token)  # fmt: skip
    return token


def expand(
    api: ApiSite, run_id: str, container: str, names: list[str], *, state: str = "success", index: int | None = None
) -> None:
    """Insert what a container has expanded into: one row for each name, at its index, or all at this one."""
    for at, name in enumerate(names):
        api.sql(
            "INSERT INTO task_runs (id, tenant_id, run_id, name, position, operator, state, parent_id, map_index, "
            "map_key, item) SELECT gen_random_uuid(), tenant_id, run_id, :name, :position, 'custom_script', :state, "
            "id, :index, :key, CAST(:item AS jsonb) FROM task_runs WHERE run_id = :run AND name = :container",
            run=run_id,
            container=container,
            name=name,
            state=state,
            position=at if index is not None else 0,
            index=at if index is None else index,
            key=f"k{at if index is None else index}",
            item=json.dumps({"lr": at}),
        )


def answer(
    api: ApiSite, method: str, path: str, body: Any = None, *, status: int = 202, role: str = "operator", **more: Any
) -> dict[str, Any]:
    """Send a request and return its answer, which must have this status."""
    response = api.call(method, path, body, role=role, **more)
    assert response.status_code == status, response.text
    assert response.json is not None
    return dict(response.json)


def pointers(refused: Mapping[str, Any]) -> list[str]:
    return [problem["pointer"] for problem in refused["errors"]]


def commands(api: ApiSite) -> list[tuple[str, str | None, str, dict[str, Any]]]:
    """Return what was asked of the leader: kind, task, actor and payload."""
    from sqlalchemy import text

    with api.engine.connect() as connection:
        rows = connection.execute(text("SELECT kind, task, actor, payload FROM commands ORDER BY id")).all()
    return [(row.kind, row.task, row.actor, dict(row.payload)) for row in rows]
