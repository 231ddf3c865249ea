"""From the URI of a dataset to a file on this host."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from operators.tables.formats import FORMATS, format_of_path
from orchestrator.inputs import describe_output, local_file
from orchestrator.operator import Json, OperatorFailure, TaskContext

_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class LocatedDataset:
    """A dataset that can be read from ``path``."""

    uri: str
    format: str
    path: Path
    output: Mapping[str, Json]
    """What the task that made it said about it; empty when it comes from outside."""


def locate_dataset(context: TaskContext, uri: str, format: str | None = None) -> LocatedDataset:
    """Find a dataset, downloading it into the work directory where it is not on this host.

    :param format: overrides what the upstream task says and what the suffix says.
    :raises OperatorFailure: it is not there, or its format is unknown.
    """
    output = describe_output(context, "dataset", uri)
    known = format or output.get("format") or format_of_path(uri)
    if known not in FORMATS:
        raise OperatorFailure(
            "bad_parameters", f"The format of {uri} can't be told from its name; set `format` to csv, json or parquet."
        )
    return LocatedDataset(uri, known, local_file(context, uri), output)


def split_s3(uri: str) -> tuple[str, str]:
    """Return bucket and key.

    :raises OperatorFailure: one of them is missing.
    """
    parts = urlsplit(uri, allow_fragments=False)
    key = parts.path.lstrip("/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme != "s3" or not parts.netloc or not key or key.endswith("/"):
        raise OperatorFailure("bad_parameters", f"{uri!r} does not name one object: expected s3://bucket/key.")
    return parts.netloc, key


def open_bucket(bucket: str, options: Mapping[str, str]) -> Any:
    """Open a bucket with obstore; few retries, as the task has its own."""
    from datetime import timedelta

    from obstore.store import S3Store

    config: Any = dict(options)
    return S3Store(bucket, config=config, retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=45)})


def download_s3(uri: str, options: Mapping[str, str], target: Path, max_bytes: int | None = None) -> None:
    """Stream one object into a file.

    :raises OperatorFailure: it is not there, may not be read, is too large, or the store does not answer.
    """
    import obstore

    bucket, key = split_s3(uri)
    try:
        found = obstore.get(open_bucket(bucket, options), key)
        if max_bytes is not None and found.meta["size"] > max_bytes:
            raise OperatorFailure(
                "too_large", f"{uri} has {found.meta['size']:,} bytes, more than max_bytes ({max_bytes:,})."
            )
        with target.open("wb") as sink:
            for chunk in found.stream(min_chunk_size=_CHUNK):
                sink.write(chunk)
    except Exception as error:
        raise s3_failure(error, uri) from error


def upload_s3(path: Path, uri: str, options: Mapping[str, str]) -> None:
    """Put a file as one object: it becomes visible when it is complete.

    :raises OperatorFailure: the store refuses or does not answer.
    """
    import obstore

    bucket, key = split_s3(uri)
    try:
        with path.open("rb") as source:
            obstore.put(open_bucket(bucket, options), key, source, max_concurrency=4)
    except Exception as error:
        raise s3_failure(error, uri) from error


def s3_failure(error: Exception, uri: str) -> Exception:
    """Translate what obstore raised; anything else is returned as it is."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    if isinstance(error, FileNotFoundError):
        return OperatorFailure("not_found", f"There is no object {uri}.")
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return OperatorFailure("unauthorised", f"The object store refuses access to {uri}; check its credentials.")
    if isinstance(error, BaseError):
        text = str(error).splitlines()[0][:300]
        return OperatorFailure("unreachable", f"The object store did not serve {uri}: {text}", retryable=True)
    return error


def publish_in_root(context: TaskContext, path: Path, user_path: str, default_name: str) -> str:
    """Copy a file to a data-root path, whole or not at all; return its URI ``<root>:path``."""
    target = context.roots.resolve(user_path, for_writing=True)
    if target.is_dir() or user_path.endswith("/"):
        target = target / default_name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".part-{secrets.token_hex(8)}")
    try:
        with path.open("rb") as source, part.open("xb") as sink:
            while chunk := source.read(_CHUNK):
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return context.roots.uri(target)
