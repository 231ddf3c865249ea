"""Commands: what was asked of the leader (cancel, rerun, drain …), and what became of it, in its own sentence."""

from __future__ import annotations

from typing import Any

from flask.views import MethodView
from marshmallow import Schema, fields, validate

from api.access import caller
from api.resource import Resource, needs
from api.services import services
from orchestrator.store import command_queries
from orchestrator.store.api_keys import Role

blueprint = Resource("commands", __name__, url_prefix="/api/v1/commands", description="What was asked of the leader.")


class CommandSchema(Schema):
    id = fields.Integer(required=True)
    kind = fields.String(required=True, metadata={"description": "cancel, rerun, drain, undrain …"})
    state = fields.String(
        required=True,
        validate=validate.OneOf(command_queries.STATES),
        metadata={"description": "open: no leader has looked at it yet. done: applied, or nothing was left to do."},
    )
    result = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The leader's sentence: what it did, or why it refused; null while it is open."},
    )
    actor = fields.String(required=True, metadata={"description": "The name of the key that asked."})
    run_id = fields.UUID(required=True, allow_none=True)
    task = fields.String(required=True, allow_none=True)
    worker_id = fields.String(required=True, allow_none=True)
    created_at = fields.DateTime(required=True)
    applied_at = fields.DateTime(required=True, allow_none=True)


def command_id_field() -> fields.Integer:
    """Return the field by which the answer to a request names the command that it made."""
    return fields.Integer(
        required=True,
        allow_none=True,
        metadata={
            "description": "`GET /api/v1/commands/{id}` says what became of it. null: it was asked for before, and "
            "nothing more was to be asked."
        },
    )


@blueprint.route("/<int:command_id>")
class Command(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, CommandSchema)
    def get(self, command_id: int) -> dict[str, Any]:
        """Get a command: whether the leader has applied or refused it, and why."""
        with services().engine.connect() as connection:
            return command_queries.get_command(connection, caller().tenant_id, command_id)
