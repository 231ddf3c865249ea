"""What is taken for a schema at a glance is one; and plain ones are seen at a glance, or wide definitions take long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from orchestrator import spec_policies
from orchestrator.definition_text import read_files
from orchestrator.plain_schemas import _WORDS, is_plain_schema

EXAMPLES = Path(__file__).parents[2] / "examples"
words = st.sampled_from(sorted([*_WORDS, "$ref", "pattern", "multipleOf"]))
said = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(-1, 1) | st.sampled_from(["string", "integer", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.dictionaries(words, said, max_size=3))
def test_what_is_taken_for_a_schema_is_one(schema: dict[str, Any]) -> None:
    if is_plain_schema(schema):
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("word", sorted(_WORDS))
@pytest.mark.parametrize(
    "value",
    [None, True, 1, -1, 1.5, "string", "x", [], ["string"], ["string", "string"], ["x"], [1], [True, {}], [{"type": 1}],
     {}, {"a": True}, {"a": 1}, {"a": {"type": "x"}}, {"type": "x"}, {"type": "integer"}],
)  # fmt: skip
def test_each_word_is_looked_at_as_the_library_does(word: str, value: Any) -> None:
    schema = {"properties": {"a": {"items": {word: value}}}}
    assert is_plain_schema(schema) <= Draft202012Validator(Draft202012Validator.META_SCHEMA).is_valid(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "required": ["rows"], "properties": {"rows": {"type": "integer", "minimum": 0}}},
        {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        {"anyOf": [{"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1}, {"const": None}]},
    ],
)
def test_plain_schemas_are_seen_at_a_glance(schema: dict[str, Any]) -> None:
    assert is_plain_schema(schema)


def test_every_schema_of_the_examples_is_plain() -> None:
    documents, _ = read_files([str(EXAMPLES)])
    schemas = [task["outputs"] for document in documents for task in document.value["tasks"] if "outputs" in task]
    assert schemas
    assert all(map(is_plain_schema, schemas))


def test_nothing_is_asked_of_the_library_about_a_plain_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(_: Any) -> None:
        raise AssertionError("The library was asked; of 10,000 tasks that takes eight seconds.")

    monkeypatch.setattr(spec_policies, "_schema_faults", ask)
    monkeypatch.setattr(spec_policies, "_known_faults", ask)
    fields = {"rows": {"type": "integer"}, "name": {"type": "string", "maxLength": 9}}
    assert not spec_policies.outputs_problems(
        {"type": "object", "required": ["rows"], "properties": fields}, "/outputs"
    )
    with pytest.raises(AssertionError, match="was asked"):
        spec_policies.outputs_problems({"type": "objet"}, "/outputs")
