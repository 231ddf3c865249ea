"""What the client sends for each request of the DAG engine, and how it reads streams and waits for the scheduler."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from orchestrator.client import ApiError, Client
from orchestrator.client_transport import read_events
from tests.unit.played_api import Play

REQUESTS: list[tuple[Callable[[Client], Any], str, Any]] = [
    (lambda c: c.cancel("r1"), "POST /api/v1/runs/r1/cancel", {}),
    (
        lambda c: c.cancel("r1", mode="force", grace_seconds=0.0, reason="wrong data"),
        "POST /api/v1/runs/r1/cancel",
        {"mode": "force", "grace_seconds": 0.0, "reason": "wrong data"},
    ),
    (
        lambda c: c.cancel_task("r1", "train[3]", grace_seconds=5),
        "POST /api/v1/runs/r1/tasks/train%5B3%5D/cancel",
        {"grace_seconds": 5},
    ),
    (lambda c: c.pause("r1", reason="night"), "POST /api/v1/runs/r1/pause", {"reason": "night"}),
    (lambda c: c.resume("r1"), "POST /api/v1/runs/r1/resume", {}),
    (lambda c: c.pause_pipeline("p1"), "POST /api/v1/pipelines/p1/pause", {}),
    (lambda c: c.resume_pipeline("p1"), "POST /api/v1/pipelines/p1/resume", {}),
    (
        lambda c: c.preview_rerun("r1", ["a"], version="latest", parameters={"x": 1}, in_place=False),
        "POST /api/v1/runs/r1/rerun/preview",
        {"from": ["a"], "version": "latest", "parameters": {"x": 1}, "in_place": False},
    ),
    (lambda c: c.rerun("r1", seconds=None), "POST /api/v1/runs/r1/rerun", {"from": "failed"}),
    (
        lambda c: c.rerun("r1", "all", version=3, in_place=False),
        "POST /api/v1/runs/r1/rerun",
        {"from": "all", "version": 3, "in_place": False},
    ),
    (
        lambda c: c.mark("r1", "a", "success", reason="done by hand", outputs={"rows": 3}),
        "POST /api/v1/runs/r1/tasks/a/mark",
        {"state": "success", "reason": "done by hand", "outputs": {"rows": 3}},
    ),
    (lambda c: c.mark("r1", "a", "success", outputs={}), "POST /api/v1/runs/r1/tasks/a/mark",
     {"state": "success", "outputs": {}}),
    (
        lambda c: c.approve("r1", "ask", input={"stage": "production"}, reason="looks right"),
        "POST /api/v1/runs/r1/tasks/ask/approve",
        {"input": {"stage": "production"}, "reason": "looks right"},
    ),
    (lambda c: c.reject("r1", "ask"), "POST /api/v1/runs/r1/tasks/ask/reject", {}),
    (lambda c: c.send_event("a/b", {"file": "x"}), "POST /api/v1/events/a%2Fb", {"payload": {"file": "x"}}),
    (lambda c: c.explain("r1"), "GET /api/v1/runs/r1/explain", None),
    (lambda c: c.explain("r1", "a b"), "GET /api/v1/runs/r1/tasks/a%20b/explain", None),
    (lambda c: list(c.tasks("r1", state="failed")), "GET /api/v1/runs/r1/tasks?state=failed", None),
    (lambda c: list(c.tasks("r1", inside="a[0].b")), "GET /api/v1/runs/r1/tasks?parent=a%5B0%5D.b", None),
    (lambda c: list(c.waits(kind="event")), "GET /api/v1/waits?kind=event", None),
    (lambda c: list(c.attempts("r1", "a[1]")), "GET /api/v1/runs/r1/tasks/a%5B1%5D/attempts", None),
    (lambda c: list(c.artifacts("r1", task="a")), "GET /api/v1/runs/r1/artifacts?task=a", None),
    (lambda c: list(c.children("r1")), "GET /api/v1/runs/r1/children", None),
    (lambda c: c.get_task("r1", "a"), "GET /api/v1/runs/r1/tasks/a", None),
    (lambda c: c.command(7), "GET /api/v1/commands/7", None),
    (lambda c: list(c.versions("p1")), "GET /api/v1/pipelines/p1/versions", None),
    (lambda c: list(c.events("r1", task="a")), "GET /api/v1/runs/r1/events?task=a", None),
    (lambda c: c.logs("r1", "a", 5, attempt=2), "GET /api/v1/runs/r1/tasks/a/logs?offset=5&attempt=2", None),
    (
        lambda c: c.start_run("p", {"x": 1}, version=2, priority=-5),
        "POST /api/v1/runs",
        {"pipeline_name": "p", "parameters": {"x": 1}, "version": 2, "priority": -5},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ask", "sent", "body"), REQUESTS, ids=[sent for _, sent, _ in REQUESTS])
def test_each_method_sends_its_request(play: Play, ask: Callable[[Client], Any], sent: str, body: Any) -> None:
    client, api = play((202, {"id": "r2", "items": [], "generation": 1}))
    ask(client)
    assert api.sent() == [sent]
    assert api.bodies() == [body]


# --- what was asked of the scheduler ---


def test_the_outputs_of_a_mapped_task_are_a_list(play: Play) -> None:
    client, api = play((200, {"outputs": [{"loss": 1}, None]}))
    assert client.outputs("r1", "train") == [{"loss": 1}, None]
    assert api.sent() == ["GET /api/v1/runs/r1/tasks/train/outputs"]


def test_a_command_is_waited_for_until_the_scheduler_has_looked_at_it(play: Play) -> None:
    client, api = play((200, {"state": "open"}), (200, {"state": "done", "result": "Cancelled."}))
    assert client.settled({"command_id": 7})["result"] == "Cancelled."
    assert api.sent() == ["GET /api/v1/commands/7"] * 2


def test_a_refused_command_is_an_error_with_the_schedulers_sentence(play: Play) -> None:
    client, _ = play((200, {"state": "refused", "result": "The run has ended."}))
    with pytest.raises(ApiError, match="The run has ended") as caught:
        client.settled({"command_id": 7})
    assert caught.value.status == 409


def test_a_command_that_nobody_looks_at_is_told_in_time(play: Play) -> None:
    client, _ = play((200, {"state": "open"}))
    with pytest.raises(TimeoutError, match="does one run"):
        client.settled({"command_id": 7}, seconds=0.01)


def test_an_answer_without_a_command_is_settled(play: Play) -> None:
    client, api = play((500, {}))
    assert client.settled({"command_id": None}) == {}
    assert not api.requests


# --- streams ---


def stream(*events: tuple[int, str, Any]) -> bytes:
    return b"".join(f"id: {n}\nevent: {kind}\ndata: {json.dumps(what)}\n\n".encode() for n, kind, what in events)


def test_a_stream_is_read_to_its_end_and_comments_are_passed_over() -> None:
    expected: list[tuple[str, str, Any]] = [("1", "log", {}), ("", "message", [1])]
    text = b": still here\n\nid: 1\nevent: log\ndata: {}\n\n:\n\ndata: [1]\n\n"
    assert list(read_events(text.split(b"\n"))) == expected


def test_a_cut_stream_is_resumed_after_its_last_event(play: Play) -> None:
    first = (200, stream((3, "transition", {"id": 3})))
    second = (200, stream((9, "transition", {"id": 9}), (9, "end", {"state": "success"})))
    client, api = play(first, requests.ConnectionError(), second)
    assert [event["id"] for event in client.follow_events("r1", after=2)] == [3, 9]
    assert [request.headers.get("Last-Event-ID") for request in api.requests] == ["2", "3", "3"]
    assert api.requests[0].headers["Accept"] == "text/event-stream"


def test_a_stream_that_is_refused_is_an_error(play: Play) -> None:
    client, _ = play((404, {"message": "There is no such run."}))
    with pytest.raises(ApiError, match="no such run"):
        list(client.follow_events("r1"))


def test_a_stream_that_never_comes_is_given_up(play: Play) -> None:
    client, api = play((503, {"message": "Too many event streams are open."}))
    client._patience = 0.0
    with pytest.raises(ApiError, match="Too many"):
        list(client.follow_events("r1"))
    assert len(api.requests) == 1
