"""Runs over REST: one transaction makes one run, Redis may be away, the leader is asked through commands."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest
import redis
from sqlalchemy import text

from tests.integration.api_site import ApiSite

pytestmark = pytest.mark.timeout(60)


def test_a_run_is_stored_with_its_tasks_and_the_first_row_of_its_audit(api: ApiSite) -> None:
    made = api.saved(parameters={"depth": 3, "seed": 1})
    run = api.started(parameters={"seed": 2})

    assert run["pipeline_id"] == made["id"]
    assert (run["pipeline_name"], run["version"], run["state"]) == ("two-scripts", 1, "queued")
    assert run["parameters"] == {"depth": 3, "seed": 2}
    assert run["triggered_by"] == "admin"
    assert [(task["name"], task["state"], task["queue"]) for task in run["tasks"]] == [
        ("first", "pending", "cpu"),
        ("second", "pending", "cpu"),
    ]
    assert run["tasks"][1]["upstream_tasks"] == ["first"]
    assert api.call("GET", f"/api/v1/runs/{run['id']}").json == run
    events = api.call("GET", f"/api/v1/runs/{run['id']}/events").json
    assert events is not None
    assert [(event["before"], event["after"], event["actor"], event["epoch"]) for event in events["items"]] == [
        (None, "queued", "admin", 0)
    ]


def test_the_leader_is_woken_after_the_commit(api: ApiSite) -> None:
    api.saved()
    with redis.Redis.from_url(api.settings.redis_url) as client:
        api.started()
        found = client.xread({f"{api.settings.redis_task_queue}:ev": "0"}, block=5000)
    assert found


def test_a_run_keeps_the_version_it_began_with_and_may_name_an_older_one(api: ApiSite) -> None:
    made = api.saved()
    changed = {**made["definition"], "tasks": made["definition"]["tasks"][:1]}
    assert api.call("PUT", f"/api/v1/pipelines/{made['id']}", changed).status_code == 200

    assert len(api.started()["tasks"]) == 1
    assert len(api.started(version=1)["tasks"]) == 2
    assert api.call("POST", "/api/v1/runs", {"pipeline_name": "two-scripts", "version": 9}).status_code == 404


def test_one_idempotency_key_makes_one_run(api: ApiSite) -> None:
    api.saved()
    body, key = {"pipeline_name": "two-scripts"}, {"Idempotency-Key": "k-1"}
    first = api.call("POST", "/api/v1/runs", body, headers=key)
    again = api.call("POST", "/api/v1/runs", body, headers=key)
    other = api.call("POST", "/api/v1/runs", {**body, "parameters": {"a": 1}}, headers=key)
    bad = api.call("POST", "/api/v1/runs", body, headers={"Idempotency-Key": "with space"})

    assert first.json is not None
    assert again.json is not None
    assert (first.status_code, again.status_code, other.status_code, bad.status_code) == (201, 201, 409, 422)
    assert first.json["id"] == again.json["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert api.count("SELECT count(*) FROM runs") == 1


def test_idempotency_keys_are_forgotten_after_a_week(api: ApiSite) -> None:
    api.saved()
    body = {"pipeline_name": "two-scripts"}
    for key in ("old", "older", "recent"):
        api.call("POST", "/api/v1/runs", body, headers={"Idempotency-Key": key})
    api.sql("UPDATE idempotency_keys SET created_at = now() - interval '8 days' WHERE key <> 'recent'")
    api.sql("UPDATE idempotency_keys SET created_at = now() - interval '6 days' WHERE key = 'recent'")
    again = api.call("POST", "/api/v1/runs", {**body, "parameters": {"a": 1}}, headers={"Idempotency-Key": "old"})
    assert again.status_code == 201
    assert "Idempotent-Replayed" not in again.headers
    assert api.count("SELECT count(*) FROM idempotency_keys") == 2
    recent = api.call("POST", "/api/v1/runs", body, headers={"Idempotency-Key": "recent"})
    assert recent.headers["Idempotent-Replayed"] == "true"


def test_requests_at_once_with_one_key_make_one_run(api: ApiSite) -> None:
    api.saved()
    answers: list[str] = []

    def send() -> None:
        response = api.call(
            "POST", "/api/v1/runs", {"pipeline_name": "two-scripts"}, headers={"Idempotency-Key": "together"}
        )
        assert response.json is not None
        answers.append(response.json["id"])

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert api.count("SELECT count(*) FROM runs") == 1
    assert api.count("SELECT count(*) FROM task_runs") == 2


def test_a_refused_request_does_not_use_up_its_key(api: ApiSite) -> None:
    key = {"Idempotency-Key": "k-2"}
    assert api.call("POST", "/api/v1/runs", {"pipeline_name": "two-scripts"}, headers=key).status_code == 404
    api.saved()
    assert api.call("POST", "/api/v1/runs", {"pipeline_name": "two-scripts"}, headers=key).status_code == 201


def test_only_an_administrator_says_who_a_run_is_for(api: ApiSite) -> None:
    api.saved()
    body = {"pipeline_name": "two-scripts", "triggered_by": "data-scientist"}
    assert api.call("POST", "/api/v1/runs", body, role="operator").status_code == 403
    own = api.call("POST", "/api/v1/runs", {**body, "triggered_by": "operator"}, role="operator")
    assert own.status_code == 201
    by_admin = api.call("POST", "/api/v1/runs", body)
    assert by_admin.json is not None
    assert by_admin.json["triggered_by"] == "data-scientist"


def test_a_run_that_lacks_what_a_task_needs_is_refused_naming_it(api: ApiSite) -> None:
    api.saved("validated", tasks=[{"name": "check", "operator": "data_validation", "parameters": {}}])
    response = api.call("POST", "/api/v1/runs", {"pipeline_name": "validated"})
    assert response.status_code == 422
    assert response.json is not None
    assert response.json["errors"][0]["pointer"] == "/parameters/input_path"
    assert "check" in response.json["errors"][0]["message"]
    assert (
        api.call(
            "POST", "/api/v1/runs", {"pipeline_name": "validated", "parameters": {"input_path": "a.csv"}}
        ).status_code
        == 201
    )


def test_a_run_is_refused_whose_parameters_the_pipeline_does_not_declare_or_has_of_another_type(api: ApiSite) -> None:
    api.saved(parameters={"depths": [1], "max_errors": 5, "any": None})
    for parameters, pointer, words in (
        ({"max_erors": 1}, "/parameters/max_erors", "Did you mean 'max_errors'?"),
        ({"max_errors": "text"}, "/parameters/max_errors", "this is a text"),
        ({"depths": 5, "any": 5}, "/parameters/depths", "is a list by its default"),
    ):
        refused = api.call("POST", "/api/v1/runs", {"pipeline_name": "two-scripts", "parameters": parameters})
        assert refused.status_code == 422
        assert refused.json is not None
        assert [error["pointer"] for error in refused.json["errors"]] == [pointer]
        assert words in refused.json["errors"][0]["message"]
    run = api.started(parameters={"any": "thing", "max_errors": 0.5})
    api.sql("UPDATE runs SET state = 'failed', ended_at = now()")
    api.sql("UPDATE task_runs SET state = 'failed'")
    for path in (f"/api/v1/runs/{run['id']}/rerun", f"/api/v1/runs/{run['id']}/rerun/preview"):
        refused = api.call("POST", path, {"parameters": {"bogus": 1}})
        assert refused.status_code == 422
        assert refused.json is not None
        assert refused.json["errors"][0]["pointer"] == "/parameters/bogus"


def test_an_address_that_holds_no_id_is_told_in_our_words(api: ApiSite) -> None:
    for path in ("/api/v1/runs/xyz", "/api/v1/commands/abc"):
        refused = api.call("GET", path)
        assert refused.status_code == 404
        assert refused.json is not None
        assert (
            refused.json["message"] == f"There is nothing at {path}: no such address, or an id in it that can be none."
        )


def test_cancel_asks_the_leader_once_it_is_needed(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    path = f"/api/v1/runs/{run['id']}/cancel"

    answer = api.call("POST", path, role="operator")
    assert answer.status_code == 202
    assert answer.json is not None
    assert answer.json["id"] == run["id"]
    assert (
        api.count(
            "SELECT count(*) FROM commands WHERE kind = 'cancel' AND run_id = :id AND actor = 'operator'", id=run["id"]
        )
        == 1
    )
    api.sql("UPDATE runs SET state = 'cancelled', ended_at = now()")
    assert api.call("POST", path).status_code == 202
    api.sql("UPDATE runs SET state = 'success'")
    assert api.call("POST", path).status_code == 409
    assert api.count("SELECT count(*) FROM commands") == 1


def test_a_run_that_has_ended_can_be_started_again(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    path = f"/api/v1/runs/{run['id']}/rerun"
    active = api.call("POST", path, {})
    assert active.status_code == 409
    assert active.json is not None
    assert "cancel it or wait for its end" in active.json["message"]
    api.sql("UPDATE task_runs SET state = CASE name WHEN 'first' THEN 'success' ELSE 'failed' END")
    api.sql("UPDATE runs SET state = 'failed', ended_at = now(), generation = 3")

    answer = api.call("POST", path, {}, role="operator")
    assert answer.status_code == 202
    assert answer.json is not None
    assert (answer.json["generation"], answer.json["tasks"][0]["generation"]) == (3, 1)
    assert api.call("POST", path, {"from": ["second", "first"]}).status_code == 202
    assert api.call("POST", path, {"from": "all"}, role="viewer").status_code == 403
    with api.engine.connect() as connection:
        rows = connection.execute(text("SELECT actor, payload FROM commands WHERE kind = 'rerun' ORDER BY id")).all()
    assert [tuple(row) for row in rows] == [
        ("operator", {"from": "failed", "generation": 3}),
        ("admin", {"from": ["second", "first"], "generation": 3}),
    ]


@pytest.mark.parametrize(
    ("chosen", "pointer", "words"),
    [
        (["first", "nobody"], "/from/1", "no task 'nobody'"),
        ("some", "/from", "Must be one of: failed, all."),
        ([], "/from", "Length must be between 1 and 1000."),
        ([7], "/from/0", "Not a valid string."),
        (7, "/from", "Not a valid list."),
    ],
)
def test_a_rerun_from_what_is_not_there_is_refused_with_a_pointer(
    api: ApiSite, chosen: Any, pointer: str, words: str
) -> None:
    api.saved()
    run = api.started()
    api.sql("UPDATE task_runs SET state = 'failed'")
    api.sql("UPDATE runs SET state = 'failed', ended_at = now()")
    answer = api.call("POST", f"/api/v1/runs/{run['id']}/rerun", {"from": chosen})
    assert answer.status_code == 422
    assert answer.json is not None
    assert [problem["pointer"] for problem in answer.json["errors"]] == [pointer]
    assert words in answer.json["errors"][0]["message"]
    assert api.count("SELECT count(*) FROM commands") == 0


def test_a_run_that_went_well_has_nothing_that_failed_and_another_tenants_is_not_there(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    api.sql("UPDATE task_runs SET state = 'success'")
    api.sql("UPDATE runs SET state = 'success', ended_at = now()")
    path = f"/api/v1/runs/{run['id']}/rerun"
    assert api.call("POST", path, {"from": "failed"}).status_code == 409
    assert api.call("POST", path, {"from": "all"}).status_code == 202
    assert api.call("POST", f"/api/v1/runs/{uuid.uuid4()}/rerun", {"from": "all"}).status_code == 404
    api.services.backlog._most = 0
    assert api.call("POST", path, {"from": "all"}).status_code == 429, "it waits for its place like a new run"
    assert api.count("SELECT count(*) FROM commands") == 1


def test_a_run_of_a_plan_that_this_release_can_not_read_is_not_started_again(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    api.sql("UPDATE runs SET state = 'failed', ended_at = now()")
    api.sql("UPDATE pipeline_versions SET plan = '{\"format\": 99}'")
    api.services.versions._versions.clear()
    answer = api.call("POST", f"/api/v1/runs/{run['id']}/rerun", {"from": "all"})
    assert answer.status_code == 409
    assert answer.json is not None
    assert "can't be read" in answer.json["message"]
    assert api.count("SELECT count(*) FROM commands") == 0


@pytest.mark.parametrize(
    "plan", ['{"format": 99}', '{"format": 1}', '{"format": 1, "tasks": [{"name": 7}]}', "null", "[3]"]
)
def test_a_run_whose_plan_can_not_be_read_is_shown_without_it_and_says_so(api: ApiSite, plan: str) -> None:
    api.saved()
    run = api.started()
    path = f"/api/v1/runs/{run['id']}"
    api.sql("UPDATE pipeline_versions SET plan = CAST(:plan AS jsonb)", plan=plan)
    api.sql("UPDATE runs SET message = 'It waits.'")
    api.services.versions._versions.clear()
    for shown in (api.call("GET", path), api.call("POST", f"{path}/cancel")):
        assert shown.status_code in (200, 202), shown.text
        assert shown.json is not None
        assert shown.json["message"].startswith("It waits. The plan of version 1 of 'two-scripts' can't be read: ")
        assert [(task["name"], task["state"]) for task in shown.json["tasks"]] == [
            ("first", "pending"),
            ("second", "pending"),
        ]
    assert api.call("GET", f"{path}/tasks").status_code == 200
    assert api.call("GET", f"{path}/tasks/second").status_code == 200
    assert api.call("GET", "/api/v1/runs").status_code == 200
    for asked in (f"{path}/explain", f"{path}/tasks/second/explain", f"{path}/tasks/second/outputs"):
        answer = api.call("GET", asked)
        assert answer.status_code == 409, answer.text
        assert answer.json is not None
        assert "can't be read" in answer.json["message"]
    again = api.call("POST", "/api/v1/runs", {"pipeline_name": "two-scripts"})
    assert again.status_code == 409
    assert api.call("GET", f"{path}/artifacts").status_code == 200


def test_one_task_can_be_cancelled(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    path = f"/api/v1/runs/{run['id']}/tasks"
    assert api.call("POST", f"{path}/second/cancel").status_code == 202
    assert api.call("POST", f"{path}/nobody/cancel").status_code == 404
    assert api.count("SELECT count(*) FROM commands WHERE task = 'second'") == 1
    api.sql("UPDATE task_runs SET state = 'skipped' WHERE name = 'second'")
    assert api.call("POST", f"{path}/second/cancel").status_code == 409


def test_runs_are_filtered_and_sorted(api: ApiSite) -> None:
    one = api.saved()
    api.saved("other")
    runs = [api.started(), api.started("other"), api.started(triggered_by="cron")]
    api.sql("UPDATE runs SET state = 'success', ended_at = now() WHERE id = :id", id=runs[1]["id"])

    def ids(query: str) -> list[str]:
        found = api.call("GET", f"/api/v1/runs{query}")
        assert found.status_code == 200, found.text
        assert found.json is not None
        return [run["id"] for run in found.json["items"]]

    newest = [run["id"] for run in reversed(runs)]
    assert ids("") == newest
    assert ids("?sort=created_at") == newest[::-1]
    assert ids("?state=success") == [runs[1]["id"]]
    assert ids("?state=success,queued") == newest
    assert ids(f"?pipeline_id={one['id']}") == [runs[2]["id"], runs[0]["id"]]
    assert ids("?pipeline_name=other") == [runs[1]["id"]]
    assert ids("?triggered_by=cron") == [runs[2]["id"]]
    assert ids("?created_after=2001-01-01T00:00:00Z") == newest
    assert ids("?created_before=2001-01-01T00:00:00%2B01:00") == []
    assert api.call("GET", "/api/v1/runs?state=nonsense").status_code == 422
    assert api.call("GET", "/api/v1/runs?limit=501").status_code == 422
    assert api.call("GET", "/api/v1/runs?created_after=2001-01-01T00:00:00").status_code == 422


def test_a_running_task_shows_its_attempt_worker_and_progress(api: ApiSite) -> None:
    from orchestrator.wire.keys import Keys
    from orchestrator.wire.progress import Progress, publish_progress

    api.saved()
    run = api.started()
    api.sql("UPDATE runs SET state = 'running', started_at = now()")
    attempt_id = api.add_attempt(run["id"], "first")
    with redis.Redis.from_url(api.settings.redis_url) as client:
        publish_progress(client, Keys(api.settings.redis_task_queue), {attempt_id: Progress(0.5, "half", 123, 4.5)})

    shown = api.call("GET", f"/api/v1/runs/{run['id']}").json
    assert shown is not None
    first = shown["tasks"][0]
    assert (first["attempt_number"], first["attempt_id"], first["worker"]) == (1, attempt_id, "cpu@host-1")
    assert (first["progress"], first["progress_message"]) == (0.5, "half")
    assert first["usage"]["peak_memory_bytes"] == 123
    tasks = api.call("GET", f"/api/v1/runs/{run['id']}/tasks?state=running").json
    assert tasks is not None
    assert [task["name"] for task in tasks["items"]] == ["first"]
    assert tasks["items"][0] == first
    assert api.call("GET", f"/api/v1/runs/{run['id']}/tasks/first").json == first
    attempts = api.call("GET", f"/api/v1/runs/{run['id']}/tasks/first/attempts").json
    assert attempts is not None
    assert [attempt["id"] for attempt in attempts["items"]] == [attempt_id]
    assert attempts["items"][0]["cpu"] == 0.5
    assert "token" not in attempts["items"][0]
    workers = api.call("GET", "/api/v1/workers").json
    assert workers is not None
    assert workers["items"][0]["capacity"]["cpu"] == 4.0
    assert workers["items"][0]["reserved"] == {"cpu": 0.5, "memory_bytes": 1000000, "gpus": 0, "attempts": 1}
    assert [held["task"] for held in workers["items"][0]["running"]] == ["first"]


def test_a_draining_worker_is_a_command(api: ApiSite) -> None:
    api.saved()
    api.add_attempt(api.started()["id"], "first")
    assert api.call("POST", "/api/v1/workers/w1/drain").status_code == 202
    assert api.call("DELETE", "/api/v1/workers/w1/drain").status_code == 202
    assert api.call("POST", "/api/v1/workers/nobody/drain").status_code == 404
    assert api.count("SELECT count(*) FROM commands WHERE worker_id = 'w1' AND kind IN ('drain', 'undrain')") == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"pipeline_name": "two-scripts", "pipeline_id": str(uuid.uuid4())},
        {"pipeline_name": "two-scripts", "x": 1},
        {"pipeline_id": "no-uuid"},
        {"pipeline_name": 7},
        {"pipeline_name": "two-scripts", "parameters": []},
        {"pipeline_name": "two-scripts", "version": 1.5},
        {"pipeline_name": "two-scripts", "state": "success"},
    ],
)
def test_a_run_request_that_does_not_fit_is_refused(api: ApiSite, body: dict[str, Any]) -> None:
    api.saved()
    response = api.call("POST", "/api/v1/runs", body)
    assert response.status_code == 422
    assert response.json is not None
    assert response.json["errors"]
    assert api.count("SELECT count(*) FROM runs") == 0
