"""Task runs as answers show them: the row, the plan's part, where it stands, and how far what runs is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marshmallow import Schema, fields, validate
from sqlalchemy import Connection

from api.commands import command_id_field
from api.services import services
from api.versions import RunVersion
from orchestrator.plan_json import kind_of_task
from orchestrator.records import PlannedTask
from orchestrator.states import TaskState
from orchestrator.store import run_queries
from orchestrator.store.places import Asked, find_places
from orchestrator.wire.progress import Progress

KINDS = ("operator", "map", "repeat", "pipeline", "approval", "event")
WAITS = ("approval", "event", "not_yet")
_LIVE = frozenset({TaskState.RUNNING, TaskState.CANCELLING})


class UsageSchema(Schema):
    peak_memory_bytes = fields.Integer(required=True, allow_none=True)
    cpu_seconds = fields.Float(required=True, allow_none=True)
    wall_seconds = fields.Float(required=True, allow_none=True)
    gpu_memory_bytes = fields.Integer(required=True, allow_none=True)


class TaskLinkSchema(Schema):
    run_id = fields.UUID(required=True)
    task = fields.String(required=True)


class CacheLookSchema(Schema):
    hit = fields.Boolean(required=True)
    message = fields.String(
        required=True, metadata={"description": "Whose outputs they are, or which part of the key makes the miss."}
    )


class TaskRunSchema(Schema):
    id = fields.UUID(required=True)
    name = fields.String(
        required=True, metadata={"description": "In the run: `train`, of a container `train[3]`, `folds[2].train`."}
    )
    kind = fields.String(
        required=True,
        validate=validate.OneOf(KINDS),
        metadata={"description": "All but `operator` are run by no worker; `map` and `repeat` are containers."},
    )
    operator = fields.String(required=True)
    upstream_tasks = fields.List(fields.String(), required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in TaskState]))
    reason = fields.String(required=True, metadata={"description": "Why it waits or how it ended, as a word."})
    message = fields.String(required=True, metadata={"description": "The same as a sentence."})
    parent = fields.String(required=True, allow_none=True, metadata={"description": "The container that it is in."})
    map_index = fields.Integer(required=True, allow_none=True, metadata={"description": "Its index or round there."})
    map_key = fields.String(required=True, allow_none=True, metadata={"description": "What its `key` came to."})
    item = fields.Raw(required=True, allow_none=True, metadata={"description": "What it got of `over`."})
    inside = fields.Dict(
        required=True,
        allow_none=True,
        keys=fields.String(),
        values=fields.Integer(),
        metadata={"description": "Of a container: how many task runs directly inside are in which state."},
    )
    child_run_id = fields.UUID(required=True, allow_none=True, metadata={"description": "The run that it is."})
    waits_for = fields.String(
        required=True,
        allow_none=True,
        validate=validate.OneOf(WAITS),
        metadata={"description": "While it is `waiting`: for a person, an outside event, or what is not there yet."},
    )
    wait_token = fields.String(
        required=True, allow_none=True, metadata={"description": "While it waits for an event: reports it."}
    )
    asks = fields.Dict(
        required=True,
        allow_none=True,
        metadata={"description": "While it waits: the JSON schema of the approval's input or the event's payload."},
    )
    cached_from = fields.Nested(
        TaskLinkSchema,
        required=True,
        allow_none=True,
        metadata={"description": "Whose outputs these are: found in the cache, or taken over by a rerun."},
    )
    cache = fields.Nested(CacheLookSchema, required=True, allow_none=True)
    attempt_number = fields.Integer(required=True, metadata={"description": "Tries so far."})
    attempt_id = fields.UUID(required=True, allow_none=True)
    failures = fields.Integer(required=True, metadata={"description": "Tries charged to `retries`."})
    losses = fields.Integer(required=True, metadata={"description": "Tries lost to infrastructure."})
    generation = fields.Integer(required=True, metadata={"description": "1, and one more with each rerun of it."})
    queue = fields.String(required=True)
    worker = fields.String(required=True, allow_none=True, metadata={"description": "Its name, as in Flower."})
    ready_at = fields.DateTime(required=True, allow_none=True)
    queued_at = fields.DateTime(required=True, allow_none=True)
    started_at = fields.DateTime(required=True, allow_none=True)
    ended_at = fields.DateTime(required=True, allow_none=True)
    retry_at = fields.DateTime(
        required=True, allow_none=True, metadata={"description": "When it is tried or looked at again, or times out."}
    )
    deadline_at = fields.DateTime(required=True, allow_none=True)
    progress = fields.Float(required=True, allow_none=True, metadata={"description": "0 to 1, while it runs."})
    progress_message = fields.String(required=True)
    phase = fields.String(
        required=True,
        metadata={"description": "While it runs: `setup` until its operator does, then `running`; empty: not known."},
    )
    outputs = fields.Dict(
        required=True,
        allow_none=True,
        metadata={"description": "Of containers and of runs that are tasks: by `…/outputs`."},
    )
    usage = fields.Nested(UsageSchema, required=True)


def outputs_field() -> fields.Boolean:
    """Return the parameter of a query by which outputs are left out."""
    return fields.Boolean(
        load_default=True,
        metadata={"description": "Whether to tell the `outputs` of tasks, up to 256 KB each; else they are null."},
    )


class AskedTaskRunSchema(TaskRunSchema):
    command_id = command_id_field()


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a task run stands."""

    planned: PlannedTask | None
    """``None``: the plan does not know it."""
    upstream: Sequence[str] = ()
    """Names of rows."""
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rows of task runs are shown with, read in the same transaction."""

    standing: Mapping[str, Standing]
    inside: Mapping[str, Mapping[str, int]]
    origins: Mapping[str, Mapping[str, Any]]


def look_around(
    connection: Connection, tenant_id: str, run_id: str, rows: Sequence[Mapping[str, Any]], version: RunVersion | str
) -> Surroundings:
    """Read what these task runs of a run are shown with.

    :param version: of the run; a sentence, where it can't be read: then they are shown without the plan's part.
    """
    own_tasks: Mapping[str, PlannedTask] = {} if isinstance(version, str) else version.planned
    inner = [row["id"] for row in rows if row["parent_id"] is not None]
    asked = [] if isinstance(version, str) else [Asked(id_, version.plan) for id_ in inner]
    places = find_places(connection, asked) if asked else {}
    standing: dict[str, Standing] = {}
    for row in rows:
        place = places.get(row["id"])
        if place is None:
            planned = own_tasks.get(row["name"]) if row["parent_id"] is None else None
            standing[row["id"]] = Standing(planned, () if planned is None else planned.upstream)
        else:
            own = place.own
            upstream = [own.row_name(name) for name in own.planned.upstream]
            standing[row["id"]] = Standing(own.planned, upstream, place.levels[-2].name)
    folds = any(seen.planned is not None and seen.planned.is_container for seen in standing.values())
    origins = [row["cached_from"] for row in rows if row["cached_from"] is not None]
    return Surroundings(
        standing,
        run_queries.count_inside(connection, tenant_id, run_id) if folds else {},
        run_queries.named_task_runs(connection, tenant_id, origins),
    )


def planned_of(connection: Connection, tenant_id: str, version_id: str, row: Mapping[str, Any]) -> PlannedTask:
    """Return what the plan says of a task run, whatever container it is in."""
    version = services().versions.get(connection, tenant_id, version_id)
    return find_places(connection, [Asked(row["id"], version.plan)])[row["id"]].planned


def show_tasks(rows: Sequence[Mapping[str, Any]], around: Surroundings, *, live: bool = True) -> list[dict[str, Any]]:
    """Return task runs as answers show them; how far those are that run is asked of Redis."""
    running = [str(row["attempt_id"]) for row in rows if row["state"] in _LIVE and row["attempt_id"]] if live else []
    progress = services().live.progress(running)
    return [_shown(row, around, progress.get(str(row["attempt_id"]))) for row in rows]


def show_usage(row: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Return what the attempt used; while it runs, what it uses now."""
    memory, cpu = row["peak_memory"], row["cpu_seconds"]
    if progress is not None:
        memory = memory if memory is not None else progress.memory
        cpu = cpu if cpu is not None else progress.cpu_seconds
    return {
        "peak_memory_bytes": memory,
        "cpu_seconds": cpu,
        "wall_seconds": row["wall_seconds"],
        "gpu_memory_bytes": row["gpu_memory_used"],
    }


def _shown(row: Mapping[str, Any], around: Surroundings, progress: Progress | None) -> dict[str, Any]:
    seen = around.standing[row["id"]]
    planned, is_inner = seen.planned, row["parent_id"] is not None
    is_container = planned is not None and planned.is_container
    return {
        **row,
        "kind": "operator" if planned is None else kind_of_task(planned),
        "upstream_tasks": seen.upstream,
        "parent": seen.parent,
        "map_key": row["map_key"] if is_inner else None,
        "inside": around.inside.get(row["id"], {}) if is_container else None,
        "cached_from": around.origins.get(row["cached_from"]),
        "cache": show_cache(row["cache_detail"]),
        "queue": row["queue"] or ("" if planned is None or not planned.has_attempts else planned.queue),
        "worker": row["worker"] or row["worker_id"],
        "progress": progress.fraction if progress else None,
        "progress_message": progress.message if progress else "",
        "phase": progress.phase if progress else "",
        "usage": show_usage(row, progress),
        **_wait(row, planned),
    }


def _wait(row: Mapping[str, Any], planned: PlannedTask | None) -> dict[str, Any]:
    """Return what it waits for, while it does: a token that is over is of no use to anybody."""
    waits = row["reason"] if row["state"] == TaskState.WAITING and row["reason"] in WAITS else None
    schema: Mapping[str, Any] | None = None
    if planned is not None and waits == "approval" and planned.approval is not None:
        schema = planned.approval.input
    if planned is not None and waits == "event" and planned.event is not None:
        schema = planned.event.payload
    return {"waits_for": waits, "wait_token": row["wait_token"] if waits == "event" else None, "asks": schema}


def show_cache(detail: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what came of the look into the cache; ``None``: none was taken."""
    return None if not detail else {"hit": bool(detail.get("hit")), "message": str(detail.get("message", ""))}
