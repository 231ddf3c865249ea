"""What each field of a pipeline and of a task may hold, said once, and how the fields of one task go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.documents import all_texts, fingerprint, json_bytes, kind_of
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
from orchestrator.spec import KINDS, ON_DRAIN, ON_WORKER_LOSS
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

MAX_TASK_BYTES = 64 * 1024
"""Of one task as JSON, its longest text apart."""
MAX_TEXT_BYTES = 256 * 1024
"""Of the longest text of a task: a script."""

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
_OF_ALL = frozenset({
    "name", "description", "upstream_tasks", "trigger_rule", "when", "critical", "teardown", "map", "repeat",
    "deadline_seconds",
})  # fmt: skip
"""What every kind of task may have; the rest is for what a worker executes."""


def _inside_problems(task: Mapping[str, Any], pointer: str, sound: set[tuple[str, object]]) -> list[Problem]:
    """Return what is wrong inside of fields. Most tasks of a definition say the same there: it is looked at once."""
    found: list[Problem] = []
    for name, value in task.items():
        problems = _INSIDE.get(name)
        if problems is None or not isinstance(value, list if name == "concurrency" else (dict, Mapping)):
            continue
        if (written := (name, fingerprint(value))) in sound:
            continue
        if faults := list(problems(value, f"{pointer}/{name}")):
            found += faults
        else:
            sound.add(written)
    return found


def task_problems(task: object, pointer: str, sound: set[tuple[str, object]]) -> list[Problem]:
    """Return what is wrong with the fields of a task.

    :param sound: what fields of other tasks were found to hold in order; what is found here is added.
    """
    if not isinstance(task, (dict, Mapping)):
        return [Problem(pointer, f"A task is an object, not {kind_of(task)}.")]
    found = field_problems(task, TASK_FIELDS, pointer, ("name",))
    found += _inside_problems(task, pointer, sound)
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
