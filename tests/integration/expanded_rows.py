"""Rows of what containers have expanded into, as the leader would have written them."""

from __future__ import annotations

import json
import uuid
from typing import Any

from sqlalchemy import Engine, text

from tests.integration.seeded_runs import SeededRun


def set_task(engine: Engine, run: SeededRun, name: str, state: str = "success", outputs: Any = None) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE task_runs SET state = :state, outputs = CAST(:outputs AS jsonb) WHERE id = :id"),
            {"id": run.tasks[name], "state": state, "outputs": None if outputs is None else json.dumps(outputs)},
        )


def add_task(
    engine: Engine,
    run: SeededRun,
    name: str,
    container: str,
    index: int,
    *,
    state: str = "success",
    outputs: Any = None,
    item: Any = None,
    position: int = 0,
    reason: str = "",
    superseded: bool = False,
) -> str:
    """Insert one task run of an index or a round; its id is kept with those of the run."""
    task_id = run.tasks[name] = str(uuid.uuid4())
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO task_runs (id, tenant_id, run_id, name, position, operator, state, reason, superseded, "
                "outputs, parent_id, map_index, map_key, item) VALUES (:id, :tenant, :run, :name, :position, "
                "'custom_script', :state, :reason, :superseded, CAST(:outputs AS jsonb), :parent, :index, "
                ":key, CAST(:item AS jsonb))"
            ),
            {
                "id": task_id,
                "tenant": run.tenant_id,
                "run": run.id,
                "superseded": superseded,
                "name": name,
                "position": position,
                "state": state,
                "reason": reason,
                "outputs": None if outputs is None else json.dumps(outputs),
                "parent": run.tasks[container],
                "index": index,
                "key": f"k{index}",
                "item": None if item is None else json.dumps(item),
            },
        )
    return task_id
