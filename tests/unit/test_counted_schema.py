"""Schemas of users against values of users: decided as the library decides, in a bounded number of steps."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from api.typed_input import require_fit
from orchestrator.counted_schema import schema_errors
from orchestrator.errors import InvalidDefinition, TooMuchWork
from orchestrator.operator import OperatorFailure
from workers import outputs

PLENTY = 100_000
SOON = 3.0
"""Seconds of the processor, for what takes some tenths."""


def forking(levels: int) -> dict[str, Any]:
    """Return a schema in which each reference leads to two more."""
    steps = {f"a{at}": {"allOf": [{"$ref": f"#/$defs/a{at + 1}"}] * 2} for at in range(levels)}
    return {"$defs": {**steps, f"a{levels}": {"type": "object"}}, "$ref": "#/$defs/a0"}


def nested(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def deep_choice(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        found = {"anyOf": [{"type": "string"}, {"items": found}]}
    return found


leaves = st.sampled_from([
    {"type": "integer"}, {"type": "string"}, {"minimum": 1}, {"maxLength": 1}, {"enum": [1, "a", None]},
    {"const": True}, {"required": ["a"]}, {"uniqueItems": True}, {"minItems": 1}, {"additionalProperties": False},
    True, False, {},
])  # fmt: skip
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"properties": st.dictionaries(st.sampled_from("ab"), inner)}),
        st.fixed_dictionaries({"items": inner}),
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"prefixItems": st.lists(inner, min_size=1, max_size=2)}),
        *(
            st.fixed_dictionaries({word: st.lists(inner, min_size=1, max_size=3)})
            for word in ("allOf", "anyOf", "oneOf")
        ),
    ),
    max_leaves=8,
)
values = st.recursive(
    st.sampled_from([None, True, 0, 1, 1.5, "a", "ab"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(schemas.filter(lambda schema: isinstance(schema, dict)), values)
def test_a_value_has_the_faults_that_the_library_finds(schema: dict[str, Any], value: Any) -> None:
    found = schema_errors(schema, value, PLENTY, 1000)
    expected = Draft202012Validator(schema).iter_errors(value)
    assert [(list(error.absolute_path), error.message) for error in found] == [
        (list(error.absolute_path), error.message) for error in expected
    ]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (forking(40), {}),
        ({"allOf": [{"items": {}}] * 190}, [1] * 80_000),
        ({"items": {"allOf": [{"minimum": 0}] * 190}}, [1] * 80_000),
        ({"items": {"properties": {f"p{at}": {} for at in range(190)}}}, [{}] * 80_000),
        ({"items": {"enum": list(range(20_000))}}, [-1] * 80_000),
        ({"anyOf": [{"type": "string"}] * 199}, [0] * 80_000),
        ({"uniqueItems": True}, [{"a": at} for at in range(20_000)]),
        (deep_choice(28), nested([0] * 80_000, 28)),
        ({"$schema": "https://json-schema.org/draft/2020-12/schema", "items": {"type": "integer"}}, [1] * 80_000),
    ],
)
def test_what_would_take_long_is_given_up_soon(schema: dict[str, Any], value: Any) -> None:
    began = time.process_time()
    with pytest.raises(TooMuchWork):
        schema_errors(schema, value, PLENTY, 50)
    assert time.process_time() - began < SOON


def test_long_lists_of_plain_values_are_checked() -> None:
    assert not schema_errors({"items": {"type": "integer", "minimum": 0}}, list(range(20_000)), PLENTY)
    assert not schema_errors({"uniqueItems": True}, [str(at) for at in range(50_000)], PLENTY)
    rows = [{"a": 1, "b": "x"}] * 6000
    typed = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    assert not schema_errors({"type": "array", "items": typed}, rows, PLENTY)


def test_a_request_that_takes_too_many_steps_is_a_problem_with_its_pointer() -> None:
    with pytest.raises(InvalidDefinition) as caught:
        require_fit({"items": {"allOf": [{"minimum": 0}] * 190}}, [1] * 80_000, "/payload")
    [problem] = caught.value.problems
    assert problem.pointer == "/payload"
    assert "within 100,000 steps" in problem.message


def test_outputs_that_take_too_many_steps_fail_their_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_MOST_STEPS", PLENTY)  # as shipped it takes ten seconds
    tree = {"$defs": {"n": {"allOf": [{"properties": {"a": {"$ref": "#/$defs/n"}}}] * 2}}, "$ref": "#/$defs/n"}
    value: dict[str, Any] = {}
    for _ in range(30):
        value = {"a": value}
    with pytest.raises(OperatorFailure, match="can't be checked by the schema within") as caught:
        outputs.check_keeps(tree, value, "outputs of task 'a'")
    assert caught.value.reason == "bad_outputs"
    outputs.check_keeps(tree, {"a": {"a": {}}}, "outputs of task 'a'")
