"""Runs: started once per Idempotency-Key, pinned to a version, read with their tasks and the runs linked to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import Response
from flask.views import MethodView
from marshmallow import Schema, ValidationError, fields, validate, validates_schema
from sqlalchemy import Connection
from webargs.fields import DelimitedList
from werkzeug.exceptions import Forbidden

from api.access import caller
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.moments import Moment
from api.once import IDEMPOTENCY_KEY, made_once
from api.resource import Resource, needs
from api.run_view import LinkedRunSchema, RunSchema, RunSummarySchema, shown_run
from api.services import services
from api.task_view import outputs_field
from orchestrator.compile import run_problems
from orchestrator.errors import InvalidDefinition
from orchestrator.states import RunState
from orchestrator.store import run_queries, run_requests
from orchestrator.store.api_keys import Role
from orchestrator.store.definitions import find_run_target
from orchestrator.store.pages import Page
from orchestrator.store.run_queries import RunFilter
from orchestrator.store.run_requests import NewRun

blueprint = Resource("runs", __name__, url_prefix="/api/v1/runs", description="Executions of pipelines.")

PRIORITIES = (-1000, 1000)


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
    priority = fields.Integer(
        strict=True,
        validate=validate.Range(*PRIORITIES),
        metadata={"description": "Higher goes first; the definition's when left out."},
    )
    triggered_by = fields.String(
        validate=validate.Length(1, 128),
        metadata={"description": "For whom the run is; only the role admin may set it, else it is the key's name."},
    )

    @validates_schema
    def _names_one_pipeline(self, data: Mapping[str, Any], **_: Any) -> None:
        if ("pipeline_id" in data) == ("pipeline_name" in data):
            raise ValidationError("Name the pipeline by either pipeline_id or pipeline_name.")


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


class RunQuery(Schema):
    outputs = outputs_field()


class ChildListQuery(PageQuery):
    sort = sort_field(list(run_queries.RUN_ORDERS), "created_at")


RunPage = page_of(RunSummarySchema)
LinkedRunPage = page_of(LinkedRunSchema)
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
        triggered_by = _triggered_by(body.get("triggered_by"))

        def insert(connection: Connection, run_id: str) -> None:
            services().backlog.let_in(connection, caller().tenant_id)
            run_requests.insert_run(connection, _new_run(connection, run_id, body, triggered_by))

        return made_once(body, insert)


@blueprint.route("/<uuid:run_id>")
class Run(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(RunQuery)
    @blueprint.answers(200, RunSchema)
    def get(self, query: Mapping[str, Any], run_id: UUID) -> Response:
        """Get a run with its task runs and their progress."""
        return shown_run(str(run_id), 200, outputs=query["outputs"])


@blueprint.route("/<uuid:run_id>/children")
class RunChildren(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(ChildListQuery)
    @blueprint.answers(200, LinkedRunPage)
    def get(self, query: Mapping[str, Any], run_id: UUID) -> dict[str, Any]:
        """List the runs that are tasks of this one, and those that are reruns of it, oldest first."""
        with services().engine.connect() as connection:
            tenant_id = caller().tenant_id
            run_queries.run_state(connection, tenant_id, str(run_id))
            page = run_queries.children_of(connection, tenant_id, str(run_id), window(query, run_queries.RUN_ORDERS))
            asked = [run["parent_task_run_id"] for run in page.items if run["parent_task_run_id"]]
            parents = run_queries.named_task_runs(connection, tenant_id, asked)
        shown = [{**run, "parent_task": parents.get(run["parent_task_run_id"])} for run in page.items]
        return page_json(Page(shown, page.after))


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
        priority=body.get("priority", version.priority),
    )


def _triggered_by(wanted: str | None) -> str:
    if wanted is None or wanted == caller().name:
        return caller().name
    if caller().role < Role.ADMIN:
        raise Forbidden(f"triggered_by is taken from the key ({caller().name!r}); only the role admin may set it.")
    return wanted
