"""Fetches a source that is a file: from a data root or an object store, byte by byte as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from operators.ingestion.plan import Plan
from operators.tables.locate import download_s3, open_bucket, s3_failure, split_s3
from orchestrator.inputs import local_file
from orchestrator.operator import Connection, Json, OperatorFailure, TaskContext

_CHUNK = 4 << 20
_OPTION_NAMES: Mapping[str, str] = {
    "endpoint_url": "aws_endpoint_url",
    "access_key_id": "aws_access_key_id",
    "secret_access_key": "aws_secret_access_key",
    "session_token": "aws_session_token",
    "region": "aws_region",
}


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
    download_s3(plan.location, s3_options_of(context, plan.connection), target, plan.max_bytes)


def look_local(context: TaskContext, plan: Plan) -> Mapping[str, Json]:
    """Return the size of the file, without copying it."""
    size = local_file(context, plan.location).stat().st_size
    _refuse_larger(plan, size)
    return {"bytes": size}


def look_s3(context: TaskContext, plan: Plan) -> Mapping[str, Json]:
    """Ask the store for the object's head."""
    import obstore

    bucket, key = split_s3(plan.location)
    try:
        size = obstore.head(open_bucket(bucket, s3_options_of(context, plan.connection)), key)["size"]
    except Exception as error:
        raise s3_failure(error, plan.location) from error
    _refuse_larger(plan, size)
    return {"bytes": size}


def s3_options_of(context: TaskContext, connection: Connection | None) -> Mapping[str, str]:
    """Return the site's options for S3, overridden by those of the connection."""
    options = dict(context.s3_options)
    for name, value in (connection.options if connection is not None else {}).items():
        if name in _OPTION_NAMES:
            options[_OPTION_NAMES[name]] = str(value)
    if options.get("aws_endpoint_url", "").startswith("http://"):
        options["aws_allow_http"] = "true"
    return options


def _refuse_larger(plan: Plan, size: int) -> None:
    if plan.max_bytes is not None and size > plan.max_bytes:
        raise OperatorFailure(
            "too_large", f"{plan.location} has {size:,} bytes, more than max_bytes ({plan.max_bytes:,})."
        )
