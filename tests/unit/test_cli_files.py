"""``orchestrator apply`` and ``diff`` against a played API."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import main
from tests.unit.played_api import Play

YAML = """name: one
tasks:
  - name: a
    operator: custom_script
---
name: two
tasks: []
"""
VALID: dict[str, Any] = {"valid": True, "errors": [], "plan": {"content_hash": "h2"}, "definition": {}}


def invoke(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=given)


def valid(**definition: Any) -> tuple[int, Any]:
    return 200, {**VALID, "definition": definition}


def saved(name: str, version: int, **more: Any) -> tuple[int, Any]:
    return 200, {"id": name, "name": name, "version": version, "content_hash": "h1", **more}


NOT_THERE = (404, {"message": "There is no such pipeline."})


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "both.yaml").write_text(YAML)
    return str(tmp_path / "both.yaml")


def test_apply_creates_changes_and_leaves_alone(play: Play, file: str, tmp_path: Path) -> None:
    (tmp_path / "three.json").write_text('{"name": "three"}')
    _, api = play(
        *[valid()] * 3,
        *(NOT_THERE, saved("one", 1)),
        *(saved("two", 3), (409, {"message": "Another content."}), saved("two", 3), saved("two", 4)),
        *(saved("three", 2), saved("three", 2)),
    )
    result = invoke("apply", "-f", file, "-f", str(tmp_path / "three.json"))
    assert (result.exit_code, result.output) == (
        0,
        "one: created, version 1\ntwo: changed, version 3 → 4\nthree: unchanged, version 2\n",
    )
    assert [sent.split()[0] for sent in api.sent()] == ["POST"] * 3 + [
        "GET",
        "POST",
        "GET",
        "POST",
        "GET",
        "PUT",
        "GET",
        "POST",
    ]


def test_further_paths_may_follow_the_first(play: Play, file: str, tmp_path: Path) -> None:
    (tmp_path / "three.json").write_text('{"name": "three"}')
    play(*[valid()] * 3, NOT_THERE, saved("one", 1), NOT_THERE, saved("two", 1), NOT_THERE, saved("three", 1))
    assert invoke("apply", "-f", file, str(tmp_path / "three.json")).output.endswith("three: created, version 1\n")


def test_paths_may_stand_alone_but_one_is_needed(play: Play, file: str) -> None:
    play(*[valid()] * 2, NOT_THERE, saved("one", 1), NOT_THERE, saved("two", 1))
    assert invoke("apply", file).output == "one: created, version 1\ntwo: created, version 1\n"
    for command in ("apply", "diff"):
        nothing = invoke(command)
        assert nothing.exit_code == 2
        assert "Name a file, a folder, or - for standard input." in nothing.output


def test_nothing_is_saved_when_anything_is_wrong_and_every_problem_names_its_line(
    play: Play, file: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "twice.json").write_text('{\n "name": "one"\n}')
    errors = [
        {"pointer": "/tasks/0/operator", "message": "No operator is named 'x'."},
        {"pointer": "/tasks/0/retries", "message": "'retries' is wrong."},
    ]
    _, api = play((200, {"valid": False, "errors": errors, "plan": None, "definition": None}), valid(), valid())
    result = invoke("apply", "-f", str(tmp_path))
    lines = result.output.replace(f"{tmp_path}/", "").splitlines()
    assert result.exit_code == 1
    assert lines[0].startswith("bad.yaml:2: This is no YAML")
    assert lines[1] == "twice.json:2: /name: both.yaml:1 defines a pipeline named 'one' too."
    assert lines[2] == "both.yaml:4: /tasks/0/operator: No operator is named 'x'."
    assert lines[3] == "both.yaml:3: /tasks/0/retries: 'retries' is wrong."
    assert lines[4] == "4 problems; nothing was saved."
    assert set(api.sent()) == {"POST /api/v1/pipelines/validate"}


def test_what_the_server_warns_of_is_told_with_its_line_and_keeps_nothing_back(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    child = "tasks:\n  - name: c\n    pipeline: {name: %s}\n"
    path.write_text(f"name: outer\n{child % 'inner'}---\nname: inner\n{child % 'gone'}")
    warned = {"valid": True, "errors": [], "plan": {}, "definition": {}}
    warned["warnings"] = [{"pointer": "/tasks/0/pipeline/name", "message": "There is no such pipeline."}]
    play((200, warned), (200, warned), NOT_THERE, NOT_THERE)
    result = invoke("apply", str(path), "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "outer: would be created\ninner: would be created\n")
    assert result.stderr.splitlines() == [f"{path}:9: /tasks/0/pipeline/name: Warning: There is no such pipeline."]


def test_a_dry_run_saves_nothing(play: Play, file: str) -> None:
    _, api = play(valid(), valid(), NOT_THERE, saved("two", 3))
    result = invoke("apply", "--dry-run", "-f", file)
    assert result.output == "one: would be created\ntwo: would be changed (version 3 is there)\n"
    assert not [sent for sent in api.sent() if "validate" not in sent and not sent.startswith("GET")]


def test_a_dry_run_knows_what_is_the_same(play: Play) -> None:
    play(valid(), saved("two", 3, content_hash="h2"))
    assert invoke("apply", "--dry-run", "-f", "-", given="name: two").output == "two: would be unchanged (version 3)\n"


def test_a_definition_comes_from_standard_input(play: Play) -> None:
    _, api = play(valid(), NOT_THERE, saved("p", 1))
    assert invoke("apply", "-f", "-", given='{"name": "p"}').output == "p: created, version 1\n"
    assert api.bodies()[0] == {"name": "p"}


def test_a_python_file_is_not_run(play: Play, tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("raise SystemExit(3)")
    _, api = play((500, {}))
    assert invoke("apply", "-f", str(tmp_path / "pipeline.py")).exit_code == 1
    assert not api.requests


# --- diff ---

SCRIPT = {"script_content": "import json\nprint(1)\n"}
BEFORE = {"name": "one", "tasks": [{"name": "a", "parameters": SCRIPT, "retries": 2}]}
AFTER = {
    "name": "one",
    "tasks": [{"name": "a", "parameters": {"script_content": "import json\nprint(2)\n"}, "retries": 2}],
}


def test_diff_shows_what_would_change_line_by_line(play: Play) -> None:
    play(valid(**AFTER), saved("one", 3, definition=BEFORE))
    result = invoke("diff", "-f", "-", given="name: one\ntasks: []")
    assert result.exit_code == 1
    assert result.output == (
        "--- one version 3\n+++ standard input:1\n@@ -4,5 +4,5 @@\n     parameters:\n       script_content: |\n"
        "         import json\n-        print(1)\n+        print(2)\n     retries: 2\n"
    )


def test_diff_says_nothing_of_what_the_server_stores_the_same(play: Play) -> None:
    play(valid(**BEFORE), saved("one", 3, definition=BEFORE))
    result = invoke("diff", "-f", "-", given=json.dumps({"priority": 0, **BEFORE}))
    assert (result.exit_code, result.output) == (0, "")


def test_diff_shows_a_new_pipeline_as_a_whole(play: Play) -> None:
    play(valid(**BEFORE), NOT_THERE)
    result = invoke("diff", "-f", "-", given="name: one")
    assert result.exit_code == 1
    assert "--- nothing\n" in result.output
    assert "+name: one\n" in result.output


@pytest.mark.parametrize("answer", [(403, {"message": "Not with this key."}), (200, {"valid": False, "errors": [
    {"pointer": "", "message": "Wrong."}], "plan": None, "definition": None})])  # fmt: skip
def test_diff_tells_trouble_apart_from_a_difference(play: Play, answer: Any) -> None:
    play(answer)
    assert invoke("diff", "-f", "-", given="name: one").exit_code == 2


def test_the_command_line_loads_neither_the_api_nor_a_store() -> None:
    code = (
        "import sys; import orchestrator.cli; "
        "found = {name.partition('.')[0] for name in sys.modules};"
        "print(found & {'flask', 'sqlalchemy', 'celery', 'redis', 'marshmallow', 'psycopg2', 'api', 'workers'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
