"""From the URI of a dataset to a file on this host."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
