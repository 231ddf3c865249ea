"""A plan as JSON: as it is stored with its version, and as the validation of a definition shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.graph import depth
from orchestrator.records import InputLink, Plan, PlannedTask, Resources, RetryPolicy, RunInput
from orchestrator.rules import RULES
from orchestrator.spec import ON_DRAIN, ON_WORKER_LOSS

if TYPE_CHECKING:
    from orchestrator.compile import Compiled

FORMAT = 1
_LATER_FIELDS: dict[str, Any] = {
    "on_drain": "wait",
    "on_worker_loss": "kill",
    "when": "",
    "map": None,
    "repeat": None,
    "body": None,
    "is_group": False,
    "child": None,
    "approval": None,
    "event": None,
    "teardown": False,
    "setups": (),
    "memory_auto": False,
    "max_queued": None,
    "progress_timeout": None,
    "deadline": None,
    "outputs_schema": None,
    "cache": None,
    "concurrency": (),
    "rate_limit": None,
}
_RETRY_LATER = ("rules", "infrastructure")
"""Fields that came after format 1: left out while they say nothing new, so that the releases before them, which take
every stored field for one of theirs, read the plans of definitions that do not use them."""

_WORDS = {"trigger_rule": RULES, "on_drain": ON_DRAIN, "on_worker_loss": ON_WORKER_LOSS}

T = TypeVar("T")


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan for a JSON column; :func:`plan_from_json` turns it into an equal plan."""
    return {"format": FORMAT, "tasks": [_task_to_json(task) for task in plan.tasks]}


def plan_from_json(stored: Mapping[str, Any]) -> Plan:
    """Return the plan of what :func:`plan_to_json` made, also of an older release.

    :raises ValueError: the format, or a field, is one that this release does not know. It may change what the task
        means, so it is not passed over.
    """
    if stored.get("format") != FORMAT:
        raise ValueError(
            f"A stored plan has format {stored.get('format')!r} and this release reads {FORMAT}; run the newer release."
        )
    return Plan(tuple(_task_from_json(task) for task in stored["tasks"]))


def _task_to_json(task: PlannedTask) -> dict[str, Any]:
    values = asdict(task)
    values["labels"] = dict(task.labels)
    for name, usual in _LATER_FIELDS.items():
        if values[name] == usual:
            del values[name]
    for name in _RETRY_LATER:
        if not values["retry"][name]:
            del values["retry"][name]
    return values


def _task_from_json(values: Mapping[str, Any]) -> PlannedTask:
    read = dict(values)
    read["upstream"] = tuple(values.get("upstream", ()))
    read["labels"] = tuple(sorted(values.get("labels", {}).items()))
    read["connections"] = tuple(values.get("connections", ()))
    read["resources"] = _read(Resources, values.get("resources", {}))
    read["retry"] = _read(RetryPolicy, values.get("retry", {}))
    read["links"] = tuple(_read(InputLink, link) for link in values.get("links", ()))
    read["run_inputs"] = tuple(_read(RunInput, wanted) for wanted in values.get("run_inputs", ()))
    task = _read(PlannedTask, read)
    for name, words in _WORDS.items():
        if (word := getattr(task, name)) not in words:
            raise ValueError(
                f"A stored plan says {name} {word!r}, which this release does not know; run the newer release."
            )
    return task


def _read(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return the record, or say which field this release does not know or misses."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known):
        raise ValueError(
            f"A stored plan says {', '.join(map(repr, unknown))} of a {kind.__name__}, which this release does not "
            "know; run the newer release."
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"A stored plan lacks a part of a {kind.__name__}: {error}.") from error


def describe(compiled: Compiled) -> dict[str, Any]:
    """Return what validation shows: order, queues, resources, where inputs come from, and what a run has to give."""
    tasks = compiled.plan.tasks
    upstreams = {task.name: task.upstream for task in tasks}
    order = [task.name for task in tasks]
    return {
        "order": order,
        "depth": depth(upstreams, order),
        "tasks": [
            {
                "name": task.name,
                "operator": task.operator,
                "upstream_tasks": list(task.upstream),
                "trigger_rule": task.trigger_rule,
                "queue": task.queue,
                "cpu": task.resources.cpu / 1000,
                "memory_gb": task.resources.memory / 2**30,
                "gpu": task.resources.gpus,
                "gpu_memory_gb": task.resources.gpu_memory / 2**30,
                "inputs": {link.parameter: {"kind": link.kind, "task": link.source} for link in task.links},
                "retries": task.retry.retries,
                "timeout_seconds": task.timeout,
                "on_drain": task.on_drain,
                "on_worker_loss": task.on_worker_loss,
            }
            for task in tasks
        ],
        "run_needs": [asdict(need) for need in compiled.run_needs],
        "connections": list(compiled.connections),
        "content_hash": compiled.content_hash,
    }
