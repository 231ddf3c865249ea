"""Health: whether the stores answer, a scheduler leads and workers are there; in one word, or part by part."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from flask import Response, jsonify
from flask.views import MethodView
from marshmallow import Schema, fields, validate

from api.resource import Resource, needs
from api.services import services
from orchestrator import __version__
from orchestrator.errors import StoreUnavailable
from orchestrator.store import reports
from orchestrator.store.api_keys import Role

blueprint = Resource("health", __name__, url_prefix="/monitoring", description="Whether everything answers.")

_NO_LEADER = "No scheduler leads; start one with `python -m scheduler`."
_LEAVES_ALONE = (
    "Runs under way have plans of another release that the leading scheduler can't read, so it leaves them alone; its "
    "log names them. Start schedulers of the release that made them, and stop this one."
)
_WORDS = ["healthy", "degraded", "unhealthy"]
_SLOW_REPORTS = 5_000
"""Reports waiting for the leader; more means that it doesn't keep up."""


class HealthSchema(Schema):
    status = fields.String(
        required=True,
        validate=validate.OneOf(_WORDS),
        metadata={
            "description": "degraded: runs are accepted, but something that executes them is away. unhealthy: the API "
            "can't work."
        },
    )


class DetailedHealthSchema(HealthSchema):
    version = fields.String(required=True)
    components = fields.Dict(
        required=True,
        keys=fields.String(),
        values=fields.Dict(),
        metadata={
            "description": "database, redis, leader, workers, stream, services: each with a status and what is known. "
            "services are outside ones that tasks connect to; those in trouble are left alone until `open_until`."
        },
    )


@blueprint.route("/health")
class Health(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, HealthSchema)
    @blueprint.also(503, HealthSchema, description="unhealthy, or no answer at all.")
    def get(self) -> Response:
        """Say in one word how the system is."""
        return _respond({"status": _overall(examine())})


@blueprint.route("/health/detailed")
class DetailedHealth(MethodView):
    @needs(Role.VIEWER)
    @blueprint.answers(200, DetailedHealthSchema)
    @blueprint.also(503, DetailedHealthSchema, description="unhealthy, or no answer at all.")
    def get(self) -> Response:
        """Say how each part of the system is."""
        components = examine()
        return _respond({"status": _overall(components), "version": __version__, "components": components})


def examine() -> dict[str, dict[str, Any]]:
    """Look at every part; a part that can't be looked at says so."""
    return {**_stores(), **_wire()}


def _stores() -> dict[str, dict[str, Any]]:
    began = time.perf_counter()
    try:
        with services().engine.connect() as connection:
            version = reports.server_version(connection)
            took = time.perf_counter() - began
            revision = reports.schema_revision(connection)
            leader = reports.read_leader(connection)
            workers = reports.count_live_workers(connection)
            # The leader says it at every reconcile.
            circuits = reports.read_circuits(connection)
            leaves_alone = reports.has_left_runs_alone(connection, 3 * services().settings.reconcile_seconds)
    except StoreUnavailable:
        away = {"status": "unhealthy", "message": "PostgreSQL does not answer."}
        unknown = {"status": "unhealthy", "message": "Not known while PostgreSQL does not answer."}
        return {"database": away, "leader": unknown, "workers": unknown, "services": unknown}
    leads = leader is not None and leader.held
    online = workers.get("online", 0)
    return {
        "database": {
            "status": "healthy",
            "version": version,
            "revision": revision,
            "milliseconds": round(took * 1000, 2),
        },
        "leader": {
            "status": "healthy" if leads and not leaves_alone else "degraded",
            "message": _LEAVES_ALONE if leads and leaves_alone else "" if leads else _NO_LEADER,
            "holder": leader.holder if leader else None,
            "epoch": leader.epoch if leader else None,
            "renewed_seconds_ago": round(leader.age, 3) if leader else None,
        },
        "workers": {
            "status": "healthy" if online else "degraded",
            "message": "" if online else "No worker is online; start one with `celery -A workers worker -Q cpu`.",
            **{state: workers.get(state, 0) for state in ("online", "suspect", "draining")},
        },
        "services": _services(circuits),
    }


def _services(circuits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    left_alone = [circuit["service"] for circuit in circuits if circuit["state"] != "closed"]
    names = ", ".join(left_alone)
    return {
        "status": "degraded" if left_alone else "healthy",
        "message": f"Tasks that use {names} failed in a row and wait; it is tried again by itself." if names else "",
        "circuits": [
            {**circuit, **{name: _moment(circuit[name]) for name in ("open_until", "changed_at")}}
            for circuit in circuits
        ],
    }


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _wire() -> dict[str, dict[str, Any]]:
    try:
        facts = services().live.facts()
    except StoreUnavailable:
        away = {"status": "degraded", "message": "Redis does not answer; runs are accepted and wait."}
        return {"redis": away, "stream": {"status": "degraded", "message": "Not known while Redis does not answer."}}
    slow = facts.waiting_reports > _SLOW_REPORTS
    return {
        "redis": {
            "status": "degraded" if facts.is_full else "healthy",
            "message": "Redis is full (maxmemory): no task is given to a worker until there is room; runs are accepted "
            "and wait."
            if facts.is_full
            else "",
            "version": facts.version,
            "milliseconds": facts.milliseconds,
        },
        "stream": {
            "status": "degraded" if slow else "healthy",
            "message": "The leader does not keep up with its reports." if slow else "",
            "waiting_reports": facts.waiting_reports,
            "waiting_log_chunks": facts.waiting_log_chunks,
        },
    }


def _overall(components: dict[str, dict[str, Any]]) -> str:
    if components["database"]["status"] == "unhealthy":
        return "unhealthy"
    return "healthy" if all(part["status"] == "healthy" for part in components.values()) else "degraded"


def _respond(document: dict[str, Any]) -> Response:
    response = jsonify(document)
    response.status_code = 503 if document["status"] == "unhealthy" else 200
    return response
