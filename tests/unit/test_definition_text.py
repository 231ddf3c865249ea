"""Definitions as files: what JSON and YAML mean, that both mean the same, and where in a file a value is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.definition_text import read_documents, read_files
from orchestrator.errors import ConfigurationError, Problem, UnreadableText
from orchestrator.json_text import read_json
from orchestrator.yaml_text import read_yaml, write_yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(file for file in EXAMPLES.rglob("*") if file.suffix in (".json", ".yaml"))
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\t ")
) | st.sampled_from(
    [
        "on",
        "yes",
        "null",
        "~",
        "1e-3",
        "1_000",
        "0x1f",
        "0o17",
        "010",
        "12:30",
        "2026-01-01",
        ".inf",
        "=",
        "<<",
        "- a",
        "#",
        "",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def only(text: str) -> Any:
    [(value, _)] = read_yaml(text)
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on: [a]", {"on": ["a"]}),
        ("yes", "yes"),
        ("1e-3", 0.001),
        ("2026-01-01", "2026-01-01"),
        ("12:30", "12:30"),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("'1'", "1"),
        ("'NaN'", "NaN"),
        ("nan", "nan"),
        ("!!str 12", "12"),
        ("{a: ~, b: null, c: }", {"a": None, "b": None, "c": None}),
        ("{a: true, b: False}", {"a": True, "b": False}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
    ],
)
def test_yaml_means_what_yaml_1_2_says(text: str, value: Any) -> None:
    assert only(text) == value


def test_defaults_can_be_merged_under_a_tasks_own_fields() -> None:
    text = "tasks:\n  - &small {name: a, cpu: 1, retries: 2}\n  - {<<: *small, name: b, cpu: 2}\n"
    assert only(text)["tasks"][1] == {"name": "b", "cpu": 2, "retries": 2}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\na: 2", 2, "'a' is here twice"),
        ("a:\n  - !!python/object:os.system x", 2, "tag"),
        ("a: !!float x", 1, "tag"),
        ("a: .inf", 1, "no JSON"),
        ("a: NaN", 1, "NaN is no JSON number"),
        ("a:\n  - -Infinity", 2, "put it in quotes to make it a text"),
        ("a: 1e999", 1, "too large"),
        ("b: 1\na: " + "9" * 5000, 2, "A number of 5000 characters is too large"),
        ("? [1]\n: 2", 1, "must be a text"),
        ("a: &x [*x]", 1, "grows too large"),
        ("a: [1", 2, "no YAML"),
        ("a: 1\n b: 2", 2, "no YAML"),
        ("a: \x07", 1, "no YAML"),
        ("a:\n\t- b", 2, "this line holds a tab, and YAML is indented by spaces"),
        ("a: *nowhere", 1, "no YAML"),
        ("a: {<<: 3}", 1, "must be an object"),
    ],
)
def test_yaml_that_json_can_not_say_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(UnreadableText, match=said) as caught:
        read_yaml(text)
    assert abs(caught.value.line - line) <= 1


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(UnreadableText, match="grows too large"):
        read_yaml("\n".join(lines))


@given(VALUES)
def test_what_is_written_as_yaml_reads_as_the_same_value(value: Any) -> None:
    assert only(write_yaml({"value": value})) == {"value": value}


@given(VALUES)
def test_json_is_read_as_json_is(value: Any) -> None:
    text = json.dumps(value, indent=1)
    read, lines = read_json(text)
    assert read == value
    assert set(lines) == set(read_yaml(write_yaml(value))[0][1])


@given(VALUES)
def test_a_reader_of_yaml_1_1_sees_no_word_where_we_wrote_a_text(value: Any) -> None:
    """What YAML 1.1 takes for something else is quoted."""
    ours, theirs = {"value": value}, yaml.safe_load(write_yaml({"value": value}))
    assert json.loads(json.dumps(ours)) == json.loads(json.dumps(theirs))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_what_python_writes_for_no_number_becomes_no_text(word: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{word} is no JSON"):
        read_documents(f'{{"name": "p", "x": {word}}}', "standard input")
    assert only(write_yaml({"x": word})) == {"x": word}


def test_a_field_that_json_has_twice_is_refused() -> None:
    with pytest.raises(UnreadableText, match="twice") as caught:
        read_json('{\n "a": 1,\n "a": 2\n}')
    assert caught.value.line == 3


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a" 1}', "[" * 100_000, f'{{"a": {"9" * 5000}}}'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(UnreadableText):
        read_json(text)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_example_is_the_same_as_json_and_as_yaml(file: Path) -> None:
    for document in read_documents(file.read_text(encoding="utf-8"), str(file)):
        [(as_yaml, _)] = read_yaml(write_yaml(document.value))
        as_json, _ = read_json(json.dumps(document.value))
        assert as_yaml == as_json == document.value


# --- files ---

TWO = """# two pipelines
name: one
tasks:
  - name: a
    operator: custom_script
---
name: two
tasks:
  - name: b
    parameters:
      "x/y": 1
---
"""


def test_one_file_may_hold_several_documents_and_each_knows_its_lines() -> None:
    one, two = read_documents(TWO, "two.yaml")
    assert (one.name, two.name) == ("one", "two")
    assert one.place("/tasks/0/operator") == "two.yaml:5"
    assert two.place("/tasks/0/parameters/x~1y") == "two.yaml:11"
    missing = Problem("/tasks/0/operator", "'operator' is missing.")
    assert two.told(missing) == "two.yaml:9: /tasks/0/operator: 'operator' is missing."


def test_json_knows_its_lines_too() -> None:
    [document] = read_documents(json.dumps({"name": "p", "tasks": [{"name": "a"}]}, indent=2), "p.json")
    assert document.place("/tasks/0/name") == "p.json:5"
    assert document.place("") == "p.json:1"


def test_json_with_tabs_and_surrogates_is_json_under_any_name() -> None:
    [document] = read_documents('{\n\t"name": "\\ud83d\\ude00"\n}', "standard input")
    assert document.name == "😀"


@pytest.mark.parametrize("text", ["", "# nothing\n", "[1]", "- 1", "word"])
def test_a_file_without_an_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="holds no object"):
        read_documents(text, "p.yaml")


def test_a_folder_stands_for_its_definitions_and_every_unreadable_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.yaml").write_text("name: b")
    (tmp_path / "sub" / "a.json").write_text('{"name": "a"}')
    (tmp_path / ".hidden.yaml").write_text(": :")
    (tmp_path / "notes.txt").write_text("no definition")
    (tmp_path / "bad.yml").write_text("a: [")
    (tmp_path / "binary.json").write_bytes(b"\xff")
    documents, problems = read_files([str(tmp_path), str(tmp_path / "missing.yaml")])
    assert [document.name for document in documents] == ["b", "a"]
    assert [problem.partition(": ")[0].removeprefix(f"{tmp_path}/") for problem in problems] == [
        "bad.yml:2", "binary.json", "missing.yaml",
    ]  # fmt: skip


def test_a_folder_without_definitions_is_told(tmp_path: Path) -> None:
    documents, problems = read_files([str(tmp_path)])
    assert not documents
    assert "There is no .json, .yaml, .yml file" in problems[0]


def test_standard_input_is_read_where_a_dash_stands() -> None:
    documents, _ = read_files(["-"], [b"name: p\n", b"tasks: []\n"])
    assert documents[0].place("/tasks") == "standard input:2"
