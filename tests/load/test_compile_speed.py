"""How long a definition of 10,000 tasks takes to be validated, from the text to the answer; run with ``-m load -s``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, jsonify, request

from api.address_checks import address_problems
from api.bodies import read_object
from orchestrator.compile import Site, compile_pipeline
from orchestrator.config import load_settings
from orchestrator.plan_json import describe, plan_from_json, plan_to_json
from orchestrator.registry import load_operators
from orchestrator.yaml_text import read_yaml, write_yaml

pytestmark = [pytest.mark.load, pytest.mark.timeout(300)]

TASKS = 10_000
BAR = 1.0
"""Seconds of the processor."""
Parts = list[tuple[str, dict[str, Any]]]


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


def document(kind: Callable[[int, Callable[[int], str]], dict[str, Any]], prefix: str = "t") -> dict[str, Any]:
    tasks = [kind(n, lambda at: f"{prefix}{at}") for n in range(TASKS)]
    return {"name": "wide", "parameters": {"day": "2026-01-01", "trees": 10}, "tasks": tasks}


def quickest(works: list[Callable[[], object]]) -> tuple[float, float]:
    """Return the processor time and the wall time of the quickest: a busy machine only ever adds to it."""
    seconds = []
    for work in works:
        began, at = time.process_time(), time.perf_counter()
        work()
        seconds.append((time.process_time() - began, time.perf_counter() - at))
    return min(seconds)


@pytest.mark.parametrize("kind", [plain, rich])
def test_ten_thousand_tasks_are_validated_in_a_second(
    kind: Callable[[int, Callable[[int], str]], dict[str, Any]],
) -> None:
    app, operators, site = Flask("validates"), load_operators(), Site()
    settings = load_settings({"SECRET_KEY": "s" * 32, "ADMIN_KEY": "a" * 32})
    # Names of their own: what is remembered of one definition's texts is of no use to the next.
    bodies = [json.dumps(document(kind, prefix)).encode() for prefix in "abcde"]

    def validate(body: bytes) -> None:
        with app.test_request_context(method="POST", data=body, content_type="application/json"):
            read = read_object(request)
            assert not list(address_problems(read, settings))
            compiled = compile_pipeline(read, operators, site)
            jsonify({"valid": True, "plan": describe(compiled), "definition": compiled.definition})

    seconds, wall = quickest([lambda body=body: validate(body) for body in bodies])  # type: ignore[misc]
    plan = compile_pipeline(json.loads(bodies[0]), operators, site).plan
    stored, _ = quickest([lambda: plan_from_json(json.loads(json.dumps(plan_to_json(plan))))] * 3)
    print(
        f"\n{TASKS:,} {kind.__name__} tasks: validated in {seconds:.2f} s of the processor ({wall:.2f} s on the wall); "
        f"the plan stored and read in {stored:.2f} s"
    )
    assert plan_from_json(plan_to_json(plan)) == plan
    assert seconds < BAR


@pytest.mark.parametrize("kind", [plain, rich])
def test_the_time_of_reading_yaml_is_known(kind: Callable[[int, Callable[[int], str]], dict[str, Any]]) -> None:
    definition = document(kind)
    text = write_yaml(definition)
    seconds, wall = quickest([lambda: read_yaml(text)] * 2)
    print(f"\n{TASKS:,} {kind.__name__} tasks: read from YAML in {seconds:.2f} s of the processor ({wall:.2f} s wall)")
    ((value, lines),) = read_yaml(text)
    assert value == definition
    assert len(lines) > TASKS
