"""The REST client and the command line against an API that is played by a transport adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from orchestrator import cli
from orchestrator.client import ApiError
from orchestrator.local.demo import Demo, example_definitions
from tests.unit.played_api import Answer, Play


def test_every_request_carries_the_key(play: Play) -> None:
    client, api = play((200, {"id": "r1"}))
    client.get_run("r1")
    assert api.requests[0].headers["Authorization"] == "Bearer the key"
    assert api.sent() == ["GET /api/v1/runs/r1"]


def test_ids_and_names_are_escaped(play: Play) -> None:
    client, api = play((200, {}))
    client.get_pipeline_by_name("a/b c")
    assert api.sent() == ["GET /api/v1/pipelines/by-name/a%2Fb%20c"]


def test_lists_are_read_to_the_last_page(play: Play) -> None:
    client, api = play(
        (200, {"items": [{"name": "a"}], "next_cursor": "c1"}), (200, {"items": [{"name": "b"}], "next_cursor": None})
    )
    assert [item["name"] for item in client.pipelines(owner="me", state=None)] == ["a", "b"]
    assert api.sent() == ["GET /api/v1/pipelines?owner=me", "GET /api/v1/pipelines?owner=me&cursor=c1"]


def test_a_repeated_start_carries_one_idempotency_key(play: Play) -> None:
    client, api = play(requests.ConnectionError(), (503, {}, {"Retry-After": "1"}), (201, {"id": "r1"}))
    assert client.start_run("train", {"x": 1})["id"] == "r1"
    keys = {request.headers["Idempotency-Key"] for request in api.requests}
    assert (len(api.requests), len(keys)) == (3, 1)
    assert json.loads(api.requests[0].body or "") == {"pipeline_name": "train", "parameters": {"x": 1}}


def test_a_request_that_may_not_be_repeated_is_sent_once(play: Play) -> None:
    client, api = play((503, {"message": "Away."}))
    with pytest.raises(ApiError, match="Away"):
        client.create_pipeline({"name": "p"})
    assert len(api.requests) == 1


def test_an_error_carries_the_servers_sentence_and_all_problems(play: Play) -> None:
    problem = {"pointer": "/tasks/0/operator", "message": "No operator is named 'x'."}
    client, _ = play((422, {"code": 422, "message": "The definition is wrong.", "errors": [problem]}))
    with pytest.raises(ApiError, match="The definition is wrong") as caught:
        client.create_pipeline({})
    assert caught.value.status == 422
    assert [(p.pointer, p.message) for p in caught.value.problems] == [(problem["pointer"], problem["message"])]


def test_a_server_that_is_not_ours_is_told_apart(play: Play) -> None:
    client, _ = play((200, ["not", "ours"]))
    with pytest.raises(ApiError, match="not our API's JSON"):
        client.get_run("r1")


def test_no_answer_says_how_to_start_the_api(play: Play) -> None:
    client, _ = play(requests.ConnectionError())
    with pytest.raises(ApiError, match="`make up` starts it"):
        client.create_pipeline({})


def test_waiting_ends_with_the_run_and_tells_of_changes_only(play: Play) -> None:
    client, _ = play((200, {"state": "running"}), (200, {"state": "running"}), (200, {"state": "success"}))
    seen: list[str] = []
    assert client.wait("r1", on_change=lambda run: seen.append(run["state"]))["state"] == "success"
    assert seen == ["running", "success"]


@pytest.mark.parametrize("outputs", [True, False])
def test_waiting_asks_for_the_outputs_at_most_once(play: Play, outputs: bool) -> None:
    client, api = play((200, {"state": "running"}), (200, {"state": "running"}), (200, {"state": "success"}))
    client.wait("r1", pause=0.0, outputs=outputs)
    assert api.sent() == ["GET /api/v1/runs/r1?outputs=false"] * 3 + ["GET /api/v1/runs/r1"] * outputs


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("send_event", ("t1", {"rows": 1})), ("pause_pipeline", ("p1",)), ("resume_pipeline", ("p1",))],
)
def test_what_is_harmless_to_repeat_is_repeated(play: Play, method: str, arguments: tuple[Any, ...]) -> None:
    client, api = play((503, {"message": "Not now."}), (202, {"command_id": None}))
    getattr(client, method)(*arguments)
    assert len(api.sent()) == 2


def test_json_of_another_service_is_said_not_to_be_ours(play: Play) -> None:
    client, _ = play((200, {"status": "ok"}))
    for what in (client.runs, client.workers):
        with pytest.raises(ApiError, match=r"not our API's JSON; check the address"):
            list(what())
    for errors in (["bad"], "bad", {"a": 1}, 5):
        client, _ = play((400, {"message": "No.", "errors": errors}))
        with pytest.raises(ApiError, match="No"):
            client.get_run("r1")


def test_waiting_has_an_end(play: Play) -> None:
    client, _ = play((200, {"state": "running"}))
    with pytest.raises(TimeoutError, match="it is running"):
        client.wait("r1", seconds=0.0)


def test_a_log_is_followed_until_it_is_complete(play: Play) -> None:
    client, api = play(
        (200, {"text": "one\n", "next_offset": 4, "complete": False}),
        (200, {"text": "", "next_offset": 4, "complete": False}),
        (200, {"text": "two\n", "next_offset": 8, "complete": True}),
        (200, {"text": "", "next_offset": 8, "complete": True}),
    )
    assert "".join(client.follow_logs("r1", "train")) == "one\ntwo\n"
    assert [sent.rpartition("=")[2] for sent in api.sent()] == ["0", "4", "4", "8", "8", "8", "8"]


# --- the command line ---


def test_a_pipeline_is_created_from_yaml_or_json(play: Play, tmp_path: Path) -> None:
    _, api = play((201, {"name": "p", "version": 1, "id": "i"}))
    for name, text in (("p.yaml", "name: p\ntasks: []\n"), ("p.json", '{"name": "p", "tasks": []}')):
        (tmp_path / name).write_text(text)
        result = CliRunner().invoke(cli.main, ["pipelines", "create", str(tmp_path / name)])
        assert (result.exit_code, result.output) == (0, "p version 1 (i)\n")
    assert [json.loads(request.body or "") for request in api.requests] == [{"name": "p", "tasks": []}] * 2


def test_a_file_that_holds_no_definition_is_refused_in_a_sentence(play: Play, tmp_path: Path) -> None:
    play((500, {}))
    (tmp_path / "p.json").write_text("[1]")
    result = CliRunner().invoke(cli.main, ["pipelines", "create", str(tmp_path / "p.json")])
    assert result.exit_code == 1
    assert "holds no object" in result.output


def test_all_problems_of_a_definition_are_printed(play: Play, tmp_path: Path) -> None:
    errors = [{"pointer": "/tasks/0", "message": "One."}, {"pointer": "/tasks/1", "message": "Two."}]
    play((200, {"valid": False, "errors": errors}), (422, {"message": "Wrong.", "errors": errors}))
    (tmp_path / "p.json").write_text("{}")
    for command in ("validate", "create"):
        result = CliRunner().invoke(cli.main, ["pipelines", command, str(tmp_path / "p.json")])
        assert result.exit_code == 1
        assert "/tasks/0: One." in result.output
        assert "/tasks/1: Two." in result.output


@pytest.mark.parametrize("state, status", [("success", 0), ("failed", 1), ("cancelled", 1)])
def test_starting_and_waiting_tells_success_by_the_exit_status(play: Play, state: str, status: int) -> None:
    run = {"id": "r1", "pipeline_name": "p", "version": 2, "state": state, "reason": "", "message": "", "tasks": []}
    _, api = play((201, run), (200, run))
    result = CliRunner().invoke(cli.main, ["runs", "start", "p", "-p", "rate=0.1", "-p", "name=first", "--wait"])
    assert result.exit_code == status
    assert json.loads(api.requests[0].body or "")["parameters"] == {"rate": 0.1, "name": "first"}


def run_of(state: str, generation: int) -> dict[str, Any]:
    about = {"id": "r1", "pipeline_name": "p", "version": 2, "reason": "", "message": "", "tasks": []}
    return {**about, "state": state, "generation": generation}


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [([], "failed"), (["--all"], "all"), (["train", "report"], ["train", "report"])],
)
def test_a_rerun_is_waited_for_until_it_has_its_generation(play: Play, arguments: list[str], chosen: Any) -> None:
    _, api = play((202, run_of("failed", 1)), (200, run_of("failed", 1)), (200, run_of("queued", 2)))
    result = CliRunner().invoke(cli.main, ["runs", "rerun", "r1", *arguments])
    assert result.output == "queued as generation 2\n"
    assert json.loads(api.requests[0].body or "") == {"from": chosen}
    assert api.sent() == ["POST /api/v1/runs/r1/rerun", *["GET /api/v1/runs/r1?outputs=false"] * 2]


def test_a_rerun_can_be_waited_for_to_its_end(play: Play) -> None:
    play((202, run_of("failed", 1)), (200, run_of("running", 2)), (200, run_of("failed", 2)))
    assert CliRunner().invoke(cli.main, ["runs", "rerun", "r1", "--wait"]).exit_code == 1


def test_a_rerun_that_nobody_applies_says_so_in_time(play: Play) -> None:
    client, _ = play((202, run_of("failed", 1)), (200, run_of("failed", 1)))
    with pytest.raises(TimeoutError, match="has not been started again"):
        client.rerun("r1", seconds=0.01)
    assert client.rerun("r1", seconds=None)["generation"] == 1


def test_a_rerun_that_the_leader_refuses_says_why_at_once(play: Play) -> None:
    refused = {"id": 7, "state": "refused", "result": "Refused: the plan of run r1 can't be read."}
    asked = {**run_of("failed", 1), "command_id": 7}
    client, api = play((202, asked), (200, {**refused, "state": "open"}), (200, asked), (200, refused), (200, asked))
    with pytest.raises(ApiError, match="Refused: the plan of run r1") as error:
        client.rerun("r1", pause=0.0)
    assert error.value.status == 409
    assert api.sent()[1:] == ["GET /api/v1/commands/7", "GET /api/v1/runs/r1?outputs=false"] * 2


def test_a_rerun_that_came_second_shows_the_run_that_the_first_one_started(play: Play) -> None:
    refused = {"id": 7, "state": "refused", "result": "Refused: it has been started again."}
    client, _ = play((202, {**run_of("failed", 1), "command_id": 7}), (200, refused), (200, run_of("queued", 2)))
    assert client.rerun("r1")["generation"] == 2


def test_a_rerun_that_the_leader_began_before_it_was_answered_is_not_waited_for(play: Play) -> None:
    done = {"id": 7, "state": "done", "result": "2 tasks run again."}
    client, _ = play((202, {**run_of("queued", 2), "command_id": 7}), (200, done), (200, run_of("running", 2)))
    assert client.rerun("r1", seconds=0.01)["state"] == "running"


def test_tasks_and_all_of_them_can_not_both_be_run_again(play: Play) -> None:
    _, api = play((500, {}))
    assert CliRunner().invoke(cli.main, ["runs", "rerun", "r1", "train", "--all"]).exit_code == 2
    assert not api.requests


def test_a_parameter_without_a_value_is_refused(play: Play) -> None:
    play((500, {}))
    result = CliRunner().invoke(cli.main, ["runs", "start", "p", "-p", "rate"])
    assert result.exit_code == 2
    assert "'rate' is not KEY=VALUE" in result.output


def test_tables_show_what_the_server_said_as_it_is(play: Play) -> None:
    play((200, {"items": [{"name": "[bold]x", "summary": "Does."}], "next_cursor": None}))
    result = CliRunner().invoke(cli.main, ["operators"])
    assert "[bold]x" in result.output


def test_without_a_key_the_command_line_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCHESTRATOR_API_KEY", "ADMIN_KEY", "ORCHESTRATOR_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    result = CliRunner().invoke(cli.main, ["workers"])
    assert result.exit_code == 1
    assert "set ORCHESTRATOR_API_KEY" in result.output


# --- the demo ---


def finished_run(state: str) -> dict[str, Any]:
    outputs = {"registration": {"name": "digits", "version": "2", "stage": "staging"}}
    times = {"started_at": "2026-11-23T03:00:00+00:00", "ended_at": "2026-11-23T03:00:01+00:00"}
    task = {"name": "register", "state": state, "message": "It broke.", "outputs": outputs, "usage": None, **times}
    return {"id": "r1", "pipeline_name": "p", "state": state, "tasks": [task]}


def show(play: Play, capsys: pytest.CaptureFixture[str], state: str, *more: Answer) -> tuple[bool, str]:
    client, _ = play((201, {"name": "p"}), (201, {"id": "r1"}), (200, finished_run(state)), *more)
    demo = Demo(client, [{"name": "p"}], stopping=lambda: False)
    demo.run()
    return demo.succeeded, capsys.readouterr().out


def test_the_demo_shows_the_registered_version_with_its_metrics(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"name": "digits", "version": "2", "stage": "staging", "metrics": {"accuracy": 0.975}}
    succeeded, output = show(play, capsys, "success", (200, {"items": [known], "next_cursor": None}))
    assert succeeded
    assert "registered digits version 2" in output
    assert "accuracy 0.975" in output


def test_the_demo_says_why_a_run_failed(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    empty: Answer = (200, {"items": [], "next_cursor": None})
    succeeded, output = show(play, capsys, "failed", empty, (200, {"text": "the last line\n"}))
    assert not succeeded
    assert "It broke." in output
    assert "the last line" in output


def test_the_demo_takes_the_definitions_of_the_examples_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "02-b.json").write_text('{"name": "b"}')
    (tmp_path / "01-a.json").write_text('{"name": "a"}')
    assert [definition["name"] for definition in example_definitions(tmp_path)] == ["a", "b"]
