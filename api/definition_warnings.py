"""What a definition names that is not there yet: other pipelines, their versions and parameters; told beside a save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from api.services import services
from orchestrator.compile_runs import declared_problems
from orchestrator.errors import NotFound, Problem
from orchestrator.expressions.templates import holds_template
from orchestrator.store.definitions import find_run_target

MOST_NAMED = 50
"""Pipelines that are looked up for one definition."""


def child_warnings(connection: Connection, tenant_id: str, definition: Mapping[str, Any]) -> list[Problem]:
    """Return a warning for each task whose run would be refused if it started now.

    :param definition: normalised; pointers lead into it.
    """
    found: list[Problem] = []
    for at, (pointer, child) in enumerate(_children(definition["tasks"], "")):
        if at >= MOST_NAMED:
            break
        if child["name"] != definition["name"]:
            found += _of_one(connection, tenant_id, child, f"{pointer}/pipeline")
    return found


def _children(tasks: Sequence[Mapping[str, Any]], above: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for at, task in enumerate(tasks):
        here = f"{above}/tasks/{at}"
        if "pipeline" in task:
            yield here, task["pipeline"]
        yield from _children(task.get("tasks", ()), here)


def _of_one(connection: Connection, tenant_id: str, child: Mapping[str, Any], here: str) -> list[Problem]:
    version = child.get("version")
    try:
        target = find_run_target(connection, tenant_id, name=child["name"])
    except NotFound as error:
        return [Problem(f"{here}/name", f"{error} Save it before this task starts.")]
    try:
        if version is not None:
            target = find_run_target(connection, tenant_id, name=child["name"], version=int(version))
        pinned = services().versions.find(connection, tenant_id, target.version_id)
    except NotFound as error:
        return [Problem(f"{here}/version", f"{error} Save it before this task starts.")]
    if isinstance(pinned, str):
        return []  # its plan can't be read, which a run of it tells
    given = child.get("parameters", {})
    # Of what a template stands for only the name is known.
    known = {name: pinned.parameters.get(name) if holds_template(value) else value for name, value in given.items()}
    return [
        Problem(f"{here}{problem.pointer}", problem.message)
        for problem in declared_problems(pinned.plan, known, pinned.parameters)
    ]
