"""A plan as JSON: as it is stored with its version, and as the validation of a definition shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator.graph import depth
from orchestrator.records import InputLink, Plan, PlannedTask, Resources, RetryPolicy, RunInput

if TYPE_CHECKING:
    from orchestrator.compile import Compiled

FORMAT = 1


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan for a JSON column; :func:`plan_from_json` turns it into an equal plan."""
    return {"format": FORMAT, "tasks": [_task_to_json(task) for task in plan.tasks]}


def plan_from_json(stored: Mapping[str, Any]) -> Plan:
    """Return the plan of what :func:`plan_to_json` made, also of an older release.

    :raises ValueError: the format is one that this release does not know.
    """
    if stored.get("format") != FORMAT:
        raise ValueError(
            f"A stored plan has format {stored.get('format')!r} and this release reads {FORMAT}; run the newer release."
        )
    return Plan(tuple(_task_from_json(task) for task in stored["tasks"]))


def _task_to_json(task: PlannedTask) -> dict[str, Any]:
    values = asdict(task)
    values["labels"] = dict(task.labels)
    return values


def _task_from_json(values: Mapping[str, Any]) -> PlannedTask:
    read = dict(values)
    read["upstream"] = tuple(values.get("upstream", ()))
    read["labels"] = tuple(sorted(values.get("labels", {}).items()))
    read["connections"] = tuple(values.get("connections", ()))
    read["resources"] = Resources(**values.get("resources", {}))
    read["retry"] = RetryPolicy(**values.get("retry", {}))
    read["links"] = tuple(InputLink(**link) for link in values.get("links", ()))
    read["run_inputs"] = tuple(RunInput(**wanted) for wanted in values.get("run_inputs", ()))
    return PlannedTask(**read)


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
            }
            for task in tasks
        ],
        "run_needs": [asdict(need) for need in compiled.run_needs],
        "connections": list(compiled.connections),
        "content_hash": compiled.content_hash,
    }
