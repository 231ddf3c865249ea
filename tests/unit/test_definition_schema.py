"""The documented shape of a definition is the one the compiler reads: field by field, and value by value."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from api.definition_schema import DEFINITION, EXAMPLE, TASK
from orchestrator.rules import RULES
from orchestrator.spec import PipelineSpec, TaskSpec, read_pipeline

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, 1.0, 100, 101, 1000, 1024, 1025, -1000, -1001, 10_000, 10_001, 86_400, 86_401,
    100_000, 100_001, 366 * 86_400, 1e9, "", "x", "a b", "all_done", "-x", "x" * 128, "x" * 129, "x" * 200, "x" * 201,
    "x" * 10_000, "x" * 10_001, [], [""], ["x"], ["x", "x"], [1], ["x" * 100], ["x" * 101], ["x" * 128], ["x" * 129],
    [str(n) for n in range(50)], [str(n) for n in range(51)], {}, {"a": "b"}, {"a": 1}, {"a": "x" * 128},
    {"a": "x" * 129}, {f"a{n}": "b" for n in range(50)}, {f"a{n}": "b" for n in range(51)},
]  # fmt: skip


def whole() -> dict[str, Any]:
    """Return the schema of the definition with that of its tasks inside, as JSON Schema spells it.

    OpenAPI 3.0 is older: there a flag beside ``minimum`` says that the bound itself is outside.
    """
    tasks = {**DEFINITION["properties"]["tasks"], "items": {**TASK, "properties": translated(TASK["properties"])}}
    return {**DEFINITION, "properties": {**translated(DEFINITION["properties"]), "tasks": tasks}}


def translated(properties: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, schema in properties.items():
        above = {"exclusiveMinimum": schema["minimum"]} if schema.get("exclusiveMinimum") is True else {}
        found[name] = {**schema, **above}
    return found


VALIDATOR = Draft202012Validator(whole())


def test_every_field_is_documented_and_no_other() -> None:
    assert set(TASK["properties"]) == {spec.name for spec in fields(TaskSpec)}
    assert set(DEFINITION["properties"]) == {spec.name for spec in fields(PipelineSpec)}
    assert TASK["properties"]["trigger_rule"]["enum"] == list(RULES)


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
