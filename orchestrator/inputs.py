"""Brings what a task reads (a dataset, a model) onto this host: artifacts, objects in S3, files in the data roots."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from orchestrator import s3_objects
from orchestrator.artifacts import SCHEME, is_artifact
from orchestrator.errors import ForbiddenPath, NotFound, StoreUnavailable
from orchestrator.operator import Json, OperatorFailure, TaskContext


def local_file(context: TaskContext, uri: str) -> Path:
    """Return a file on this host with the content of ``uri``; for reading only.

    :param uri: ``artifact://…`` of this tenant, ``s3://bucket/key``, or a path in a data root.
    :raises OperatorFailure: ``not_found``, ``forbidden_path``, ``unauthorised``, or the retryable ``store_unavailable``
        and ``unreachable``.
    """
    try:
        if is_artifact(uri):
            require_own(context, uri)
            return context.artifacts.local_path(uri, context.workdir / "inputs")
        if s3_objects.is_s3(uri):
            return _from_s3(context, uri)
        path = context.roots.resolve(uri)
    except ForbiddenPath as error:
        raise OperatorFailure("forbidden_path", str(error)) from error
    except NotFound as error:
        raise OperatorFailure("not_found", str(error)) from error
    except StoreUnavailable as error:
        raise OperatorFailure("store_unavailable", str(error), retryable=True) from error
    if not path.is_file():
        raise OperatorFailure("not_found", f"{uri!r} is no file in the data roots ({', '.join(context.roots.names)}).")
    return path


def require_own(context: TaskContext, uri: str) -> None:
    """Refuse an artifact of another tenant: URIs may be written by users and scripts.

    :raises OperatorFailure: ``forbidden_path``.
    """
    if is_artifact(uri) and not uri.startswith(f"{SCHEME}{context.tenant_id}/"):
        raise OperatorFailure("forbidden_path", f"{uri!r} is no artifact of this tenant.")


def fingerprint(path: Path) -> str:
    """Return ``sha256:<hex>`` of the file's content."""
    with path.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def describe_output(context: TaskContext, kind: str, uri: str) -> Mapping[str, Json]:
    """Return the ancestors' output of this kind and URI, with ``task`` added; empty when none of them has it.

    Several have it when one hands on what another made; an artifact's key then tells the maker.
    """
    found = {
        task: outputs[kind]
        for task, outputs in sorted(context.upstream_outputs.items())
        if isinstance(outputs.get(kind), Mapping) and outputs[kind].get("uri") == uri
    }
    maker = next((task for task in found if f"/{task}/" in uri), next(iter(found), None))
    return {} if maker is None else {"task": maker, **found[maker]}


def _from_s3(context: TaskContext, uri: str) -> Path:
    """Download one object into the work folder, once; the name is made from the whole URI."""
    target = context.workdir / "inputs" / hashlib.sha256(uri.encode()).hexdigest()[:16] / _last_name(uri)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    s3_objects.download(context, uri, part)
    part.replace(target)
    return target


def _last_name(uri: str) -> str:
    """Return the object's own name, by whose suffix readers know its format.

    :raises OperatorFailure: ``not_found``: the URI names no object.
    """
    try:
        _, key = s3_objects.split_s3(uri)
    except OperatorFailure as error:
        raise OperatorFailure("not_found", f"{uri!r} names no object; write s3://bucket/key.") from error
    return key.rpartition("/")[2]
