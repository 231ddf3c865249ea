"""Brings what a task reads (a dataset, a model) onto this host: artifacts, objects in S3, files in the data roots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator import s3_objects
from orchestrator.artifacts import SCHEME, is_artifact, key_of, task_segment
from orchestrator.artifacts.recorded import record_missing
from orchestrator.documents import all_texts
from orchestrator.errors import ForbiddenPath, NotFound, StoreUnavailable
from orchestrator.operator import Json, OperatorFailure, TaskContext

_PARTS_OF_AN_OUTPUT = 5
"""Tenant, run, task, attempt, name; what is named by its content has fewer."""


def local_file(context: TaskContext, uri: str) -> Path:
    """Return a file on this host with the content of ``uri``; for reading only.

    :param uri: ``artifact://…`` of this tenant, ``s3://bucket/key``, or a path in a data root.
    :raises OperatorFailure: ``artifact_missing``, ``not_found``, ``forbidden_path``, ``unauthorised``, or the
        retryable ``store_unavailable`` and ``unreachable``.
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
        raise artifact_missing(context, uri) from error
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


def artifact_missing(context: TaskContext, uri: str) -> OperatorFailure:
    """Return the failure that says that an artifact is gone, and which task had made it. It is told with the outcome,
    so that neither a rerun nor the cache takes it for there again."""
    record_missing(context.records, uri)
    makers = sorted(task for task, outputs in _outputs_by_task(context) if _names(outputs, uri))
    parts = key_of(uri).split("/")
    if makers:
        origin = f"which task {_maker(makers, uri)!r} of this run left"
    elif len(parts) >= _PARTS_OF_AN_OUTPUT:
        origin = f"which task {parts[2]!r} of run {parts[1]} left"
    else:
        origin = "which no task upstream has left"
    return OperatorFailure(
        "artifact_missing",
        f"{uri}, {origin}, is not in the artifact store (any more); run that task again, or keep its artifacts longer.",
    )


def describe_output(context: TaskContext, kind: str, uri: str) -> Mapping[str, Json]:
    """Return the ancestors' output of this kind and URI, with ``task`` added; empty when none of them has it.

    Several have it when one hands on what another made; an artifact's key then tells the maker.
    """
    found = {task: output for task, output in outputs_of_kind(context, kind) if output.get("uri") == uri}
    return {} if not found else {"task": (maker := _maker(sorted(found), uri)), **found[maker]}


def outputs_of_kind(context: TaskContext, kind: str) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """Yield what the ancestors left of this kind, by the name of the task run: ``train``, or ``train[3]`` of a map."""
    for task, outputs in _outputs_by_task(context):
        if isinstance(output := outputs.get(kind), Mapping):
            yield task, output


def _outputs_by_task(context: TaskContext) -> Iterator[tuple[str, Mapping[str, Json]]]:
    for task, outputs in sorted(context.upstream_outputs.items()):
        yield from _unfolded(task, outputs)


def _unfolded(task: str, outputs: Json) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """Yield the outputs of the task runs of a container, which are a list by index; where its body is a group, of
    objects by task."""
    if isinstance(outputs, Mapping):
        yield task, outputs
    elif isinstance(outputs, list):
        for index, item in enumerate(outputs):
            yield from _unfolded(f"{task}[{index}]", item)
            for name, inner in item.items() if isinstance(item, Mapping) else ():
                yield from _unfolded(f"{task}[{index}].{name}", inner)


def _maker(tasks: list[str], uri: str) -> str:
    return next((task for task in tasks if f"/{task_segment(task)}/" in uri), tasks[0])


def _names(outputs: Mapping[str, Json], uri: str) -> bool:
    return any(text == uri for text in all_texts(outputs))


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
