"""Pipelines: definitions are checked as a whole, saved as immutable versions, guarded by ETags against lost changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from flask import Response, jsonify, request
from flask.views import MethodView
from marshmallow import Schema, fields, validate

from api.access import caller
from api.address_checks import address_problems
from api.bodies import read_object
from api.definition_schema import DEFINITION_BODY
from api.definition_warnings import child_warnings
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.request_bodies import ReasonSchema
from api.resource import Resource, needs
from api.services import services
from orchestrator.compile import Compiled, compile_pipeline
from orchestrator.errors import InvalidDefinition, Problem
from orchestrator.lasting import uncollected
from orchestrator.plan_json import describe, plan_to_json
from orchestrator.registry import operator_version
from orchestrator.spec import ON_DRAIN, ON_WORKER_LOSS
from orchestrator.store import definitions
from orchestrator.store.api_keys import Role
from orchestrator.store.definitions import Definition, revision

blueprint = Resource("pipelines", __name__, url_prefix="/api/v1/pipelines", description="Definitions and versions.")


class PipelineSummarySchema(Schema):
    id = fields.UUID(required=True)
    name = fields.String(required=True, metadata={"example": "ml-training-pipeline"})
    description = fields.String(required=True)
    owner = fields.String(required=True, metadata={"description": "As the definition says; grants nothing."})
    version = fields.Integer(required=True, metadata={"description": "The current version."})
    content_hash = fields.String(required=True)
    paused = fields.Boolean(
        required=True, metadata={"description": "Whether no run of it starts; new ones are accepted and wait."}
    )
    created_by = fields.String(required=True, metadata={"description": "The key that saved the current version."})
    created_at = fields.DateTime(required=True)
    updated_at = fields.DateTime(required=True)


class ValidationProblemSchema(Schema):
    pointer = fields.String(required=True)
    message = fields.String(required=True)


WARNINGS = {"description": "What is allowed and most likely meant otherwise, as RFC 6901 pointers into the definition."}


class PipelineSchema(PipelineSummarySchema):
    definition = fields.Dict(required=True, metadata={"description": "Normalised; it may be saved again."})
    warnings = fields.List(
        fields.Nested(ValidationProblemSchema),
        metadata={"description": f"{WARNINGS['description']} Only in the answer to a save, if there are any."},
    )


class VersionSchema(Schema):
    version = fields.Integer(required=True)
    content_hash = fields.String(required=True)
    definition = fields.Dict(required=True)
    created_by = fields.String(required=True)
    created_at = fields.DateTime(required=True)


class PlannedTaskSchema(Schema):
    name = fields.String(required=True)
    kind = fields.String(
        required=True,
        metadata={"description": "`operator`, or `map`, `repeat`, `pipeline`, `approval`, `event`: run by no worker."},
    )
    operator = fields.String(required=True, metadata={"description": "Its own word where it has none: `group` …"})
    upstream_tasks = fields.List(fields.String(), required=True)
    trigger_rule = fields.String(required=True)
    when = fields.String(required=True, metadata={"description": "Its condition; empty: none."})
    teardown = fields.Boolean(required=True)
    queue = fields.String(required=True)
    cpu = fields.Float(required=True, metadata={"description": "Cores."})
    memory_gb = fields.Float(required=True, metadata={"description": "GiB."})
    gpu = fields.Integer(required=True)
    gpu_memory_gb = fields.Float(required=True, metadata={"description": "GiB that each GPU must have."})
    inputs = fields.Dict(
        required=True,
        keys=fields.String(),
        values=fields.Dict(),
        metadata={"description": "Which ancestor's output each input parameter takes."},
    )
    retries = fields.Integer(required=True)
    timeout_seconds = fields.Float(required=True, allow_none=True)
    on_drain = fields.String(required=True, validate=validate.OneOf(ON_DRAIN))
    on_worker_loss = fields.String(required=True, validate=validate.OneOf(ON_WORKER_LOSS))
    body = fields.List(
        fields.Nested(lambda: PlannedTaskSchema()),
        required=True,
        metadata={"description": "What each item or round runs; of a task that is mapped by itself, that task."},
    )


class RunNeedSchema(Schema):
    task = fields.String(required=True)
    parameter = fields.String(required=True)
    kind = fields.String(required=True)


class PlanSchema(Schema):
    order = fields.List(fields.String(), required=True, metadata={"description": "Each task after its upstreams."})
    depth = fields.Integer(required=True, metadata={"description": "Tasks on the longest path."})
    tasks = fields.List(fields.Nested(PlannedTaskSchema), required=True)
    run_needs = fields.List(
        fields.Nested(RunNeedSchema),
        required=True,
        metadata={"description": "Parameters that a run has to bring because no task makes what they take."},
    )
    run_parameters = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "Parameters that a run has to bring: templates read them, and they have no default."},
    )
    connections = fields.List(fields.String(), required=True, metadata={"description": "Named connections it uses."})
    content_hash = fields.String(required=True)


class ValidationSchema(Schema):
    valid = fields.Boolean(required=True)
    errors = fields.List(
        fields.Nested(ValidationProblemSchema),
        required=True,
        metadata={"description": "All problems, as RFC 6901 pointers into the definition."},
    )
    warnings = fields.List(fields.Nested(ValidationProblemSchema), required=True, metadata=WARNINGS)
    plan = fields.Nested(
        PlanSchema,
        required=True,
        allow_none=True,
        metadata={"description": "What would run where; null when it is not valid."},
    )
    definition = fields.Dict(
        required=True,
        allow_none=True,
        metadata={"description": "As it would be stored: normalised; null when it is not valid."},
    )


class PipelineListQuery(PageQuery):
    sort = sort_field(list(definitions.PIPELINE_ORDERS), "-created_at")
    name = fields.String(metadata={"description": "Exactly this name."})
    name_prefix = fields.String(metadata={"description": "Names that begin so."})
    owner = fields.String()


class VersionListQuery(PageQuery):
    sort = sort_field(list(definitions.VERSION_ORDERS), "-version")


PipelinePage = page_of(PipelineSummarySchema)
VersionPage = page_of(VersionSchema)
ETAG = {"ETag": {"description": "The revision; save on top of it with If-Match.", "schema": {"type": "string"}}}
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "ETag of the revision that was changed; 412 when another save came first. Without it the last wins.",
}


@blueprint.route("")
class Pipelines(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(PipelineListQuery)
    @blueprint.answers(200, PipelinePage)
    def get(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """List pipelines."""
        page = window(query, definitions.PIPELINE_ORDERS)
        with services().engine.connect() as connection:
            return page_json(
                definitions.list_pipelines(
                    connection,
                    caller().tenant_id,
                    page,
                    name=query.get("name"),
                    name_prefix=query.get("name_prefix"),
                    owner=query.get("owner"),
                )
            )

    @needs(Role.AUTHOR)
    @blueprint.refuses(409)
    @blueprint.note(requestBody=DEFINITION_BODY)
    @blueprint.answers(201, PipelineSchema, headers=ETAG)
    @blueprint.also(200, PipelineSchema, description="The same content was saved under this name before.", headers=ETAG)
    @uncollected()
    def post(self) -> Response:
        """Create a pipeline.

        The definition is checked as a whole; 422 lists all problems. An identical save returns what is there (200), as
        a new version where the site's settings or operators make another plan of it by now.
        """
        compiled = _compiled(*read_object())
        definition = _definition(compiled)
        with services().engine.begin() as connection:
            saved, made = definitions.create_pipeline(connection, caller().tenant_id, definition, caller().name)
        return _shown({**saved, **_warned(compiled)}, 201 if made else 200)


@blueprint.route("/validate")
class Validation(MethodView):
    @needs(Role.VIEWER)
    @blueprint.note(requestBody=DEFINITION_BODY)
    @blueprint.answers(200, ValidationSchema)
    @uncollected()
    def post(self) -> Response:
        """Check a definition without saving it.

        Answers 200 either way: `valid` says whether it could be saved, `errors` holds all problems, `plan` what would
        run where. Only a body that is no JSON object is an error.
        """
        try:
            compiled = _compiled(*read_object())
        except InvalidDefinition as invalid:
            told = {"valid": False, "errors": _told(invalid.problems), "warnings": [], "plan": None, "definition": None}
        else:
            told = {"valid": True, "errors": [], "warnings": _warnings(compiled)}
            told |= {"plan": describe(compiled), "definition": compiled.definition}
        # Already as the schema says: of 10,000 tasks it would look at every field once more.
        return jsonify(told)


@blueprint.route("/by-name/<string:name>")
class PipelineByName(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, PipelineSchema, headers=ETAG)
    def get(self, name: str) -> Response:
        """Get a pipeline by its name."""
        with services().engine.connect() as connection:
            return _shown(definitions.get_pipeline(connection, caller().tenant_id, name=name))


@blueprint.route("/<uuid:pipeline_id>")
class Pipeline(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, PipelineSchema, headers=ETAG)
    def get(self, pipeline_id: UUID) -> Response:
        """Get a pipeline with its current definition."""
        with services().engine.connect() as connection:
            return _shown(definitions.get_pipeline(connection, caller().tenant_id, pipeline_id=str(pipeline_id)))

    @needs(Role.AUTHOR)
    @blueprint.refuses(409, 412)
    @blueprint.note(requestBody=DEFINITION_BODY, parameters=[IF_MATCH])
    @blueprint.answers(200, PipelineSchema, headers=ETAG)
    @uncollected()
    def put(self, pipeline_id: UUID) -> Response:
        """Save a new version of a pipeline.

        Content that the pipeline had before gets its old version number back, unless the site's settings or operators
        make another plan of it by now. Runs keep the version they began with.
        """
        compiled = _compiled(*read_object())
        definition = _definition(compiled)
        with services().engine.begin() as connection:
            saved = definitions.save_pipeline(
                connection, caller().tenant_id, str(pipeline_id), definition, caller().name, _expected()
            )
        return _shown({**saved, **_warned(compiled)})

    @needs(Role.AUTHOR)
    @blueprint.refuses(409)
    @blueprint.answers(204, description="It is gone; its ended runs stay.")
    def delete(self, pipeline_id: UUID) -> None:
        """Delete a pipeline that has no active runs."""
        with services().engine.begin() as connection:
            definitions.delete_pipeline(connection, caller().tenant_id, str(pipeline_id))


@blueprint.route("/<uuid:pipeline_id>/pause")
class PipelinePause(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.optional_body(ReasonSchema, example={"reason": "the source is being repaired"})
    @blueprint.answers(200, PipelineSchema, headers=ETAG)
    def post(self, body: Mapping[str, Any], pipeline_id: UUID) -> Response:
        """Pause a pipeline: its runs are accepted and wait; those under way go on."""
        return _paused(str(pipeline_id), body["reason"], pause=True)


@blueprint.route("/<uuid:pipeline_id>/resume")
class PipelineResume(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.optional_body(ReasonSchema, example={"reason": "the source is back"})
    @blueprint.answers(200, PipelineSchema, headers=ETAG)
    def post(self, body: Mapping[str, Any], pipeline_id: UUID) -> Response:
        """Let the runs of a paused pipeline start."""
        return _paused(str(pipeline_id), body["reason"], pause=False)


@blueprint.route("/<uuid:pipeline_id>/versions")
class Versions(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(VersionListQuery)
    @blueprint.answers(200, VersionPage)
    def get(self, query: Mapping[str, Any], pipeline_id: UUID) -> dict[str, Any]:
        """List a pipeline's versions."""
        page = window(query, definitions.VERSION_ORDERS)
        with services().engine.connect() as connection:
            return page_json(definitions.list_versions(connection, caller().tenant_id, str(pipeline_id), page))


def _compiled(document: Mapping[str, Any], is_storable: bool) -> Compiled:
    addresses = list(address_problems(document, services().settings))
    try:
        compiled = compile_pipeline(
            document, services().operators, services().site, operator_version, is_storable=is_storable
        )
    except InvalidDefinition as invalid:
        raise InvalidDefinition([*invalid.problems, *addresses]) from invalid
    if addresses:
        raise InvalidDefinition(addresses)
    return compiled


def _definition(compiled: Compiled) -> Definition:
    normalised = compiled.definition
    return Definition(
        name=normalised["name"],
        description=normalised.get("description", ""),
        owner=normalised.get("owner", ""),
        content_hash=compiled.content_hash,
        document=normalised,
        plan=plan_to_json(compiled.plan),
    )


def _warnings(compiled: Compiled) -> list[dict[str, str]]:
    """Look the other pipelines up apart from the save: two that name each other would wait for each other's locks."""
    with services().engine.connect() as connection:
        return _told([*compiled.warnings, *child_warnings(connection, caller().tenant_id, compiled.definition)])


def _warned(compiled: Compiled) -> dict[str, Any]:
    warnings = _warnings(compiled)
    return {"warnings": warnings} if warnings else {}


def _told(problems: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"pointer": problem.pointer, "message": problem.message} for problem in problems]


def _paused(pipeline_id: str, reason: str, *, pause: bool) -> Response:
    with services().engine.begin() as connection:
        found = definitions.pause_pipeline(
            connection, caller().tenant_id, pipeline_id, caller().name, pause=pause, reason=reason
        )
    services().live.wake()
    return _shown(found)


def _shown(pipeline: Mapping[str, Any], status: int = 200) -> Response:
    response = jsonify(PipelineSchema().dump(pipeline))
    response.status_code = status
    response.set_etag(revision(pipeline["version"], pipeline["content_hash"]))
    if status == 201:
        response.headers["Location"] = f"/api/v1/pipelines/{pipeline['id']}"
    return response


def _expected() -> frozenset[str] | None:
    """Return the revisions of If-Match; ``None`` when any will do."""
    if_match = request.if_match
    if "If-Match" not in request.headers or if_match.star_tag:
        return None
    return frozenset(if_match.as_set(include_weak=False))
