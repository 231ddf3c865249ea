"""Templates put values into JSON: types survive, literals can be written, what is missing is named with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ExpressionError, TemplateError
from orchestrator.expressions.paths import Path, lookup_in, parse_path, path_text
from orchestrator.expressions.templates import holds_template, places, problems, references, resolve, whole_path

VALUES: dict[str, Any] = {
    "params": {
        "n": 3, "rate": 0.5, "on": True, "none": None,
        "list": [1, {"a": 2}], "text": "x", "braces": "{{ run.id }}",
    },
    "tasks": {"load": {"outputs": {"path": "s3://b/k", "rows": 7}}, "a-b": {"outputs": {"x y": 1}}},
    "run": {"id": "r1"},
    "repeat": {"index": 0, "previous": None},
}  # fmt: skip


def filled(value: Any, **more: Any) -> Any:
    return resolve(value, lookup_in(VALUES), **more)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ params.n }}", 3),
        ("{{params.rate}}", 0.5),
        ("{{ params.on }}", True),
        ("{{ params.none }}", None),
        ("{{ params.list }}", [1, {"a": 2}]),
        ("{{ params.list[1].a }}", 2),
        ("{{ params.list[-1] }}", {"a": 2}),
        ("{{ tasks['a-b'].outputs['x y'] }}", 1),
        ('{{ tasks["a-b"].outputs["x y"] }}', 1),
        ("{{ tasks.a-b.outputs }}", {"x y": 1}),
        ("{{ tasks.load.outputs }}", {"path": "s3://b/k", "rows": 7}),
        (" {{ params.n }}", " 3"),
        ("n={{ params.n }} rate={{ params.rate }}", "n=3 rate=0.5"),
        ("{{ params.on }}{{ params.none }}", "truenull"),
        ("of {{ params.list }}", 'of [1, {"a": 2}]'),
        ("{{ params.text }}{{ params.text }}", "xx"),
        (r"\{{ params.n }}", "{{ params.n }}"),
        (r"\{{ {{ params.n }} }}", "{{ 3 }}"),
        (r"a\{{b\{{c", "a{{b{{c"),
        ("{ params.n } }} {", "{ params.n } }} {"),
        ("", ""),
        ("{{ params.braces }}", "{{ run.id }}"),
        ("<{{ params.braces }}>", "<{{ run.id }}>"),
    ],
)
def test_a_text_is_filled_in(text: str, value: Any) -> None:
    found = filled(text)
    assert found == value
    assert type(found) is type(value)


def test_templates_are_found_anywhere_but_in_names_of_fields() -> None:
    value = {"{{ run.id }}": ["{{ run.id }}", {"x": 1, "y": "{{ params.n }}"}], "z": None}
    assert filled(value) == {"{{ run.id }}": ["r1", {"x": 1, "y": 3}], "z": None}
    assert references(value) == {("run", "id"), ("params", "n")}
    assert sorted(places(value)) == [("/{{ run.id }}/0", ("run", "id")), ("/{{ run.id }}/1/y", ("params", "n"))]
    assert holds_template(value)
    assert not holds_template({"{{ x }}": [1, "x"]})


@pytest.mark.parametrize(
    ("value", "pointer", "words"),
    [
        ("{{ params.x }}", "", "params has no 'x'"),
        ({"a/b": ["", "{{ tasks.load.outputs.size }}"]}, "/a~1b/1", "tasks.load.outputs has no 'size'"),
        ({"a": "x {{ params.list[5] }}"}, "/a", "params.list has 2 entries and no [5]"),
        ({"a": "{{ params.none.x }}"}, "/a", "params.none is null"),
        ({"a": "{{ params.text.x }}"}, "/a", "params.text is no object"),
        ({"a": "{{ params.list.x }}"}, "/a", "params.list is a list"),
        ({"a": "{{ map.item }}"}, "/a", "no 'map' here"),
        ({"a": "{{ params.n"}, "/a", "not closed"),
    ],
)
def test_what_is_missing_is_named_with_its_place(value: Any, pointer: str, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        filled(value)
    assert caught.value.pointer == pointer
    assert words in str(caught.value)
    assert filled({"b": {"c": "{{ params.n }}"}}, pointer="/parameters") == {"b": {"c": 3}}


def test_the_first_round_of_a_repeat_has_null_before_it() -> None:
    assert filled("{{ repeat.previous.outputs.loss }}") is None
    assert filled("{{ repeat.previous }}") is None
    with pytest.raises(TemplateError):
        filled("{{ repeat.prev }}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ }}", "holds nothing"),
        ("{{ params.x", "not closed"),
        ("{{ 1 + 1 }}", "no path"),
        ("{{ params.x + 1 }}", "no path from"),
        ("{{ params..x }}", "no path from"),
        ("{{ params[x] }}", "no path from"),
        ("{{ params.x | default(1) }}", "no path from"),
        ("{{{ params.x }}}", "no path"),
        ('{{"a": 1}}', r"\{{"),
        ("{{ a" + ".b" * 50 + " }}", "at most 40"),
    ],
)
def test_a_faulty_template_is_a_problem_with_its_pointer(text: str, words: str) -> None:
    (problem,) = problems({"a": [text]}, "/tasks/0/parameters")
    assert problem.pointer == "/tasks/0/parameters/a/0"
    assert words in problem.message
    assert references(text) == frozenset()
    assert whole_path(text) is None


def test_problems_say_what_is_wrong_with_a_path() -> None:
    found = problems({"a": "{{ x }} {{ y }}", "b": "{{ x }}"}, "", lambda path: "No." if path == ("x",) else None)
    assert [(problem.pointer, problem.message) for problem in found] == [("/a", "No."), ("/b", "No.")]


def test_no_template_puts_in_more_than_may_be_stored() -> None:
    values = {"params": {"big": "x" * 1000}}
    assert len(resolve("{{ params.big }}" * 5, lookup_in(values), most=5000)) == 5000
    for value in ("{{ params.big }}" * 6, ["{{ params.big }}"] * 6):
        with pytest.raises(TemplateError, match="more than 5000"):
            resolve(value, lookup_in(values), most=5000)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_a_value_of_any_type_survives_a_whole_template(value: Any) -> None:
    found = resolve({"a": ["{{ params.v }}"]}, lookup_in({"params": {"v": value}}))["a"][0]
    assert found == value
    assert type(found) is type(value)


@given(json_values)
def test_a_value_without_templates_is_left_as_it_is(value: Any) -> None:
    if not holds_template(value):
        assert resolve(value, lookup_in({})) == value


@given(json_values)
def test_inside_a_text_a_value_is_its_json(value: Any) -> None:
    found = resolve("<{{ params.v }}>", lookup_in({"params": {"v": value}}))
    assert found == f"<{value}>" if isinstance(value, str) else json.loads(found[1:-1]) == value


@given(st.text(alphabet="{}\\ abc.[]'\"0-\n", max_size=60) | st.text(max_size=60))
def test_any_text_is_filled_in_or_refused_with_a_sentence(text: str) -> None:
    refusal = "Not refused."
    try:
        filled(text)
    except TemplateError as error:
        refusal = str(error)
    assert refusal.endswith(".")
    assert all(problem.message.endswith(".") for problem in problems(text))


@given(st.text(alphabet=st.characters(blacklist_characters="{", codec="utf-8")))
def test_a_literal_is_written_with_a_backslash(text: str) -> None:
    assert filled(r"\{{" + text) == "{{" + text


names = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]*\Z")
keys = st.text(alphabet=st.characters(blacklist_characters="\\'\"", codec="utf-8"), max_size=10)


@given(st.tuples(names), st.lists(keys | st.integers(-999, 999), max_size=6))
def test_a_path_reads_as_it_is_written(first: tuple[str], rest: list[str | int]) -> None:
    path: Path = (*first, *rest)
    assert parse_path(path_text(path)) == path


@pytest.mark.parametrize("text", ["{{ params.abyss }}", "of {{ params.abyss }}"])
def test_a_value_that_is_nested_too_deep_is_told_with_its_place(text: str) -> None:
    abyss: list[Any] = []
    for _ in range(100_000):
        abyss = [abyss]
    with pytest.raises(TemplateError, match="at /p put in is nested too deep") as caught:
        resolve({"x": text}, lookup_in({"params": {"abyss": abyss}}), "/p")
    assert caught.value.pointer == "/p"


def test_a_hostile_text_takes_no_time() -> None:
    for text in ("{{" * 100_000, "{{ a" + "[0]" * 50_000, "\\{{" * 100_000, "{{ a }}" * 50_000, "{{ " + "a" * 200_000):
        problems(text)
    with pytest.raises(ExpressionError):
        parse_path("a" + ".b" * 100_000 + "!")
