"""Liveness: the one thing that anybody may ask, and that says nothing but ok."""

from __future__ import annotations

from flask.views import MethodView
from marshmallow import Schema, fields

from api.resource import Resource

blueprint = Resource("liveness", __name__, description="Whether the process lives.")


class LivenessSchema(Schema):
    status = fields.String(required=True, metadata={"example": "ok"})


@blueprint.route("/healthz")
class Liveness(MethodView):
    @blueprint.note(security=[])
    @blueprint.answers(200, LivenessSchema)
    def get(self) -> dict[str, str]:
        """Say that the process lives; needs no key."""
        return {"status": "ok"}
