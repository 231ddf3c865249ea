"""What became of a request to the leader: open, done or refused, with its sentence, for those of its tenant."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.api_site import ApiSite

pytestmark = pytest.mark.timeout(60)
REFUSAL = "Refused: run 1 has been started again since its generation 1 ended."


def answer(api: ApiSite, method: str, path: str, body: Any = None, role: str = "operator") -> dict[str, Any]:
    response = api.call(method, path, body, role=role)
    assert response.status_code in {200, 202}, response.text
    assert response.json is not None
    return dict(response.json)


def close(api: ApiSite, command_id: int, result: str) -> None:
    """Do what the leader does with a command that it has looked at."""
    api.sql("UPDATE commands SET applied_at = now(), result = :result WHERE id = :id", id=command_id, result=result)


def test_a_rerun_that_the_leader_refuses_says_why(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    api.sql("UPDATE task_runs SET state = 'failed'")
    api.sql("UPDATE runs SET state = 'failed', ended_at = now()")
    asked = answer(api, "POST", f"/api/v1/runs/{run['id']}/rerun", {})
    path = f"/api/v1/commands/{asked['command_id']}"
    command = answer(api, "GET", path, role="viewer")
    assert command.pop("created_at")
    assert command == {
        "id": asked["command_id"],
        "kind": "rerun",
        "state": "open",
        "result": None,
        "actor": "operator",
        "run_id": run["id"],
        "task": None,
        "worker_id": None,
        "applied_at": None,
    }
    close(api, asked["command_id"], REFUSAL)
    command = answer(api, "GET", path, role="viewer")
    assert (command["state"], command["result"]) == ("refused", REFUSAL)
    assert command["applied_at"] >= command["created_at"]


def test_what_was_applied_is_done_and_so_is_what_had_nothing_left_to_do(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    of_run = answer(api, "POST", f"/api/v1/runs/{run['id']}/cancel")["command_id"]
    of_task = answer(api, "POST", f"/api/v1/runs/{run['id']}/tasks/second/cancel")["command_id"]
    close(api, of_run, "Run 1 is cancelled; it had not started.")
    close(api, of_task, "Nothing to cancel: task second of run 1 is cancelled already.")
    shown = [answer(api, "GET", f"/api/v1/commands/{id_}") for id_ in (of_run, of_task)]
    assert [(each["state"], each["task"]) for each in shown] == [("done", None), ("done", "second")]


def test_what_was_asked_before_makes_no_further_command(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    api.sql("UPDATE runs SET state = 'cancelling'")
    api.sql("UPDATE task_runs SET state = 'cancelled'")
    assert answer(api, "POST", f"/api/v1/runs/{run['id']}/cancel")["command_id"] is None
    assert answer(api, "POST", f"/api/v1/runs/{run['id']}/tasks/first/cancel")["command_id"] is None
    assert api.count("SELECT count(*) FROM commands") == 0


def test_a_drain_answers_with_its_command(api: ApiSite) -> None:
    api.saved()
    api.add_attempt(api.started()["id"], "first")
    asked = answer(api, "POST", "/api/v1/workers/w1/drain", role="admin")
    assert (asked["state"], asked["worker_id"]) == ("open", "w1")
    assert answer(api, "GET", f"/api/v1/commands/{asked['id']}") == asked


@pytest.mark.parametrize("wrong", ["0", "12345", str(2**63), "9" * 400, "-1", "one", "1.5"])
def test_what_is_not_there_is_404(api: ApiSite, wrong: str) -> None:
    assert api.call("GET", f"/api/v1/commands/{wrong}").status_code == 404


def test_another_tenants_command_does_not_exist(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    command_id = answer(api, "POST", f"/api/v1/runs/{run['id']}/cancel")["command_id"]
    path = f"/api/v1/commands/{command_id}"
    assert api.call("GET", path).status_code == 200
    assert api.call("GET", path, role="foreign").status_code == 404
