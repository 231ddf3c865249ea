"""Reads a pipeline definition: a JSON document becomes records, and every fault in it a problem with its pointer.

What a field may hold is said here once. What tasks mean to each other and to operators is checked by the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.documents import all_texts, json_bytes, kind_of, unstorable
from orchestrator.errors import Problem
from orchestrator.field_checks import (
    Check,
    field_problems,
    is_flag,
    is_labels,
    is_name,
    is_number,
    is_object,
    is_one_of,
    is_parameters,
    is_rule,
    is_tasks,
    is_text,
    is_texts,
    is_upstreams,
)

ON_DRAIN = ("wait", "checkpoint", "kill")
ON_WORKER_LOSS = ("kill", "adopt")
MAX_TASKS = 1000
MAX_TASK_BYTES = 64 * 1024
"""Of one task as JSON, its longest text apart."""
MAX_TEXT_BYTES = 256 * 1024
"""Of the longest text of a task: a script."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task as written; ``None`` where the site's default holds."""

    name: str
    operator: str
    upstream_tasks: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cpu: float | None = None
    memory_gb: float | None = None
    gpu: int = 0
    gpu_memory_gb: float = 0.0
    trigger_rule: str = "all_success"
    queue: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    retries: int | None = None
    retry_delay_seconds: float | None = None
    retry_backoff_factor: float | None = None
    retry_max_delay_seconds: float | None = None
    timeout_seconds: float | None = None
    grace_seconds: float | None = None
    exclusive: bool = False
    on_drain: str = "wait"
    on_worker_loss: str = "kill"
    critical: bool = True
    description: str = ""


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A definition as written."""

    name: str
    tasks: tuple[TaskSpec, ...]
    description: str = ""
    owner: str = ""
    tags: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the run's parameters."""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What could be read of a document."""

    problems: tuple[Problem, ...]
    spec: PipelineSpec | None = None
    """Only when there are no problems."""
    tasks: tuple[tuple[int, TaskSpec], ...] = ()
    """The tasks without faults of their own, each with its position in the document."""
    names: frozenset[str] = frozenset()
    """The names of all tasks, those with faults too, so that nothing is reported twice."""


def read_pipeline(document: object, max_tasks: int = MAX_TASKS) -> Reading:
    """Read a definition and find all that is wrong with it, field by field."""
    if not isinstance(document, Mapping):
        return Reading((Problem("", f"A pipeline is a JSON object, not {kind_of(document)}."),))
    if problems := list(unstorable(document)):
        # Nothing after this may meet a NaN, or a nesting that breaks the encoder.
        return Reading(tuple(problems))
    problems = field_problems(document, _PIPELINE, "", ("name", "tasks"))
    tasks = document.get("tasks")
    if not isinstance(tasks, list):
        return Reading(tuple(problems))
    if len(tasks) > max_tasks:
        message = f"The pipeline has {len(tasks)} tasks; at most {max_tasks} are allowed. Split it into several."
        return Reading((*problems, Problem("/tasks", message)))
    read: list[tuple[int, TaskSpec]] = []
    for position, task in enumerate(tasks):
        if found := _task_problems(task, f"/tasks/{position}"):
            problems += found
        else:
            read.append((position, TaskSpec(**_normalised(task))))
    names, twice = _names(tasks)
    problems += twice
    spec = None
    if not problems:
        spec = PipelineSpec(**{**_normalised(document), "tasks": tuple(task for _, task in read)})
    return Reading(tuple(problems), spec, tuple(read), names)


def _names(tasks: list[Any]) -> tuple[frozenset[str], list[Problem]]:
    first: dict[str, int] = {}
    problems: list[Problem] = []
    for position, task in enumerate(tasks):
        name = task.get("name") if isinstance(task, Mapping) else None
        if not isinstance(name, str):
            continue
        if first.setdefault(name, position) != position:
            message = f"The task at position {first[name]} is named {name!r} too; names are unique in a pipeline."
            problems.append(Problem(f"/tasks/{position}/name", message))
    return frozenset(first), problems


_YEAR = 366 * 86400

_PIPELINE: Mapping[str, Check] = {
    "name": is_name,
    "description": is_text(10_000),
    "owner": is_text(200),
    "tags": is_texts(50, 100),
    "parameters": is_parameters,
    "priority": is_number(-1000, 1000, whole=True),
    "tasks": is_tasks,
}
_TASK: Mapping[str, Check] = {
    "name": is_name,
    "operator": is_text(128),
    "description": is_text(10_000),
    "upstream_tasks": is_upstreams,
    "parameters": is_object,
    "cpu": is_number(0, 10_000, above=True),
    "memory_gb": is_number(0, 100_000, above=True),
    "gpu": is_number(0, 1024, whole=True),
    "gpu_memory_gb": is_number(0, 10_000),
    "trigger_rule": is_rule,
    "queue": is_text(128),
    "labels": is_labels,
    "retries": is_number(0, 100, whole=True),
    "retry_delay_seconds": is_number(0, _YEAR),
    "retry_backoff_factor": is_number(1, 100),
    "retry_max_delay_seconds": is_number(0, _YEAR),
    "timeout_seconds": is_number(0, _YEAR, above=True),
    "grace_seconds": is_number(0, 86400),
    "exclusive": is_flag,
    "on_drain": is_one_of(*ON_DRAIN),
    "on_worker_loss": is_one_of(*ON_WORKER_LOSS),
    "critical": is_flag,
}
_WHOLE = frozenset({"gpu", "retries", "priority"})


def _task_problems(task: object, pointer: str) -> list[Problem]:
    if not isinstance(task, Mapping):
        return [Problem(pointer, f"A task is an object, not {kind_of(task)}.")]
    found = field_problems(task, _TASK, pointer, ("name", "operator"))
    longest = max(all_texts(task), key=len, default="")
    size = len(longest.encode())
    if size > MAX_TEXT_BYTES:
        message = f"A text of the task has {size} bytes; at most {MAX_TEXT_BYTES} are allowed."
        found.append(Problem(pointer, f"{message} Put a long script under the scripts root and give its path."))
    if (rest := json_bytes(task) - json_bytes(longest)) > MAX_TASK_BYTES:
        message = f"The task has {rest} bytes as JSON besides its longest text; at most {MAX_TASK_BYTES} are allowed."
        found.append(Problem(pointer, message))
    return found


def _normalised(document: Mapping[str, Any]) -> dict[str, Any]:
    """Give equal values one spelling: 1.0 GPUs are 1, 2 cores are 2.0, lists are tuples."""
    values: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, list):
            values[name] = tuple(value) if name != "tags" else tuple(dict.fromkeys(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values[name] = int(value) if name in _WHOLE else float(value)
        else:
            values[name] = value
    return values


def to_document(spec: PipelineSpec) -> dict[str, Any]:
    """Return the normalised definition: a document that reads as ``spec`` again, in one order and one spelling.

    What the site decides is left out, so that the same save gives the same document under other settings.
    """
    return {
        "name": spec.name,
        "description": spec.description,
        "owner": spec.owner,
        "tags": list(spec.tags),
        "parameters": dict(spec.parameters),
        "priority": spec.priority,
        "tasks": [_task_document(task) for task in spec.tasks],
    }


_LEFT_OUT_WHEN_EMPTY = frozenset({"gpu_memory_gb", "labels", "description", "exclusive"})
_LEFT_OUT_WHEN = {"critical": True, "on_drain": "wait", "on_worker_loss": "kill"}
"""Fields that came later: what leaves them out keeps its document and so its content hash."""


def _task_document(task: TaskSpec) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name in _TASK:
        value = getattr(task, name)
        if value is None or (not value and name in _LEFT_OUT_WHEN_EMPTY) or value == _LEFT_OUT_WHEN.get(name):
            continue
        document[name] = list(value) if isinstance(value, tuple) else value
    return document
