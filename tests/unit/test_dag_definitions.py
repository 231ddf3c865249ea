"""Every example of ``examples/dag`` compiles, and means the same from the builder, as JSON and as YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Pipeline
from orchestrator.compile import Site, compile_pipeline
from orchestrator.definition_text import WrittenDocument, read_documents, read_files
from orchestrator.registry import load_operators
from tests.unit.test_builder import EXAMPLES

DOCUMENTS, PROBLEMS = read_files([str(EXAMPLES / "dag")])
OPERATORS = load_operators([])
each_example = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


def built(definition: Mapping[str, Any]) -> Pipeline:
    """Make a definition again with calls of the builder."""
    fields = {name: value for name, value in definition.items() if name not in ("name", "tasks")}
    with Pipeline(definition["name"], **fields) as pipeline:
        add(pipeline, definition["tasks"])
    return pipeline


def add(pipeline: Pipeline, tasks: list[Mapping[str, Any]]) -> None:
    for task in tasks:
        fields = {name: value for name, value in task.items() if name not in ("name", "tasks", "upstream_tasks")}
        fields["upstream"] = task.get("upstream_tasks", ())
        if "tasks" not in task:
            pipeline.task(task["name"], **fields)
            continue
        with pipeline.group(task["name"], **fields):
            add(pipeline, task["tasks"])


def test_every_file_of_the_folder_can_be_read() -> None:
    assert not PROBLEMS
    assert {document.source for document in DOCUMENTS} == {str(file) for file in (EXAMPLES / "dag").glob("*.yaml")}


@each_example
def test_an_example_compiles_and_so_does_what_is_stored_of_it(document: WrittenDocument) -> None:
    compiled = compile_pipeline(document.value, OPERATORS, Site())
    assert compile_pipeline(compiled.definition, OPERATORS, Site()).content_hash == compiled.content_hash
    assert not compiled.run_needs, "it can be started without parameters"


@each_example
def test_the_builder_json_and_yaml_say_the_same(document: WrittenDocument) -> None:
    pipeline = built(document.value)
    assert pipeline.to_dict() == document.value
    from_json = json.loads(pipeline.to_json())
    [from_yaml] = read_documents(pipeline.to_yaml(), "its.yaml")
    assert from_json == from_yaml.value == document.value


@each_example
def test_every_value_of_an_example_has_its_line(document: WrittenDocument) -> None:
    text = Path(document.source).read_text(encoding="utf-8").splitlines()
    for place, task in enumerate(document.value["tasks"]):
        line = document.lines[f"/tasks/{place}/name"]
        assert f"name: {task['name']}" in text[line - 1]


# --- what the pages show of them ---

ROOT = EXAMPLES.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "dag").glob("*.md")), ids=lambda page: page.stem)
def test_what_a_page_shows_stands_in_an_example_that_it_names(page: Path) -> None:
    named = re.findall(r"`(examples/dag/[\w-]+\.yaml)`", page.read_text(encoding="utf-8"))
    lines = {line.strip() for name in named for line in (ROOT / name).read_text(encoding="utf-8").splitlines()}
    for block in [*blocks(page, "yaml"), *blocks(page, "python")]:
        assert not [line for line in block.splitlines() if line.strip() not in lines]


def test_the_program_on_the_page_of_the_builder_makes_a_definition_that_compiles(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [program] = blocks(ROOT / "docs" / "how-to" / "define-pipelines-as-files.md", "python")
    exec(compile(program, "the page", "exec"), {})
    [document] = read_documents(capsys.readouterr().out, "its.yaml")
    compile_pipeline(document.value, OPERATORS, Site())
