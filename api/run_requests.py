"""What may be asked of the leader about a run: to cancel, pause, resume it, and to start it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

from flask import Response
from flask.views import MethodView
from marshmallow import Schema, fields
from sqlalchemy import Connection

from api.access import caller
from api.once import IDEMPOTENCY_KEY, asked_once, made_once
from api.request_bodies import CancelRequestSchema, ReasonSchema, RerunRequestSchema
from api.resource import Resource, needs
from api.reuse import look_for_reused
from api.run_view import AskedRunSchema, RunSchema, asked_run
from api.services import services
from api.task_requests import is_asked_for
from orchestrator.errors import Conflict
from orchestrator.rerun_plan import RerunPlan
from orchestrator.store import command_requests, linked_reruns, reruns, run_queries
from orchestrator.store.api_keys import Role
from orchestrator.store.linked_reruns import PINNED, LinkedRerun
from orchestrator.store.pages import Row

blueprint = Resource(
    "run-requests", __name__, url_prefix="/api/v1/runs", description="What is asked of the leader about a run."
)

RERUN_EXAMPLE = {"from": ["train[3]"]}
WHY = {
    "chosen": "It is where the rerun starts.",
    "downstream": "It is downstream of what runs again.",
    "inside": "A part of what is inside of it runs again.",
    "gone": "Something that runs again may read its outputs, and they are gone.",
    "setup": "What it had set up was taken down, and something that runs again needs it.",
    "not_succeeded": "It has not succeeded, so there is nothing to take over.",
    "changed": "The version that is to run has another task of this name, or none before it.",
    "parameters": "It reads a parameter that is given anew.",
}
PREVIEW_EXAMPLE = {
    "in_place": True,
    "start": ["train[3]"],
    "run": [
        {"task": "train", "why": "inside", "message": WHY["inside"]},
        {"task": "train[3]", "why": "chosen", "message": WHY["chosen"]},
    ],
    "reused": ["load"],
    "kept": [],
}


class AgainSchema(Schema):
    task = fields.String(required=True)
    why = fields.String(
        required=True,
        metadata={"description": " ".join(f"{word}: {sentence}" for word, sentence in WHY.items())},
    )
    message = fields.String(required=True, metadata={"description": "The same as a sentence."})


class RerunPreviewSchema(Schema):
    in_place = fields.Boolean(required=True, metadata={"description": "Whether it would be this run, or a new one."})
    start = fields.List(fields.String(), required=True, metadata={"description": "Where it would start."})
    run = fields.List(
        fields.Nested(AgainSchema),
        required=True,
        metadata={"description": "What would run; a container that is expanded anew stands for all inside of it."},
    )
    reused = fields.List(
        fields.String(), required=True, metadata={"description": "What has succeeded, or was skipped, and is kept."}
    )
    kept = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "What has not succeeded and is kept all the same: nothing chosen leads to it."},
    )


@blueprint.route("/<uuid:run_id>/cancel")
class RunCancel(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.optional_body(
        CancelRequestSchema, example={"mode": "graceful", "grace_seconds": 5, "reason": "too slow"}
    )
    @blueprint.answers(202, AskedRunSchema, description="The leader will cancel it; running tasks get TERM, then KILL.")
    def post(self, body: Mapping[str, Any], run_id: UUID) -> Response:
        """Cancel a run; 409 when it has ended."""
        command: Mapping[str, Any] = {}
        with services().engine.begin() as connection:
            state = run_queries.run_state(connection, caller().tenant_id, str(run_id))
            if not is_asked_for(state, body):
                command = command_requests.request_cancel(
                    connection, caller().tenant_id, str(run_id), caller().name, **body
                )
        services().live.wake()
        return asked_run(str(run_id), command)


@blueprint.route("/<uuid:run_id>/pause")
class RunPause(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.optional_body(ReasonSchema, example={"reason": "the store is being moved"})
    @blueprint.answers(202, AskedRunSchema, description="The leader will start nothing more of it.")
    def post(self, body: Mapping[str, Any], run_id: UUID) -> Response:
        """Pause a run: what runs goes on, nothing new of it starts; 409 unless it is running, or paused already."""
        return _paused(str(run_id), body, pause=True)


@blueprint.route("/<uuid:run_id>/resume")
class RunResume(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.optional_body(ReasonSchema, example={"reason": "the store is back"})
    @blueprint.answers(202, AskedRunSchema, description="The leader will start its tasks again.")
    def post(self, body: Mapping[str, Any], run_id: UUID) -> Response:
        """Let a paused run go on; 409 when it is neither paused nor running."""
        return _paused(str(run_id), body, pause=False)


@blueprint.route("/<uuid:run_id>/rerun")
class RunRerun(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.note(parameters=[IDEMPOTENCY_KEY])
    @blueprint.body(RerunRequestSchema, example=RERUN_EXAMPLE)
    @blueprint.answers(
        202, AskedRunSchema, description="The leader will start it again; its `generation` then is higher."
    )
    @blueprint.also(201, RunSchema, description="Not in place: the new run, whose `rerun_of` is this one.")
    def post(self, body: Mapping[str, Any], run_id: UUID) -> Response:
        """Start a run again that has ended; 409 while it is active.

        In place it is the same run's next generation. By another version or with other parameters it is a new run,
        which takes over the outputs of what need not run again, as long as they exist.
        """
        look_for_reused(str(run_id), partial(_previewed, str(run_id), body))
        if not _is_in_place(body):
            return _linked(str(run_id), body)
        return _again(str(run_id), body)


@blueprint.route("/<uuid:run_id>/rerun/preview")
class RunRerunPreview(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.body(RerunRequestSchema, example=RERUN_EXAMPLE)
    @blueprint.answers(200, RerunPreviewSchema, example=PREVIEW_EXAMPLE)
    def post(self, body: Mapping[str, Any], run_id: UUID) -> dict[str, Any]:
        """Say what a rerun would run, what it would keep and why, without starting it; refused as that would be."""
        preview = partial(_previewed, str(run_id), body)
        look_for_reused(str(run_id), preview)
        with services().engine.begin() as connection:
            return {"in_place": _is_in_place(body), **_described(preview(connection))}


def _previewed(run_id: str, body: Mapping[str, Any], connection: Connection) -> RerunPlan:
    """Return what the rerun that is asked for would do; it is refused like that."""
    _require_readable(connection, run_id)
    tenant_id = caller().tenant_id
    if _is_in_place(body):
        return reruns.preview_rerun(connection, tenant_id, run_id, body["chosen"])
    return linked_reruns.preview_linked(connection, tenant_id, run_id, _wanted(body), services().site)


def _paused(run_id: str, body: Mapping[str, Any], *, pause: bool) -> Response:
    with services().engine.begin() as connection:
        command = command_requests.request_pause(
            connection, caller().tenant_id, run_id, caller().name, pause=pause, **body
        )
    services().live.wake()
    return asked_run(run_id, command or {})


def _is_in_place(body: Mapping[str, Any]) -> bool:
    if body["in_place"] is not None:
        return bool(body["in_place"])
    return body["version"] == PINNED and not body["parameters"]


def _wanted(body: Mapping[str, Any]) -> LinkedRerun:
    """Return the new run that is asked for, without its id."""
    return LinkedRerun(
        run_id="",
        actor=caller().name,
        triggered_by=caller().name,
        chosen=body["chosen"],
        version=body["version"],
        parameters=body["parameters"],
    )


def _again(run_id: str, body: Mapping[str, Any]) -> Response:
    def ask(connection: Connection) -> Row:
        _require_readable(connection, run_id)
        # It takes a place like a new run; counted before it is asked for, for what is asked for counts.
        services().backlog.let_in(connection, caller().tenant_id)
        return reruns.request_rerun(connection, caller().tenant_id, run_id, caller().name, chosen=body["chosen"])

    return asked_once(run_id, {**body, "rerun_of": run_id}, ask)


def _linked(run_id: str, body: Mapping[str, Any]) -> Response:
    def insert(connection: Connection, new_id: str) -> None:
        _require_readable(connection, run_id)
        services().backlog.let_in(connection, caller().tenant_id)
        wanted = replace(_wanted(body), run_id=new_id)
        linked_reruns.start_linked(connection, caller().tenant_id, run_id, wanted, services().site)

    return made_once({**body, "rerun_of": run_id}, insert)


def _described(plan: RerunPlan) -> dict[str, Any]:
    again = [
        {"task": name, "why": (why := plan.why[name]), "message": plan.missing.get(name, WHY[why])}
        for name in plan.again
    ]
    return {"start": plan.chosen, "run": again, "reused": plan.reused, "kept": plan.kept}


def _require_readable(connection: Connection, run_id: str) -> None:
    run = run_queries.get_run(connection, caller().tenant_id, run_id)
    found = services().versions.find(connection, caller().tenant_id, run["version_id"])
    if isinstance(found, str):
        raise Conflict(f"{found} Start a run of a newer version.")
