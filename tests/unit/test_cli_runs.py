"""``orchestrator run``, ``cancel``, ``rerun``, ``mark``, ``approve`` … against a played API."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from orchestrator.cli import live, main
from tests.unit.played_api import Play

BEGAN = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def invoke(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=given)


def run_of(state: str, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    times = {"started_at": BEGAN.isoformat(), "ended_at": (BEGAN + timedelta(seconds=12.34)).isoformat()}
    about = {"id": "r1", "pipeline_name": "p", "version": 2, "reason": "", "message": "", "generation": 1}
    return {**about, **times, "state": state, "tasks": list(tasks), **more}


def task_of(name: str, state: str = "success", **more: Any) -> dict[str, Any]:
    times = {"started_at": BEGAN.isoformat(), "ended_at": None, "progress": None, "progress_message": ""}
    return {
        "name": name,
        "operator": "x",
        "state": state,
        "reason": "",
        "message": "",
        "attempt_number": 1,
        **times,
        **more,
    }


def transition(number: int, entity: str, after: str, **more: Any) -> bytes:
    about = {"id": number, "at": BEGAN.isoformat(), "entity": entity, "task": None, "reason": "", "message": ""}
    return f"id: {number}\nevent: transition\ndata: {json.dumps({**about, 'after': after, **more})}\n\n".encode()


END = b"event: end\ndata: {}\n\n"


# --- run ---


def test_a_run_takes_parameters_from_a_file_and_from_the_line(play: Play, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("rate: 1e-3\nname: first\n")
    _, api = play((201, {"id": "r1"}))
    result = invoke("run", "p", "--params", str(tmp_path / "p.yaml"), "-p", "name=second", "-p", "layers=[1, 2]",
                    "--priority", "5", "--idempotency-key", "k")  # fmt: skip
    assert result.output == "r1\n"
    parameters = {"rate": 0.001, "name": "second", "layers": [1, 2]}
    assert api.bodies() == [{"pipeline_name": "p", "parameters": parameters, "priority": 5}]
    assert api.requests[0].headers["Idempotency-Key"] == "k"


@pytest.mark.parametrize(("state", "status"), [("success", 0), ("failed", 1), ("cancelled", 1)])
def test_waiting_tells_the_result_by_the_exit_status(play: Play, state: str, status: int) -> None:
    play((201, {"id": "r1"}), (200, run_of("running")), (200, run_of(state, message="Why.")))
    result = invoke("run", "p", "--wait")
    assert (result.exit_code, result.stdout) == (status, "r1\n"), "what R=$(orchestrator run p --wait) is"
    assert result.stderr == f"p version 2: {state} (Why.)\n"


def test_following_prints_a_line_per_change_where_there_is_no_terminal(play: Play) -> None:
    events = (
        transition(1, "run", "running")
        + transition(2, "task_run", "ready", task="a")
        + transition(3, "attempt", "running", task="a")
        + transition(4, "task_run", "running", task="a")
        + transition(5, "task_run", "failed", task="a", reason="oom", message="Out of memory.")
        + END
    )
    play((201, {"id": "r1"}), (200, events), (200, run_of("failed")))
    result = invoke("run", "p", "--follow")
    at = BEGAN.astimezone().strftime("%H:%M:%S")
    lines = [f"{at}  run  running", f"{at}  a  running", f"{at}  a  failed  Out of memory."]
    assert result.output.splitlines() == ["r1", *lines, "p version 2: failed in 12.3 s"]
    assert result.exit_code == 1


@pytest.mark.parametrize("how", ["--follow", "--wait"])
def test_an_interrupt_says_how_to_cancel_and_leaves_the_run(play: Play, how: str) -> None:
    play((201, {"id": "r1"}), KeyboardInterrupt())
    result = invoke("run", "p", how)
    assert result.exit_code == 130
    assert "goes on. `orchestrator cancel r1` cancels it." in result.output


@pytest.mark.parametrize(
    ("arguments", "answers"),
    [
        (["logs", "-f", "r1"], []),
        (["cancel", "r1", "--wait"], [(202, {"command_id": 7}), (200, {"state": "done", "result": ""})]),
        (["rerun", "r1"], [(202, {"id": "r1", "state": "failed", "generation": 1, "command_id": 7})]),
    ],
)
def test_an_interrupt_of_any_command_says_that_the_run_goes_on(
    play: Play, arguments: list[str], answers: list[tuple[int, Any]]
) -> None:
    play(*answers, KeyboardInterrupt())
    result = invoke(*arguments)
    assert result.exit_code == 130
    assert "run r1 goes on, and what was asked of it stays asked for" in result.stderr


def test_a_terminal_shows_a_table_until_the_end(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(live, "Console", lambda: Console(file=screen, force_terminal=True, width=100, height=20))
    runs = [run_of("running", task_of("a", "running", progress=0.5)), run_of("success", task_of("a"))]
    play((201, {"id": "r1"}), *[(200, run) for run in runs])
    monkeypatch.setattr(live, "_watch", lambda client, run_id, changed: changed.set())
    result = invoke("run", "p", "--follow")
    assert result.exit_code == 0, result.output
    assert "━" in screen.getvalue()  # the bar
    assert "success" in screen.getvalue()


def text_of(run: dict[str, Any], rows: int = 10) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(live.run_table(run, BEGAN + timedelta(seconds=7), rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_state_time_and_why() -> None:
    tasks = [
        task_of("done", ended_at=(BEGAN + timedelta(seconds=2)).isoformat()),
        task_of("now", "running", progress=0.25, progress_message="epoch 3"),
        task_of("later", "ready", reason="capacity", message="No host has 8 GiB.", started_at=None, attempt_number=0),
    ]
    text = text_of(run_of("running", *tasks))
    assert "2.0 s" in text
    assert "7.0 s" in text
    assert "epoch 3" in text
    assert "No host has 8 GiB." in text


def test_the_table_shows_how_far_a_map_is() -> None:
    shown = text_of(run_of("running", task_of("m", "running", inside={"success": 3, "failed": 1, "pending": 4})))
    assert shown.count("━") == 6, "half of the bar"
    assert "━" not in text_of(run_of("running", task_of("m", inside={"success": 8})))


def test_a_wide_run_shows_what_matters_and_counts_the_rest() -> None:
    tasks = [task_of(f"t[{number}]") for number in range(1000)]
    tasks[500] = task_of("t[500]", "failed")
    tasks[700] = task_of("t[700]", "running")
    text = text_of(run_of("running", *tasks), rows=5)
    assert "t[500]" in text
    assert "t[700]" in text
    assert "… and 996 more: 996 success" in text
    assert len(text.splitlines()) <= 8


# --- what changes a run ---

DONE = (200, {"state": "done", "result": "Done."})
ASKED = (202, run_of("running", command_id=7))


def test_a_run_is_cancelled_and_its_state_told(play: Play) -> None:
    _, api = play(ASKED, DONE, (200, run_of("cancelling")))
    result = invoke("cancel", "r1", "--grace", "5", "--reason", "wrong data")
    assert (result.exit_code, result.output) == (0, "cancelling\n")
    assert api.bodies()[0] == {"grace_seconds": 5.0, "reason": "wrong data"}


def test_a_task_is_cancelled_by_force(play: Play) -> None:
    _, api = play((202, task_of("a", command_id=7)), DONE, (200, task_of("a", "cancelling")))
    assert invoke("cancel", "r1", "a", "--force").output == "cancelling\n"
    assert (api.sent()[0], api.bodies()[0]) == ("POST /api/v1/runs/r1/tasks/a/cancel", {"mode": "force"})


def test_cancel_can_wait_for_the_end(play: Play) -> None:
    play(ASKED, DONE, (200, run_of("cancelling")), (200, run_of("cancelled")))
    assert invoke("cancel", "r1", "--wait").output == "p version 2: cancelled\n"


def test_force_and_grace_exclude_each_other(play: Play) -> None:
    play((500, {}))
    assert invoke("cancel", "r1", "--force", "--grace", "5").exit_code == 2


def test_what_the_scheduler_refuses_is_an_error_with_its_sentence(play: Play) -> None:
    play(ASKED, (200, {"state": "refused", "result": "The run has ended."}))
    result = invoke("pause", "r1")
    assert result.exit_code == 1
    assert "The run has ended." in result.output


def test_a_run_and_a_pipeline_are_paused_and_resumed(play: Play) -> None:
    _, api = play(ASKED, DONE, (200, run_of("paused")))
    assert invoke("pause", "r1").output == "paused\n"
    _, api = play((200, {"id": "p1"}), (200, {"id": "p1"}))
    assert invoke("resume", "--pipeline", "p").output == "p: resumed\n"
    assert api.sent()[1] == "POST /api/v1/pipelines/p1/resume"
    assert invoke("pause").exit_code == 2
    assert invoke("pause", "r1", "-P", "p").exit_code == 2


def test_a_rerun_from_tasks_by_the_latest_version_with_other_parameters(play: Play) -> None:
    _, api = play((201, run_of("queued", id="r2")))
    result = invoke("rerun", "r1", "--from", "a", "--from", "b", "--latest", "-p", "x=1")
    assert result.output == "r2\n", "a run keeps what it began with, so it is another one"
    assert api.bodies()[0] == {"from": ["a", "b"], "version": "latest", "parameters": {"x": 1}}
    assert api.requests[0].headers["Idempotency-Key"]


def test_a_rerun_in_place_tells_its_generation(play: Play) -> None:
    _, api = play((202, run_of("failed")), (200, run_of("queued", generation=2)))
    assert invoke("rerun", "r1").output == "queued as generation 2\n"
    assert api.bodies()[0] == {"from": "failed"}
    assert "Idempotency-Key" not in api.requests[0].headers


def test_a_rerun_that_is_followed_begins_after_what_happened_before(play: Play) -> None:
    newest = {"items": [{"id": 9}], "next_cursor": None}
    again = run_of("queued", generation=2)
    _, api = play((200, newest), (202, run_of("failed")), (200, again), (200, END), (200, run_of("success")))
    assert invoke("rerun", "r1", "--follow").exit_code == 0
    assert api.sent()[0] == "GET /api/v1/runs/r1/events?sort=-id&limit=1"
    assert api.requests[3].headers["Last-Event-ID"] == "9"


def test_a_rerun_as_a_new_run_prints_its_id(play: Play) -> None:
    _, api = play((202, run_of("queued", id="r2")))
    assert invoke("rerun", "r1", "--new", "--all").output == "r2\n"
    assert api.bodies() == [{"from": "all", "in_place": False}]


def test_a_preview_starts_nothing(play: Play) -> None:
    again = [{"task": "b", "why": "chosen", "message": "It is where the rerun starts."}]
    preview = {"in_place": True, "start": ["b"], "run": again, "reused": ["a"], "kept": ["c"]}
    _, api = play((200, preview))
    assert invoke("rerun", "r1", "--preview").output.splitlines() == [
        "In place, as the next generation:",
        "  run    b  It is where the rerun starts.",
        "  reuse  a",
        "  leave  c  It has not succeeded, and nothing that was chosen leads to it.",
    ]
    assert json.loads(invoke("rerun", "r1", "--preview", "--json").output) == preview
    assert api.sent() == ["POST /api/v1/runs/r1/rerun/preview"] * 2
    refused = invoke("rerun", "r1", "--json")
    assert (refused.exit_code, len(api.sent())) == (2, 2)


def test_a_task_is_marked_with_outputs_from_a_file(play: Play, tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_text("rows: 3\n")
    _, api = play((202, {"command_id": 7}), DONE, (200, task_of("a")))
    result = invoke("mark", "r1", "a", "success", "--outputs", str(tmp_path / "o.yaml"), "--reason", "by hand")
    assert result.output == "success\n"
    assert api.bodies()[0] == {"state": "success", "reason": "by hand", "outputs": {"rows": 3}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mark", "r1", "a", "success", "--outputs"), "outputs are an object, as in"),
        (("run", "p", "--params"), "parameters are an object of names and values"),
    ],
)
def test_a_file_that_holds_no_object_is_refused_in_words_of_what_it_is_for(
    play: Play, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    play()
    for text in ("", "[1]"):
        (tmp_path / "f.yaml").write_text(text)
        result = invoke(*arguments, str(tmp_path / "f.yaml"))
        assert result.exit_code == 1
        assert said in result.output
        assert "definition" not in result.output


def test_what_python_takes_for_a_number_and_json_does_not_is_a_text(play: Play) -> None:
    _, api = play((201, {"id": "r1"}))
    invoke("run", "p", "-p", "x=NaN", "-p", "y=-Infinity", "-p", "z=[1]")
    assert api.bodies()[0]["parameters"] == {"x": "NaN", "y": "-Infinity", "z": [1]}


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_a_person_decides_with_an_input(play: Play, verdict: str) -> None:
    _, api = play((202, {"command_id": 7}), DONE, (200, task_of("ask")))
    assert invoke(verdict, "r1", "ask", "-i", "stage=production", "-i", "share=0.5").output == "success\n"
    assert api.sent()[0] == f"POST /api/v1/runs/r1/tasks/ask/{verdict}"
    assert api.bodies()[0] == {"input": {"stage": "production", "share": 0.5}}


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_a_decision_that_came_too_late_is_not_shown_as_one(play: Play, verdict: str) -> None:
    said = "Refused: task ask of run r1 is success already, and stays it; the run's events say who decided that."
    play((202, {"command_id": 7}), (200, {"id": 7, "state": "refused", "result": said}))
    result = invoke(verdict, "r1", "ask")
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr


def test_an_outside_event_is_reported(play: Play) -> None:
    _, api = play((202, {"command_id": 7}), DONE)
    assert invoke("event", "t1", "--payload", '{"file": "x"}').output == "reported\n"
    assert api.bodies()[0] == {"payload": {"file": "x"}}


def test_an_outside_event_that_was_reported_before_is_not_said_to_count(play: Play) -> None:
    play((202, {"command_id": None}))
    assert invoke("event", "t1").output == "was reported before; nothing changes\n"
