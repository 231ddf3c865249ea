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
    is_body,
    is_flag,
    is_labels,
    is_memory,
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
from orchestrator.spec_kinds import (
    MAX_EXPRESSION,
    approval_problems,
    event_problems,
    is_teardown,
    map_problems,
    pipeline_problems,
    repeat_problems,
)
from orchestrator.spec_policies import (
    YEAR,
    Inside,
    cache_problems,
    concurrency_problems,
    is_cache,
    is_filled_text,
    is_limits,
    outputs_problems,
    rate_problems,
    retry_problems,
)
from orchestrator.spec_remains import sound_parts

ON_DRAIN = ("wait", "checkpoint", "kill")
ON_WORKER_LOSS = ("kill", "adopt")
KINDS = ("operator", "tasks", "pipeline", "approval", "event")
"""Fields of which a task has exactly one: it says what the task is."""
MAX_TASKS = 10_000
"""Of a pipeline, those inside of groups too."""
MAX_GROUPS = 4
"""Groups inside each other."""
MAX_TASK_BYTES = 64 * 1024
"""Of one task as JSON, its longest text apart."""
MAX_TEXT_BYTES = 256 * 1024
"""Of the longest text of a task: a script."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task as written; ``None`` where the site's default holds, or where the task has nothing of the kind."""

    name: str
    operator: str = ""
    tasks: tuple[TaskSpec, ...] = ()
    """Of a group."""
    pipeline: Mapping[str, Any] | None = None
    approval: Mapping[str, Any] | None = None
    event: Mapping[str, Any] | None = None
    upstream_tasks: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cpu: float | None = None
    memory_gb: float | str | None = None
    """Or ``auto``."""
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
    when: str = ""
    teardown: bool | tuple[str, ...] = False
    map: Mapping[str, Any] | None = None
    repeat: Mapping[str, Any] | None = None
    retry: Mapping[str, Any] | None = None
    max_queued_seconds: float | None = None
    progress_timeout_seconds: float | None = None
    deadline_seconds: float | None = None
    outputs: Mapping[str, Any] | None = None
    cache: bool | Mapping[str, Any] | None = None
    concurrency: tuple[Mapping[str, Any], ...] = ()
    rate_limit: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """Which of :data:`KINDS` it is."""
        return next((kind for kind in KINDS[1:] if getattr(self, kind) not in (None, ())), "operator")


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
    deadline_seconds: float | None = None
    max_active_runs: int | None = None
    concurrency: tuple[Mapping[str, Any], ...] = ()


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


def read_pipeline(document: object, max_tasks: int = MAX_TASKS) -> Reading:
    """Read a definition and find all that is wrong with it, field by field."""
    if not isinstance(document, Mapping):
        return Reading((Problem("", f"A pipeline is a JSON object, not {kind_of(document)}."),))
    if problems := list(unstorable(document)):
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
    read = _read_tasks(tasks, "", problems, names, 0)
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
        open_ += [task["tasks"] for task in level if isinstance(task, Mapping) and isinstance(task.get("tasks"), list)]
    return count


def _read_tasks(
    tasks: list[Any], above: str, problems: list[Problem], names: dict[str, str], groups: int
) -> list[ReadTask]:
    """Read the tasks of a pipeline or of a group; faults go to ``problems``, names with their pointers to ``names``."""
    read: list[ReadTask] = []
    for position, task in enumerate(tasks):
        pointer = f"{above}/tasks/{position}"
        found = _task_problems(task, pointer)
        if not isinstance(task, Mapping):
            problems += found
            continue
        problems += _name_problems(task, pointer, names)
        body: list[ReadTask] = []
        inner = task.get("tasks")
        if isinstance(inner, list) and groups < MAX_GROUPS:
            body = _read_tasks(inner, pointer, problems, names, groups + 1)
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
    return ReadTask(pointer, TaskSpec(**values), tuple(body), faulty)


def _name_problems(task: Mapping[str, Any], pointer: str, names: dict[str, str]) -> list[Problem]:
    name = task.get("name")
    if not isinstance(name, str):
        return []
    if (first := names.setdefault(name, pointer)) == pointer:
        return []
    where = f"at position {first.rpartition('/')[2]}" if first.count("/") == 2 else f"at {first}"
    message = f"The task {where} is named {name!r} too; names are unique in a pipeline, those inside of groups too."
    return [Problem(f"{pointer}/name", message)]


PIPELINE_FIELDS: Mapping[str, Check] = {
    "name": is_name,
    "description": is_text(10_000),
    "owner": is_text(200),
    "tags": is_texts(50, 100),
    "parameters": is_parameters,
    "priority": is_number(-1000, 1000, whole=True),
    "deadline_seconds": is_number(0, YEAR, above=True),
    "max_active_runs": is_number(1, 100_000, whole=True),
    "concurrency": is_limits,
    "tasks": is_tasks,
}
TASK_FIELDS: Mapping[str, Check] = {
    "name": is_name,
    "operator": is_text(128),
    "tasks": is_body,
    "pipeline": is_object,
    "approval": is_object,
    "event": is_object,
    "description": is_text(10_000),
    "upstream_tasks": is_upstreams,
    "parameters": is_object,
    "cpu": is_number(0, 10_000, above=True),
    "memory_gb": is_memory,
    "gpu": is_number(0, 1024, whole=True),
    "gpu_memory_gb": is_number(0, 10_000),
    "trigger_rule": is_rule,
    "queue": is_text(128),
    "labels": is_labels,
    "retries": is_number(0, 100, whole=True),
    "retry_delay_seconds": is_number(0, YEAR),
    "retry_backoff_factor": is_number(1, 100),
    "retry_max_delay_seconds": is_number(0, YEAR),
    "timeout_seconds": is_number(0, YEAR, above=True),
    "grace_seconds": is_number(0, 86400),
    "exclusive": is_flag,
    "on_drain": is_one_of(*ON_DRAIN),
    "on_worker_loss": is_one_of(*ON_WORKER_LOSS),
    "critical": is_flag,
    "when": is_filled_text(MAX_EXPRESSION),
    "teardown": is_teardown,
    "map": is_object,
    "repeat": is_object,
    "retry": is_object,
    "max_queued_seconds": is_number(0, YEAR, above=True),
    "progress_timeout_seconds": is_number(0, YEAR, above=True),
    "deadline_seconds": is_number(0, YEAR, above=True),
    "outputs": is_object,
    "cache": is_cache,
    "concurrency": is_limits,
    "rate_limit": is_object,
}
_INSIDE: Mapping[str, Inside] = {
    "pipeline": pipeline_problems,
    "approval": approval_problems,
    "event": event_problems,
    "map": map_problems,
    "repeat": repeat_problems,
    "retry": retry_problems,
    "outputs": outputs_problems,
    "cache": cache_problems,
    "concurrency": concurrency_problems,
    "rate_limit": rate_problems,
}
"""Of fields that hold objects of their own, once their kind is right."""
_WHOLE = frozenset({"gpu", "retries", "priority", "max_active_runs"})
_OF_ALL = frozenset({
    "name", "description", "upstream_tasks", "trigger_rule", "when", "critical", "teardown", "map", "repeat",
    "deadline_seconds",
})  # fmt: skip
"""What every kind of task may have; the rest is for what a worker executes."""


def _inside_problems(document: Mapping[str, Any], pointer: str) -> list[Problem]:
    found: list[Problem] = []
    for name, value in document.items():
        if name in _INSIDE and isinstance(value, list if name == "concurrency" else Mapping):
            found += _INSIDE[name](value, f"{pointer}/{name}")
    return found


def _task_problems(task: object, pointer: str) -> list[Problem]:
    if not isinstance(task, Mapping):
        return [Problem(pointer, f"A task is an object, not {kind_of(task)}.")]
    found = field_problems(task, TASK_FIELDS, pointer, ("name",))
    found += _inside_problems(task, pointer)
    found += _kind_problems(task, pointer)
    return found + _size_problems(task, pointer)


def _kind_problems(task: Mapping[str, Any], pointer: str) -> list[Problem]:
    """Return why it is not one kind of task, and which of its fields are for another kind."""
    kinds = [kind for kind in KINDS if kind in task]
    if not kinds:
        message = f"'operator' is missing; a task has exactly one of {', '.join(KINDS)}."
        return [Problem(f"{pointer}/operator", message)]
    if len(kinds) > 1:
        message = f"A task has exactly one of {', '.join(KINDS)}; this one has {' and '.join(map(repr, kinds))}."
        return [Problem(f"{pointer}/{kinds[1]}", message)]
    (kind,) = kinds
    found: list[Problem] = []
    if kind == "tasks" and not task.keys() & {"map", "repeat"}:
        message = "A group runs for each item, or in rounds; add 'map' or 'repeat', or put its tasks outside."
        found.append(Problem(f"{pointer}/tasks", message))
    if "map" in task and "repeat" in task:
        message = "A task has 'map' or 'repeat'; for both put a task with one of them in a group with the other."
        found.append(Problem(f"{pointer}/repeat", message))
    if kind != "operator":
        what = f"A task with {kind!r} is executed by no worker"
        hint = "; give it to the tasks inside." if kind == "tasks" else "; leave it out."
        found += [
            Problem(f"{pointer}/{name}", f"{what} and has no {name!r}{hint}")
            for name in task
            if name in TASK_FIELDS and name not in _OF_ALL and name != kind
        ]
    return found


def _size_problems(task: Mapping[str, Any], pointer: str) -> list[Problem]:
    if "tasks" in task:
        task = {name: value for name, value in task.items() if name != "tasks"}
    whole = json_bytes(task)
    if whole <= MAX_TASK_BYTES:
        return []
    found: list[Problem] = []
    longest = max(all_texts(task), key=len, default="")
    size = len(longest.encode())
    if size > MAX_TEXT_BYTES:
        message = f"A text of the task has {size} bytes; at most {MAX_TEXT_BYTES} are allowed."
        found.append(Problem(pointer, f"{message} Put a long script under the scripts root and give its path."))
    if (rest := whole - json_bytes(longest)) > MAX_TASK_BYTES:
        message = f"The task has {rest} bytes as JSON besides its longest text; at most {MAX_TASK_BYTES} are allowed."
        found.append(Problem(pointer, message))
    return found


def _normalised(document: Mapping[str, Any]) -> dict[str, Any]:
    """Give equal values one spelling: 1.0 GPUs are 1, 2 cores are 2.0, lists are tuples.

    What later fields hold inside is kept as written.
    """
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name == "cache" and value is False:
            continue
        if isinstance(value, list):
            values[name] = tuple(value) if name != "tags" else tuple(dict.fromkeys(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            values[name] = int(value) if name in _WHOLE else float(value)
        else:
            values[name] = value
    return values
