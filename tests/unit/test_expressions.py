"""Expressions compute with JSON values and with nothing else, in bounded time, and say in a sentence what is wrong."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ExpressionError
from orchestrator.expressions import compile_expression, states_named
from orchestrator.expressions.effort import MOST_READ, Effort
from orchestrator.expressions.kinds import Kind, kind_faults
from orchestrator.expressions.named import plainly_named

VALUES: dict[str, Any] = {
    "params": {"x": 3, "rate": 0.5, "name": "a-b", "list": [1, 2, 3], "table": [{"y": 1}, {"y": None}], "on": True},
    "tasks": {
        "validate": {"state": "success", "outputs": {"metrics": {"f1": 0.9}, "rows": 100}},
        "train-model": {"state": "failed", "outputs": None},
        "folds": {"state": "success", "outputs": [{"a": 1}, None, {"a": 3}]},
    },
    "run": {"id": "r1", "pipeline": "p"},
    "map": {"item": {"lr": 0.1}, "index": 1, "key": "k"},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3 - 4 / 2", 5.0),
        ("7 // 2 + 7 % 4 + 2 ** 5", 38),
        ("-params.x + +1", -2),
        ("'a' + 'b'", "ab"),
        ("params.x > 2 and params.rate <= 0.5 or false", True),
        ("not params.on", False),
        ("1 < params.x < 4 < 3", False),
        ("params.x in [1, 3]", True),
        ("params.x not in params.list", False),
        ("contains(params.list, 3)", True),
        ("'a' in params.name", True),
        ("'f1' in tasks.validate.outputs.metrics", True),
        ("tasks.validate.outputs['metrics']['f1'] > 0.8", True),
        ("tasks['train-model'].state == 'failed'", True),
        ("tasks.folds.outputs[-1].a", 3),
        ("tasks.folds.outputs[1].a", None),
        ("params.table[map.index].y == null", True),
        ("params.table[map.index - 1].y", 1),
        ("'yes' if params.on else 'no'", "yes"),
        ("len(params.list) + len(params.name)", 6),
        ("min(params.list) + max(1, 2, 3)", 4),
        ("sum(params.list) / len(params.list)", 2.0),
        ("round(2.567, 1) + abs(-1)", 3.6),
        ("int('12') + float('0.5') + int(2.9)", 14.5),
        ("str(params.list) + str(true) + str('x')", "[1, 2, 3]truex"),
        ("any(params.list) and not all([1, 0])", True),
        ("params.nothing is None and params.x is not null", True),
        ("params.nothing", None),
        ("params.x.y.z", None),
        ("tasks.nowhere.outputs.a[3]", None),
        ("tasks['train-model'].outputs.accuracy > 0.5", False),
        ("tasks['train-model'].outputs.accuracy <= 0.5", False),
        ("'x' in params.nothing", False),
        ("params.nothing or 5", 5),
        ("true == True and null == None", True),
        ("run.id + map.key", "r1k"),
        ("(\n 1 +\n 1 )", 2),
        ("params.list == [1, 2, 3]", True),
    ],
)
def test_an_expression_is_worked_out(text: str, value: Any) -> None:
    assert compile_expression(text).evaluate(VALUES) == value


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("tasks.validate.outputs.metrics.f1 > params.x",
         {("tasks", "validate", "outputs", "metrics", "f1"), ("params", "x")}),
        ("tasks['a-b'].state == 'failed'", {("tasks", "a-b", "state")}),
        ("params.table[map.index].y", {("params", "table"), ("map", "index")}),
        ("params['a b'][0][-1]", {("params", "a b", 0, -1)}),
        ("len(params.x) == true", {("params", "x")}),
        ("1 + 1", set()),
        ("foo", {("foo",)}),
    ],
)  # fmt: skip
def test_what_an_expression_reads_is_known_beforehand(text: str, paths: set[Any]) -> None:
    assert compile_expression(text).references == paths


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("x" * 501, "at most 500"),
        ("params.x &&  1", "'and'"),
        ("params.x || 1", "'or'"),
        ("!params.x", "'not'"),
        ("params.x = 1", "Equality is =="),
        ("params.x == 1 or params.y = 1", "Equality is =="),
        ("tasks.import.outputs.rows >= 1", "Write ['import'] for .import"),
        (" not tasks.class.outputs.ok", "Write ['class'] for .class"),
        ("params.x ==", "something is missing at its end, after '=='"),
        ("1 +", "missing at its end, after '+'"),
        ("1 + * 2", "at character 5"),
        ("{{ params.x }}", "not {{ params.x }}"),
        ("'a\\d'", "backslash"),
        ("[i for i in params.list]", "comprehension"),
        ("{i for i in params.list}", "comprehension"),
        ("lambda: 1", "function of its own"),
        ("(x := 1)", "assignment"),
        ("{'a': 1}", "an object"),
        ("f'{params.x}'", "formatted"),
        ("params.list[0:2]", "slice"),
        ("params.__class__", "__class__"),
        ("().__class__", "__class__"),
        ("'x'.upper()", "methods"),
        ("params.name.upper()", "methods"),
        ("(lambda: 1)()", "methods"),
        ("[1, 2][0]", "has a name"),
        ("exec('1')", "no function 'exec'"),
        ("lenn(params.x)", "Did you mean 'len'?"),
        ("len(params.x, 1)", "takes 1 value, not 2"),
        ("round()", "takes 1 to 2 values"),
        ("max(*params.list)", "a *"),
        ("round(params.x, ndigits=1)", "named values"),
        ("1 << 3", "bits"),
        ("~1", "bits"),
        ("1 @ 2", "matrices"),
        ("1j", "no JSON value"),
        ("b'x'", "no JSON value"),
        ("...", "no JSON value"),
        ("1e999", "too large"),
        ("9" * 400, "too large"),
        ("1; 2", "can't be read"),
        ("import os", "can't be read"),
        ("\0", "can't be read"),
        ("\ud800", "can't be read"),
        ("(" * 250 + ")" * 250, "can't be read"),
        ("-" * 400 + "1", "nested"),
        ("+".join(["1"] * 200), "nested"),
        ("[" + "1," * 240 + "1]", "more than 200 parts"),
        ("a" + ".b" * 60, "nested"),
    ],
)
def test_what_is_not_plain_arithmetic_is_refused_when_it_is_read(text: str, words: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text)
    assert words in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_a_power_of_fractions_that_gets_too_large_is_told_in_words() -> None:
    with pytest.raises(ExpressionError, match=r"can't be worked out: A power gets too large\.$"):
        compile_expression("10.0 ** 400").evaluate({})


@pytest.mark.parametrize(
    "text",
    [
        "10 ** 10 ** 10",
        "10 ** 400",
        "2 ** 1000 * 2 ** 1000",
        "(-8) ** 0.5",
        "1e308 * 10",
        "1 / 0",
        "1 % 0",
        "'a' * 10 ** 9",
        "[1] * 10 ** 9",
        "'%999999999d' % 1",
        "round(5, -10 ** 9)",
        "int('9' + 'x')",
        "float('nan')",
        "float('inf')",
        "int(params.list)",
        "'a' < 1",
        "params.list < params.list",
        "1 + 'a'",
        "-params.nothing",
        "params.nothing + 1",
        "min([])",
        "max(1, 'a')",
        "sum(['a'])",
        "sum(params.nothing)",
        "len(params.nothing)",
        "1 in 5",
        "params.table['x' + 'y']",
        "params.list[params.name]",
    ],
)
def test_what_can_not_be_worked_out_is_a_sentence(text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text).evaluate(VALUES)
    assert "can't be worked out" in str(caught.value)
    assert str(caught.value).endswith(".")


def test_the_states_that_a_condition_names_are_those_it_handles() -> None:
    assert states_named("tasks.a.state == 'failed' or tasks['b-c'].state in ['failed']") == {"a", "b-c"}
    assert states_named("tasks.a.outputs.state == 'failed'") == frozenset()
    assert states_named("") == frozenset()
    assert states_named("tasks.a.state ==") == frozenset()


HOSTILE = [
    "(" * 199 + "1" + ")" * 199,
    "[" * 199 + "]" * 199,
    "9**9**9**9**9",
    "'" + "a" * 490 + "' in params.big",
    "params.big == params.big and params.big in params.list",
    "+".join(["params.big"] * 30),
    "str(params.huge) + str(params.huge)",
    "sum(params.long) + max(params.long) + len(params.long)",
    "any(params.long) and all(params.long)",
    "int('" + "9" * 480 + "')",
    "not " * 120 + "1",
    "1 if 1 else " * 40 + "1",
]
BIG = {"params": {"big": "ab" * 100_000, "huge": [[1] * 100] * 1000, "long": [1] * 10_000, "list": ["x"]}}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_expressions_end_at_once(text: str) -> None:
    began = time.process_time()
    for values in (VALUES, BIG):
        with contextlib.suppress(ExpressionError):
            compile_expression(text).evaluate(values)
    assert time.process_time() - began < 0.5


pieces = st.sampled_from(
    ["params.x", "tasks.validate.outputs", "tasks['a']", "1", "0.5", "'a'", "[", "]", "(", ")", "+", "-", "*", "**",
     "/", "//", "%", "<", "==", " in ", " and ", " or ", "not ", " if ", " else ", "len", "max", "str",
     "round", ",", ".",
     "x", "true", "null", "lambda", ":", "{", "}", "9999999999", "{{", "\\", "\n", "é", "\0"]
)  # fmt: skip


@given(st.lists(pieces, max_size=40).map("".join) | st.text(max_size=600))
def test_any_text_is_an_expression_or_refused_with_a_sentence(text: str) -> None:
    found = said = None
    try:
        found = compile_expression(text).evaluate(VALUES)
    except ExpressionError as error:
        said = str(error)
    assert said is None or said.endswith((".", "?"))
    assert found is None or isinstance(found, (bool, int, float, str, list, dict))


@given(st.lists(pieces, max_size=40).map("".join), st.sampled_from(["", "integer", "string", "array", "object"]))
def test_what_is_refused_for_its_kinds_fails_with_values_of_these_kinds(text: str, kind: str) -> None:
    value = {"integer": 1, "string": "1", "array": [1], "object": {"1": 1}}.get(kind)
    try:
        expression = compile_expression(text)
    except ExpressionError:
        return
    faults = kind_faults(expression, lambda path: Kind(kind))
    assert all(fault.endswith(".") for fault in faults)
    if not faults or len(expression.references) > 1 or any(len(path) > 1 for path in expression.references):
        return
    if any(word in text for word in (" and ", " or ", " if ")) or sum(map(text.count, ("<", "==", " in "))) > 1:
        return  # what is never reached does not fail
    with pytest.raises(ExpressionError):
        expression.evaluate({"params": {}, **{str(path[0]): value for path in expression.references}})


plain_pieces = st.sampled_from(
    ["tasks.a.outputs", "tasks.a.state", "tasks['b-c'].state", 'tasks["d"].outputs', ".x", "[0]", "['k']", ".state",
     "tasks", ".a", "tasks . a . outputs", "xtasks.a.outputs", "params.", "params.x", " == ", "'failed'", " in ", "'",
     '"', "1", " and ", " or ", "not ", "(", ")", "[", "]", ", ", "len(", "#", "outputs.n", "repeat.index", " - ", "é",
     "ｔasks.a.outputs", " ", "\n"]
)  # fmt: skip


@given(st.lists(plain_pieces, max_size=12).map("".join))
def test_what_is_seen_from_the_text_alone_is_what_is_read(text: str) -> None:
    try:
        paths = compile_expression(text).references
    except ExpressionError:
        return
    plain = plainly_named(text)
    named = {path[:3] for path in paths if path[0] == "tasks"}
    assert plain is None or {path[:3] for path in plain} == named
    if plain is not None:
        assert not [path for path in paths if path[0] in ("outputs", "repeat")]
        # It may be seen that less of a path is plain than is, and never more.
        read = [path for path in paths if path[0] == "tasks"]
        assert all(any(path[: len(seen)] == seen for seen in plain) for path in read)


def test_a_plain_condition_is_seen_through_without_being_read() -> None:
    text = "tasks.a.state == 'failed' and tasks['b-c'].outputs.rows[params.n] > 3 and tasks.d.outputs"
    below = [("tasks", "b-c", "outputs", "rows"), ("tasks", "d", "outputs")]
    assert plainly_named(text) == [("tasks", "a", "state"), *below]
    assert plainly_named("tasks.d.outputs[0].n -1") == [("tasks", "d", "outputs", 0, "n")]
    assert plainly_named("outputs.loss < 0.1") is None
    assert plainly_named("'tasks.a.outputs' == params.x") is None


LARGE: dict[str, Any] = {
    "params": {
        "ints": [1] * 100_000, "floats": [n * 1.0001 for n in range(30_000)], "rows": [{"n": n} for n in range(20_000)],
        "digits": [int("9" * 4300)] * 60, "text": "a" * 250_000, "short": "a" * 2499,
        "tree": [[[1] * 10] * 10] * 100, "one": int("9" * 4300), "index": 3,
    },
}  # fmt: skip
LARGE["other"] = {**LARGE["params"], "rows": [{"n": n} for n in range(20_000)], "text": "a" * 249_999 + "b"}


@pytest.mark.parametrize(
    "step",
    [
        "2 in params.ints",
        "contains(params.ints, 2)",
        "str(params.ints)==''",
        "str(params.floats)==''",
        "str(params.digits)==''",
        "params.rows!=other.rows",
        "params.tree!=params.tree",
        "[1] in params.rows",
        "sum(params.ints)<0",
        "max(params.floats)<0",
        "str([params,params])==''",
    ],
)
def test_an_expression_that_reads_too_much_is_refused_before_it_does(step: str) -> None:
    effort = Effort()
    with pytest.raises(ExpressionError, match=r"can't be worked out: It reads too much\. Ask for less of it"):
        compile_expression(" or ".join([step] * ((500 + 4) // (len(step) + 4)))).evaluate(LARGE, effort)
    assert effort.spent > MOST_READ


@pytest.mark.parametrize(
    "text",
    [
        "sum(params.ints) / len(params.ints) == 1 and 2 in params.ints",
        "max(params.floats) > min(params.floats)",
        "'error' in params.text or params.text == other.text",
        "params.short in params.text",
        "params.ints[params.index] == 1",
        "str(params.rows[0]) == ''",
    ],
)
def test_what_people_ask_of_large_values_is_not_too_much(text: str) -> None:
    effort = Effort()
    compile_expression(text).evaluate(LARGE, effort)
    assert effort.spent <= MOST_READ


@pytest.mark.parametrize("text", ["sum(params.digits) > 1", "params.ints[params.rows]", "params.one + 1"])
def test_values_without_measure_end_in_a_short_sentence(text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text).evaluate(LARGE)
    assert len(str(caught.value)) < 200
