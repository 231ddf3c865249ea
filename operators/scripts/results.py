"""Reads what a script left behind: the output file, and the files it put into the output folder."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from operators.tables.formats import describe_columns, format_of_path
from orchestrator.artifacts import Artifact
from orchestrator.documents import MAX_NESTING, is_nested_too_deep
from orchestrator.inputs import require_own
from orchestrator.operator import Json, OperatorFailure, TaskContext

MAX_OUTPUT_BYTES = 256 * 1024
MAX_FILES = 1000
KINDS = ("dataset", "model", "report")

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=@+:-]{0,199}")


def read_outputs(path: Path) -> dict[str, Json]:
    """Return the JSON object in the output file; no file or an empty one is an empty object.

    :raises OperatorFailure: ``outputs_too_large``; ``bad_outputs``: no JSON object, with NaN in it, or nested too deep.
    """
    content = _read_regular(path)
    if not content.strip():
        return {}
    if len(content) > MAX_OUTPUT_BYTES:
        raise OperatorFailure(
            "outputs_too_large",
            f"The script wrote more than {MAX_OUTPUT_BYTES // 1024} KiB of outputs; write large things as files into "
            "ORCHESTRATOR_OUTPUT_DIR.",
        )
    try:
        outputs = json.loads(content.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise OperatorFailure("bad_outputs", f"The script's output file is no JSON: {error}.") from error
    if not isinstance(outputs, dict):
        raise OperatorFailure("bad_outputs", "The script's output file must hold a JSON object.")
    if is_nested_too_deep(outputs):
        raise OperatorFailure(
            "bad_outputs",
            f"The script's outputs are nested more than {MAX_NESTING} deep; flatten them, or write them as a file into "
            "ORCHESTRATOR_OUTPUT_DIR.",
        )
    return outputs


def read_message(path: Path) -> tuple[str, str]:
    """Return ``reason`` and ``message`` from the output file of a script that ended with a special exit code."""
    try:
        outputs = read_outputs(path)
    except OperatorFailure:
        return "", ""
    reason, message = outputs.get("reason"), outputs.get("message")
    known = isinstance(reason, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,39}", reason)
    return str(reason) if known else "", message[:1000] if isinstance(message, str) else ""


def store_files(context: TaskContext, folder: Path) -> dict[str, Artifact]:
    """Put every file of the output folder into the artifact store; return them by their path in the folder.

    :raises OperatorFailure: ``bad_outputs``: too many files, or a name the store can't hold.
    """
    found: dict[str, Artifact] = {}
    for path in sorted(_regular_files(context, folder)):
        name = path.relative_to(folder).as_posix()
        if not all(_SEGMENT.fullmatch(part) for part in name.split("/")):
            raise OperatorFailure(
                "bad_outputs", f"The file {name!r} can't be stored: use letters, digits and _.=@+:- in names."
            )
        if len(found) == MAX_FILES:
            raise OperatorFailure("bad_outputs", f"The script left more than {MAX_FILES} files; pack them into one.")
        found[name] = context.artifacts.put_file(context.artifact_key(f"files/{name}"), path)
    return found


def complete_kinds(
    context: TaskContext, outputs: dict[str, Json], files: Mapping[str, Artifact], folder: Path
) -> dict[str, Json]:
    """Return the outputs with every dataset, model and report that names a ``file`` completed from that file.

    A script says ``{"dataset": {"file": "clean.csv"}}``; a model or dataset of an ancestor may be handed on as it is.

    :raises OperatorFailure: ``bad_outputs``: the file is not there, or a URI is another tenant's.
    """
    completed = dict(outputs)
    for kind in KINDS:
        value = outputs.get(kind)
        if not isinstance(value, dict):
            continue
        if "file" in value:
            completed[kind] = _from_file(kind, value, files, folder)
        elif isinstance(value.get("uri"), str):
            require_own(context, value["uri"])
    return completed


def require_kinds(outputs: Mapping[str, Json], promised: frozenset[str]) -> None:
    """Check that downstream tasks find what the definition promised them.

    :raises OperatorFailure: ``bad_outputs``, naming what is missing.
    """
    for kind in sorted(promised):
        value = outputs.get(kind)
        if not isinstance(value, Mapping) or not isinstance(value.get("uri"), str):
            raise OperatorFailure(
                "bad_outputs",
                f"The task promises a {kind} (produces), but the script's outputs hold none. Write "
                f'{{"{kind}": {{"file": "name"}}}} for a file in ORCHESTRATOR_OUTPUT_DIR, or hand on one with its uri.',
            )


def _from_file(kind: str, value: Mapping[str, Json], files: Mapping[str, Artifact], folder: Path) -> dict[str, Json]:
    name = value["file"]
    if name not in files:
        there = ", ".join(files) or "no file"
        raise OperatorFailure("bad_outputs", f"The {kind} names the file {name!r}; the script left {there}.")
    artifact = files[name]
    rest = {key: item for key, item in value.items() if key != "file"}
    found: dict[str, Json] = {**rest, "uri": artifact.uri, "bytes": artifact.bytes}
    if kind == "model":
        return {**found, "digest": artifact.fingerprint}
    found["fingerprint"] = artifact.fingerprint
    return {**found, **_table(folder / name, rest.get("format"))} if kind == "dataset" else found


def _table(path: Path, told: Json) -> dict[str, Json]:
    """Return format, rows and columns of a dataset, so that it looks like those of the other operators."""
    import polars as pl

    scans: dict[str, Callable[[Path], pl.LazyFrame]] = {
        "csv": pl.scan_csv,
        "json": pl.scan_ndjson,
        "parquet": pl.scan_parquet,
    }
    known = told if told in scans else format_of_path(path.name)
    if known is None:
        raise OperatorFailure("bad_outputs", f"The dataset {path.name!r} doesn't tell its format; end it in .csv, "
                              ".json or .parquet, or say 'format'.")  # fmt: skip
    try:
        frame = scans[str(known)](path)
        rows = frame.select(pl.len()).collect().item()
        return {"format": known, "rows": rows, "columns": describe_columns(frame.collect_schema())}
    except pl.exceptions.PolarsError as error:
        first = str(error).splitlines()[0][:300]
        raise OperatorFailure("bad_outputs", f"The dataset {path.name!r} can't be read as {known}: {first}") from error


def _regular_files(context: TaskContext, folder: Path) -> Iterator[Path]:
    """Yield plain files. A link is left out: it may lead to a file that the script never wrote."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            path = Path(parent) / name
            if stat.S_ISREG(path.lstat().st_mode):
                yield path
            else:
                context.log(f"{path.relative_to(folder)} was not stored: it is no plain file.")


def _read_regular(path: Path) -> bytes:
    """Read at most one byte more than allowed; the script may have put a pipe there, which would block us."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise OperatorFailure("bad_outputs", f"The script's output file can't be read: {error.strerror}.") from error
    with os.fdopen(descriptor, "rb") as content:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OperatorFailure("bad_outputs", "The script replaced its output file by something that is no file.")
        return content.read(MAX_OUTPUT_BYTES + 1)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value; write null or text")
