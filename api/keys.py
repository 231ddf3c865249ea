"""API keys: made by administrators, shown once, revoked at once (other processes follow within five seconds)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask.views import MethodView
from marshmallow import Schema, fields, validate

from api.access import caller
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.moments import Moment
from api.resource import Resource, needs
from api.services import services
from orchestrator.store import api_keys
from orchestrator.store.api_keys import Role

blueprint = Resource("keys", __name__, url_prefix="/api/v1/keys", description="API keys of your tenant.")

_ROLES = [role.word for role in Role]


class KeySchema(Schema):
    id = fields.UUID(required=True)
    name = fields.String(required=True)
    role = fields.String(required=True, validate=validate.OneOf(_ROLES))
    prefix = fields.String(required=True, metadata={"description": "First characters of the key; no secret."})
    created_at = fields.DateTime(required=True)
    expires_at = fields.DateTime(required=True, allow_none=True)
    revoked_at = fields.DateTime(required=True, allow_none=True)


class NewKeySchema(KeySchema):
    key = fields.String(required=True, metadata={"description": "The key itself. It can't be read again."})


class KeyRequestSchema(Schema):
    name = fields.String(
        required=True,
        validate=validate.Regexp(r"\A[A-Za-z0-9][A-Za-z0-9._@-]{0,127}\Z"),
        metadata={"description": "Who uses it; shown as `triggered_by` and in the audit."},
    )
    role = fields.String(
        required=True,
        validate=validate.OneOf(_ROLES),
        metadata={
            "description": "viewer reads; operator runs and cancels too; author saves pipelines too; admin does all."
        },
    )
    expires_at = Moment(load_default=None, allow_none=True)


class KeyListQuery(PageQuery):
    sort = sort_field(list(api_keys.KEY_ORDERS), "name")
    role = fields.String(validate=validate.OneOf(_ROLES))
    revoked = fields.Boolean(load_default=False)


KeyPage = page_of(KeySchema)


@blueprint.route("")
class Keys(MethodView):
    @needs(Role.ADMIN)
    @blueprint.query(KeyListQuery)
    @blueprint.answers(200, KeyPage)
    def get(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """List API keys."""
        page = window(query, api_keys.KEY_ORDERS)
        with services().engine.connect() as connection:
            return page_json(
                api_keys.list_keys(
                    connection, caller().tenant_id, page, role=query.get("role"), revoked=query["revoked"]
                )
            )

    @needs(Role.ADMIN)
    @blueprint.refuses(409)
    @blueprint.body(KeyRequestSchema, example={"name": "ci", "role": "operator"})
    @blueprint.answers(201, NewKeySchema)
    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an API key; the answer is the only place where it is shown."""
        with services().engine.begin() as connection:
            made, key = api_keys.create_key(
                connection, caller().tenant_id, body["name"], Role[body["role"].upper()], body["expires_at"]
            )
        return {**made, "key": key}


@blueprint.route("/<uuid:key_id>")
class Key(MethodView):
    @needs(Role.ADMIN)
    @blueprint.refuses(409)
    @blueprint.answers(204, description="It is revoked.")
    def delete(self, key_id: UUID) -> None:
        """Revoke an API key."""
        with services().engine.begin() as connection:
            prefix = api_keys.revoke_key(connection, caller().tenant_id, str(key_id))
        services().keyring.forget(prefix)
