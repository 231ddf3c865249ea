"""The audit of a run: every transition with its cause and actor, as a list or followed as it grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from flask import Response, jsonify, request
from flask.views import MethodView
from marshmallow import Schema, fields, validate
from sqlalchemy import Engine

from api.access import caller
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.resource import Resource, needs
from api.services import services
from api.sse import EVENT_SCHEMA, MEDIA_TYPE, Pace, event, wants_stream
from orchestrator.errors import StoreUnavailable
from orchestrator.states import RUN_TERMINAL, Entity, RunState
from orchestrator.store import run_queries
from orchestrator.store.api_keys import Role
from orchestrator.store.run_queries import EventFilter

blueprint = Resource("events", __name__, url_prefix="/api/v1/runs", description="The audit of transitions.")

_BATCH = 200


class TransitionSchema(Schema):
    id = fields.Integer(required=True, metadata={"description": "Rises; gaps mean nothing."})
    at = fields.DateTime(required=True)
    entity = fields.String(required=True, validate=validate.OneOf([entity.value for entity in Entity]))
    entity_id = fields.String(required=True)
    task = fields.String(required=True, allow_none=True)
    before = fields.String(required=True, allow_none=True)
    after = fields.String(required=True)
    reason = fields.String(required=True)
    message = fields.String(required=True)
    cause = fields.String(required=True, metadata={"description": "What led here: outcome, claim, lease, timer …"})
    actor = fields.String(required=True, metadata={"description": "The scheduler, or the key that asked for it."})
    epoch = fields.Integer(required=True, metadata={"description": "Of the leader that wrote it; 0 for the API."})


class EventListQuery(PageQuery):
    sort = sort_field(list(run_queries.EVENT_ORDERS), "id")
    task = fields.String()
    entity = fields.String(validate=validate.OneOf([entity.value for entity in Entity]))
    follow = fields.Boolean(
        load_default=False,
        metadata={
            "description": "Answer with server-sent events until the run ends, as does `Accept: text/event-stream`."
        },
    )


TransitionPage = page_of(TransitionSchema)


@blueprint.route("/<uuid:run_id>/events")
class RunEvents(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(EventListQuery)
    @blueprint.also(200, TransitionPage, content_type="application/json", description="A page of transitions.")
    @blueprint.also(
        200,
        EVENT_SCHEMA,
        content_type=MEDIA_TYPE,
        description="Events `transition`, then `end` "
        "with the run's state; `Last-Event-ID` goes on after that one. Filters and sort do not apply.",
    )
    def get(self, query: Mapping[str, Any], run_id: UUID) -> Response:
        """List a run's transitions, oldest first."""
        tenant_id = caller().tenant_id
        with services().engine.connect() as connection:
            run_queries.run_state(connection, tenant_id, str(run_id))
            if not (query["follow"] or wants_stream()):
                page = run_queries.list_events(
                    connection,
                    tenant_id,
                    str(run_id),
                    window(query, run_queries.EVENT_ORDERS),
                    EventFilter(query.get("task"), query.get("entity")),
                )
                return jsonify(TransitionPage().dump(page_json(page)))
        return services().streams.respond(follow(services().engine, tenant_id, str(run_id), _resume_after()))


def follow(engine: Engine, tenant_id: str, run_id: str, after: int) -> Iterator[str]:
    """Yield transitions until the run has ended and all of them were sent."""
    pace = Pace()
    show = TransitionSchema()
    while not pace.over():
        try:
            with engine.connect() as connection:
                # The state comes first: what led to a terminal one is then certainly among the rows.
                state = run_queries.run_state(connection, tenant_id, run_id)
                rows = run_queries.events_after(connection, tenant_id, run_id, after, _BATCH)
        except StoreUnavailable:
            yield from pace.rest()
            continue
        for row in rows:
            after = row["id"]
            yield event("transition", show.dump(row), id=after)
        if rows:
            pace.spoke()
            continue
        if RunState(state) in RUN_TERMINAL:
            yield event("end", {"state": state}, id=after)
            return
        yield from pace.rest()


def _resume_after() -> int:
    last = request.headers.get("Last-Event-ID", "")
    return int(last) if last.isascii() and last.isdigit() and len(last) < 19 else 0
