"""Task runs and their attempts, read: lists page by page, those inside of containers by their container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask.views import MethodView
from marshmallow import Schema, fields, validate
from webargs.fields import DelimitedList

from api.access import caller
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.resource import Resource, needs
from api.services import services
from api.task_view import (
    TaskRunSchema,
    UsageSchema,
    look_around,
    outputs_field,
    planned_of,
    show_tasks,
    show_usage,
)
from orchestrator.errors import TooLarge
from orchestrator.states import AttemptState, TaskState
from orchestrator.store import run_queries
from orchestrator.store.api_keys import Role
from orchestrator.store.inside_outputs import InsideOutputs, Wanted
from orchestrator.store.pages import Page
from orchestrator.store.plans import PlanCache

blueprint = Resource("tasks", __name__, url_prefix="/api/v1/runs", description="Task runs of a run and their attempts.")


class AttemptSchema(Schema):
    id = fields.UUID(required=True)
    number = fields.Integer(required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in AttemptState]))
    reason = fields.String(required=True)
    message = fields.String(required=True)
    queue = fields.String(required=True)
    hints = fields.Integer(required=True, metadata={"description": "Times it was put on a queue."})
    host_id = fields.String(required=True)
    worker_id = fields.String(required=True)
    worker = fields.String(required=True, allow_none=True)
    keeper_id = fields.String(
        required=True,
        metadata={"description": "The later worker of its host that has adopted it; empty when none has."},
    )
    orphaned_at = fields.DateTime(
        required=True,
        allow_none=True,
        metadata={"description": "Since when it waits to be adopted, its worker being lost."},
    )
    cpu = fields.Float(required=True, metadata={"description": "Cores reserved."})
    memory_bytes = fields.Integer(required=True)
    gpus = fields.Integer(required=True)
    devices = fields.List(fields.String(), required=True)
    exit_code = fields.Integer(required=True, allow_none=True)
    exception = fields.String(required=True, metadata={"description": "The class that was raised; empty: none."})
    setup_seconds = fields.Float(
        required=True, allow_none=True, metadata={"description": "Until its operator ran; no part of its time limit."}
    )
    usage = fields.Nested(UsageSchema, required=True)
    created_at = fields.DateTime(required=True)
    granted_at = fields.DateTime(required=True, allow_none=True)
    deadline_at = fields.DateTime(required=True, allow_none=True)
    ended_at = fields.DateTime(required=True, allow_none=True)


class TaskListQuery(PageQuery):
    sort = sort_field(list(run_queries.TASK_ORDERS), "position")
    state = DelimitedList(
        fields.String(validate=validate.OneOf([state.value for state in TaskState])),
        metadata={"description": "One or more states, separated by commas."},
    )
    operator = fields.String()
    outputs = outputs_field()
    parent = fields.String(
        validate=validate.Length(1, 500),
        metadata={"description": "A container, by its name in the run: its indices or rounds, in their order."},
    )
    superseded = fields.Boolean(
        load_default=False,
        metadata={
            "description": "Whether to list also what a rerun has expanded its container without. Its `reason` is "
            "`superseded`, whatever its state and outputs, and it counts no more."
        },
    )


class AttemptListQuery(PageQuery):
    sort = sort_field(list(run_queries.ATTEMPT_ORDERS), "number")


class OutputsSchema(Schema):
    outputs = fields.Raw(required=True, allow_none=True)


TaskRunPage = page_of(TaskRunSchema)
AttemptPage = page_of(AttemptSchema)


@blueprint.route("/<uuid:run_id>/tasks")
class Tasks(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(TaskListQuery)
    @blueprint.answers(200, TaskRunPage)
    def get(self, query: Mapping[str, Any], run_id: UUID) -> dict[str, Any]:
        """List the task runs of a run in the plan's order, or those of one of its containers."""
        tenant_id = caller().tenant_id
        with services().engine.connect() as connection:
            run = run_queries.get_run(connection, tenant_id, str(run_id))
            version = services().versions.find(connection, tenant_id, run["version_id"])
            page = run_queries.list_tasks(
                connection,
                tenant_id,
                str(run_id),
                window(query, run_queries.TASK_ORDERS),
                states=query.get("state"),
                operator=query.get("operator"),
                parent=query.get("parent"),
                outputs=query["outputs"],
                superseded=query["superseded"],
            )
            around = look_around(connection, tenant_id, str(run_id), page.items, version)
        return page_json(Page(show_tasks(page.items, around), page.after))


@blueprint.route("/<uuid:run_id>/tasks/<string:task>")
class Task(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, TaskRunSchema)
    def get(self, run_id: UUID, task: str) -> dict[str, Any]:
        """Get one task run."""
        return one_task(str(run_id), task)


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/outputs")
class Outputs(MethodView):
    @needs(Role.VIEWER)
    @blueprint.refuses(409, 413)
    @blueprint.answers(200, OutputsSchema, example={"outputs": [{"loss": 0.2}, None, {"loss": 0.1}]})
    def get(self, run_id: UUID, task: str) -> dict[str, Any]:
        """Get what a task has left, as those downstream of it see it.

        Of a map a list by index, with null where one did not succeed; of a repeat what its last round left; of a run
        that is a task `{run_id, state, outputs}`. 413 when it is more than a task could be given;
        409 when the plan of its version can't be read.
        """
        tenant_id = caller().tenant_id
        with services().engine.connect() as connection:
            run = run_queries.get_run(connection, tenant_id, str(run_id))
            row = run_queries.get_task(connection, tenant_id, str(run_id), task)
            planned = planned_of(connection, tenant_id, run["version_id"], row)
            inside = InsideOutputs(connection, PlanCache())
            if planned.is_container:
                found = inside.containers([Wanted(row["id"], planned, task)])[row["id"]]
                if isinstance(found, TooLarge):
                    raise found
                return {"outputs": found}
            if row["child_run_id"] is not None:
                return {"outputs": inside.subruns([row["child_run_id"]], task).get(row["child_run_id"])}
        return {"outputs": row["outputs"]}


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/attempts")
class Attempts(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(AttemptListQuery)
    @blueprint.answers(200, AttemptPage)
    def get(self, query: Mapping[str, Any], run_id: UUID, task: str) -> dict[str, Any]:
        """List the attempts of a task."""
        with services().engine.connect() as connection:
            page = run_queries.list_attempts(
                connection, caller().tenant_id, str(run_id), task, window(query, run_queries.ATTEMPT_ORDERS)
            )
        shown = [
            {**row, "cpu": row["cpu"] / 1000, "memory_bytes": row["memory"], "usage": show_usage(row, None)}
            for row in page.items
        ]
        return page_json(Page(shown, page.after))


def one_task(run_id: str, task: str, **more: Any) -> dict[str, Any]:
    """Return one task run as answers show it, with these further fields."""
    tenant_id = caller().tenant_id
    with services().engine.connect() as connection:
        run = run_queries.get_run(connection, tenant_id, run_id)
        version = services().versions.find(connection, tenant_id, run["version_id"])
        row = run_queries.get_task(connection, tenant_id, run_id, task)
        around = look_around(connection, tenant_id, run_id, [row], version)
    return {**show_tasks([row], around)[0], **more}
