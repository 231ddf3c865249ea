"""Objects in S3 as tasks reach them: with the site's keys or through a connection, never inside the artifact store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from orchestrator.operator import Connection, OperatorFailure, TaskContext

_SCHEME = "s3://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_CHUNK = 8 << 20
_RETRY: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=45)}
"""Short: the task has retries of its own."""
_OPTION_NAMES: Mapping[str, str] = {
    "endpoint_url": "aws_endpoint_url",
    "access_key_id": "aws_access_key_id",
    "secret_access_key": "aws_secret_access_key",
    "session_token": "aws_session_token",
    "region": "aws_region",
}


def split_s3(uri: str) -> tuple[str, str]:
    """Return bucket and key.

    :raises OperatorFailure: one of them is missing, or the bucket is no name that every store reads alike.
    """
    bucket, _, key = uri[len(_SCHEME) :].partition("/")
    key = key.lstrip("/")
    if not is_s3(uri) or not _BUCKET.fullmatch(bucket) or not key or key.endswith("/"):
        raise OperatorFailure("bad_parameters", f"{uri!r} does not name one object: expected s3://bucket/key.")
    return bucket, key


def names_object(uri: str) -> bool:
    """Say whether this names one object, in a bucket whose name every store reads alike."""
    try:
        split_s3(uri)
    except OperatorFailure:
        return False
    return True


def is_s3(uri: str) -> bool:
    """Say whether this is the URI of an object in S3."""
    return uri[: len(_SCHEME)].lower() == _SCHEME


def download(
    context: TaskContext, uri: str, target: Path, connection: Connection | None = None, max_bytes: int | None = None
) -> None:
    """Stream one object into a file.

    :param connection: whose bucket it is, and whose options override those of the site.
    :raises OperatorFailure: it is not there, may not be read, is too large, or the store does not answer.
    """
    import obstore

    store, key = _opened(context, uri, connection)
    try:
        found = obstore.get(store, key)
        if max_bytes is not None and found.meta["size"] > max_bytes:
            raise OperatorFailure(
                "too_large", f"{uri} has {found.meta['size']:,} bytes, more than max_bytes ({max_bytes:,})."
            )
        with target.open("wb") as sink:
            for chunk in found.stream(min_chunk_size=_CHUNK):
                sink.write(chunk)
    except Exception as error:
        raise _explained(error, uri) from error


def upload(context: TaskContext, path: Path, uri: str, connection: Connection | None = None) -> None:
    """Put a file as one object: it becomes visible when it is complete.

    :raises OperatorFailure: it may not be written, or the store refuses or does not answer.
    """
    import obstore

    store, key = _opened(context, uri, connection)
    try:
        with path.open("rb") as source:
            obstore.put(store, key, source, max_concurrency=4)
    except Exception as error:
        raise _explained(error, uri) from error


def size_of(context: TaskContext, uri: str, connection: Connection | None = None) -> int:
    """Ask the store for the object's head.

    :raises OperatorFailure: as :func:`download`.
    """
    import obstore

    store, key = _opened(context, uri, connection)
    try:
        return int(obstore.head(store, key)["size"])
    except Exception as error:
        raise _explained(error, uri) from error


def may_be_missing(context: TaskContext, uri: str, connection: Connection | None = None) -> bool:
    """Say whether an object to which the store refuses access may just not be there.

    S3 denies access to what is not there, too, to those who may read the bucket's objects and may not list them. The
    answer to a HEAD has no content; that to a GET says whether it is the credentials that are wrong.
    """
    import obstore
    from obstore.exceptions import BaseError

    store, key = _opened(context, uri, connection)
    try:
        obstore.get(store, key, options={"range": (0, 1)})
    except (BaseError, OSError) as error:
        return "<Code>AccessDenied</Code>" in str(error)
    return False


def _opened(context: TaskContext, uri: str, connection: Connection | None) -> tuple[Any, str]:
    """Open the bucket of an object that this task may reach; also returns the key.

    :raises OperatorFailure: ``forbidden_path``: it lies in the artifact store, where other tenants' outputs are too, or
        in a bucket that the site does not list.
    """
    from obstore.store import S3Store

    bucket, key = split_s3(uri)
    if context.artifacts.holds(bucket, key):
        raise OperatorFailure(
            "forbidden_path", f"{uri} lies in the artifact store of this site; name outputs of tasks by artifact://…."
        )
    if connection is None and context.s3_buckets and bucket not in context.s3_buckets:
        raise OperatorFailure(
            "forbidden_path",
            f"{uri} lies in none of the buckets that this site's tasks may name ({', '.join(context.s3_buckets)}); use "
            "a connection, or add the bucket to S3_BUCKETS.",
        )
    config: Any = _options(context, connection)
    return S3Store(bucket, config=config, retry_config=_RETRY), key


def _options(context: TaskContext, connection: Connection | None) -> dict[str, str]:
    """Return the site's options for S3, overridden by those of the connection."""
    options = dict(context.s3_options)
    for name, value in (connection.options if connection is not None else {}).items():
        if name in _OPTION_NAMES:
            options[_OPTION_NAMES[name]] = str(value)
    if options.get("aws_endpoint_url", "").startswith("http://"):
        options["aws_allow_http"] = "true"
    return options


def _explained(error: Exception, uri: str) -> Exception:
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
