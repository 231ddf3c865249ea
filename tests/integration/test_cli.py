"""The command line and the builder against the real API, in this process, on a real database."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from click.testing import CliRunner, Result
from requests.adapters import BaseAdapter

from orchestrator import Pipeline
from orchestrator.cli import main
from orchestrator.client import Client
from orchestrator.definition_text import read_documents
from tests.integration.api_site import ApiSite

pytestmark = pytest.mark.timeout(60)
EXAMPLES = Path(__file__).parents[2] / "examples"


class InProcess(BaseAdapter):
    """Hands requests to the application, without a socket."""

    def __init__(self, site: ApiSite) -> None:
        super().__init__()
        self._site = site

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        address = urlsplit(str(request.url))
        body = request.body.encode() if isinstance(request.body, str) else request.body
        answer = self._site.app.test_client().open(
            address.path,
            query_string=address.query,
            method=str(request.method),
            headers=dict(request.headers),
            data=body,
        )
        response = requests.Response()
        response.status_code = answer.status_code
        response.url = str(request.url)
        response.headers.update(answer.headers)
        response.raw = io.BytesIO(answer.get_data())
        return response

    def close(self) -> None:
        pass


@pytest.fixture
def client(api: ApiSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with Client("http://api.test", api.keys["admin"]) as client:
        client._session.mount("http://", InProcess(api))
        monkeypatch.setattr("orchestrator.cli.connection.connect", lambda: client)
        yield client


def invoke(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=given)


def test_the_examples_are_applied_once_and_are_then_unchanged_and_without_difference(client: Client) -> None:
    files = [str(EXAMPLES / "ab-testing.json"), str(EXAMPLES / "ml-training-pipeline.json")]
    created = invoke("apply", "-f", *files)
    assert created.output == "ab-testing: created, version 1\nml-training-pipeline: created, version 1\n"
    assert invoke("apply", "-f", *files).output == (
        "ab-testing: unchanged, version 1\nml-training-pipeline: unchanged, version 1\n"
    )
    assert invoke("apply", "--dry-run", "-f", files[0]).output == "ab-testing: would be unchanged (version 1)\n"
    same = invoke("diff", "-f", *files)
    assert (same.exit_code, same.output) == (0, "")


def test_the_same_definition_as_yaml_is_no_change(client: Client, tmp_path: Path) -> None:
    file = EXAMPLES / "ab-testing.json"
    [document] = read_documents(file.read_text(), file.name)
    invoke("apply", "-f", str(file))
    from orchestrator.yaml_text import write_yaml

    (tmp_path / "ab.yaml").write_text(write_yaml(document.value))
    assert invoke("apply", "-f", str(tmp_path / "ab.yaml")).output == "ab-testing: unchanged, version 1\n"


def test_a_default_that_is_written_out_is_no_difference_and_a_change_is_shown(client: Client, api: ApiSite) -> None:
    api.saved("two-scripts")
    text = """
name: two-scripts
description: One script after another
owner: tests
priority: 0
tasks:
  - {name: first, operator: custom_script, parameters: {script_content: print(1)}, trigger_rule: all_success, gpu: 0}
  - {name: second, operator: custom_script, upstream_tasks: [first], parameters: {script_content: print(%s)}}
"""
    assert invoke("diff", "-f", "-", given=text % 2).exit_code == 0
    changed = invoke("diff", "-f", "-", given=text % 3)
    assert changed.exit_code == 1
    lines = [line for line in changed.output.splitlines() if line.startswith(("+ ", "- "))]
    assert [line.strip("+- ") for line in lines] == ["script_content: print(2)", "script_content: print(3)"]
    assert invoke("apply", "-f", "-", given=text % 3).output == "two-scripts: changed, version 1 → 2\n"


def test_every_problem_of_every_document_has_its_line_and_nothing_is_saved(client: Client) -> None:
    text = """name: good
tasks:
  - {name: a, operator: custom_script, parameters: {script_content: print(1)}}
---
name: bad
tasks:
  - name: a
    operator: custom_scrip
  - name: b
    operator: custom_script
    upstream_tasks: [c]
    parameters: {script_content: print(1)}
"""
    result = invoke("apply", "-f", "-", given=text)
    assert result.exit_code == 1
    assert "standard input:8: /tasks/0/operator: " in result.output
    assert "standard input:11: /tasks/1/upstream_tasks/0: " in result.output
    assert not list(client.pipelines())


def test_what_the_builder_makes_is_saved_and_started(client: Client) -> None:
    with Pipeline("built", parameters={"rate": 0.1}) as built:
        first = built.task("first", operator="custom_script", parameters={"script_content": "print(1)"})
        built.task("second", operator="custom_script", parameters={"script_content": "print(2)"}, upstream=first)
    run = built.run(client, {"rate": 0.2})
    assert (run["state"], run["parameters"]) == ("queued", {"rate": 0.2})
    assert invoke("apply", "-f", "-", given=built.to_yaml()).output == "built: unchanged, version 1\n"


def test_a_run_is_started_listed_and_asked_to_stop(client: Client, api: ApiSite) -> None:
    api.saved()
    run_id = invoke("run", "two-scripts", "-p", "x=1", "--version", "1").output.strip()
    assert client.get_run(run_id)["parameters"] == {"x": 1}
    assert run_id in invoke("runs", "list", "--json").output
    assert client.cancel(run_id)["command_id"] is not None
    assert invoke("logs", run_id).output == ""
