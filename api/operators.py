"""Operators: what tasks can run here, with the JSON Schemas of their parameters and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask.views import MethodView
from marshmallow import Schema, fields

from api.lists import PageQuery, page_of, sequence_page, sort_field
from api.resource import Resource, needs
from api.services import services
from orchestrator.errors import NotFound
from orchestrator.operator import Operator
from orchestrator.store.api_keys import Role

blueprint = Resource("operators", __name__, url_prefix="/api/v1/operators", description="What tasks can run.")


class InputSchema(Schema):
    parameter = fields.String(required=True)
    kind = fields.String(required=True, metadata={"description": "What it takes: dataset, model …"})
    required = fields.Boolean(required=True)


class OperatorSchema(Schema):
    name = fields.String(required=True)
    summary = fields.String(required=True)
    parameters_schema = fields.Dict(required=True, metadata={"description": "JSON Schema 2020-12."})
    outputs_schema = fields.Dict(required=True, metadata={"description": "JSON Schema 2020-12."})
    inputs = fields.List(fields.Nested(InputSchema), required=True)


class OperatorListQuery(PageQuery):
    sort = sort_field(["name"], "name")
    name_prefix = fields.String()


OperatorPage = page_of(OperatorSchema)


@blueprint.route("")
class Operators(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(OperatorListQuery)
    @blueprint.answers(200, OperatorPage)
    def get(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """List operators."""
        prefix = query.get("name_prefix", "")
        shown = [_shown(operator) for name, operator in services().operators.items() if name.startswith(prefix)]
        return sequence_page(query, shown, "name")


@blueprint.route("/<string:name>")
class OneOperator(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, OperatorSchema)
    def get(self, name: str) -> dict[str, Any]:
        """Get an operator."""
        if name not in services().operators:
            raise NotFound(f"There is no operator {name!r}; there are {', '.join(services().operators)}.")
        return _shown(services().operators[name])


def _shown(operator: type[Operator]) -> dict[str, Any]:
    return {
        "name": operator.name,
        "summary": operator.summary,
        "parameters_schema": dict(operator.parameters_schema),
        "outputs_schema": dict(operator.outputs_schema),
        "inputs": [{"parameter": i.parameter, "kind": i.kind, "required": i.required} for i in operator.inputs],
    }
