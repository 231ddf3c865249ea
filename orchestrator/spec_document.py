"""Writes a definition as a document again: in one order and one spelling, of which the content hash is made."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from orchestrator.spec import PipelineSpec, TaskSpec
from orchestrator.spec_fields import TASK_FIELDS


def to_document(spec: PipelineSpec) -> dict[str, Any]:
    """Return the normalised definition: a document that reads as ``spec`` again, in one order and one spelling.

    What the site decides is left out, so that the same save gives the same document under other settings.
    """
    document: dict[str, Any] = {
        "name": spec.name,
        "description": spec.description,
        "owner": spec.owner,
        "tags": list(spec.tags),
        "parameters": dict(spec.parameters),
        "priority": spec.priority,
    }
    if spec.deadline_seconds is not None:
        document["deadline_seconds"] = spec.deadline_seconds
    if spec.max_active_runs is not None:
        document["max_active_runs"] = spec.max_active_runs
    if spec.concurrency:
        document["concurrency"] = list(spec.concurrency)
    return {**document, "tasks": [_task_document(task) for task in spec.tasks]}


_LEFT_OUT_WHEN: Mapping[str, Any] = {
    "operator": "",
    "tasks": (),
    "gpu_memory_gb": 0.0,
    "labels": {},
    "description": "",
    "exclusive": False,
    "critical": True,
    "on_drain": "wait",
    "on_worker_loss": "kill",
    "when": "",
    "teardown": False,
    "concurrency": (),
}
"""Fields that came later, or are for some kinds only: what leaves them out keeps its document, so its content hash."""
_FOR_OPERATORS = frozenset({"parameters", "gpu"})
"""Left out of what no worker executes; elsewhere they have always been written."""


_LISTS = frozenset({"tasks", "upstream_tasks", "teardown", "concurrency"})
"""Kept as tuples."""
_VALUES = attrgetter(*TASK_FIELDS)
_LEFT_OUT = tuple(_LEFT_OUT_WHEN.get(name) for name in TASK_FIELDS)


def _task_document(task: TaskSpec) -> dict[str, Any]:
    written = zip(TASK_FIELDS, _VALUES(task), _LEFT_OUT, strict=True)
    document = {name: value for name, value, left_out in written if value is not None and value != left_out}
    if not task.operator:
        for name in _FOR_OPERATORS:
            document.pop(name, None)
    for name in _LISTS & document.keys():
        value = document[name]
        if isinstance(value, tuple):
            document[name] = [_task_document(inner) for inner in value] if name == "tasks" else list(value)
    return document
