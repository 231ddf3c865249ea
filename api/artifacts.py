"""What a run has left in the artifact store: who made it, what it may be made from, and what has removed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from flask.views import MethodView
from marshmallow import Schema, fields, validate
from sqlalchemy import Connection

from api.access import caller
from api.lists import PageQuery, page_json, page_of, sort_field, window
from api.resource import Resource, needs
from api.services import services
from api.task_view import TaskLinkSchema, look_around
from orchestrator.store import artifact_queries, run_queries
from orchestrator.store.api_keys import Role
from orchestrator.store.pages import Page

blueprint = Resource("artifacts", __name__, url_prefix="/api/v1/runs", description="What tasks left behind.")


class ArtifactSchema(Schema):
    uri = fields.String(required=True, metadata={"example": "artifact://sha256/…"})
    digest = fields.String(required=True, metadata={"description": "Of its content; empty: not known."})
    size = fields.Integer(required=True, metadata={"description": "Bytes."})
    producer = fields.Nested(
        TaskLinkSchema,
        required=True,
        allow_none=True,
        metadata={"description": "The task that made it; of another run when it was cached or taken over."},
    )
    attempt_id = fields.UUID(required=True, allow_none=True)
    made_from = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "What the tasks directly upstream of its producer have left, in this run."},
    )
    created_at = fields.DateTime(required=True)
    expires_at = fields.DateTime(required=True, allow_none=True)
    deleted_at = fields.DateTime(required=True, allow_none=True)
    deleted_by = fields.String(required=True, metadata={"description": "The rule that has removed it."})


class ArtifactListQuery(PageQuery):
    sort = sort_field(list(artifact_queries.ARTIFACT_ORDERS), "created_at")
    task = fields.String(
        load_default=None,
        validate=validate.Length(1, 500),
        metadata={"description": "Only what this task run has made, or names in its outputs."},
    )


ArtifactPage = page_of(ArtifactSchema)
EXAMPLE = {
    "uri": "artifact://t/models/9f86d081",
    "digest": "sha256:9f86d081",
    "size": 18_214,
    "producer": {"run_id": "7d0a9f6e-0d1c-4f0e-9d5b-0c6a1f3b2e11", "task": "train"},
    "attempt_id": "5a0f2c5e-8a0b-4c55-a7d8-9b7d5d4f7c01",
    "made_from": ["artifact://t/datasets/60303ae2"],
    "created_at": "2026-01-01T12:00:00+00:00",
    "expires_at": None,
    "deleted_at": None,
    "deleted_by": "",
}


@blueprint.route("/<uuid:run_id>/artifacts")
class Artifacts(MethodView):
    @needs(Role.VIEWER)
    @blueprint.query(ArtifactListQuery)
    @blueprint.answers(200, ArtifactPage, example={"items": [EXAMPLE], "next_cursor": None})
    def get(self, query: Mapping[str, Any], run_id: UUID) -> dict[str, Any]:
        """List what a run has left in the artifact store, or has taken over from others, with where it comes from."""
        tenant_id, run = caller().tenant_id, str(run_id)
        with services().engine.connect() as connection:
            run_queries.run_state(connection, tenant_id, run)
            if query["task"] is not None:
                run_queries.get_task(connection, tenant_id, run, query["task"])
            page = artifact_queries.list_artifacts(
                connection, tenant_id, run, window(query, artifact_queries.ARTIFACT_ORDERS), query["task"]
            )
            sources = _sources(connection, run, page.items)
        return page_json(Page([_shown(row, run, sources) for row in page.items], page.after))


def _sources(connection: Connection, run_id: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return, by the name of each producer of this run, the artifacts that its direct upstreams have left."""
    tenant_id = caller().tenant_id
    producers = sorted({row["task"] for row in rows if row["run_id"] == run_id and row["task"]})
    if not producers:
        return {}
    run = run_queries.get_run(connection, tenant_id, run_id)
    version = services().versions.find(connection, tenant_id, run["version_id"])
    tasks = run_queries.tasks_named(connection, tenant_id, run_id, producers)
    standing = look_around(connection, tenant_id, run_id, tasks, version).standing
    upstream = {task["name"]: standing[task["id"]].upstream for task in tasks}
    named = artifact_queries.artifacts_named_by(
        connection, run_id, sorted({up for ups in upstream.values() for up in ups})
    )
    return {name: sorted({uri for up in ups for uri in named.get(up, ())}) for name, ups in upstream.items()}


def _shown(row: Mapping[str, Any], run_id: str, sources: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    made_here = row["run_id"] == run_id
    return {
        **row,
        "producer": {"run_id": row["run_id"], "task": row["task"]} if row["run_id"] and row["task"] else None,
        "made_from": sources.get(row["task"], ()) if made_here else (),
    }
