"""What may be asked of the leader about a run and its tasks over REST: cancel, pause, mark and rerun."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest

from tests.integration.api_site import ApiSite
from tests.integration.waiting_site import (
    MAPPED,
    WAITING,
    answer,
    commands,
    expand,
    pointers,
    running,
    set_run,
    set_task,
)

pytestmark = pytest.mark.timeout(120)


def over(api: ApiSite) -> str:
    """Return a run of a map that is over, of which one index has failed."""
    run = running(api, MAPPED, "mapped", parameters={"lr": 1})
    set_task(api, run, "load", "success", outputs={"n": 1})
    set_task(api, run, "train", "failed")
    set_task(api, run, "sum", "upstream_failed")
    expand(api, run, "train", ["train[0]", "train[1]"])
    expand(api, run, "train", ["train[2]"], state="failed", index=2)
    set_run(api, run, "failed")
    return run


def test_a_cancel_says_how_for_how_long_and_why(api: ApiSite) -> None:
    run = running(api, WAITING)
    body = {"mode": "graceful", "grace_seconds": 2.5, "reason": "wrong data"}
    assert answer(api, "POST", f"/api/v1/runs/{run}/cancel", body)["command_id"]
    answer(api, "POST", f"/api/v1/runs/{run}/tasks/load/cancel", {"mode": "force", "grace_seconds": 0})
    answer(api, "POST", f"/api/v1/runs/{run}/cancel")
    assert [(kind, task, payload) for kind, task, _, payload in commands(api)] == [
        ("cancel", None, {"grace_seconds": 2.5, "reason": "wrong data"}),
        ("cancel", "load", {"mode": "force", "grace_seconds": 0.0}),
        ("cancel", None, {}),
    ]


def test_what_is_being_cancelled_is_asked_again_only_to_shorten_it(api: ApiSite) -> None:
    run = running(api, WAITING)
    set_run(api, run, "cancelling")
    set_task(api, run, "load", "cancelling")
    for path in (f"/api/v1/runs/{run}/cancel", f"/api/v1/runs/{run}/tasks/load/cancel"):
        assert answer(api, "POST", path, {"reason": "again"})["command_id"] is None
        assert answer(api, "POST", path, {"mode": "force"})["command_id"]
        assert answer(api, "POST", path, {"grace_seconds": 1})["command_id"]
    assert len(commands(api)) == 4


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"mode": "force", "grace_seconds": 3}, "/grace_seconds"),
        ({"mode": "kill"}, "/mode"),
        ({"grace_seconds": -1}, "/grace_seconds"),
        ({"grace_seconds": 86_401}, "/grace_seconds"),
        ({"grace": 3}, "/grace"),
        ({"reason": 3}, "/reason"),
    ],
)
def test_a_cancel_that_makes_no_sense_is_refused_with_its_pointer(api: ApiSite, body: Any, at: str) -> None:
    run = running(api, WAITING)
    for path in (f"/api/v1/runs/{run}/cancel", f"/api/v1/runs/{run}/tasks/load/cancel"):
        assert pointers(answer(api, "POST", path, body, status=422)) == [at]
    assert not commands(api)


def test_a_run_is_paused_and_resumed_while_it_runs(api: ApiSite) -> None:
    run = running(api, WAITING)
    path = f"/api/v1/runs/{run}"
    assert answer(api, "POST", f"{path}/resume")["command_id"] is None
    assert answer(api, "POST", f"{path}/pause", {"reason": "the store moves"})["command_id"]
    assert answer(api, "POST", f"{path}/pause")["command_id"] is None, "it is asked for already"
    set_run(api, run, "paused")
    api.sql("UPDATE commands SET applied_at = now()")
    assert answer(api, "POST", f"{path}/pause")["command_id"] is None, "it is paused already"
    assert answer(api, "POST", f"{path}/resume")["command_id"]
    assert answer(api, "POST", f"{path}/resume")["command_id"] is None
    assert [(kind, payload) for kind, _, _, payload in commands(api)] == [
        ("pause", {"reason": "the store moves"}),
        ("resume", {}),
    ]
    for verb in ("pause", "resume"):
        assert api.call("POST", f"{path}/{verb}", role="viewer").status_code == 403
        assert api.call("POST", f"{path}/{verb}", role="foreign").status_code == 404
        assert pointers(answer(api, "POST", f"{path}/{verb}", {"why": "x"}, status=422)) == ["/why"]
        assert api.call("POST", f"{path}/{verb}", raw=b"[]").status_code == 422
    set_run(api, run, "success")
    for verb in ("pause", "resume"):
        assert "is success" in answer(api, "POST", f"{path}/{verb}", status=409)["message"]
    assert len(commands(api)) == 2


def test_a_pipeline_is_paused_with_who_and_why_in_the_audit(api: ApiSite) -> None:
    made = api.saved()
    path = f"/api/v1/pipelines/{made['id']}"
    assert made["paused"] is False
    paused = api.call("POST", f"{path}/pause", {"reason": "night"}, role="operator")
    assert paused.status_code == 200
    assert paused.json is not None
    assert paused.json["paused"] is True
    assert paused.headers["ETag"] == api.call("GET", path).headers["ETag"], "it is no new version"
    assert answer(api, "POST", f"{path}/pause", status=200)["paused"] is True
    assert answer(api, "POST", f"{path}/resume", status=200)["paused"] is False
    count = "SELECT count(*) FROM events WHERE entity = 'pipeline' AND actor = 'operator'"
    assert (api.count(f"{count} AND after = 'paused' AND message = 'night'"), api.count(count)) == (1, 2)
    assert api.call("POST", f"{path}/pause", role="viewer").status_code == 403
    assert api.call("POST", f"{path}/pause", role="foreign").status_code == 404
    assert api.call("POST", f"/api/v1/pipelines/{uuid.uuid4()}/resume").status_code == 404
    assert api.started()["state"] == "queued"


def test_a_task_is_marked_with_its_reason_and_outputs(api: ApiSite) -> None:
    run = running(api, WAITING)
    path = f"/api/v1/runs/{run}/tasks"
    body = {"state": "success", "reason": "by hand", "outputs": {"rows": 3}}
    assert answer(api, "POST", f"{path}/load/mark", body)["name"] == "load"
    set_run(api, run, "failed")
    answer(api, "POST", f"{path}/ask/mark", {"state": "skipped"})
    assert [(kind, task, payload) for kind, task, _, payload in commands(api)] == [
        ("mark", "load", body),
        ("mark", "ask", {"state": "skipped", "reason": ""}),
    ]
    wrong: list[tuple[Any, str]] = [
        ({"state": "running"}, "/state"),
        ({}, "/state"),
        ({"state": "failed", "outputs": {}}, "/outputs"),
        ({"state": "success", "outputs": []}, "/outputs"),
        ({"state": "success", "outputs": {"x": "y" * 300_000}}, "/outputs"),
    ]
    for sent, at in wrong:
        assert pointers(answer(api, "POST", f"{path}/load/mark", sent, status=422)) == [at]
    api.add_attempt(run, "load")
    assert "cancel it before" in answer(api, "POST", f"{path}/load/mark", {"state": "failed"}, status=409)["message"]
    assert len(commands(api)) == 2


def test_a_preview_says_what_runs_what_is_kept_and_why_and_is_what_is_asked_for(api: ApiSite) -> None:
    run = over(api)
    path = f"/api/v1/runs/{run}/rerun"
    found = answer(api, "POST", f"{path}/preview", {}, status=200)
    assert (found["in_place"], found["start"]) == (True, ["train[2]", "sum"])
    assert {item["task"]: item["why"] for item in found["run"]} == {
        "train": "inside", "train[2]": "chosen", "sum": "chosen",
    }  # fmt: skip
    assert all(item["message"] for item in found["run"])
    assert (found["reused"], found["kept"]) == (["load", "train[0]", "train[1]"], [])
    one = answer(api, "POST", f"{path}/preview", {"from": ["train[1]"]}, status=200)
    assert {item["task"]: item["why"] for item in one["run"]} == {
        "train": "inside", "train[1]": "chosen", "sum": "downstream",
    }  # fmt: skip
    assert one["kept"] == ["train[2]"]
    by_key = answer(api, "POST", f"{path}/preview", {"from": ["train[k1]"]}, status=200)
    assert by_key["run"] == one["run"]
    assert pointers(answer(api, "POST", f"{path}/preview", {"from": ["train[9]"]}, status=422)) == ["/from/0"]
    assert not commands(api)
    assert api.count("SELECT count(*) FROM runs") == 1
    assert answer(api, "POST", path, {"from": ["train[1]"]})["id"] == run
    assert [(kind, payload) for kind, _, _, payload in commands(api)] == [
        ("rerun", {"from": ["train[1]"], "generation": 1})
    ]


def test_a_rerun_in_place_that_is_sent_again_with_its_key_runs_nothing_again(api: ApiSite) -> None:
    run, key = over(api), {"Idempotency-Key": "again"}
    path = f"/api/v1/runs/{run}/rerun"
    first = api.call("POST", path, {}, headers=key)
    assert first.status_code == 202
    assert first.json is not None
    assert first.json["command_id"]
    assert "Idempotent-Replayed" not in first.headers
    for state in ("failed", "running", "failed"):
        # Before the leader has looked at it, while it runs, and when that has failed as well.
        set_run(api, run, state)
        again = api.call("POST", path, {}, headers=key)
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true")
        assert again.json is not None
        assert (again.json["id"], again.json["command_id"]) == (run, None)
        api.sql("UPDATE commands SET applied_at = now(), result = 'It runs again.'")
        api.sql("UPDATE runs SET generation = 2")
    other = answer(api, "POST", path, {"from": "all"}, status=409, headers=key, role="admin")
    assert "with another body" in other["message"]
    assert api.call("POST", path, {}, headers={"Idempotency-Key": "with space"}).status_code == 422
    assert len(commands(api)) == 1
    assert api.call("POST", path, {}, headers={"Idempotency-Key": "another"}).status_code == 202
    assert len(commands(api)) == 2


def test_reruns_in_place_at_once_with_one_key_are_one(api: ApiSite) -> None:
    path, found = f"/api/v1/runs/{over(api)}/rerun", []

    def send() -> None:
        response = api.call("POST", path, {}, headers={"Idempotency-Key": "together"})
        assert response.json is not None
        found.append((response.status_code, response.json["command_id"] is not None))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(202, False)] * 3 + [(202, True)]
    assert len(commands(api)) == 1


def test_a_rerun_in_place_that_is_refused_does_not_use_up_its_key(api: ApiSite) -> None:
    run, key = over(api), {"Idempotency-Key": "later"}
    set_run(api, run, "running")
    assert api.call("POST", f"/api/v1/runs/{run}/rerun", {}, headers=key).status_code == 409
    set_run(api, run, "failed")
    assert api.call("POST", f"/api/v1/runs/{run}/rerun", {}, headers=key).status_code == 202
    assert len(commands(api)) == 1


def test_a_rerun_by_other_parameters_is_a_new_run_that_takes_over_what_it_may(api: ApiSite) -> None:
    run = over(api)
    path = f"/api/v1/runs/{run}/rerun"
    body = {"from": ["train"], "parameters": {"lr": 2}}
    told = answer(api, "POST", f"{path}/preview", body, status=200)
    made = answer(api, "POST", path, body, status=201, headers={"Idempotency-Key": "k1"})
    assert answer(api, "POST", path, body, status=201, headers={"Idempotency-Key": "k1"})["id"] == made["id"]
    assert answer(api, "POST", path, {"parameters": {}}, status=202)["id"] == run, "nothing is given anew"
    assert (made["rerun_of"], made["trigger"], made["parameters"]) == (run, "rerun", {"lr": 2})
    # A script may read all parameters.
    assert {item["task"]: item["why"] for item in told["run"]} == {
        "load": "parameters", "train": "chosen", "sum": "parameters",
    }  # fmt: skip
    assert told["in_place"] is False
    linked = answer(api, "GET", f"/api/v1/runs/{run}/children", status=200, role="viewer")
    assert [(item["id"], item["parent_task"]) for item in linked["items"]] == [(made["id"], None)]
    assert api.count("SELECT count(*) FROM runs") == 2


def test_a_linked_rerun_shows_whose_outputs_it_has_taken_over(api: ApiSite) -> None:
    run = over(api)
    path = f"/api/v1/runs/{run}/rerun"
    told = answer(api, "POST", f"{path}/preview", {"in_place": False}, status=200)
    assert {item["task"]: item["why"] for item in told["run"]} == {"train": "chosen", "sum": "chosen"}
    made = answer(api, "POST", path, {"in_place": False}, status=201)
    load = made["tasks"][0]
    assert (load["state"], load["reason"], load["outputs"]) == ("success", "reused", {"n": 1})
    assert load["cached_from"] == {"run_id": run, "task": "load"}
    assert [task["state"] for task in made["tasks"]] == ["success", "pending", "pending"]


def test_a_rerun_by_another_version_runs_what_that_one_changes(api: ApiSite) -> None:
    run = over(api)
    for name in ("train", "sum"):
        set_task(api, run, name, "success", outputs={})
    saved = answer(api, "GET", "/api/v1/pipelines/by-name/mapped", status=200)
    tasks = [*MAPPED[:2], {**MAPPED[2], "timeout_seconds": 5}]
    assert api.call("PUT", f"/api/v1/pipelines/{saved['id']}", {"name": "mapped", "tasks": tasks}).status_code == 200
    path = f"/api/v1/runs/{run}/rerun"
    for version in ("latest", 2):
        told = answer(api, "POST", f"{path}/preview", {"version": version}, status=200)
        assert [(item["task"], item["why"]) for item in told["run"]] == [("sum", "changed")]
        assert told["reused"] == ["load", "train"]
    made = answer(api, "POST", path, {"version": "latest"}, status=201)
    assert (made["version"], made["tasks"][1]["inside"]) == (2, {"success": 2, "failed": 1})
    answer(api, "POST", path, {"version": 9}, status=404)
    refused = answer(api, "POST", path, {"version": "latest", "from": ["train[1]"]}, status=422)
    assert "as a whole" in refused["errors"][0]["message"]


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"in_place": True, "version": "latest"}, "/in_place"),
        ({"in_place": True, "parameters": {"x": 1}}, "/in_place"),
        ({"version": "newest"}, "/version"),
        ({"version": 0}, "/version"),
        ({"version": 1.5}, "/version"),
        ({"version": [1]}, "/version"),
        ({"parameters": []}, "/parameters"),
        ({"from": [""]}, "/from/0"),
        ({"force": True}, "/force"),
    ],
)
def test_a_rerun_that_makes_no_sense_is_refused_with_its_pointer(api: ApiSite, body: Any, at: str) -> None:
    run = over(api)
    for path in (f"/api/v1/runs/{run}/rerun", f"/api/v1/runs/{run}/rerun/preview"):
        refused = answer(api, "POST", path, body, status=422)
        assert pointers(refused) == [at]
        if body.get("version") == "newest":
            assert "its number, `latest`, or `pinned`" in refused["errors"][0]["message"]
    assert not commands(api)


def test_reruns_are_refused_while_the_run_is_active_and_to_strangers(api: ApiSite) -> None:
    run = over(api)
    path = f"/api/v1/runs/{run}/rerun"
    for way in (path, f"{path}/preview"):
        assert api.call("POST", way, {}, role="foreign").status_code == 404
        assert api.call("POST", way.replace(run, str(uuid.uuid4())), {}).status_code == 404
        assert api.call("POST", way, {}, role="viewer").status_code == 403
    set_run(api, run, "running")
    for body in ({}, {"in_place": False}):
        for way in (path, f"{path}/preview"):
            assert "cancel it or wait" in answer(api, "POST", way, body, status=409)["message"]
    set_run(api, run, "failed")
    api.services.backlog._most = 0
    for body in ({}, {"in_place": False}):
        answer(api, "POST", path, body, status=429)
    assert api.count("SELECT count(*) FROM runs") == 1


def test_a_preview_of_a_rerun_that_would_do_nothing_is_refused_like_that(api: ApiSite) -> None:
    run = running(api, MAPPED, "mapped")
    for name in ("load", "train", "sum"):
        set_task(api, run, name, "success")
    set_run(api, run, "success")
    path = f"/api/v1/runs/{run}/rerun"
    for body, said in (({}, "No task of run"), ({"in_place": False}, "Nothing of run")):
        told = [answer(api, "POST", way, body, status=409)["message"] for way in (path, f"{path}/preview")]
        assert said in told[0]
        assert told[0] == told[1]


def test_a_run_may_be_started_with_another_priority(api: ApiSite) -> None:
    api.saved()
    assert api.started(priority=-7)["priority"] == -7
    assert api.started()["priority"] == 0
    wrong = {"pipeline_name": "two-scripts", "priority": 1001}
    assert pointers(answer(api, "POST", "/api/v1/runs", wrong, status=422)) == ["/priority"]
