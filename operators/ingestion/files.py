"""Fetches a source that is a file: from a data root or an object store, byte by byte as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from operators.ingestion.plan import Plan
from orchestrator import s3_objects
from orchestrator.inputs import local_file
from orchestrator.operator import Json, OperatorFailure, TaskContext

_CHUNK = 4 << 20


def fetch_local(context: TaskContext, plan: Plan, target: Path) -> None:
    """Copy the file: what is checked and what is published are then the same bytes, whatever happens to the source."""
    source = local_file(context, plan.location)
    size = source.stat().st_size
    _refuse_larger(plan, size)
    done = 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            done += len(chunk)
            context.progress(0.5 * min(1.0, done / max(size, 1)), f"copied {done:,} bytes")


def fetch_s3(context: TaskContext, plan: Plan, target: Path) -> None:
    """Download the object in chunks."""
    s3_objects.download(context, plan.location, target, plan.connection, plan.max_bytes)


def look_local(context: TaskContext, plan: Plan) -> Mapping[str, Json]:
    """Return the size of the file, without copying it."""
    size = local_file(context, plan.location).stat().st_size
    _refuse_larger(plan, size)
    return {"bytes": size}


def look_s3(context: TaskContext, plan: Plan) -> Mapping[str, Json]:
    """Ask the store for the object's head."""
    size = s3_objects.size_of(context, plan.location, plan.connection)
    _refuse_larger(plan, size)
    return {"bytes": size}


def _refuse_larger(plan: Plan, size: int) -> None:
    if plan.max_bytes is not None and size > plan.max_bytes:
        raise OperatorFailure(
            "too_large", f"{plan.location} has {size:,} bytes, more than max_bytes ({plan.max_bytes:,})."
        )
