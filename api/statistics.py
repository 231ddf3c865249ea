"""Statistics over days: how many runs, how many succeeded, how long they took and waited, and what they used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask.views import MethodView
from marshmallow import Schema, fields, validate

from api.access import caller
from api.resource import Resource, needs
from api.services import services
from orchestrator.store import reports
from orchestrator.store.api_keys import Role

blueprint = Resource("statistics", __name__, url_prefix="/monitoring", description="What became of runs.")


class SpreadSchema(Schema):
    p50 = fields.Float(required=True, allow_none=True)
    p95 = fields.Float(required=True, allow_none=True)
    p99 = fields.Float(required=True, allow_none=True)


class RateSchema(Schema):
    success_rate = fields.Float(
        required=True,
        allow_none=True,
        metadata={"description": "Of those that ended as success or failed; null when none did."},
    )
    duration_seconds = fields.Nested(SpreadSchema, required=True)


class RunTotalsSchema(RateSchema):
    total = fields.Integer(required=True)
    by_state = fields.Dict(required=True, keys=fields.String(), values=fields.Integer())
    wait_seconds = fields.Nested(SpreadSchema, required=True, metadata={"description": "From creation to start."})


class TaskTotalsSchema(Schema):
    total = fields.Integer(required=True)
    succeeded = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    failures = fields.Integer(required=True)
    losses = fields.Integer(required=True)
    retries = fields.Integer(required=True)
    mean_wait_seconds = fields.Float(required=True, allow_none=True, metadata={"description": "From ready to start."})


class PipelineTotalsSchema(RateSchema):
    pipeline_name = fields.String(required=True)
    runs = fields.Integer(required=True)


class OperatorTotalsSchema(RateSchema):
    operator = fields.String(required=True)
    tasks = fields.Integer(required=True)
    retries = fields.Integer(required=True)
    peak_memory_bytes = fields.Integer(required=True, allow_none=True)
    cpu_seconds = fields.Float(required=True, allow_none=True)


class StatisticsSchema(Schema):
    days = fields.Integer(required=True)
    since = fields.DateTime(required=True)
    runs = fields.Nested(RunTotalsSchema, required=True)
    tasks = fields.Nested(TaskTotalsSchema, required=True)
    pipelines = fields.List(
        fields.Nested(PipelineTotalsSchema), required=True, metadata={"description": "The hundred with most runs."}
    )
    operators = fields.List(fields.Nested(OperatorTotalsSchema), required=True)


class StatisticsQuery(Schema):
    days = fields.Integer(load_default=7, validate=validate.Range(1, 366))


@blueprint.route("/statistics")
class Statistics(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(StatisticsQuery)
    @blueprint.answers(200, StatisticsSchema)
    def get(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Sum up the runs of the last days."""
        with services().engine.connect() as connection:
            return reports.read_statistics(connection, caller().tenant_id, query["days"])
