"""Workers: their capacity, what is reserved on their hosts, what they run; draining one is a command to the leader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask.views import MethodView
from marshmallow import Schema, fields, validate
from webargs.fields import DelimitedList

from api.access import caller
from api.commands import CommandSchema
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.resource import Resource, needs
from api.services import services
from orchestrator.states import AttemptState, WorkerState
from orchestrator.store import command_requests, worker_queries
from orchestrator.store.api_keys import Role
from orchestrator.store.pages import Page

blueprint = Resource("workers", __name__, url_prefix="/api/v1/workers", description="Worker incarnations and hosts.")


class CapacitySchema(Schema):
    cpu = fields.Float(required=True, metadata={"description": "Cores."})
    memory_bytes = fields.Integer(required=True)
    gpus = fields.List(fields.Dict(), required=True, metadata={"description": "Devices: uuid, model, memory …"})


class ReservedSchema(Schema):
    cpu = fields.Float(required=True)
    memory_bytes = fields.Integer(required=True)
    gpus = fields.Integer(required=True)
    attempts = fields.Integer(required=True)


class HeldAttemptSchema(Schema):
    attempt_id = fields.UUID(required=True)
    run_id = fields.UUID(required=True)
    task = fields.String(required=True)
    number = fields.Integer(required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in AttemptState]))
    cpu = fields.Float(required=True)
    memory_bytes = fields.Integer(required=True)
    gpus = fields.Integer(required=True)
    devices = fields.List(fields.String(), required=True)
    granted_at = fields.DateTime(required=True, allow_none=True)


class WorkerSchema(Schema):
    id = fields.String(required=True, metadata={"description": "Of this start of the process; never used again."})
    name = fields.String(required=True, metadata={"description": "Celery's node name, as in Flower."})
    host_id = fields.String(required=True)
    hostname = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in WorkerState]))
    reason = fields.String(required=True)
    queues = fields.List(fields.String(), required=True)
    slots = fields.Integer(required=True)
    slots_used = fields.Integer(required=True)
    labels = fields.Dict(required=True)
    version = fields.String(required=True)
    store_scope = fields.String(required=True)
    draining = fields.Boolean(required=True)
    drain_until = fields.DateTime(
        required=True,
        allow_none=True,
        metadata={"description": "When what it still runs is stopped and goes elsewhere, if a drain has a deadline."},
    )
    capacity = fields.Nested(
        CapacitySchema, required=True, metadata={"description": "Of its host, for all workers on it."}
    )
    reserved = fields.Nested(
        ReservedSchema, required=True, metadata={"description": "Of its host, by all workers on it."}
    )
    running = fields.List(
        fields.Nested(HeldAttemptSchema),
        required=True,
        metadata={"description": "Attempts of your tenant that it was given."},
    )
    started_at = fields.DateTime(required=True)
    seen_at = fields.DateTime(required=True, allow_none=True)
    ended_at = fields.DateTime(required=True, allow_none=True)


class DrainRequestSchema(Schema):
    deadline_seconds = fields.Float(
        validate=validate.Range(0, 366 * 86400),
        metadata={
            "description": "After so long the worker stops what it still runs, which then goes elsewhere at no cost to "
            "retries; 0 is at once. Left out: DRAIN_SECONDS of the worker, or the deadline of an earlier drain."
        },
    )


class WorkerListQuery(PageQuery):
    sort = sort_field(list(worker_queries.WORKER_ORDERS), "name")
    state = DelimitedList(
        fields.String(validate=validate.OneOf([state.value for state in WorkerState])),
        load_default=list(worker_queries.LIVE_STATES),
        metadata={"description": "One or more states, separated by commas; the live ones when left out."},
    )
    queue = fields.String()
    host_id = fields.String()


WorkerPage = page_of(WorkerSchema)


@blueprint.route("")
class Workers(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(WorkerListQuery)
    @blueprint.answers(200, WorkerPage)
    def get(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """List workers with capacity, reservations and running attempts."""
        page = window(query, worker_queries.WORKER_ORDERS)
        with services().engine.connect() as connection:
            found = worker_queries.list_workers(
                connection,
                caller().tenant_id,
                page,
                states=query["state"],
                queue=query.get("queue"),
                host_id=query.get("host_id"),
            )
        return page_json(Page([_shown(worker) for worker in found.items], found.after))


@blueprint.route("/<string:worker_id>")
class Worker(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, WorkerSchema)
    def get(self, worker_id: str) -> dict[str, Any]:
        """Get a worker."""
        with services().engine.connect() as connection:
            return _shown(worker_queries.get_worker(connection, caller().tenant_id, worker_id))


@blueprint.route("/<string:worker_id>/drain")
class Drain(MethodView):
    @needs(Role.ADMIN)
    @blueprint.refuses(409)
    @blueprint.optional_body(DrainRequestSchema, example={"deadline_seconds": 600})
    @blueprint.answers(202, CommandSchema, description="The leader will give it nothing more.")
    def post(self, body: Mapping[str, Any], worker_id: str) -> dict[str, Any]:
        """Let a worker finish what it runs and give it nothing more; another deadline replaces the one before."""
        return _command(worker_id, drain=True, deadline_seconds=body.get("deadline_seconds"))

    @needs(Role.ADMIN)
    @blueprint.refuses(409)
    @blueprint.answers(202, CommandSchema, description="The leader will give it attempts again.")
    def delete(self, worker_id: str) -> dict[str, Any]:
        """Take a drain back."""
        return _command(worker_id, drain=False)


def _command(worker_id: str, *, drain: bool, deadline_seconds: float | None = None) -> dict[str, Any]:
    with services().engine.begin() as connection:
        command = command_requests.request_drain(
            connection, caller().tenant_id, worker_id, caller().name, drain=drain, deadline_seconds=deadline_seconds
        )
    services().live.wake()
    return command


def _shown(worker: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **worker,
        "capacity": {"cpu": worker["cpu"] / 1000, "memory_bytes": worker["memory"], "gpus": worker["gpus"]},
        "reserved": _amounts(worker["reserved"]),
        "running": [{**_amounts(held), "attempt_id": held["id"]} for held in worker["running"]],
    }


def _amounts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "cpu": int(row["cpu"]) / 1000, "memory_bytes": int(row["memory"])}
