"""Answers are written with orjson, and say what Flask's own JSON would."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from flask import Flask, jsonify

from api.json_answers import JSONAnswers
from orchestrator.documents import canonical_json, json_bytes


@pytest.fixture
def app() -> Flask:
    made = Flask("answers")
    made.json = JSONAnswers(made)
    return made


VALUES = [
    {"b": 1, "a": [1.5, None, True, "ü"]},
    {"at": datetime(2026, 1, 2, tzinfo=UTC), "id": UUID(int=7)},
    {"beyond 64 bits": [2**64 - 1, -(2**64)]},
    [],
]


@pytest.mark.parametrize("value", VALUES)
def test_an_answer_says_what_flask_says(app: Flask, value: object) -> None:
    plain = Flask("plain")
    plain.json.sort_keys = False  # type: ignore[attr-defined]
    with app.test_request_context(), plain.app_context():
        expected = plain.json.dumps(value)
    with app.test_request_context():
        answer = jsonify(value)
    assert list(json.loads(answer.data)) == list(json.loads(expected))
    assert json.loads(answer.data) == json.loads(expected)
    assert answer.mimetype == "application/json"
    assert answer.data.endswith(b"\n")


def test_the_canonical_text_is_the_same_whatever_the_order_and_the_size_of_numbers() -> None:
    assert canonical_json({"b": (1, 2), "a": "ü"}) == '{"a":"ü","b":[1,2]}'.encode()
    assert canonical_json({"b": 2**70, "a": "ü"}) == f'{{"a":"ü","b":{2**70}}}'.encode()
    assert json_bytes("ü") == 4


@pytest.mark.parametrize("value", [datetime(2026, 1, 2, tzinfo=UTC), {1, 2}, object()])
def test_what_is_no_json_has_no_canonical_text(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json({"a": value})
