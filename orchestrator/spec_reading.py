"""Reads a pipeline definition: a JSON document becomes records, and every fault in it a problem with its pointer.

What tasks mean to each other and to operators is checked by the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.documents import kind_of, unstorable
from orchestrator.errors import Problem
from orchestrator.field_checks import field_problems
from orchestrator.lasting import maker_of
from orchestrator.spec import PipelineSpec, TaskSpec
from orchestrator.spec_fields import PIPELINE_FIELDS, task_problems
from orchestrator.spec_policies import concurrency_problems
from orchestrator.spec_remains import sound_parts

MAX_TASKS = 10_000
"""Of a pipeline, those inside of groups too."""
MAX_GROUPS = 4
"""Groups inside each other."""
_WHOLE = frozenset({"gpu", "retries", "priority", "max_active_runs"})


@dataclass(frozen=True, slots=True)
class ReadTask:
    """A task, as far as it could be read, and where it stands."""

    pointer: str
    spec: TaskSpec
    body: tuple[ReadTask, ...] = ()
    """Of a group: its tasks."""
    faulty: frozenset[str] = frozenset()
    """Its fields in which there are faults; ``spec`` is without them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What could be read of a document."""

    problems: tuple[Problem, ...]
    spec: PipelineSpec | None = None
    """Only when there are no problems."""
    tasks: tuple[ReadTask, ...] = ()
    """All tasks that are objects; of those with faults the sound parts."""
    names: frozenset[str] = frozenset()
    """The names of all tasks."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The pipeline's ``parameters``, if they can be read."""
    concurrency: tuple[Mapping[str, Any], ...] = ()
    """The pipeline's own limits, as far as they can be read."""

    @property
    def is_complete(self) -> bool:
        """Whether it is known who waits for whom: no name, no upstream and no task as a whole is faulty."""
        return not any(_leaves_gap(problem.pointer) for problem in self.problems)


def read_pipeline(document: object, max_tasks: int = MAX_TASKS, *, is_storable: bool = False) -> Reading:
    """Read a definition and find all that is wrong with it, field by field.

    :param is_storable: it was seen to be.
    """
    if not isinstance(document, Mapping):
        return Reading((Problem("", f"A pipeline is a JSON object, not {kind_of(document)}."),))
    if problems := [] if is_storable else list(unstorable(document)):
        # Nothing after this may meet a NaN, or a nesting that breaks the encoder.
        return Reading(tuple(problems))
    problems = field_problems(document, PIPELINE_FIELDS, "", ("name", "tasks"))
    limits = document.get("concurrency")
    faults = list(concurrency_problems(limits, "/concurrency")) if isinstance(limits, list) else []
    problems += faults
    if faults:
        limits = sound_parts({"concurrency": limits}, faults, "")[0].get("concurrency")
    tasks = document.get("tasks")
    if not isinstance(tasks, list):
        return Reading(tuple(problems))
    if (count := _count(tasks, max_tasks)) > max_tasks:
        message = f"The pipeline has {count} tasks; at most {max_tasks} are allowed. Split it into several."
        return Reading((*problems, Problem("/tasks", message)))
    names: dict[str, str] = {}
    read = _read_tasks(tasks, "", _Found(problems, names, set()), 0)
    spec = None
    if not problems:
        spec = PipelineSpec(**{**_normalised(document), "tasks": tuple(task.spec for task in read)})
    defaults = document.get("parameters")
    return Reading(
        tuple(problems),
        spec,
        tuple(read),
        frozenset(names),
        defaults if isinstance(defaults, Mapping) else {},
        tuple(limits) if isinstance(limits, list) else (),
    )


def _leaves_gap(pointer: str) -> bool:
    parts = pointer.split("/")
    is_of_task = parts[-3:-2] == ["tasks"] or pointer == "/tasks"
    return parts[-2:-1] == ["tasks"] or (is_of_task and parts[-1] in ("name", "upstream_tasks", "tasks"))


def _count(tasks: list[Any], most: int) -> int:
    """Count the tasks, those inside of groups too; of far too many only that they are."""
    count = 0
    open_ = [tasks]
    while open_:
        level = open_.pop()
        count += len(level)
        if count > most:
            return count
        groups = (task.get("tasks") for task in level if isinstance(task, (dict, Mapping)))
        open_ += [inner for inner in groups if isinstance(inner, list)]
    return count


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found so far."""

    problems: list[Problem]
    names: dict[str, str]
    """Of tasks, with their pointers."""
    sound: set[tuple[str, object]]
    """What fields hold that need not be looked at again."""


def _read_tasks(tasks: list[Any], above: str, so_far: _Found, groups: int) -> list[ReadTask]:
    """Read the tasks of a pipeline or of a group."""
    read: list[ReadTask] = []
    problems, names = so_far.problems, so_far.names
    for position, task in enumerate(tasks):
        pointer = f"{above}/tasks/{position}"
        found = task_problems(task, pointer, so_far.sound)
        if not isinstance(task, (dict, Mapping)):
            problems += found
            continue
        problems += _name_problems(task, pointer, names)
        body: list[ReadTask] = []
        inner = task.get("tasks")
        if isinstance(inner, list) and groups < MAX_GROUPS:
            body = _read_tasks(inner, pointer, so_far, groups + 1)
        elif isinstance(inner, list):
            found.append(Problem(f"{pointer}/tasks", f"Groups are nested more than {MAX_GROUPS} deep; flatten them."))
        problems += found
        read.append(_read_task(task, pointer, found, body, is_first=names.get(str(task.get("name"))) == pointer))
    return read


def _read_task(
    task: Mapping[str, Any], pointer: str, found: list[Problem], body: list[ReadTask], *, is_first: bool
) -> ReadTask:
    """Return what can be read of a task.

    :param found: what is wrong with its own fields.
    :param is_first: whether it is the first of its name; what has none of its own goes by its place.
    """
    left, faulty = sound_parts(task, found, pointer) if found else (task, frozenset())
    values = _normalised(left)
    values["name"] = task["name"] if is_first else pointer
    if "tasks" in values:
        values["tasks"] = tuple(item.spec for item in body)
        faulty = faulty if body else faulty | {"tasks"}
    return _task_read(pointer, _task_spec(**values), tuple(body), faulty)


_task_spec, _task_read = maker_of(TaskSpec), maker_of(ReadTask)


def _name_problems(task: Mapping[str, Any], pointer: str, names: dict[str, str]) -> list[Problem]:
    name = task.get("name")
    if not isinstance(name, str):
        return []
    if (first := names.setdefault(name, pointer)) == pointer:
        return []
    where = f"at position {first.rpartition('/')[2]}" if first.count("/") == 2 else f"at {first}"
    message = f"The task {where} is named {name!r} too; names are unique in a pipeline, those inside of groups too."
    return [Problem(f"{pointer}/name", message)]


def _normalised(document: Mapping[str, Any]) -> dict[str, Any]:
    """Give equal values one spelling: 1.0 GPUs are 1, 2 cores are 2.0, lists are tuples.

    What later fields hold inside is kept as written.
    """
    values = dict(document)
    for name, value in document.items():
        kind = type(value)
        if kind is str or kind is bool:
            continue
        if isinstance(value, list):
            values[name] = tuple(value) if name != "tags" else tuple(dict.fromkeys(value))
        elif isinstance(value, (int, float)):
            values[name] = int(value) if name in _WHOLE else float(value)
    if values.get("cache") is False:
        del values["cache"]
    return values
