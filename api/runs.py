"""Runs: started once per Idempotency-Key, pinned to a version, read with their tasks, cancelled and started again."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import Response, jsonify, request
from flask.views import MethodView
from marshmallow import Schema, ValidationError, fields, validate, validates_schema
from sqlalchemy import Connection
from webargs.fields import DelimitedList
from werkzeug.exceptions import Forbidden, UnprocessableEntity

from api.access import caller
from api.commands import command_id_field
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.moments import Moment
from api.resource import Resource, needs
from api.run_tasks import TaskRunSchema, show_tasks
from api.services import services
from orchestrator.compile import run_problems
from orchestrator.errors import Conflict, InvalidDefinition
from orchestrator.states import RUN_TERMINAL, RunState
from orchestrator.store import run_queries, run_requests
from orchestrator.store.api_keys import Role
from orchestrator.store.definitions import find_run_target
from orchestrator.store.run_queries import RunFilter
from orchestrator.store.run_requests import NewRun

blueprint = Resource("runs", __name__, url_prefix="/api/v1/runs", description="Executions of pipelines.")

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class RunRequestSchema(Schema):
    pipeline_id = fields.UUID(metadata={"description": "This or `pipeline_name`."})
    pipeline_name = fields.String(validate=validate.Length(1, 128))
    version = fields.Integer(
        strict=True,
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, 2**31 - 1),
        metadata={"description": "A version of the pipeline; the current one when left out."},
    )
    parameters = fields.Dict(
        keys=fields.String(),
        load_default=dict,
        metadata={
            "description": "Put over the definition's `parameters`; tasks take inputs from them that no task produces."
        },
    )
    triggered_by = fields.String(
        validate=validate.Length(1, 128),
        metadata={"description": "For whom the run is; only the role admin may set it, else it is the key's name."},
    )

    @validates_schema
    def _names_one_pipeline(self, data: Mapping[str, Any], **_: Any) -> None:
        if ("pipeline_id" in data) == ("pipeline_name" in data):
            raise ValidationError("Name the pipeline by either pipeline_id or pipeline_name.")


class ChosenTasks(fields.Field[Any]):
    """``failed``, ``all``, or a list of names of tasks."""

    _names = fields.List(fields.String(validate=validate.Length(1, 128)), validate=validate.Length(1, 1000))

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **_: Any) -> Any:
        if isinstance(value, str):
            return validate.OneOf(["failed", "all"])(value)
        return self._names.deserialize(value, attr, data)


class RerunRequestSchema(Schema):
    chosen = ChosenTasks(
        data_key="from",
        load_default="failed",
        metadata={
            "description": "Where to start from; everything downstream is run again too. `failed`: the tasks that are "
            "failed, upstream_failed or cancelled.",
            "oneOf": [
                {"type": "string", "enum": ["failed", "all"]},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": 128},
                    "minItems": 1,
                    "maxItems": 1000,
                },
            ],
        },
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
    trigger = fields.String(required=True)
    priority = fields.Integer(required=True)
    generation = fields.Integer(required=True, metadata={"description": "1, and one more with each rerun."})
    created_at = fields.DateTime(required=True)
    started_at = fields.DateTime(required=True, allow_none=True)
    ended_at = fields.DateTime(required=True, allow_none=True)


class RunSchema(RunSummarySchema):
    tasks = fields.List(fields.Nested(TaskRunSchema), required=True, metadata={"description": "In the plan's order."})


class AskedRunSchema(RunSchema):
    command_id = command_id_field()


class RunListQuery(PageQuery):
    sort = sort_field(list(run_queries.RUN_ORDERS), "-created_at")
    state = DelimitedList(
        fields.String(validate=validate.OneOf([state.value for state in RunState])),
        metadata={"description": "One or more states, separated by commas."},
    )
    pipeline_id = fields.UUID()
    pipeline_name = fields.String()
    triggered_by = fields.String()
    created_after = Moment(metadata={"description": "RFC 3339, with its offset from UTC; inclusive."})
    created_before = Moment(metadata={"description": "As above; exclusive."})


RunPage = page_of(RunSummarySchema)
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "description": "One key makes one run: for seven days the same request again answers with the run it made; with "
    "another body 409.",
}
EXAMPLE = {"pipeline_name": "ml-training-pipeline", "parameters": {"experiment_name": "baseline-model-v1"}}


@blueprint.route("")
class Runs(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(RunListQuery)
    @blueprint.answers(200, RunPage)
    def get(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """List runs, newest first."""
        wanted = RunFilter(
            states=query.get("state"),
            pipeline_id=str(query["pipeline_id"]) if "pipeline_id" in query else None,
            pipeline_name=query.get("pipeline_name"),
            triggered_by=query.get("triggered_by"),
            created_after=query.get("created_after"),
            created_before=query.get("created_before"),
        )
        page = window(query, run_queries.RUN_ORDERS)
        with services().engine.connect() as connection:
            return page_json(run_queries.list_runs(connection, caller().tenant_id, page, wanted))

    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.note(parameters=[IDEMPOTENCY_KEY])
    @blueprint.body(RunRequestSchema, example=EXAMPLE)
    @blueprint.answers(201, RunSchema, description="The run is stored and will be executed.")
    def post(self, body: Mapping[str, Any]) -> Response:
        """Start a run."""
        key = _idempotency_key()
        triggered_by = _triggered_by(body.get("triggered_by"))
        wanted_id = str(uuid.uuid4())
        with services().engine.begin() as connection:
            run_id = wanted_id
            if key is not None:
                run_id = run_requests.claim_idempotency_key(
                    connection, caller().tenant_id, key, _fingerprint(body), wanted_id
                )
            if run_id == wanted_id:
                services().backlog.let_in(connection, caller().tenant_id)
                run_requests.insert_run(connection, _new_run(connection, run_id, body, triggered_by))
        services().live.wake()
        response = _shown(run_id, 201)
        response.headers["Location"] = f"/api/v1/runs/{run_id}"
        if run_id != wanted_id:
            response.headers["Idempotent-Replayed"] = "true"
        return response


@blueprint.route("/<uuid:run_id>")
class Run(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, RunSchema)
    def get(self, run_id: UUID) -> Response:
        """Get a run with its task runs and their progress."""
        return _shown(str(run_id), 200)


@blueprint.route("/<uuid:run_id>/cancel")
class RunCancel(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.answers(202, AskedRunSchema, description="The leader will cancel it; running tasks get TERM, then KILL.")
    def post(self, run_id: UUID) -> Response:
        """Cancel a run; 409 when it has ended."""
        command: Mapping[str, Any] = {}
        with services().engine.begin() as connection:
            state = run_queries.run_state(connection, caller().tenant_id, str(run_id))
            # Asking again is no error: the client may not have seen the first answer.
            if state not in {RunState.CANCELLING, RunState.CANCELLED}:
                command = run_requests.request_cancel(connection, caller().tenant_id, str(run_id), caller().name)
        services().live.wake()
        return _asked(str(run_id), command)


@blueprint.route("/<uuid:run_id>/rerun")
class RunRerun(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.body(RerunRequestSchema, example={"from": "failed"})
    @blueprint.answers(
        202, AskedRunSchema, description="The leader will start it again; its `generation` then is higher."
    )
    def post(self, body: Mapping[str, Any], run_id: UUID) -> Response:
        """Start a run again that has ended: in place, as its next generation; 409 while it is active."""
        with services().engine.begin() as connection:
            row = run_queries.get_run(connection, caller().tenant_id, str(run_id))
            _require_readable(connection, row)
            # It takes a place like a new run; counted before it is asked for, for what is asked for counts.
            services().backlog.let_in(connection, caller().tenant_id)
            command = run_requests.request_rerun(
                connection, caller().tenant_id, str(run_id), caller().name, chosen=body["chosen"]
            )
        services().live.wake()
        return _asked(str(run_id), command)


def _require_readable(connection: Connection, run: Mapping[str, Any]) -> None:
    try:
        services().versions.get(connection, caller().tenant_id, run["version_id"])
    except ValueError as error:
        raise Conflict(
            f"Version {run['version']} of {run['pipeline_name']!r} was saved by another release, and this one can't "
            f"read its plan: {error} Start a run of a newer version."
        ) from error


def _asked(run_id: str, command: Mapping[str, Any]) -> Response:
    """Return the run as it is, with the command that the leader has yet to apply."""
    return _shown(run_id, 202, AskedRunSchema(), command_id=command.get("id"))


def _shown(run_id: str, status: int, schema: Schema | None = None, **more: Any) -> Response:
    with services().engine.connect() as connection:
        run = run_queries.get_run(connection, caller().tenant_id, run_id)
        version = services().versions.get(connection, caller().tenant_id, run["version_id"])
        tasks = run_queries.all_tasks(connection, caller().tenant_id, run_id)
    live = RunState(run["state"]) not in RUN_TERMINAL
    document = {**run, "tasks": show_tasks(tasks, version, live=live), **more}
    response = jsonify((schema or RunSchema()).dump(document))
    response.status_code = status
    return response


def _new_run(connection: Connection, run_id: str, body: Mapping[str, Any], triggered_by: str) -> NewRun:
    target = find_run_target(
        connection,
        caller().tenant_id,
        pipeline_id=str(body["pipeline_id"]) if "pipeline_id" in body else None,
        name=body.get("pipeline_name"),
        version=body["version"],
    )
    version = services().versions.get(connection, caller().tenant_id, target.version_id)
    problems = run_problems(version.plan, body["parameters"], services().site, version.parameters)
    if problems:
        raise InvalidDefinition(problems)
    return NewRun(
        id=run_id,
        tenant_id=caller().tenant_id,
        pipeline_id=target.pipeline_id,
        version_id=target.version_id,
        tasks=version.tasks,
        parameters={**version.parameters, **body["parameters"]},
        triggered_by=triggered_by,
        actor=caller().name,
        priority=version.priority,
    )


def _triggered_by(wanted: str | None) -> str:
    if wanted is None or wanted == caller().name:
        return caller().name
    if caller().role < Role.ADMIN:
        raise Forbidden(f"triggered_by is taken from the key ({caller().name!r}); only the role admin may set it.")
    return wanted


def _idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise UnprocessableEntity("Idempotency-Key must be 1 to 255 visible ASCII characters, such as a UUID.")
    return key


def _fingerprint(body: Mapping[str, Any]) -> str:
    """Return a hash of the request; the key's name is in it, for it decides who the run is for."""
    canonical = json.dumps([caller().name, dict(body)], sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
