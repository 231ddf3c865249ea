"""What people and other systems tell a task over REST: approvals and events, checked against the task's own schema."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest

from orchestrator.store import command_requests
from tests.integration.api_site import ApiSite
from tests.integration.dag_site import until
from tests.integration.waiting_site import (
    APPROVAL,
    EVENT,
    GROUP,
    WAITING,
    answer,
    commands,
    expand,
    pointers,
    running,
    set_run,
    set_task,
    wait_for_event,
)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def run(api: ApiSite) -> str:
    return running(api, WAITING)


def test_an_approval_is_told_to_the_leader_with_who_what_and_when(api: ApiSite, run: str) -> None:
    set_task(api, run, "ask", "waiting", "approval")
    path = f"/api/v1/runs/{run}/tasks/ask"
    shown = answer(api, "GET", path, status=200, role="viewer")
    assert (shown["kind"], shown["waits_for"], shown["asks"]) == ("approval", "approval", APPROVAL["input"])
    asked = answer(api, "POST", f"{path}/approve", {"input": {"stage": "production"}, "reason": "looks right"})
    assert (asked["name"], asked["state"]) == ("ask", "waiting")
    command = answer(api, "GET", f"/api/v1/commands/{asked['command_id']}", status=200)
    assert (command["kind"], command["actor"], command["task"]) == ("approve", "operator", "ask")
    [(kind, task, actor, payload)] = commands(api)
    assert (kind, task, actor) == ("approve", "ask", "operator")
    assert payload.pop("at")
    assert payload == {"input": {"stage": "production"}, "reason": "looks right"}


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"input": {"stage": "moon"}}, ["/input/stage"]),
        ({"input": {"stage": "staging", "share": 2}}, ["/input/share"]),
        ({"input": {"stage": "staging", "more": 2}}, ["/input"]),
        ({"input": {}}, ["/input"]),
        ({}, ["/input"]),
        (None, ["/input"]),
        ({"input": "staging"}, ["/input"]),
        ({"input": {"stage": "x" * 300_000}}, ["/input"]),
        ({"inputs": {}}, ["/inputs"]),
        ({"input": {"stage": "staging"}, "reason": "x" * 1001}, ["/reason"]),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_its_pointer(
    api: ApiSite, run: str, body: Any, at: list[str]
) -> None:
    set_task(api, run, "ask", "waiting", "approval")
    assert pointers(answer(api, "POST", f"/api/v1/runs/{run}/tasks/ask/approve", body, status=422)) == at
    assert not commands(api)


def test_who_rejects_need_not_fill_in_the_form(api: ApiSite, run: str) -> None:
    set_task(api, run, "ask", "waiting", "approval")
    path = f"/api/v1/runs/{run}/tasks/ask/reject"
    assert pointers(answer(api, "POST", path, {"input": {"stage": 3}}, status=422)) == ["/input/stage"]
    answer(api, "POST", path, {"reason": "not on a Friday"})
    answer(api, "POST", path)
    assert [(kind, payload.get("reason")) for kind, _, _, payload in commands(api)] == [
        ("reject", "not on a Friday"),
        ("reject", None),
    ]


def test_what_does_not_wait_for_an_approval_is_409_with_a_sentence(api: ApiSite, run: str) -> None:
    for task, state, reason in (("ask", "pending", ""), ("ask", "success", ""), ("load", "waiting", "not_yet")):
        set_task(api, run, task, state, reason)
        refused = answer(api, "POST", f"/api/v1/runs/{run}/tasks/{task}/approve", {}, status=409)
        assert f"Task '{task}' of run {run} is {state} and does not wait for an approval." == refused["message"]
    assert not commands(api)


def test_an_approval_inside_of_a_container_is_checked_by_its_own_schema(api: ApiSite) -> None:
    run = running(api, GROUP, "folds")
    expand(api, run, "folds", ["folds[0].train", "folds[0].ask"], index=0)
    set_task(api, run, "folds[0].ask", "waiting", "approval")
    path = f"/api/v1/runs/{run}/tasks/folds[0].ask/approve"
    assert pointers(answer(api, "POST", path, {"input": {"stage": "moon"}}, status=422)) == ["/input/stage"]
    assert answer(api, "POST", path, {"input": {"stage": "staging"}})["parent"] == "folds"
    assert [(kind, task) for kind, task, _, _ in commands(api)] == [("approve", "folds[0].ask")]


@pytest.mark.parametrize("verb", ["approve", "reject", "mark", "cancel"])
def test_decisions_need_an_operator_and_a_task_of_the_own_tenant(api: ApiSite, run: str, verb: str) -> None:
    set_task(api, run, "ask", "waiting", "approval")
    body = {"state": "failed"} if verb == "mark" else {"input": {"stage": "staging"}} if verb != "cancel" else {}
    path = f"/api/v1/runs/{run}/tasks/ask/{verb}"
    assert api.call("POST", path, body, role="viewer").status_code == 403
    assert api.call("POST", path, body, role="foreign").status_code == 404
    assert api.call("POST", f"/api/v1/runs/{run}/tasks/nobody/{verb}", body).status_code == 404
    assert api.call("POST", f"/api/v1/runs/{uuid.uuid4()}/tasks/ask/{verb}", body).status_code == 404
    assert not commands(api)


def test_an_event_is_reported_by_its_token_once_however_often_it_is_delivered(api: ApiSite, run: str) -> None:
    token = wait_for_event(api, run, "export")
    task = f"/api/v1/runs/{run}/tasks/export"
    shown = answer(api, "GET", task, status=200, role="viewer")
    assert (shown["waits_for"], shown["wait_token"], shown["asks"]) == ("event", token, EVENT["payload"])
    first = answer(api, "POST", f"/api/v1/events/{token}", {"payload": {"rows": 5}})
    assert (first["run_id"], first["task"]) == (run, "export")
    again = {**first, "command_id": None}
    assert answer(api, "POST", f"/api/v1/events/{token}", {"payload": {"rows": 5}}) == again
    # The leader has applied it: the task run has no token any more.
    set_task(api, run, "export", "success")
    api.sql("UPDATE task_runs SET wait_token = NULL")
    api.sql("UPDATE commands SET applied_at = now(), result = 'Task export has its event.'")
    assert answer(api, "POST", f"/api/v1/events/{token}", {"payload": {"rows": 5}}) == again
    for other in ({"rows": 7}, {"rows": "zz"}, None):
        refused = answer(api, "POST", f"/api/v1/events/{token}", {"payload": other}, status=409)
        assert "was reported before with another payload" in refused["message"]
    [(kind, name, actor, payload)] = commands(api)
    assert (kind, name, actor, payload["payload"]) == ("event", "export", "operator", {"rows": 5})
    assert answer(api, "GET", task, status=200)["wait_token"] is None


def test_of_reports_at_the_same_moment_one_counts_and_the_others_hear_of_it(
    api: ApiSite, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, answers = wait_for_event(api, run, "any"), []
    insert = command_requests.insert_command

    def send(payload: str) -> None:
        response = api.call("POST", f"/api/v1/events/{token}", {"payload": payload}, role="operator")
        assert response.json is not None
        answers.append((payload, response.status_code, response.json.get("command_id") is not None))

    others = [threading.Thread(target=send, args=(payload,)) for payload in ("one", "two")]

    def wait_or_end() -> bool:
        held_up = api.count("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return held_up + sum(not other.is_alive() for other in others) == len(others)

    def insert_while_others_come(*args: Any, **fields: Any) -> Any:
        """Be in the middle of the transaction of the first report when the others begin theirs."""
        monkeypatch.setattr(command_requests, "insert_command", insert)
        for other in others:
            other.start()
        until(wait_or_end, 5)
        return insert(*args, **fields)

    monkeypatch.setattr(command_requests, "insert_command", insert_while_others_come)
    send("one")
    for other in others:
        other.join()
    assert [payload["payload"] for _, _, _, payload in commands(api)] == ["one"]
    assert sorted(answers) == [("one", 202, False), ("one", 202, True), ("two", 409, False)]


def test_a_report_that_is_another_as_json_is_refused(api: ApiSite, run: str) -> None:
    token = wait_for_event(api, run, "any")
    answer(api, "POST", f"/api/v1/events/{token}", {"payload": [1]})
    assert answer(api, "POST", f"/api/v1/events/{token}", {"payload": [1.0]})["command_id"] is None
    answer(api, "POST", f"/api/v1/events/{token}", {"payload": [True]}, status=409)


def test_a_report_that_the_leader_has_refused_is_not_taken_for_delivered(api: ApiSite, run: str) -> None:
    token = wait_for_event(api, run, "export")
    answer(api, "POST", f"/api/v1/events/{token}", {"payload": {"rows": 5}})
    api.sql("UPDATE commands SET applied_at = now(), result = 'Refused: not this one.'")
    answer(api, "POST", f"/api/v1/events/{token}", {"payload": {"rows": 6}})
    assert len(commands(api)) == 2
    api.sql("UPDATE commands SET applied_at = now(), result = 'Refused: not this one.'")
    set_task(api, run, "export", "cancelled")
    assert "does not wait" in answer(api, "POST", f"/api/v1/events/{token}", {}, status=409)["message"]


def test_a_payload_is_checked_and_where_nothing_is_said_of_it_any_json_will_do(api: ApiSite, run: str) -> None:
    token = wait_for_event(api, run, "export")
    wrong: list[tuple[Any, str]] = [
        ({"payload": {"rows": 0}}, "/payload/rows"),
        ({"payload": [1]}, "/payload"),
        (None, "/payload"),
    ]
    for body, at in wrong:
        assert pointers(answer(api, "POST", f"/api/v1/events/{token}", body, status=422)) == [at]
    nothing = answer(api, "POST", f"/api/v1/events/{token}", status=422)
    assert nothing["errors"][0]["message"].startswith("Nothing was given")
    free = wait_for_event(api, run, "any")
    answer(api, "POST", f"/api/v1/events/{free}", {"payload": ["a", {"b": None}]})
    assert [payload["payload"] for _, _, _, payload in commands(api)] == [["a", {"b": None}]]


def test_a_token_that_is_none_or_another_tenants_is_404(api: ApiSite, run: str) -> None:
    token = wait_for_event(api, run, "any")
    for wrong in (str(uuid.uuid4()), "x", "x" * 5000, token[:-1]):
        answer(api, "POST", f"/api/v1/events/{wrong}", {}, status=404)
    body: dict[str, Any] = {"payload": {}}
    assert api.call("POST", f"/api/v1/events/{token}", body, role="foreign").status_code == 404
    answer(api, "POST", f"/api/v1/events/{token}", body, status=403, role="viewer")
    assert not commands(api)
    answer(api, "POST", f"/api/v1/events/{token}", body)
    assert api.call("POST", f"/api/v1/events/{token}", body, role="foreign").status_code == 404, "nor once reported"


def test_what_waits_is_listed_for_its_own_tenant(api: ApiSite, run: str) -> None:
    set_task(api, run, "ask", "waiting", "approval")
    token = wait_for_event(api, run, "export")
    set_task(api, run, "any", "waiting", "not_yet")
    found = answer(api, "GET", "/api/v1/waits", status=200, role="viewer")["items"]
    assert sorted((item["kind"], item["task"], item["wait_token"]) for item in found) == [
        ("approval", "ask", None),
        ("event", "export", token),
    ]
    assert {item["pipeline_name"] for item in found} == {"waiting"}
    one = answer(api, "GET", "/api/v1/waits?kind=approval", status=200)
    assert [item["task"] for item in one["items"]] == ["ask"]
    page = answer(api, "GET", "/api/v1/waits?limit=1", status=200)
    rest = answer(api, "GET", f"/api/v1/waits?limit=1&cursor={page['next_cursor']}", status=200)
    assert len({page["items"][0]["task"], rest["items"][0]["task"]}) == 2
    assert answer(api, "GET", "/api/v1/waits", status=200, role="foreign")["items"] == []
    answer(api, "GET", "/api/v1/waits?kind=not_yet", status=422)
    set_run(api, run, "cancelled")
    assert answer(api, "GET", "/api/v1/waits", status=200)["items"] == []
