"""Runs as answers show them: the row, the run around it or before it, and its own tasks with containers folded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, jsonify
from marshmallow import Schema, fields, validate

from api.access import caller
from api.commands import command_id_field
from api.services import services
from api.task_view import TaskLinkSchema, TaskRunSchema, look_around, show_tasks
from orchestrator.states import RUN_TERMINAL, RunState
from orchestrator.store import run_queries

MOST_OUTPUTS = 2**20
"""Bytes of outputs that an answer which shows a run tells: ten thousand tasks may have left 256 KB each."""
LEFT_OUT = (
    "The outputs of its tasks have more than 1 MiB together and are left out here: "
    "GET /api/v1/runs/{run_id}/tasks/NAME/outputs tells those of one task."
)


class RunSummarySchema(Schema):
    id = fields.UUID(required=True)
    pipeline_id = fields.UUID(required=True)
    pipeline_name = fields.String(required=True)
    version = fields.Integer(required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in RunState]))
    reason = fields.String(required=True)
    message = fields.String(required=True)
    parameters = fields.Dict(required=True)
    triggered_by = fields.String(required=True)
    trigger = fields.String(
        required=True, metadata={"description": "api; pipeline: a task of another run; rerun: another run again."}
    )
    priority = fields.Integer(required=True)
    generation = fields.Integer(required=True, metadata={"description": "1, and one more with each rerun."})
    parent_run_id = fields.UUID(
        required=True, allow_none=True, metadata={"description": "The run that this one is a task of."}
    )
    rerun_of = fields.UUID(
        required=True, allow_none=True, metadata={"description": "The run whose outputs it has taken over."}
    )
    deadline_at = fields.DateTime(required=True, allow_none=True)
    created_at = fields.DateTime(required=True)
    started_at = fields.DateTime(required=True, allow_none=True)
    ended_at = fields.DateTime(required=True, allow_none=True)


class LinkedRunSchema(RunSummarySchema):
    parent_task = fields.Nested(
        TaskLinkSchema, required=True, allow_none=True, metadata={"description": "The task that this run is."}
    )


class RunSchema(LinkedRunSchema):
    tasks = fields.List(
        fields.Nested(TaskRunSchema),
        required=True,
        metadata={
            "description": "In the plan's order. Containers are folded: `inside` counts what is in them, and "
            "`…/tasks?parent=` lists it."
        },
    )
    outputs_left_out = fields.String(
        metadata={
            "description": "Only where the `outputs` of its tasks have more than 1 MiB together: then they are null "
            "here, and this says where to get them."
        },
    )


class AskedRunSchema(RunSchema):
    command_id = command_id_field()


def shown_run(run_id: str, status: int, schema: Schema | None = None, *, outputs: bool = True, **more: Any) -> Response:
    """Return the answer that shows the run, with these further fields. Where its plan can't be read, the message says
    so, and what the plan knows of its tasks is left out.

    :param outputs: whether with those of its tasks, as long as they are no more than :data:`MOST_OUTPUTS` together.
    :raises NotFound: no such run of the caller's tenant.
    """
    tenant_id = caller().tenant_id
    with services().engine.connect() as connection:
        run = run_queries.get_run(connection, tenant_id, run_id)
        version = services().versions.find(connection, tenant_id, run["version_id"])
        if outputs and run_queries.outputs_exceed(connection, tenant_id, run_id, MOST_OUTPUTS):
            outputs, more["outputs_left_out"] = False, LEFT_OUT.format(run_id=run_id)
        tasks = run_queries.all_tasks(connection, tenant_id, run_id, outputs=outputs)
        around = look_around(connection, tenant_id, run_id, tasks, version)
        parent = run["parent_task_run_id"]
        parents = run_queries.named_task_runs(connection, tenant_id, [parent] if parent else [])
    if isinstance(version, str):
        run["message"] = f"{run['message']} {version}".strip()
    live = RunState(run["state"]) not in RUN_TERMINAL
    document = {**run, "parent_task": parents.get(parent), "tasks": show_tasks(tasks, around, live=live), **more}
    response = jsonify((schema or RunSchema()).dump(document))
    response.status_code = status
    return response


def asked_run(run_id: str, command: Mapping[str, Any]) -> Response:
    """Return the run as it is, with the command that the leader has yet to apply."""
    return shown_run(run_id, 202, AskedRunSchema(), command_id=command.get("id"))
