"""The documented shape of a definition is the one the compiler reads: field by field, and value by value."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from api.definition_schema import DEFINITION, EXAMPLE, TASK
from orchestrator.rules import RULES
from orchestrator.spec import PipelineSpec, TaskSpec
from orchestrator.spec_reading import read_pipeline

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, 1.0, 100, 101, 1000, 1024, 1025, -1000, -1001, 10_000, 10_001, 86_400, 86_401,
    100_000, 100_001, 366 * 86_400, 1e9, "", "x", "a b", "all_done", "-x", "x" * 128, "x" * 129, "x" * 200, "x" * 201,
    "x" * 10_000, "x" * 10_001, [], [""], ["x"], ["x", "x"], [1], ["x" * 100], ["x" * 101], ["x" * 128], ["x" * 129],
    [str(n) for n in range(50)], [str(n) for n in range(51)], {}, {"a": "b"}, {"a": 1}, {"a": "x" * 128},
    {"a": "x" * 129}, {f"a{n}": "b" for n in range(50)}, {f"a{n}": "b" for n in range(51)}, "auto",
    "x" * 500, "x" * 501,
]  # fmt: skip


def whole() -> dict[str, Any]:
    """Return the schema of the definition with that of its tasks beside it, as JSON Schema spells it."""
    return {**translated(DEFINITION), "components": {"schemas": {"TaskDefinition": translated(TASK)}}}


def translated(schema: Any) -> Any:
    """Return a schema of OpenAPI 3.0 in newer words: a flag beside ``minimum`` says there that the bound is outside."""
    if isinstance(schema, list):
        return [translated(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    above = {"exclusiveMinimum": schema["minimum"]} if schema.get("exclusiveMinimum") is True else {}
    return {**{name: translated(value) for name, value in schema.items()}, **above}


VALIDATOR = Draft202012Validator(whole())


def test_every_field_is_documented_and_no_other() -> None:
    assert set(TASK["properties"]) == {spec.name for spec in fields(TaskSpec)}
    assert set(DEFINITION["properties"]) == {spec.name for spec in fields(PipelineSpec)}
    assert TASK["properties"]["trigger_rule"]["enum"] == list(RULES)


def undescribed(schema: Any, path: str) -> list[str]:
    """Return the fields inside of a schema that no sentence tells of."""
    if isinstance(schema, list):
        return [found for item in schema for found in undescribed(item, path)]
    if not isinstance(schema, dict):
        return []
    found = [f"{path}.{name}" for name, inner in schema.get("properties", {}).items() if "description" not in inner]
    for name, inner in schema.get("properties", {}).items():
        found += undescribed(inner, f"{path}.{name}")
    return found + [more for word in ("items", "anyOf") for more in undescribed(schema.get(word), path)]


def test_every_field_is_described_however_deep() -> None:
    assert undescribed(TASK, "task") + undescribed(DEFINITION, "pipeline") == []


@pytest.mark.parametrize(
    "of_task, name",
    [*((True, name) for name in TASK["properties"]), *((False, name) for name in DEFINITION["properties"])],
)
def test_the_documentation_and_the_compiler_accept_the_same(of_task: bool, name: str) -> None:
    for value in VALUES:
        task: dict[str, Any] = {"name": "a", "operator": "custom_script"}
        definition: dict[str, Any] = {"name": "p", "tasks": [task]}
        (task if of_task else definition)[name] = value
        problems = [problem.message for problem in read_pipeline(definition).problems]
        assert VALIDATOR.is_valid(definition) == (not problems), (str(value)[:100], problems)


@pytest.mark.parametrize("left_out", ["name", "operator", "tasks"])
def test_what_is_required_is_documented_so(left_out: str) -> None:
    task = {"name": "a", "operator": "custom_script"}
    definition: dict[str, Any] = {"name": "p", "tasks": [task]}
    (definition if left_out == "tasks" else task).pop(left_out)
    assert not VALIDATOR.is_valid(definition)
    assert read_pipeline(definition).problems


def test_the_example_is_a_definition() -> None:
    assert VALIDATOR.is_valid(EXAMPLE)
    assert read_pipeline(EXAMPLE).spec is not None


KINDS: list[dict[str, Any]] = [
    {"operator": "custom_script"},
    {"tasks": [{"name": "b", "operator": "x"}], "map": {"over": [1]}},
    {"tasks": [{"name": "b", "operator": "x"}], "repeat": {"until": "true", "max": 2}},
    {"pipeline": {"name": "p"}},
    {"approval": {"message": "Go?"}},
    {"event": {}},
]
OVERS: list[Any] = [[], "{{ params.x }}", {"range": 3}, 3, None, True]
OF_MAP: list[dict[str, Any]] = [
    {}, {"success": "any"}, {"success": "most"}, {"success": {"min_ratio": 0}}, {"success": {}},
    {"success": {"min_ratio": 0.5}}, {"success": {"min_count": 1, "min_ratio": 1}}, {"max_size": 10_001},
    {"max_parallel": 0}, {"fail_fast": 1}, {"key": ""}, {"key": "x"}, {"keys": "x"},
]  # fmt: skip
OF_REPEAT: list[dict[str, Any]] = [{}, {"delay_seconds": -1}, {"on_max": "succeed"}, {"on_max": "retry"}, {"x": 1}]
OF_PIPELINE: list[dict[str, Any]] = [
    {"version": 1}, {"version": 0}, {"wait": "no"}, {"inherit": False}, {"parameters": []}, {"x": 1},
]  # fmt: skip
OF_APPROVAL: list[dict[str, Any]] = [
    {"timeout_seconds": 1, "on_timeout": "approve"}, {"timeout_seconds": 0}, {"on_reject": "skip"}, {"on_reject": "x"},
    {"input": {}}, {"input": []},
]  # fmt: skip
EVENTS: list[dict[str, Any]] = [{"timeout_seconds": 1, "on_timeout": "skip"}, {"payload": {}}, {"payload": 1}, {"x": 1}]
RULES_OF_RETRY: list[Any] = [
    {"match": {"reason": "oom"}, "action": "retry", "resources": {"memory_gb": "x2"}},
    {"match": {"reason": []}, "action": "retry"}, {"match": {"exit_code": [1, 2]}, "action": "fail"},
    {"match": {"exit_code": 256}, "action": "fail"}, {"match": {}, "action": "fail"}, {"match": {}},
    {"match": {"message": "x"}, "action": "wait"}, {"match": {"x": 1}, "action": "skip"}, 1,
]  # fmt: skip
CACHES: list[dict[str, Any]] = [
    {}, {"mode": "read"}, {"mode": "x"}, {"key": []}, {"key": ["x"]}, {"key": "x"}, {"ttl_seconds": 0},
    {"scope": "tenant"}, {"single_flight": 1},
]  # fmt: skip
LIMITS: list[dict[str, Any]] = [
    {"key": "x", "limit": 1}, {"key": "x"}, {"key": "", "limit": 1}, {"key": "x", "limit": 0},
    {"key": "x", "limit": 1, "on_limit": "fail"}, {"key": "x", "limit": 1, "on_limit": "x"},
]  # fmt: skip
INSIDE: list[tuple[str, Any]] = [
    *(("map", {"over": over, **more}) for over in OVERS for more in OF_MAP),
    *(("repeat", {"until": until, "max": most, **more})
      for until in ("true", "", 1) for most in (1, 0, 1001, 1.5) for more in OF_REPEAT),
    *(("pipeline", {"name": "p", **more}) for more in OF_PIPELINE),
    *(("approval", {"message": "Go?", **more}) for more in OF_APPROVAL),
    *(("event", event) for event in EVENTS),
    *(("retry", {"on": [rule]}) for rule in RULES_OF_RETRY),
    *(("cache", cache) for cache in CACHES),
    *(("concurrency", [limit]) for limit in LIMITS),
    *(("rate_limit", {"key": "x", "units": units, "per_seconds": per}) for units in (1, 0, 1.5) for per in (0, 0.1)),
    ("teardown", ["a"]), ("teardown", []), ("teardown", True), ("teardown", ["a", "a"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), INSIDE)
def test_they_accept_the_same_inside_of_a_field(name: str, value: Any) -> None:
    own = next((kind for kind in KINDS if name in kind and "tasks" not in kind), KINDS[0])
    definition = {"name": "p", "tasks": [{"name": "a", **own, name: value}]}
    problems = [problem.message for problem in read_pipeline(definition).problems]
    assert VALIDATOR.is_valid(definition) == (not problems), problems


def test_they_agree_on_what_makes_a_task_one_of_a_kind() -> None:
    for one in KINDS:
        for other in [{}, *KINDS]:
            task = {"name": "a", **one, **other}
            definition = {"name": "p", "tasks": [task]}
            problems = [problem.message for problem in read_pipeline(definition).problems]
            assert VALIDATOR.is_valid(definition) == (not problems), (task, problems)
    for task in ({"name": "a"}, {"name": "a", "tasks": KINDS[1]["tasks"]}):
        assert not VALIDATOR.is_valid({"name": "p", "tasks": [task]})
        assert read_pipeline({"name": "p", "tasks": [task]}).problems
