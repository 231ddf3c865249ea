"""The quick check of parameters never lets through what JSON Schema refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from orchestrator.quick_checks import quick_check
from orchestrator.registry import load_operators

OPERATORS = load_operators([])
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 1.0, 2**53, math.pi, 1e300, "", "x", "random_forest", "s3", "x" * 1000, [], [1],
    ["x"], {}, {"a": 1}, {"n_estimators": 50},
]  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_what_it_lets_through_of_an_operators_parameters_keeps_the_schema(name: str) -> None:
    schema = dict(OPERATORS[name].parameters_schema)
    fits, validator = quick_check(schema), Draft202012Validator(schema)
    if fits is None:
        return
    let_through = 0
    for parameter in [*schema.get("properties", {}), "no_such_parameter"]:
        for value in VALUES:
            if fits({parameter: value}, ()):
                let_through += 1
                assert validator.is_valid({parameter: value}), (parameter, value)
    assert let_through or schema.get("required")


inner = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "integer", "number", "boolean", "object", "array", "null"]),
        "enum": st.lists(st.sampled_from(["s3", "x", 1, None]), min_size=1, max_size=3, unique_by=repr),
        "minLength": st.integers(0, 3), "maxLength": st.integers(0, 3), "minimum": st.integers(-1, 2),
        "maximum": st.integers(-1, 2), "exclusiveMinimum": st.integers(-1, 2), "pattern": st.just("^x$"),
        "description": st.just("Words."),
    },
)  # fmt: skip
schemas = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("ab"), inner)},
    optional={
        "required": st.lists(st.sampled_from("ab"), unique=True), "additionalProperties": st.booleans(),
        "minProperties": st.integers(0, 2), "$schema": st.just("https://json-schema.org/draft/2020-12/schema"),
    },
)  # fmt: skip


@given(schemas, st.dictionaries(st.sampled_from("abc"), st.sampled_from(VALUES)))
def test_what_it_lets_through_keeps_any_schema(schema: dict[str, Any], value: dict[str, Any]) -> None:
    fits = quick_check(schema)
    if fits is not None and fits(value, ()):
        assert Draft202012Validator(schema).is_valid(value)


def test_plain_parameters_of_the_usual_operators_need_no_more() -> None:
    usual: dict[str, dict[str, Any]] = {
        "data_ingestion": {"source_type": "local", "source_path": "a.csv"},
        "data_validation": {"max_error_rate": 0.05},
        "model_training": {"algorithm": "random_forest", "hyperparameters": {"n_estimators": 50}},
        "custom_script": {"script_content": "print(1)"},
    }
    for name, parameters in usual.items():
        fits = quick_check(OPERATORS[name].parameters_schema)
        assert fits is not None
        assert fits(parameters, ())
