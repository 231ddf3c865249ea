"""The built-in model registry: what runs have registered, by name and version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask.views import MethodView
from marshmallow import Schema, fields

from api.access import caller
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.resource import Resource, needs
from api.services import services
from orchestrator.store import model_queries
from orchestrator.store.api_keys import Role

blueprint = Resource("models", __name__, url_prefix="/api/v1/models", description="The built-in model registry.")


class ModelSchema(Schema):
    name = fields.String(required=True)
    version = fields.String(required=True)
    stage = fields.String(required=True)
    description = fields.String(required=True)
    tags = fields.Raw(required=True, metadata={"description": "As registered."})
    metrics = fields.Dict(required=True)
    lineage = fields.Dict(required=True, metadata={"description": "The run, task and data it comes from."})
    digest = fields.String(required=True)
    uri = fields.String(required=True)
    run_id = fields.UUID(required=True, allow_none=True)
    task = fields.String(required=True, allow_none=True)
    created_at = fields.DateTime(required=True)


class ModelListQuery(PageQuery):
    sort = sort_field(list(model_queries.MODEL_ORDERS), "name")
    stage = fields.String()
    name_prefix = fields.String()


class ModelVersionListQuery(PageQuery):
    sort = sort_field(["created_at"], "-created_at")
    stage = fields.String()


ModelPage = page_of(ModelSchema)


@blueprint.route("")
class Models(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(ModelListQuery)
    @blueprint.answers(200, ModelPage)
    def get(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """List models, each with its latest version."""
        page = window(query, model_queries.MODEL_ORDERS)
        with services().engine.connect() as connection:
            return page_json(
                model_queries.list_models(
                    connection, caller().tenant_id, page, stage=query.get("stage"), name_prefix=query.get("name_prefix")
                )
            )


@blueprint.route("/<string:name>")
class Model(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, ModelSchema)
    def get(self, name: str) -> dict[str, Any]:
        """Get the latest version of a model."""
        with services().engine.connect() as connection:
            return model_queries.get_model(connection, caller().tenant_id, name)


@blueprint.route("/<string:name>/versions")
class ModelVersions(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(ModelVersionListQuery)
    @blueprint.answers(200, ModelPage)
    def get(self, query: Mapping[str, Any], name: str) -> dict[str, Any]:
        """List the versions of a model, newest first."""
        page = window(query, model_queries.MODEL_ORDERS)
        with services().engine.connect() as connection:
            return page_json(
                model_queries.list_model_versions(connection, caller().tenant_id, name, page, stage=query.get("stage"))
            )


@blueprint.route("/<string:name>/versions/<string:version>")
class ModelVersion(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, ModelSchema)
    def get(self, name: str, version: str) -> dict[str, Any]:
        """Get one version of a model."""
        with services().engine.connect() as connection:
            return model_queries.get_model(connection, caller().tenant_id, name, version)
