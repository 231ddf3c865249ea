"""Task runs and their attempts: how each stands, how far it is, what it used and what it left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from flask.views import MethodView
from marshmallow import Schema, fields, validate
from webargs.fields import DelimitedList

from api.access import caller
from api.commands import command_id_field
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.resource import Resource, needs
from api.services import services
from api.versions import RunVersion
from orchestrator.states import AttemptState, TaskState
from orchestrator.store import run_queries, run_requests
from orchestrator.store.api_keys import Role
from orchestrator.store.pages import Page
from orchestrator.wire.progress import Progress

blueprint = Resource("tasks", __name__, url_prefix="/api/v1/runs", description="Task runs of a run and their attempts.")

_LIVE = frozenset({TaskState.RUNNING, TaskState.CANCELLING})


class UsageSchema(Schema):
    peak_memory_bytes = fields.Integer(required=True, allow_none=True)
    cpu_seconds = fields.Float(required=True, allow_none=True)
    wall_seconds = fields.Float(required=True, allow_none=True)
    gpu_memory_bytes = fields.Integer(required=True, allow_none=True)


class TaskRunSchema(Schema):
    name = fields.String(required=True)
    operator = fields.String(required=True)
    upstream_tasks = fields.List(fields.String(), required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in TaskState]))
    reason = fields.String(required=True, metadata={"description": "Why it waits or how it ended, as a word."})
    message = fields.String(required=True, metadata={"description": "The same as a sentence."})
    attempt_number = fields.Integer(required=True, metadata={"description": "Tries so far."})
    attempt_id = fields.UUID(required=True, allow_none=True)
    failures = fields.Integer(required=True, metadata={"description": "Tries charged to `retries`."})
    losses = fields.Integer(required=True, metadata={"description": "Tries lost to infrastructure."})
    generation = fields.Integer(required=True, metadata={"description": "1, and one more with each rerun of it."})
    queue = fields.String(required=True)
    worker = fields.String(required=True, allow_none=True, metadata={"description": "Its name, as in Flower."})
    ready_at = fields.DateTime(required=True, allow_none=True)
    queued_at = fields.DateTime(required=True, allow_none=True)
    started_at = fields.DateTime(required=True, allow_none=True)
    ended_at = fields.DateTime(required=True, allow_none=True)
    retry_at = fields.DateTime(required=True, allow_none=True)
    progress = fields.Float(required=True, allow_none=True, metadata={"description": "0 to 1, while it runs."})
    progress_message = fields.String(required=True)
    outputs = fields.Dict(required=True, allow_none=True)
    usage = fields.Nested(UsageSchema, required=True)


class AskedTaskRunSchema(TaskRunSchema):
    command_id = command_id_field()


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


class AttemptListQuery(PageQuery):
    sort = sort_field(list(run_queries.ATTEMPT_ORDERS), "number")


TaskRunPage = page_of(TaskRunSchema)
AttemptPage = page_of(AttemptSchema)


@blueprint.route("/<uuid:run_id>/tasks")
class Tasks(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(TaskListQuery)
    @blueprint.answers(200, TaskRunPage)
    def get(self, query: Mapping[str, Any], run_id: UUID) -> dict[str, Any]:
        """List the task runs of a run, in the plan's order."""
        with services().engine.connect() as connection:
            run = run_queries.get_run(connection, caller().tenant_id, str(run_id))
            version = services().versions.get(connection, caller().tenant_id, run["version_id"])
            page = run_queries.list_tasks(
                connection,
                caller().tenant_id,
                str(run_id),
                window(query, run_queries.TASK_ORDERS),
                states=query.get("state"),
                operator=query.get("operator"),
            )
        return page_json(Page(show_tasks(page.items, version), page.after))


@blueprint.route("/<uuid:run_id>/tasks/<string:task>")
class Task(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, TaskRunSchema)
    def get(self, run_id: UUID, task: str) -> dict[str, Any]:
        """Get one task run."""
        with services().engine.connect() as connection:
            run = run_queries.get_run(connection, caller().tenant_id, str(run_id))
            version = services().versions.get(connection, caller().tenant_id, run["version_id"])
            row = run_queries.get_task(connection, caller().tenant_id, str(run_id), task)
        return show_tasks([row], version)[0]


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/cancel")
class TaskCancel(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.answers(202, AskedTaskRunSchema, description="The leader will cancel it.")
    def post(self, run_id: UUID, task: str) -> dict[str, Any]:
        """Cancel one task of a run; 409 when it has ended."""
        tenant_id, command = caller().tenant_id, None
        with services().engine.begin() as connection:
            run = run_queries.get_run(connection, tenant_id, str(run_id))
            version = services().versions.get(connection, tenant_id, run["version_id"])
            row = run_queries.get_task(connection, tenant_id, str(run_id), task)
            if row["state"] not in {TaskState.CANCELLING, TaskState.CANCELLED}:
                command = run_requests.request_cancel(connection, tenant_id, str(run_id), caller().name, task=task)
        services().live.wake()
        return {**show_tasks([row], version)[0], "command_id": command["id"] if command else None}


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
            {**row, "cpu": row["cpu"] / 1000, "memory_bytes": row["memory"], "usage": _usage(row, None)}
            for row in page.items
        ]
        return page_json(Page(shown, page.after))


def show_tasks(rows: Sequence[Mapping[str, Any]], version: RunVersion, *, live: bool = True) -> list[dict[str, Any]]:
    """Return task runs as answers show them: the rows, the plan's part, and the progress of those that run."""
    running = [str(row["attempt_id"]) for row in rows if row["state"] in _LIVE and row["attempt_id"]] if live else []
    progress = services().live.progress(running)
    return [_shown(row, version, progress.get(str(row["attempt_id"]))) for row in rows]


def _shown(row: Mapping[str, Any], version: RunVersion, progress: Progress | None) -> dict[str, Any]:
    name: str = row["name"]
    return {
        **row,
        "upstream_tasks": version.upstream.get(name, ()),
        "queue": row["queue"] or version.queues.get(name, ""),
        "worker": row["worker"] or row["worker_id"],
        "progress": progress.fraction if progress else None,
        "progress_message": progress.message if progress else "",
        "usage": _usage(row, progress),
    }


def _usage(row: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Return what the attempt used; while it runs, what it uses now."""
    memory, cpu = row["peak_memory"], row["cpu_seconds"]
    if progress is not None:
        memory = memory if memory is not None else progress.memory
        cpu = cpu if cpu is not None else progress.cpu_seconds
    return {
        "peak_memory_bytes": memory,
        "cpu_seconds": cpu,
        "wall_seconds": row["wall_seconds"],
        "gpu_memory_bytes": row["gpu_memory_used"],
    }
