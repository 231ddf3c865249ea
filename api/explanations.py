"""Why a run or a task is where it is: what stands in its way and would bring it on, or what has decided it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from flask.views import MethodView
from marshmallow import Schema, fields, validate
from sqlalchemy import Connection

from api.access import caller
from api.resource import Resource, needs
from api.run_events import TransitionSchema
from api.services import services
from api.task_view import CacheLookSchema, show_cache
from orchestrator.explain import Blocker
from orchestrator.states import RUN_TERMINAL, TASK_TERMINAL, Entity, RunState, TaskState
from orchestrator.store import run_queries
from orchestrator.store.api_keys import Role
from orchestrator.store.explain import explain_run, explain_task
from orchestrator.store.pages import Order, Window

blueprint = Resource("explain", __name__, url_prefix="/api/v1/runs", description="Why something does not go on.")

TASK_EXAMPLE = {
    "name": "train",
    "state": "ready",
    "blockers": [
        {
            "kind": "waiting_for_gpu",
            "since": "2026-01-01T12:00:00+00:00",
            "needs": "a free GPU",
            "unblock": "Wait for a task to end, or add a host with GPUs.",
            "message": "All 2 GPUs of host gpu-1 are reserved.",
        }
    ],
    "decided": None,
    "cache": None,
}

RUN_EXAMPLE = {
    "state": "running",
    "blockers": [],
    "decided": None,
    "tasks": [{name: TASK_EXAMPLE[name] for name in ("name", "state", "blockers")}],
    "more": 0,
}


class BlockerSchema(Schema):
    kind = fields.String(required=True, metadata={"description": "upstream, concurrency, waiting_for_gpu, approval …"})
    since = fields.DateTime(required=True, allow_none=True)
    needs = fields.String(required=True, metadata={"description": "What it needs."})
    unblock = fields.String(required=True, metadata={"description": "What would bring that about."})
    message = fields.String(required=True)


class ExplainedSchema(Schema):
    state = fields.String(required=True)
    blockers = fields.List(
        fields.Nested(BlockerSchema),
        required=True,
        metadata={"description": "What stands in its way, the outermost first; empty while it runs and when it ended."},
    )
    decided = fields.Nested(
        TransitionSchema,
        required=True,
        allow_none=True,
        metadata={"description": "Of what has ended: the transition that ended it, with its cause and actor."},
    )


class TaskExplainedSchema(ExplainedSchema):
    name = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in TaskState]))
    cache = fields.Nested(
        CacheLookSchema,
        required=True,
        allow_none=True,
        metadata={
            "description": "Of a task with `cache`: what came of the look, and which part of the key made a miss."
        },
    )


class WaitingTaskSchema(Schema):
    name = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in TaskState]))
    blockers = fields.List(fields.Nested(BlockerSchema), required=True)


class RunExplainedSchema(ExplainedSchema):
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in RunState]))
    tasks = fields.List(
        fields.Nested(WaitingTaskSchema),
        required=True,
        metadata={"description": "The first of its tasks that neither run nor have ended, in the plan's order."},
    )
    more = fields.Integer(required=True, metadata={"description": "Further ones, which are not explained here."})


@blueprint.route("/<uuid:run_id>/explain")
class RunExplanation(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, RunExplainedSchema, example=RUN_EXAMPLE)
    def get(self, run_id: UUID) -> dict[str, Any]:
        """Say why a run and its tasks are where they are, and what would bring them on."""
        tenant_id = caller().tenant_id
        with services().engine.connect() as connection:
            run = run_queries.get_run(connection, tenant_id, str(run_id))
            version = services().versions.get(connection, tenant_id, run["version_id"])
            found = explain_run(connection, tenant_id, str(run_id), version.plan, _most_runs())
            ended = RunState(found.state) in RUN_TERMINAL
            decided = _last(connection, tenant_id, str(run_id), Entity.RUN) if ended else None
        return {
            "state": found.state,
            "blockers": _shown(found.blockers),
            "decided": decided,
            "tasks": [{"name": one.name, "state": one.state, "blockers": _shown(one.blockers)} for one in found.tasks],
            "more": found.more,
        }


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/explain")
class TaskExplanation(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, TaskExplainedSchema, example=TASK_EXAMPLE)
    def get(self, run_id: UUID, task: str) -> dict[str, Any]:
        """Say why a task is where it is, and what would bring it on.

        What has neither ended nor runs has at least one blocker.
        """
        tenant_id = caller().tenant_id
        with services().engine.connect() as connection:
            run = run_queries.get_run(connection, tenant_id, str(run_id))
            version = services().versions.get(connection, tenant_id, run["version_id"])
            row = run_queries.get_task(connection, tenant_id, str(run_id), task)
            found = explain_task(connection, tenant_id, str(run_id), task, version.plan, _most_runs())
            ended = TaskState(found.state) in TASK_TERMINAL
            decided = _last(connection, tenant_id, str(run_id), Entity.TASK_RUN, task) if ended else None
        return {
            "name": found.name,
            "state": found.state,
            "blockers": _shown(found.blockers),
            "decided": decided,
            "cache": show_cache(row["cache_detail"]),
        }


def _most_runs() -> int:
    return services().settings.max_concurrent_runs


def _shown(blockers: Sequence[Blocker]) -> list[dict[str, Any]]:
    return [{**asdict(blocker), "unblock": blocker.would_unblock} for blocker in blockers]


def _last(
    connection: Connection, tenant_id: str, run_id: str, entity: Entity, task: str | None = None
) -> Mapping[str, Any] | None:
    """Return the last transition of a run, or of one of its task runs."""
    newest = Window(Order(run_queries.EVENT_ORDERS["id"], descending=True), limit=1)
    wanted = run_queries.EventFilter(task, entity.value)
    page = run_queries.list_events(connection, tenant_id, run_id, newest, wanted)
    return page.items[0] if page.items else None
