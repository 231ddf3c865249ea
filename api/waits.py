"""Waits: the task runs that wait for a person or an outside event, and the event, reported by its token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask.views import MethodView
from marshmallow import Schema, fields, validate
from werkzeug.exceptions import NotFound as NoSuchToken

from api.access import caller
from api.commands import command_id_field
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.resource import Resource, needs
from api.services import services
from api.task_view import planned_of
from api.typed_input import require_fit
from orchestrator.store import command_requests, run_queries
from orchestrator.store.api_keys import Role

blueprint = Resource("waits", __name__, url_prefix="/api/v1", description="What tasks wait for from outside.")

EVENT = "event"
MOST_TOKEN = 128


class WaitSchema(Schema):
    run_id = fields.UUID(required=True)
    pipeline_name = fields.String(required=True)
    task = fields.String(required=True)
    kind = fields.String(required=True, validate=validate.OneOf(["approval", EVENT]))
    message = fields.String(required=True, metadata={"description": "What is to be decided, or is waited for."})
    wait_token = fields.String(
        required=True, allow_none=True, metadata={"description": "Of an event: reported by `POST /api/v1/events/…`."}
    )
    times_out_at = fields.DateTime(required=True, allow_none=True)


class WaitListQuery(PageQuery):
    sort = sort_field(list(run_queries.WAIT_ORDERS), "id")
    kind = fields.String(load_default=None, validate=validate.OneOf(["approval", EVENT]))


class EventReportSchema(Schema):
    payload = fields.Raw(
        load_default=None,
        allow_none=True,
        metadata={"description": "Any JSON; checked against the `payload` schema of the task."},
    )


class EventAnswerSchema(Schema):
    run_id = fields.UUID(required=True)
    task = fields.String(required=True)
    command_id = command_id_field()


WaitPage = page_of(WaitSchema)
EXAMPLE = {
    "run_id": "7d0a9f6e-0d1c-4f0e-9d5b-0c6a1f3b2e11",
    "pipeline_name": "release",
    "task": "ask",
    "kind": "approval",
    "message": "The accuracy is 0.93. Where may it go?",
    "wait_token": None,
    "times_out_at": "2026-01-02T12:00:00+00:00",
}


@blueprint.route("/waits")
class Waits(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(WaitListQuery)
    @blueprint.answers(200, WaitPage, example={"items": [EXAMPLE], "next_cursor": None})
    def get(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """List what waits for a person or an outside event, whatever the run."""
        with services().engine.connect() as connection:
            page = run_queries.list_waits(
                connection, caller().tenant_id, window(query, run_queries.WAIT_ORDERS), kind=query["kind"]
            )
        for item in page.items:
            item["kind"] = item["reason"]
        return page_json(page)


@blueprint.route("/events/<string:token>")
class Event(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.optional_body(EventReportSchema, example={"payload": {"rows": 1000}})
    @blueprint.answers(
        202,
        EventAnswerSchema,
        description="The leader will let the task go on. The same report again changes nothing: `command_id` is null. "
        "With another payload it is 409.",
        example={"run_id": EXAMPLE["run_id"], "task": "export", "command_id": 7},
    )
    def post(self, body: Mapping[str, Any], token: str) -> dict[str, Any]:
        """Report the event that a task waits for under this token; only the first report of a token counts."""
        if len(token) > MOST_TOKEN:
            raise NoSuchToken("Nothing waits for an event with this token.")
        tenant_id, payload = caller().tenant_id, body["payload"]
        with services().engine.connect() as connection:
            if (first := command_requests.find_report(connection, tenant_id, token, payload)) is not None:
                return _reported_before(first)
            wait = command_requests.find_wait(connection, token)
            if wait.tenant_id != tenant_id:
                raise NoSuchToken("Nothing waits for an event with this token.")
            command_requests.require_wait(wait.state, wait.reason, wait.task, wait.run_id, EVENT)
            row = run_queries.get_task(connection, tenant_id, wait.run_id, wait.task)
            event = planned_of(connection, tenant_id, wait.version_id, row).event
        require_fit(None if event is None else event.payload, payload, "/payload")
        with services().engine.begin() as connection:
            # Somebody may have reported it in between, or be about to.
            command_requests.hold_token(connection, token)
            if (first := command_requests.find_report(connection, tenant_id, token, payload)) is not None:
                return _reported_before(first)
            command = command_requests.report_event(connection, token, payload, caller().name)
        services().live.wake()
        return {"run_id": command["run_id"], "task": command["task"], "command_id": command["id"]}


def _reported_before(first: Mapping[str, Any]) -> dict[str, Any]:
    return {"run_id": first["run_id"], "task": first["task"], "command_id": None}
