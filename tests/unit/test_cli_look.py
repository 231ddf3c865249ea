"""``orchestrator tasks``, ``logs``, ``explain``, ``waits`` …: what is told to people, against a played API."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from orchestrator.cli import main, printing
from orchestrator.client import Client
from tests.unit.played_api import Play
from tests.unit.test_cli_runs import BEGAN, invoke, run_of, task_of

# --- logs and explain ---


def test_the_logs_of_a_whole_run_are_told_apart(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = {("a", 1): "one\ntw", ("a", 2): "again\n", ("b", 1): "other"}
    asked: list[tuple[str, int, int]] = []

    def logs(self: Client, run_id: str, task: str, offset: int = 0, *, attempt: int | None = None) -> dict[str, Any]:
        text = pieces[task, attempt or 0]
        asked.append((task, attempt or 0, offset))
        return {"text": text[offset:], "next_offset": len(text), "complete": True}

    monkeypatch.setattr(Client, "logs", logs)
    play((200, run_of("success", task_of("a", attempt_number=2), task_of("b"), task_of("c", attempt_number=0))))
    for arguments in (["logs", "r1"], ["logs", "-f", "r1"]):
        result = invoke(*arguments)
        assert result.output == "a | one\na | again\na | tw\nb | other\n"
    assert {task for task, _, _ in asked} == {"a", "b"}


def test_the_logs_of_a_run_are_those_of_its_indices_too(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    folds = task_of("folds", kind="map", attempt_number=0, inside={"success": 2})
    inside = {
        "folds": [task_of("folds[0].a", kind="operator"), task_of("folds[1].b", kind="map", attempt_number=0)],
        "folds[1].b": [task_of("folds[1].b[0]", kind="operator")],
    }
    asked: list[str] = []

    def tasks(self: Client, run_id: str, **query: Any) -> list[dict[str, Any]]:
        asked.append(query["inside"])
        return inside[query["inside"]]

    def logs(self: Client, run_id: str, task: str, offset: int = 0, *, attempt: int | None = None) -> dict[str, Any]:
        return {"text": "one\n"[offset:], "next_offset": 4, "complete": True}

    monkeypatch.setattr(Client, "logs", logs)
    monkeypatch.setattr(Client, "tasks", tasks)
    play((200, run_of("success", folds)))
    for arguments in (["logs", "r1"], ["logs", "-f", "r1"]):
        asked.clear()
        assert invoke(*arguments).output == "folds[0].a | one\nfolds[1].b[0] | one\n"
        assert asked == ["folds", "folds[1].b"], "what is over is not asked for again"


def test_the_log_of_an_earlier_attempt_can_be_read(play: Play) -> None:
    piece = {"text": "one\n", "next_offset": 4, "complete": True}
    _, api = play((200, piece), (200, {**piece, "text": ""}))
    assert invoke("logs", "r1", "a", "--attempt", "1").output == "one\n"
    assert api.sent()[0] == "GET /api/v1/runs/r1/tasks/a/logs?offset=0&attempt=1"
    assert invoke("logs", "r1", "--attempt", "1").exit_code == 2


def test_artifacts_name_who_made_them(play: Play) -> None:
    about = {"uri": "artifact://sha256/1", "size": 12, "expires_at": None, "deleted_by": "retention"}
    made = [{**about, "producer": {"task": "train", "run_id": "r0"}}, {**about, "producer": None}]
    play((200, {"items": made, "next_cursor": None}))
    assert invoke("artifacts", "r1").output.splitlines() == [
        "uri                  size  made by          expires  deleted by",
        "artifact://sha256/1  12    train of run r0           retention",
        "artifact://sha256/1  12                              retention",
    ]
    assert json.loads(invoke("artifacts", "r1", "train", "--json").output) == made


def test_the_log_of_one_task_is_printed_as_it_is(play: Play) -> None:
    play(
        (200, {"text": "one\n", "next_offset": 4, "complete": True}),
        (200, {"text": "", "next_offset": 4, "complete": True}),
    )
    assert invoke("logs", "r1", "a").output == "one\n"


@pytest.mark.parametrize("arguments", [["r1", "a"], ["r1"]])
def test_the_log_of_what_has_ended_is_waited_for(play: Play, arguments: list[str]) -> None:
    on_its_way = {"text": "", "next_offset": 0, "ended": True, "complete": False}
    first, whole = (
        {**on_its_way, "text": "one\n", "next_offset": 4},
        {"next_offset": 4, "ended": True, "complete": True},
    )
    run = [(200, run_of("success", task_of("a")))] * (2 - len(arguments))
    pieces = [(200, on_its_way), *run, (200, first), (200, {**first, "text": ""}), *run, (200, {**whole, "text": ""})]
    play(*run, *pieces)
    assert invoke("logs", *arguments).output.endswith("one\n")


@pytest.mark.parametrize("arguments", [["-f", "r1", "a"], ["r1", "a"], ["-f", "r1"], ["r1"]])
def test_the_log_of_what_has_long_ended_is_asked_for_once(play: Play, arguments: list[str]) -> None:
    run = [(200, run_of("success", task_of("a")))] * ("a" not in arguments)
    _, api = play(*run, (200, {"text": "one\n", "next_offset": 4, "ended": True, "complete": True, "final": True}))
    assert invoke("logs", *arguments).output.endswith("one\n")
    assert [line for line in api.sent() if "/logs" in line] == [
        "GET /api/v1/runs/r1/tasks/a/logs?offset=0" + ("" if "a" in arguments else "&attempt=1")
    ]


@pytest.mark.parametrize(
    "arguments", [["logs", "r1"], ["logs", "-f", "r1"], ["tasks", "r1", "m"], ["runs", "show", "r1"]]
)
def test_what_needs_no_outputs_does_not_ask_for_them(play: Play, arguments: list[str]) -> None:
    inside = {"items": [task_of("m[0]", attempt_number=0)], "next_cursor": None}
    answers = [(200, run_of("success", task_of("m", kind="map", attempt_number=0)))] * ("tasks" not in arguments)
    _, api = play(*answers, (200, inside))
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert all("outputs=false" in line for line in api.sent())


def test_the_log_of_what_runs_is_not_waited_for(play: Play) -> None:
    running = {"text": "one\n", "next_offset": 4, "ended": False, "complete": False}
    _, api = play((200, running), (200, {**running, "text": ""}))
    assert invoke("logs", "r1", "a").output == "one\n"
    assert len(api.sent()) == 2


def blocker(kind: str, message: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "since": None, "needs": "", "unblock": "", "message": message, **more}


def test_a_run_is_explained_with_its_waiting_tasks_and_what_would_bring_them_on(play: Play) -> None:
    limited = blocker(
        "concurrency",
        "gpu-licence is taken.",
        since=BEGAN.isoformat(),
        needs="one of 1 places",
        unblock="Cancel run r7, or raise the limit.",
    )
    tasks = [{"name": "train", "state": "ready", "blockers": [limited]}]
    play((200, {"state": "running", "blockers": [], "decided": None, "tasks": tasks, "more": 3}))
    assert invoke("explain", "r1").output.splitlines() == [
        "run: running",
        "train: ready",
        f"  concurrency: gpu-licence is taken. (since {BEGAN.astimezone():%Y-%m-%d %H:%M:%S})",
        "      needs one of 1 places",
        "      → Cancel run r7, or raise the limit.",
        "… and 3 more tasks like these; ask for one by its name.",
    ]


def test_what_has_ended_is_explained_by_what_ended_it(play: Play) -> None:
    decided = {"at": BEGAN.isoformat(), "actor": "ann", "cause": "mark", "reason": "marked", "message": "By hand."}
    cache = {"hit": False, "message": "The script is another one."}
    play((200, {"state": "success", "blockers": [], "decided": decided, "cache": cache}))
    assert invoke("explain", "r1", "train").output.splitlines() == [
        "train: success",
        f"  since {BEGAN.astimezone():%Y-%m-%d %H:%M:%S}, by ann (mark): By hand.",
        "  cache: The script is another one.",
    ]


def test_a_run_that_has_failed_is_explained_by_the_tasks_to_blame(play: Play) -> None:
    decided = {"at": BEGAN.isoformat(), "actor": "scheduler", "cause": "tasks_ended", "reason": "oom", "message": ""}
    task = {"name": "m[1]", "state": "failed", "reason": "oom", "message": "It asked for too much.", "blockers": []}
    run = {"state": "failed", "reason": "oom", "message": "Task m[1] has failed (oom).", "blockers": []}
    play((200, {**run, "decided": decided, "tasks": [task], "more": 0}))
    assert invoke("explain", "r1").output.splitlines() == [
        "run: failed (oom)",
        "  Task m[1] has failed (oom).",
        f"  since {BEGAN.astimezone():%Y-%m-%d %H:%M:%S}, by scheduler (tasks_ended)",
        "m[1]: failed (oom)",
        "  It asked for too much.",
    ]


def test_what_runs_is_held_up_by_nothing(play: Play) -> None:
    play((200, {"state": "running", "blockers": [], "decided": None, "cache": None}))
    assert invoke("explain", "r1", "train").output == "train: running\n  Nothing holds it up.\n"


# --- what is told to people ---


def test_the_newest_run_need_not_be_named(play: Play) -> None:
    newest = [{"id": "r10", "parent_run_id": "r9"}, {"id": "r9", "parent_run_id": None}, {"id": "r8"}]
    _, api = play((200, {"items": newest, "next_cursor": None}), (200, run_of("success", task_of("a"))))
    assert invoke("runs", "show", "latest").exit_code == 0
    shown = "GET /api/v1/runs/r9?outputs=false"
    assert api.sent() == ["GET /api/v1/runs?limit=50", shown], "not the run that is a task of it"


def test_without_a_run_there_is_no_newest(play: Play) -> None:
    play((200, {"items": [], "next_cursor": None}))
    assert "There is no run yet" in invoke("explain", "latest").output


def test_what_is_no_runs_id_is_told_so(play: Play) -> None:
    play((404, {"message": "The requested URL was not found on the server."}))
    assert invoke("logs", "train").output == (
        "Error: 'train' is no run's id; `orchestrator runs list` shows them, and 'latest' is the newest run.\n"
    )
    play((404, {"message": "There is no run."}))
    assert invoke("logs", "bb556588-6988-478f-a40c-a24ad2ba7c50").output == "Error: There is no run.\n"


def test_a_run_that_was_waited_for_in_vain_names_what_failed_and_where_to_read_on(play: Play) -> None:
    failed = [task_of(f"t{number}", "failed", message=f"It broke {number}.") for number in range(12)]
    play((201, {"id": "r1"}), (200, run_of("failed", task_of("a"), *failed, reason="exit_code")))
    lines = invoke("run", "p", "--wait").output.splitlines()
    assert lines[1] == "p version 2: failed (exit_code)"
    assert lines[2:] == [
        *(f"  t{number}: It broke {number}." for number in range(10)),
        "  … and 2 more",
        "`orchestrator logs r1 t0` shows what it printed.",
    ]


def test_a_table_that_is_piped_cuts_nothing(play: Play) -> None:
    message = "No worker has 90000 GiB of memory for it. " * 5
    name = "a-task-with-a-long-name-" * 4
    task = task_of(name, "ready", reason="infeasible", message=message)
    _, api = play((200, {"items": [task], "next_cursor": None}))
    result = invoke("tasks", "r1", "train", "--state", "ready")
    assert result.output.splitlines()[1] == f"{name}  x         ready  1    infeasible  {message.rstrip()}"
    assert api.sent() == ["GET /api/v1/runs/r1/tasks?parent=train&state=ready&outputs=false"]


@pytest.mark.parametrize("width", [40, 80])
def test_on_a_narrow_terminal_sentences_are_broken_but_no_word_that_is_copied(
    play: Play, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    screen = io.StringIO()
    task = task_of("train-model-with-everything", "upstream_failed", message="Of 1 upstream tasks: 1 failed.")
    monkeypatch.setattr(printing, "Console", lambda **_: Console(file=screen, width=width))
    play((200, {"items": [task], "next_cursor": None}))
    shown = invoke("tasks", "r1").output
    assert "train-model-with-everything  x         upstream_failed" in shown


def test_what_waits_for_somebody_is_listed_with_the_token_of_an_event(play: Play) -> None:
    about = {"run_id": "r1", "pipeline_name": "p", "task": "export", "kind": "event"}
    wait = {**about, "wait_token": "t-1", "message": "It waits for an event.", "times_out_at": None}
    _, api = play((200, {"items": [wait], "next_cursor": None}))
    lines = invoke("waits", "--kind", "event").output.splitlines()
    assert lines == [
        "run  pipeline  task    kind   token  message",
        "r1   p         export  event  t-1    It waits for an event.",
    ]
    assert api.sent() == ["GET /api/v1/waits?kind=event"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["waits"], "Nothing waits."),
        (["runs", "list"], "There is no such run."),
        (["attempts", "r1", "a"], "It has not been tried yet."),
        (["artifacts", "r1"], "Nothing of it is in the artifact store."),
        (["pipelines", "list"], "No pipeline is saved yet."),
        (["workers"], "No worker has registered."),
    ],
)
def test_an_empty_list_is_told_in_a_sentence_beside_the_output(play: Play, arguments: list[str], said: str) -> None:
    play((200, {"items": [], "next_cursor": None}))
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"{said}\n")
    if arguments != ["attempts", "r1", "a"]:
        assert json.loads(invoke(*arguments, "--json").stdout) == []


def test_what_the_terminal_can_not_say_is_no_error(play: Play) -> None:
    held = blocker("infeasible", "Größe 😀", unblock="Ask for less.")
    answer = {"state": "ready", "blockers": [held], "decided": None, "cache": None}
    play((200, answer))
    runner = CliRunner(charset="latin-1")
    told = runner.invoke(main, ["explain", "r1", "a"])
    assert told.exit_code == 0
    assert "Größe ?" in told.output
    assert "? Ask for less." in told.output
    assert json.loads(runner.invoke(main, ["explain", "r1", "a", "--json"]).output) == answer
