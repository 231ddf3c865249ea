"""What schemas rule out is told when a definition is saved: fields that no task leaves, items that have no such name,
comparisons that can't be worked out, states that there are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from orchestrator.compile import compile_pipeline
from orchestrator.compile_shapes import behind, kinds
from orchestrator.errors import InvalidDefinition
from orchestrator.operator import Json, Operator
from tests.unit.test_compile import OPERATORS, SITE, Pure, pipeline, task


class Report(Pure):
    name = "report"
    summary = "Leaves what its schema says and nothing else."
    parameters_schema: ClassVar[Mapping[str, Json]] = {"type": "object"}
    outputs_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "rows": {"type": "integer"},
            "rate": {"type": ["number", "null"]},
            "passed": {"type": "boolean"},
            "notes": {"type": "array", "items": {"type": "string"}},
            "verdict": {"enum": ["good", "bad"]},
            "where": {"type": "object", "properties": {"uri": {"type": "string"}}, "additionalProperties": False},
            "metrics": {"type": "object", "additionalProperties": {"type": "number"}},
            "either": {"anyOf": [{"type": "string"}, {"type": "object"}]},
            "anything": {},
        },
    }


class Broken(Pure):
    name = "broken"
    summary = "Answers nonsense."
    parameters_schema: ClassVar[Mapping[str, Json]] = {"type": "object"}
    outputs_schema = None  # type: ignore[assignment]


KNOWN: dict[str, type[Operator]] = {**OPERATORS, "report": Report, "broken": Broken}


def faults(*tasks: Any, **fields: Any) -> dict[str, str]:
    try:
        compile_pipeline(pipeline(*tasks, **fields), KNOWN, SITE)
    except InvalidDefinition as invalid:
        return {problem.pointer: problem.message for problem in invalid.problems}
    return {}


BEFORE = [
    task("load", "report"),
    task("own", "script",
         outputs={"type": "object", "properties": {"n": {"type": "number"}}, "additionalProperties": False}),
    task("both", "report", outputs={"properties": {"rows": {"type": "integer"}, "more": {}}}),
    task("broken", "broken"),
    task("many", "report", map={"over": [1, 2]}),
    task("again", "report", repeat={"until": "outputs.passed", "max": 3}),
    {"name": "folds", "map": {"over": [1]}, "tasks": [task("fit", "report"), task("score", "script", "fit")]},
    {"name": "ok",
     "approval": {"message": "Go?", "input": {"type": "object", "properties": {"n": {"type": "number"}}}}},
    {"name": "told", "event": {}},
    {"name": "child", "pipeline": {"name": "other"}},
]  # fmt: skip
NAMES = [str(before["name"]) for before in BEFORE]

THERE = [
    "tasks.load.outputs.rows", "tasks.load.outputs.where.uri", "tasks.load.outputs.notes[3]",
    "tasks.load.outputs.metrics.f1", "tasks.load.outputs.either.x", "tasks.load.outputs.anything.x[0].y",
    "tasks.own.outputs.n", "tasks.both.outputs.rows", "tasks.broken.outputs.x.y", "tasks.many.outputs[0].rows",
    "tasks.again.outputs.rows", "tasks.folds.outputs[0].fit.rows", "tasks.folds.outputs[0].score.x",
    "tasks.ok.outputs.input.n", "tasks.ok.outputs.by", "tasks.told.outputs.payload.x", "tasks.told.outputs.at",
    "tasks.child.outputs.outputs.leaf.x", "tasks.child.outputs.state",
]  # fmt: skip
NOT_THERE = [
    ("tasks.load.outputs.row", "it has rows, rate, passed, notes, verdict, where, metrics, either, anything. Did you"),
    ("tasks.load.outputs[0]", "is an object, which has no [0]"),
    ("tasks.load.outputs.rows.x", "tasks.load.outputs.rows is a number, which has no 'x'"),
    ("tasks.load.outputs.notes.x", "is a list, which has no 'x'; write tasks.load.outputs.notes[0].x."),
    ("tasks.load.outputs.verdict.x", "is a text"),
    ("tasks.load.outputs.where.url", "Did you mean 'uri'?"),
    ("tasks.load.outputs.metrics.f1.x", "is a number"),
    ("tasks.own.outputs.m", "it has n"),
    ("tasks.both.outputs.more", "never has 'more'"),
    ("tasks.many.outputs.rows", "write tasks.many.outputs[0].rows"),
    ("tasks.many.outputs[0].row", "Did you mean 'rows'?"),
    ("tasks.folds.outputs.fit.rows", "write tasks.folds.outputs[0].fit.rows"),
    ("tasks.folds.outputs[0].fitt.rows", "Did you mean 'fit'?"),
    ("tasks.ok.outputs.approve", "Did you mean 'approved'?"),
    ("tasks.told.outputs.event", "it has at, payload"),
    ("tasks.child.outputs.leaf", "it has run_id, state, outputs"),
]  # fmt: skip


@pytest.mark.parametrize("path", THERE)
def test_what_a_task_may_leave_can_be_named(path: str) -> None:
    last = task("t", "script", *NAMES, parameters={"x": f"{{{{ {path} }}}}"}, when=f"{path} != null")
    assert faults(*BEFORE, last) == {}


@pytest.mark.parametrize(("path", "words"), NOT_THERE)
def test_what_a_task_never_leaves_is_told(path: str, words: str) -> None:
    for field, text in (("parameters", {"x": f"a {{{{ {path} }}}}"}), ("when", f"{path} != null")):
        found = faults(*BEFORE, task("t", "script", *NAMES, **{field: text}))
        [(pointer, message)] = found.items()
        assert pointer == f"/tasks/{len(BEFORE)}/{field}" + ("/x" if field == "parameters" else "")
        assert words in message
        assert message.endswith((".", "?"))


def mapped(over: Any, path: str) -> dict[str, str]:
    return faults(task("t", map={"over": over}, parameters={"x": f"{{{{ {path} }}}}"}), parameters={"list": [1]})


@pytest.mark.parametrize(
    ("over", "path", "words"),
    [
        ({"grid": {"rate": [1], "depth": [2]}}, "map.item.rat", "Did you mean 'rate'?"),
        ({"zip": {"rate": [1]}}, "map.item.depth", "it has rate"),
        ({"random": {"rate": {"low": 0, "high": 1}}, "samples": 2}, "map.item[0]", "is an object"),
        ({"range": 3}, "map.item.x", "is a number"),
        ([1, "a"], "map.item.x", "map.item is a number or a text, which has no 'x'"),
        ([{"a": 1}, {"b": 1}], "map.item.c", "it has a, b"),
    ],
)
def test_what_no_item_has_is_told(over: Any, path: str, words: str) -> None:
    assert words in mapped(over, path)["/tasks/0/parameters/x"]


@pytest.mark.parametrize(
    ("over", "path"),
    [
        ({"grid": {"rate": [{"x": 1}]}}, "map.item.rate.x"),
        ([{"a": 1}, {"b": 1}], "map.item.b"),
        ([{"a": 1}, None], "map.item.b"),
        (["{{ params.list }}"], "map.item.b"),
        ("{{ params.list }}", "map.item.b.c"),
        ([], "map.item.b"),
        ([[1, 2]], "map.item[1]"),
    ],
)
def test_what_an_item_may_have_can_be_named(over: Any, path: str) -> None:
    assert mapped(over, path) == {}


def test_of_maps_inside_of_each_other_the_nearest_gives_the_item() -> None:
    inner = task("t", map={"over": {"grid": {"a": [1]}}}, parameters={"x": "{{ map.item.b }}"})
    group = {"name": "g", "tasks": [inner, task("u", parameters={"x": "{{ map.item.b }}"})],
             "map": {"over": {"grid": {"b": [1]}}}}  # fmt: skip
    assert list(faults(group)) == ["/tasks/0/tasks/0/parameters/x"]


def test_what_rounds_never_leave_is_told() -> None:
    again = task("t", "report", parameters={"x": "{{ repeat.previous.outputs.row }}"},
                 repeat={"until": "outputs.pased", "max": 2})  # fmt: skip
    found = faults(again)
    assert "Did you mean 'passed'?" in found["/tasks/0/repeat/until"]
    assert "Did you mean 'rows'?" in found["/tasks/0/parameters/x"]
    one = {"name": "g", "tasks": [task("t", "report", parameters={"x": "{{ repeat.previous.outputs.t.rows }}"})],
           "repeat": {"until": "outputs.passed and tasks.t.outputs.rows > 1", "max": 2}}  # fmt: skip
    assert faults(one) == {}


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("tasks.load.outputs.rows > '10'", "a number and a text have no order"),
        ("tasks.load.outputs.rate < tasks.load.outputs.verdict", "have no order"),
        ("tasks.load.outputs.verdict == 'god'", "is never 'god'; it is one of good, bad. Did you mean 'good'?"),
        ("tasks.load.outputs.verdict in ['good', 'gone']", "never 'gone'"),
        ("tasks.load.state == 'sucess'", "Did you mean 'success'?"),
        ("'failure' != tasks.load.state", "never 'failure'"),
        ("tasks.load.state in ['failed', 'canceled']", "Did you mean 'cancelled'?"),
        ("len(tasks.load.outputs.rows) > 1", "a number has no length"),
        ("sum(tasks.load.outputs.where) > 1", "sum takes a list"),
        ("sum(tasks.load.outputs.anything) > 'x' + 'y'", "have no order"),
        ("tasks.load.outputs.notes + 1 > 2", "+ takes two numbers or two texts"),
        ("params.rate > 'a'", "have no order"),
        ("run.id > 5", "have no order"),
        ("max(1, 'a') > 0", "not both"),
        ("1 / 0 > 1", "division by zero"),
        ("-tasks.load.outputs.verdict == 1", "- takes two numbers"),
        ("'x' in tasks.load.outputs.rows", "Nothing is in a number"),
        ("(tasks.load.outputs.rows + 1) * 2 > 'x'", "have no order"),
        ("params.unknown > 1 and tasks.load.outputs.rows < 'x'", "have no order"),
        ("(1 if params.on else 2) > 'x'", "have no order"),
    ],
)
def test_what_can_never_be_worked_out_is_told(when: str, words: str) -> None:
    last = task("t", "script", *NAMES, when=when, trigger_rule="all_done")
    found = faults(*BEFORE, last, parameters={"rate": 0.5, "unknown": None, "on": None})
    assert list(found) == [f"/tasks/{len(BEFORE)}/when"], found
    [message] = found.values()
    assert words in message
    assert message.endswith((".", "?"))


@pytest.mark.parametrize(
    "when",
    [
        "tasks.load.outputs.rows > 10 and tasks.load.outputs.rate <= 0.5",
        "tasks.load.outputs.rate == null or tasks.load.outputs.rate > 1",
        "tasks.load.outputs.verdict in ['good', 'bad'] and tasks.load.outputs.verdict != 'bad'",
        "1 / (tasks.load.outputs.rows - 1) > 0",
        "max(tasks.load.outputs.notes) > 'a'",
        "len(tasks.load.outputs.notes) > 1 and max(tasks.load.outputs.anything) > 'x' + 'y'",
        "tasks.load.outputs.anything < 'x' or tasks.load.outputs.anything < 3",
        "params.unknown > 'x' or params.nothing > 1",
        "tasks.load.outputs.passed == 1",
        "int(tasks.load.outputs.verdict) > 3 if params.on else false",
        "tasks.load.state == 'success' and tasks.load.state in ['failed', 'success']",
        "tasks.many.outputs[tasks.load.outputs.rows].rows > 1",
        "run.pipeline == 'example' and tasks.load.outputs.metrics.f1 ** 2 < 1",
        "10 ** tasks.load.outputs.rows < 5 and round(tasks.load.outputs.rate, 2) > 0",
    ],
)
def test_what_may_be_worked_out_is_accepted(when: str) -> None:
    last = task("t", "script", *NAMES, when=when, trigger_rule="all_done")
    assert faults(*BEFORE, last, parameters={"nothing": None, "unknown": None, "on": None}) == {}


def test_a_key_that_is_the_same_for_all_items_is_told() -> None:
    for key in ("fixed", "{{ run.id }}"):
        assert "the same key" in faults(task("t", map={"over": [1, 2], "key": key}))["/tasks/0/map/key"]
    for key in ("{{ map.item }}", "i{{ map.index }}"):
        assert faults(task("t", map={"over": [1, 2], "key": key})) == {}


def test_a_map_over_what_a_schema_says_is_no_list_is_told() -> None:
    over = {"zip": {"a/b": "{{ tasks.load.outputs.rows }}"}}
    found = faults(*BEFORE, task("t", "script", *NAMES, map={"over": over}))
    assert "is a number, and a list is wanted" in found[f"/tasks/{len(BEFORE)}/map/over/zip/a~1b"]
    assert faults(*BEFORE, task("t", "script", *NAMES, map={"over": "{{ tasks.load.outputs.notes }}"})) == {}
    assert faults(*BEFORE, task("t", "script", *NAMES, map={"over": "{{ tasks.many.outputs }}"})) == {}


def test_a_name_with_a_dot_is_told_how_to_write() -> None:
    found = faults(task("a.b"), task("t", "script", "a.b", when="tasks.a.b.outputs.x > 1"))
    assert "A name with '.' is written tasks['a.b']." in found["/tasks/1/when"]
    assert faults(task("a.b"), task("t", "script", "a.b", when="tasks['a.b'].outputs.x > 1")) == {}


@pytest.mark.parametrize(
    "schema",
    [
        {}, {"$ref": "#/$defs/x"}, {"oneOf": [{"type": "string"}]}, {"type": "object", "patternProperties": {"x": {}}},
        {"type": ["object", "null"]}, {"type": 3}, {"type": [3]}, {"properties": 3, "additionalProperties": False},
        {"properties": {"x": True}}, {"items": False}, {"enum": []}, {"enum": [None]}, {"allOf": [{}, True, 3]},
        {"allOf": []}, {"if": {"type": "string"}}, {"properties": {"x": {"properties": {"y": 1}}}},
    ],
)  # fmt: skip
def test_of_a_schema_that_leaves_it_open_nothing_is_said(schema: Any) -> None:
    assert behind(schema, ("outputs", "x", "y"), 1)[1] is None
    assert kinds(schema) <= {"object"}


def made_by(*tasks: Any) -> dict[str, str]:
    return faults(*tasks, task("t", "train", str(tasks[-1]["name"])))


@pytest.mark.parametrize(
    ("maker", "example"),
    [
        (task("m", "make", map={"over": [1]}), "{{ tasks.m.outputs[0].dataset.uri }}"),
        (task("m", "make", repeat={"until": "true", "max": 2}), "{{ tasks.m.outputs.dataset.uri }}"),
        ({"name": "g", "map": {"over": [1]}, "tasks": [task("m", "make")]}, "{{ tasks.g.outputs[0].m.dataset.uri }}"),
        ({"name": "g", "repeat": {"until": "true", "max": 2}, "tasks": [task("m", "make", map={"over": [1]})]},
         "{{ tasks.g.outputs.m[0].dataset.uri }}"),
        ({"name": "o", "map": {"over": [1]}, "tasks": [
            {"name": "g-1", "map": {"over": [1]}, "tasks": [task("m", "make")]}]},
         "{{ tasks.o.outputs[0]['g-1'][0].m.dataset.uri }}"),
    ],
)  # fmt: skip
def test_of_many_things_one_has_to_be_named_and_the_sentence_says_how(maker: dict[str, Any], example: str) -> None:
    [(pointer, message)] = made_by(maker).items()
    assert pointer == "/tasks/1/parameters/data"
    assert f'"data": "{example}"' in message
    named = task("t", "train", maker["name"], parameters={"algorithm": "svm", "data": example})
    assert faults(maker, named) == {}
