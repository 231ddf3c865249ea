"""``orchestrator apply`` and ``diff``: definitions kept as files, made true on the server."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from orchestrator.builder import PipelineFields, TaskFields
from orchestrator.cli.connection import FAILED, TROUBLE, with_client, with_client_to_compare
from orchestrator.client import ApiError, Client
from orchestrator.definition_text import WrittenDocument, read_files
from orchestrator.errors import Problem
from orchestrator.yaml_text import write_yaml

_FIELDS = ("name", "description", "owner", "tags", "operator", "upstream_tasks", *TaskFields.__annotations__)
_PLACES = {
    name: place for place, name in enumerate(dict.fromkeys((*_FIELDS, *PipelineFields.__annotations__, "tasks")))
}
COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def file_arguments(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``-f PATH`` (as often as wanted) and paths that stand alone, as ``files`` and ``more``."""
    option = click.option(
        "--file", "-f", "files", multiple=True, metavar="PATH",
        help="A JSON or YAML file, a folder of them, or - for standard input; may be repeated or left out.",
    )  # fmt: skip
    return option(click.argument("more", nargs=-1, metavar="[PATH]...")(command))


@click.command()
@file_arguments
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be done, but save nothing.")
@with_client
def apply(client: Client, files: tuple[str, ...], more: tuple[str, ...], dry_run: bool) -> None:
    """Save the definitions in files.

    Each is created, or becomes a new version of the pipeline of its name; what the server has already is left as it
    is. Every document of every file is checked first: when there is a problem anywhere, all problems are printed with
    their files and lines, and nothing is saved.
    """
    documents, verdicts = _checked(client, (*files, *more), FAILED)
    for document, verdict in zip(documents, verdicts, strict=True):
        known = _current(client, document.name)
        if dry_run:
            click.echo(f"{document.name}: would be {_planned(known, verdict)}")
            continue
        saved = client.save_pipeline(document.value)
        click.echo(f"{saved['name']}: {_done(known, saved)}")


@click.command()
@file_arguments
@with_client_to_compare
def diff(client: Client, files: tuple[str, ...], more: tuple[str, ...]) -> None:
    """Compare files with the current versions on the server.

    Both are shown as the server stores them, so a default that is written out is no difference. Exit status: 0 when
    there is none, 1 when there is one, 2 when they could not be compared.
    """
    different = False
    documents, verdicts = _checked(client, (*files, *more), TROUBLE)
    for document, verdict in zip(documents, verdicts, strict=True):
        known = _current(client, document.name)
        before = known["definition"] if known else None
        label = f"{document.name} version {known['version']}" if known else "nothing"
        for line in compare(before, verdict["definition"], label, document.place()):
            different = True
            click.secho(line, fg=COLOURS.get(line[:1]))
    sys.exit(int(different))


def compare(before: Any, after: Any, before_name: str, after_name: str) -> Sequence[str]:
    """Return the lines of a unified diff of two JSON values, written as YAML; none when they are equal."""
    if before == after:
        return []
    old = [] if before is None else write_yaml(_in_one_order(before)).splitlines()
    new = write_yaml(_in_one_order(after)).splitlines()
    return list(difflib.unified_diff(old, new, before_name, after_name, lineterm=""))


def _in_one_order(value: Any) -> Any:
    """Return the value with its fields in the order of a definition, others by name: the database keeps no order."""
    if isinstance(value, Mapping):
        names = sorted(value, key=lambda name: (_PLACES.get(name, len(_PLACES)), name))
        return {name: _in_one_order(value[name]) for name in names}
    return [_in_one_order(item) for item in value] if isinstance(value, list) else value


def _checked(client: Client, paths: Sequence[str], trouble: int) -> tuple[list[WrittenDocument], list[dict[str, Any]]]:
    """Return the documents with what the server says of each; prints all problems and exits when there is one."""
    if not paths:
        raise click.UsageError("Name a file, a folder, or - for standard input.")
    documents, problems = read_files(paths, sys.stdin.buffer)
    problems += _twice(documents)
    verdicts = [client.validate_pipeline(document.value) for document in documents]
    for document, verdict in zip(documents, verdicts, strict=True):
        problems += [document.told(Problem(error["pointer"], error["message"])) for error in verdict["errors"]]
    if problems:
        for problem in problems:
            click.echo(problem, err=True)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        click.echo(f"{count}; nothing was saved.", err=True)
        sys.exit(trouble)
    for document, verdict in zip(documents, verdicts, strict=True):
        for line in _warnings(document, verdict, documents):
            click.echo(line, err=True)
    return documents, verdicts


def _warnings(
    document: WrittenDocument, verdict: Mapping[str, Any], beside: Sequence[WrittenDocument]
) -> Iterator[str]:
    """Yield what the server warns of, save for pipelines that it has not and that are saved with this one."""
    names = {other.name for other in beside}
    for warning in verdict.get("warnings", ()):
        pointer = warning["pointer"]
        place, _, field = pointer.rpartition("/pipeline/")
        if not (field and _at(document.value, f"{place}/pipeline/name") in names):
            yield document.told(Problem(pointer, f"Warning: {warning['message']}"))


def _at(value: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        value = value[int(part) if isinstance(value, list) else part]
    return value


def _twice(documents: Sequence[WrittenDocument]) -> list[str]:
    first: dict[str, WrittenDocument] = {}
    found = []
    for document in documents:
        before = first.setdefault(document.name, document)
        if document.name and before is not document:
            message = f"{before.place('/name')} defines a pipeline named {document.name!r} too."
            found.append(document.told(Problem("/name", message)))
    return found


def _current(client: Client, name: str) -> Mapping[str, Any] | None:
    try:
        return client.get_pipeline_by_name(name)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def _planned(known: Mapping[str, Any] | None, verdict: Mapping[str, Any]) -> str:
    if known is None:
        return "created"
    if known["content_hash"] == verdict["plan"]["content_hash"]:
        return f"unchanged (version {known['version']})"
    return f"changed (version {known['version']} is there)"


def _done(known: Mapping[str, Any] | None, saved: Mapping[str, Any]) -> str:
    if known is None:
        return f"created, version {saved['version']}"
    if known["version"] == saved["version"]:
        return f"unchanged, version {saved['version']}"
    return f"changed, version {known['version']} → {saved['version']}"


COMMANDS = (apply, diff)
