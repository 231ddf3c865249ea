"""How long a definition of 10,000 tasks takes to be validated, from the text to the answer; run with ``-m load -s``."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator

import pytest
from flask import Flask, Response, jsonify

from api.address_checks import address_problems
from api.bodies import read_object
from api.json_answers import JSONAnswers
from orchestrator.compile import Site, compile_pipeline
from orchestrator.config import load_settings
from orchestrator.lasting import collect_rarely, uncollected
from orchestrator.plan_json import describe, plan_from_json, plan_to_json
from orchestrator.registry import load_operators
from orchestrator.yaml_text import read_yaml, write_yaml
from tests.load.wide_definitions import KINDS, Kind, document

pytestmark = [pytest.mark.load, pytest.mark.timeout(300)]

TASKS = 10_000
BAR = 1.0
"""Seconds by the clock, of the quickest try."""
each_kind = pytest.mark.parametrize("kind", KINDS)


def quickest(works: list[Callable[[], object]]) -> tuple[float, float]:
    """Return the processor time and the time by the clock of the quickest: a busy machine only ever adds to it."""
    seconds = []
    for work in works:
        at, began = time.perf_counter(), time.process_time()
        work()
        seconds.append((time.perf_counter() - at, time.process_time() - began))
    clock, processor = min(seconds)
    return processor, clock


@pytest.fixture
def _like_the_api() -> Iterator[None]:
    """Let the collector of cycles be as rare as in the API's own process."""
    before = gc.get_threshold()
    collect_rarely()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("_like_the_api")
@each_kind
def test_ten_thousand_tasks_are_validated_in_a_second(kind: Kind) -> None:
    app, operators, site = Flask("validates"), load_operators(), Site()
    app.json = JSONAnswers(app)
    settings = load_settings({"SECRET_KEY": "s" * 32, "ADMIN_KEY": "a" * 32})
    # Names of their own: what is remembered of one definition's texts is of no use to the next.
    bodies = [json.dumps(document(kind, TASKS, prefix)).encode() for prefix in "abcde"]

    @app.post("/validate")
    @uncollected()
    def validate() -> Response:
        read, is_storable = read_object()
        assert not list(address_problems(read, settings))
        compiled = compile_pipeline(read, operators, site, is_storable=is_storable)
        return jsonify({"valid": True, "plan": describe(compiled), "definition": compiled.definition})

    def post(body: bytes) -> None:
        assert app.test_client().post("/validate", data=body, content_type="application/json").status_code == 200

    seconds, clock = quickest([lambda body=body: post(body) for body in bodies])  # type: ignore[misc]
    plan = compile_pipeline(json.loads(bodies[0]), operators, site).plan
    stored, _ = quickest([lambda: plan_from_json(json.loads(json.dumps(plan_to_json(plan))))] * 3)
    print(
        f"\n{TASKS:,} {kind.__name__} tasks: validated in {clock:.2f} s by the clock, {seconds:.2f} of the processor; "
        f"the plan stored and read in {stored:.2f} s of the processor"
    )
    assert plan_from_json(plan_to_json(plan)) == plan
    assert clock < BAR


@each_kind
def test_the_time_of_reading_yaml_is_known(kind: Kind) -> None:
    definition = document(kind, TASKS)
    text = write_yaml(definition)
    seconds, clock = quickest([lambda: read_yaml(text)] * 2)
    took = f"{clock:.2f} s by the clock, {seconds:.2f} s of the processor"
    print(f"\n{TASKS:,} {kind.__name__} tasks: read from YAML in {took}")
    ((value, lines),) = read_yaml(text)
    assert value == definition
    assert len(lines) > TASKS
