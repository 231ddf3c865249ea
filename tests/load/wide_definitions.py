"""Definitions of very many tasks: plain ones, such with templates, rules and maps, such that all read one parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Parts = list[tuple[str, dict[str, Any]]]
Kind = Callable[[int, Callable[[int], str]], dict[str, Any]]
"""Makes the task of a number, given how the tasks are named."""


def plain(n: int, task: Callable[[int], str]) -> dict[str, Any]:
    operator, parameters = PLAIN[n % 4]
    upstream = [task(n - 1)] if n % 4 else []
    return {"name": task(n), "operator": operator, "upstream_tasks": upstream, "parameters": parameters, "cpu": 1}


PLAIN: Parts = [
    ("data_ingestion", {"source_type": "local", "source_path": "a.csv"}),
    ("data_validation", {"max_error_rate": 0.05}),
    ("model_training", {"algorithm": "random_forest", "hyperparameters": {"n_estimators": 50}}),
    ("custom_script", {"script_content": "print(1)"}),
]


def rich(n: int, task: Callable[[int], str]) -> dict[str, Any]:
    """Return a task with templates and retry rules; every third has a condition, every twentieth is mapped."""
    place = n % 4
    above = [task(at) for at in range(n - place, n)] or ([task(n - 1)] if n % 80 else [])
    rows = f"{{{{ tasks.{task(n - 1)}.outputs.rows_trained }}}}"
    kinds: Parts = [
        ("data_ingestion", {"source_type": "local", "source_path": f"{{{{ params.day }}}}/{n}.csv"}),
        ("data_validation", {"input_path": f"{{{{ tasks.{task(n - 1)}.outputs.dataset.uri }}}}"}),
        ("model_training", {"training_data_path": f"{{{{ tasks.{task(n - 2)}.outputs.dataset.uri }}}}"}),
        ("custom_script", {"script_content": f"print({n})", "arguments": {"rows": rows, "run": "{{ run.id }}"}}),
    ]
    operator, parameters = kinds[place]
    made = {"name": task(n), "operator": operator, "upstream_tasks": above, "parameters": parameters, **RULES}
    if n % 3 == 0 and above:
        made["when"] = f"tasks.{above[-1]}.state == 'success' and params.trees > {n % 7}"
    if n % 20 == 3:
        made["map"] = {"over": ["a", "b", "c"], "max_parallel": 2}
        parameters["arguments"]["item"] = "{{ map.item }}"
    return made


RULES: dict[str, Any] = {
    "cpu": 1,
    "memory_gb": 2,
    "retries": 2,
    "timeout_seconds": 600,
    "retry": {
        "on": [
            {"match": {"reason": "oom"}, "action": "retry", "resources": {"memory_gb": "x1.5"}},
            {"match": {"exit_code": [1, 2]}, "action": "fail"},
        ]
    },
}


def reading(n: int, task: Callable[[int], str]) -> dict[str, Any]:
    """Return a task that reads a parameter which runs have to bring, for it is not declared."""
    if n == 0:
        return {
            "name": task(n),
            "operator": "custom_script",
            "parameters": {"script_content": "print(1)", "arguments": {"least": "{{ params.least }}"}},
        }
    return {**plain(n, task), "when": "params.least > 1"}


KINDS: list[Kind] = [plain, rich, reading]


def document(kind: Kind, tasks: int, prefix: str = "t") -> dict[str, Any]:
    """Return a definition of so many tasks."""
    made = [kind(n, lambda at: f"{prefix}{at}") for n in range(tasks)]
    return {"name": "wide", "parameters": {"day": "2026-01-01", "trees": 10}, "tasks": made}
