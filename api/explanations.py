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
from orchestrator.store.explain import TaskExplained, explain_run, explain_task
from orchestrator.store.pages import Order, Window

blueprint = Resource("explain", __name__, url_prefix="/api/v1/runs", description="Why something does not go on.")

_LOOKED_BACK = 10
"""Transitions among which is the one that began a cancel."""

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
    "reason": "waiting_for_gpu",
    "message": "",
    "decided": None,
    "cache": None,
}

RUN_EXAMPLE = {
    "state": "running",
    "blockers": [],
    "reason": "",
    "message": "",
    "decided": None,
    "tasks": [{name: TASK_EXAMPLE[name] for name in ("name", "state", "blockers", "reason", "message")}],
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
        metadata={
            "description": "What stands in its way, the outermost first; empty while it runs and when it ended. "
            "A task that is a run has those of that run while it waits."
        },
    )
    reason = fields.String(required=True)
    message = fields.String(
        required=True, metadata={"description": "Of what has ended: how, as a sentence; empty before."}
    )
    decided = fields.Nested(
        TransitionSchema,
        required=True,
        allow_none=True,
        metadata={
            "description": "Of what has ended: the transition that brought that about, with its cause and actor. Of "
            "what was cancelled while it ran that is the cancel, and not the end of its last process."
        },
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


class TaskOfRunSchema(Schema):
    name = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in TaskState]))
    reason = fields.String(required=True)
    message = fields.String(required=True, metadata={"description": "How it has ended, as a sentence."})
    blockers = fields.List(fields.Nested(BlockerSchema), required=True)


class RunExplainedSchema(ExplainedSchema):
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in RunState]))
    tasks = fields.List(
        fields.Nested(TaskOfRunSchema),
        required=True,
        metadata={
            "description": "The first of its tasks that neither run nor have ended, in the plan's order. Of a run that "
            "has failed those because of which it has, the first to end first; of a map its indices."
        },
    )
    more = fields.Integer(required=True, metadata={"description": "Further ones, which are not explained here."})


@blueprint.route("/<uuid:run_id>/explain")
class RunExplanation(MethodView):
    @needs(Role.VIEWER)
    @blueprint.refuses(409)
    @blueprint.answers(200, RunExplainedSchema, example=RUN_EXAMPLE)
    def get(self, run_id: UUID) -> dict[str, Any]:
        """Say why a run and its tasks are where they are, and what would bring them on.

        409 when the plan of its version can't be read.
        """
        tenant_id = caller().tenant_id
        with services().engine.connect() as connection:
            run = run_queries.get_run(connection, tenant_id, str(run_id))
            version = services().versions.get(connection, tenant_id, run["version_id"])
            found = explain_run(connection, tenant_id, str(run_id), version.plan, _most_runs())
            ended = RunState(found.state) in RUN_TERMINAL
            decided = _decided(connection, tenant_id, str(run_id), Entity.RUN) if ended else None
        return {
            "state": found.state,
            "reason": found.reason,
            "message": found.message,
            "blockers": _shown(found.blockers),
            "decided": decided,
            "tasks": [_shown_task(one) for one in found.tasks],
            "more": found.more,
        }


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/explain")
class TaskExplanation(MethodView):
    @needs(Role.VIEWER)
    @blueprint.refuses(409)
    @blueprint.answers(200, TaskExplainedSchema, example=TASK_EXAMPLE)
    def get(self, run_id: UUID, task: str) -> dict[str, Any]:
        """Say why a task is where it is, and what would bring it on.

        What has neither ended nor runs has at least one blocker. 409 when the plan of its version can't be read.
        """
        tenant_id = caller().tenant_id
        with services().engine.connect() as connection:
            run = run_queries.get_run(connection, tenant_id, str(run_id))
            version = services().versions.get(connection, tenant_id, run["version_id"])
            row = run_queries.get_task(connection, tenant_id, str(run_id), task)
            found = explain_task(connection, tenant_id, str(run_id), task, version.plan, _most_runs())
            ended = TaskState(found.state) in TASK_TERMINAL
            decided = _decided(connection, tenant_id, str(run_id), Entity.TASK_RUN, task) if ended else None
        return {
            **_shown_task(found),
            "decided": decided,
            "cache": show_cache(row["cache_detail"]),
        }


def _most_runs() -> int:
    return services().settings.max_concurrent_runs


def _shown(blockers: Sequence[Blocker]) -> list[dict[str, Any]]:
    return [{**asdict(blocker), "unblock": blocker.would_unblock} for blocker in blockers]


def _shown_task(task: TaskExplained) -> dict[str, Any]:
    return {
        "name": task.name,
        "state": task.state,
        "reason": task.reason,
        "message": task.message,
        "blockers": _shown(task.blockers),
    }


def _decided(
    connection: Connection, tenant_id: str, run_id: str, entity: Entity, task: str | None = None
) -> Mapping[str, Any] | None:
    """Return the transition by which a run, or one of its task runs, has come to its end."""
    newest = Window(Order(run_queries.EVENT_ORDERS["id"], descending=True), limit=_LOOKED_BACK)
    wanted = run_queries.EventFilter(task, entity.value)
    rows = run_queries.list_events(connection, tenant_id, run_id, newest, wanted).items
    if not rows or rows[0]["before"] != "cancelling":
        return rows[0] if rows else None
    return next((row for row in rows if row["after"] == "cancelling"), rows[0])
