"""How runs and tasks are shown: containers folded, read by pages, links between runs, outputs, explanations."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import redis

from api import run_view
from orchestrator.wire.keys import Keys
from orchestrator.wire.progress import Progress, publish_progress
from tests.integration.api_site import ApiSite
from tests.integration.waiting_site import (
    GROUP,
    MAPPED,
    SCRIPT,
    WAITING,
    answer,
    expand,
    running,
    set_run,
    set_task,
)

pytestmark = pytest.mark.timeout(120)


def read(api: ApiSite, path: str, **more: Any) -> dict[str, Any]:
    return answer(api, "GET", path, **{"status": 200, "role": "viewer", **more})


def test_a_container_is_folded_in_its_run_and_read_page_by_page(api: ApiSite) -> None:
    run = running(api, MAPPED, "mapped")
    expand(api, run, "train", [f"train[{at}]" for at in range(12)])
    set_task(api, run, "train[11]", "failed")
    shown = read(api, f"/api/v1/runs/{run}")
    assert [task["name"] for task in shown["tasks"]] == ["load", "train", "sum"]
    train = shown["tasks"][1]
    assert (train["kind"], train["inside"]) == ("map", {"success": 11, "failed": 1})
    assert [shown["tasks"][at]["inside"] for at in (0, 2)] == [None, None]
    names: list[str] = []
    path = f"/api/v1/runs/{run}/tasks?parent=train&limit=5"
    cursor = ""
    while True:
        page = read(api, f"{path}{cursor}")
        names += [item["name"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert names == [f"train[{at}]" for at in range(12)]
    one = read(api, f"/api/v1/runs/{run}/tasks/train[3]")
    assert (one["parent"], one["map_index"], one["map_key"], one["item"]) == ("train", 3, "k3", {"lr": 3})
    assert (one["kind"], one["queue"], one["upstream_tasks"]) == ("operator", "cpu", [])
    failed = read(api, f"/api/v1/runs/{run}/tasks?parent=train&state=failed")
    assert [item["name"] for item in failed["items"]] == ["train[11]"]
    top = read(api, f"/api/v1/runs/{run}/tasks")
    assert top["items"] == shown["tasks"]
    assert [(item["parent"], item["map_index"], item["map_key"]) for item in top["items"]] == [(None, None, None)] * 3


def test_an_index_that_counts_no_more_is_listed_only_for_who_asks_for_it(api: ApiSite) -> None:
    run = running(api, MAPPED, "mapped")
    expand(api, run, "train", ["train[0]", "train[1]"])
    api.sql("UPDATE task_runs SET superseded = true, reason = 'superseded' WHERE name = 'train[1]'")
    path = f"/api/v1/runs/{run}/tasks?parent=train"
    assert [item["name"] for item in read(api, path)["items"]] == ["train[0]"]
    assert [item["name"] for item in read(api, f"{path}&state=success")["items"]] == ["train[0]"]
    every = read(api, f"{path}&superseded=true")["items"]
    assert [(item["name"], item["reason"]) for item in every] == [("train[0]", ""), ("train[1]", "superseded")]
    assert read(api, f"/api/v1/runs/{run}/tasks/train[1]")["reason"] == "superseded", "by its name it is there"
    assert read(api, f"/api/v1/runs/{run}/tasks/train")["inside"] == {"success": 1}


def test_the_parent_of_a_list_is_a_container_of_the_own_tenant(api: ApiSite) -> None:
    run = running(api, MAPPED, "mapped")
    path = f"/api/v1/runs/{run}/tasks?parent="
    assert read(api, f"{path}load")["items"] == []
    answer(api, "GET", f"{path}nobody", status=404)
    answer(api, "GET", f"{path}train", status=404, role="foreign")
    answer(api, "GET", path, status=422)


def test_tasks_of_a_group_name_their_upstreams_by_their_rows(api: ApiSite) -> None:
    run = running(api, GROUP, "folds")
    for at in range(2):
        expand(api, run, "folds", [f"folds[{at}].train", f"folds[{at}].ask"], index=at, state="pending")
    items = read(api, f"/api/v1/runs/{run}/tasks?parent=folds")["items"]
    assert [(item["name"], item["kind"], item["upstream_tasks"], item["map_index"]) for item in items] == [
        ("folds[0].train", "operator", [], 0),
        ("folds[0].ask", "approval", ["folds[0].train"], 0),
        ("folds[1].train", "operator", [], 1),
        ("folds[1].ask", "approval", ["folds[1].train"], 1),
    ]
    assert read(api, f"/api/v1/runs/{run}/tasks/folds")["inside"] == {"pending": 4}


def test_ten_thousand_indices_are_counted_and_paged_without_hurry(api: ApiSite) -> None:
    run = running(api, MAPPED, "mapped")
    api.sql(
        "INSERT INTO task_runs (id, tenant_id, run_id, name, position, operator, parent_id, map_index, map_key) "
        "SELECT gen_random_uuid(), tenant_id, run_id, 'train[' || n || ']', 0, 'custom_script', id, n, n::text "
        "FROM task_runs, generate_series(0, 9999) n WHERE name = 'train'"
    )
    assert read(api, f"/api/v1/runs/{run}")["tasks"][1]["inside"] == {"pending": 10_000}
    page = read(api, f"/api/v1/runs/{run}/tasks?parent=train&limit=500&sort=-position")
    assert page["items"][0]["map_index"] == 9999
    assert len(page["items"]) == 500
    next_page = read(api, f"/api/v1/runs/{run}/tasks?parent=train&limit=1&sort=-position&cursor={page['next_cursor']}",
                     status=200)  # fmt: skip
    assert next_page["items"][0]["map_index"] == 9499


def test_a_task_that_sets_up_says_so(api: ApiSite) -> None:
    run = running(api, MAPPED, "mapped")
    attempt = api.add_attempt(run, "load")
    path = f"/api/v1/runs/{run}/tasks/load"
    assert read(api, path)["phase"] == ""
    with redis.Redis.from_url(api.settings.redis_url) as client:
        publish_progress(client, Keys(api.settings.redis_task_queue), {attempt: Progress(phase="setup")})
        assert read(api, path)["phase"] == "setup"
        publish_progress(client, Keys(api.settings.redis_task_queue), {attempt: Progress(0.5, phase="running")})
    shown = read(api, path)
    assert (shown["phase"], shown["progress"]) == ("running", 0.5)
    api.sql("UPDATE attempts SET setup_seconds = 1.5, exception = 'ValueError'")
    [tried] = read(api, f"{path}/attempts")["items"]
    assert (tried["setup_seconds"], tried["exception"]) == (1.5, "ValueError")


def test_what_was_found_in_the_cache_names_whose_it_is(api: ApiSite) -> None:
    first, second = (running(api, MAPPED, "mapped") for _ in range(2))
    set_task(api, second, "load", "success", "cache_hit", outputs={"n": 1})
    api.sql(
        "UPDATE task_runs SET cached_from = (SELECT id FROM task_runs WHERE run_id = :first AND name = 'load'), "
        'cache_detail = \'{"hit": true, "message": "Its outputs are those of an equal task."}\' '
        "WHERE run_id = :second AND name = 'load'",
        first=first,
        second=second,
    )
    path = f"/api/v1/runs/{second}/tasks/load"
    shown = read(api, path)
    assert shown["cached_from"] == {"run_id": first, "task": "load"}
    assert shown["cache"] == {"hit": True, "message": "Its outputs are those of an equal task."}
    assert read(api, f"{path}/explain")["cache"] == shown["cache"]
    api.sql("DELETE FROM runs WHERE id = :first", first=first)
    assert read(api, path)["cached_from"] is None


def test_runs_inside_of_runs_are_linked_both_ways(api: ApiSite) -> None:
    api.saved("inner", tasks=[{"name": "work", **SCRIPT}])
    outer = running(api, [{"name": "sub", "pipeline": {"name": "inner"}}], "outer")
    inner = api.started("inner")["id"]
    api.sql(
        "UPDATE runs SET parent_run_id = :outer, trigger = 'pipeline', parent_task_run_id = "
        "(SELECT id FROM task_runs WHERE run_id = :outer) WHERE id = :inner",
        outer=outer,
        inner=inner,
    )
    api.sql("UPDATE task_runs SET child_run_id = :inner WHERE run_id = :outer", outer=outer, inner=inner)
    shown = read(api, f"/api/v1/runs/{inner}")
    assert (shown["parent_run_id"], shown["parent_task"]) == (outer, {"run_id": outer, "task": "sub"})
    task = read(api, f"/api/v1/runs/{outer}/tasks/sub")
    assert (task["kind"], task["child_run_id"]) == ("pipeline", inner)
    [child] = read(api, f"/api/v1/runs/{outer}/children")["items"]
    assert (child["id"], child["parent_task"]) == (inner, {"run_id": outer, "task": "sub"})
    assert read(api, f"/api/v1/runs/{inner}/children")["items"] == []
    answer(api, "GET", f"/api/v1/runs/{outer}/children", status=404, role="foreign")
    set_task(api, inner, "work", "success", outputs={"n": 3})
    set_run(api, inner, "success")
    assert read(api, f"/api/v1/runs/{outer}/tasks/sub/outputs") == {
        "outputs": {"run_id": inner, "state": "success", "outputs": {"work": {"n": 3}}}
    }


def test_a_run_and_its_tasks_are_shown_without_their_outputs_where_nobody_wants_them(api: ApiSite) -> None:
    run = running(api, MAPPED, "mapped")
    set_task(api, run, "load", "success", outputs={"n": 1})
    expand(api, run, "train", ["train[0]"])
    set_task(api, run, "train[0]", "success", outputs={"n": 2})
    path = f"/api/v1/runs/{run}"
    for query, shown in (("", {"n": 1}), ("?outputs=true", {"n": 1}), ("?outputs=false", None)):
        assert read(api, f"{path}{query}")["tasks"][0]["outputs"] == shown
        assert read(api, f"{path}/tasks{query}")["items"][0]["outputs"] == shown
    [inside] = read(api, f"{path}/tasks?parent=train&outputs=false")["items"]
    assert inside["outputs"] is None
    assert read(api, f"{path}/tasks/load")["outputs"] == {"n": 1}
    assert answer(api, "GET", f"{path}?outputs=maybe", status=422)["errors"][0]["pointer"] == "/outputs"


def test_a_run_that_has_left_much_is_shown_without_outputs_and_says_where_they_are(
    api: ApiSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(api, MAPPED, "mapped")
    path = f"/api/v1/runs/{run}"
    left = {"text": "é" * 200, "n": 1}
    set_task(api, run, "load", "success", outputs=left)
    assert "outputs_left_out" not in read(api, path), "a small run looks as ever"
    size = len(json.dumps(left, ensure_ascii=False).encode())
    monkeypatch.setattr(run_view, "MOST_OUTPUTS", size)
    assert read(api, path)["tasks"][0]["outputs"] == left
    monkeypatch.setattr(run_view, "MOST_OUTPUTS", size - 1)
    for query in ("", "?outputs=true"):
        shown = read(api, f"{path}{query}")
        assert [task["outputs"] for task in shown["tasks"]] == [None] * 3
        assert f"GET {path}/tasks/NAME/outputs" in shown["outputs_left_out"]
    assert "outputs_left_out" not in read(api, f"{path}?outputs=false"), "nobody has asked for them"
    asked = answer(api, "POST", f"{path}/pause", status=202, role="operator", body={})
    assert (asked["tasks"][0]["outputs"], "outputs_left_out" in asked) == (None, True)
    assert read(api, f"{path}/tasks/load")["outputs"] == left
    assert read(api, f"{path}/tasks/load/outputs") == {"outputs": left}


def test_outputs_that_are_much_as_they_are_stored_are_not_unpacked_to_be_counted(
    api: ApiSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(api, MAPPED, "mapped")
    set_task(api, run, "load", "success", outputs={"text": "x" * 250_000})
    set_task(api, run, "sum", "success", outputs={"text": uuid.uuid4().hex * 8})
    monkeypatch.setattr(run_view, "MOST_OUTPUTS", 100_000)
    assert "outputs_left_out" in read(api, f"/api/v1/runs/{run}"), "what is stored compressed counts as it is told"
    monkeypatch.setattr(run_view, "MOST_OUTPUTS", 30)
    assert "outputs_left_out" in read(api, f"/api/v1/runs/{run}")


def test_the_outputs_of_a_container_are_those_inside_of_it(api: ApiSite) -> None:
    run = running(api, MAPPED, "mapped")
    expand(api, run, "train", ["train[0]", "train[1]"])
    set_task(api, run, "train[0]", "success", outputs={"loss": 1})
    set_task(api, run, "train[1]", "failed")
    set_task(api, run, "train", "running")
    path = f"/api/v1/runs/{run}/tasks"
    assert read(api, f"{path}/train/outputs") == {"outputs": [{"loss": 1}, None]}
    assert read(api, f"{path}/train[0]/outputs") == {"outputs": {"loss": 1}}
    assert read(api, f"{path}/load/outputs") == {"outputs": None}
    answer(api, "GET", f"{path}/nobody/outputs", status=404)
    answer(api, "GET", f"{path}/train/outputs", status=404, role="foreign")


def test_what_waits_is_explained_and_what_has_ended_says_what_decided_it(api: ApiSite) -> None:
    run = running(api, WAITING)
    path = f"/api/v1/runs/{run}"
    set_task(api, run, "load", "ready", "waiting_for_memory")
    found = read(api, f"{path}/tasks/ask/explain")
    assert (found["name"], found["state"], found["decided"]) == ("ask", "pending", None)
    # No scheduler leads here, which is said first.
    assert [blocker["kind"] for blocker in found["blockers"]] == ["no_leader", "upstream"]
    assert all(blocker["needs"] and blocker["unblock"] and blocker["message"] for blocker in found["blockers"])
    assert "load" in found["blockers"][1]["message"]
    whole = read(api, f"{path}/explain")
    assert {task["name"]: task["blockers"][-1]["kind"] for task in whole["tasks"]}["load"] == "waiting_for_memory"
    assert (whole["state"], whole["more"], whole["decided"]) == ("running", 0, None)
    set_task(api, run, "load", "failed")
    api.sql(
        "INSERT INTO events (tenant_id, run_id, task, entity, entity_id, before, after, reason, message, cause, actor, "
        "epoch) SELECT tenant_id, run_id, name, 'task_run', id, 'running', 'failed', 'oom', 'It died.', 'outcome', "
        "'scheduler', 7 FROM task_runs WHERE run_id = :run AND name = 'load'",
        run=run,
    )
    ended = read(api, f"{path}/tasks/load/explain")
    assert ended["blockers"] == []
    assert (ended["decided"]["reason"], ended["decided"]["cause"]) == ("oom", "outcome")
    set_run(api, run, "failed")
    api.sql(
        "INSERT INTO events (tenant_id, run_id, entity, entity_id, before, after, cause, actor, epoch) "
        "SELECT tenant_id, id, 'run', id, 'running', 'failed', 'tasks', 'scheduler', 7 FROM runs WHERE id = :run",
        run=run,
    )
    set_task(api, run, "ask", "upstream_failed")
    set_task(api, run, "export", "success")
    set_task(api, run, "any", "success")
    failed = read(api, f"{path}/explain")
    assert (failed["decided"]["after"], failed["blockers"]) == ("failed", [])
    assert failed["message"].endswith("Its tasks: 1 failed, 2 success, 1 upstream_failed.")
    assert [(task["name"], task["state"], task["blockers"]) for task in failed["tasks"]] == [("load", "failed", [])]
    for what in ("explain", "tasks/load/explain"):
        answer(api, "GET", f"{path}/{what}", status=404, role="foreign")
    answer(api, "GET", f"{path}/tasks/nobody/explain", status=404)
    answer(api, "GET", f"/api/v1/runs/{uuid.uuid4()}/explain", status=404)


def test_of_what_was_cancelled_it_says_who_wanted_it_and_not_which_process_was_the_last(api: ApiSite) -> None:
    run = running(api, WAITING)
    path = f"/api/v1/runs/{run}"
    set_run(api, run, "cancelled")
    api.sql("UPDATE runs SET message = 'ann: wrong data'")
    set_task(api, run, "load", "cancelled")
    for entity, id_, task in (("run", "r.id", "NULL"), ("task_run", "t.id", "'load'")):
        for before, after, cause, actor in (
            ("running", "cancelling", "cancel", "ann"),
            ("cancelling", "cancelled", "outcome", "scheduler"),
        ):
            api.sql(
                "INSERT INTO events (tenant_id, run_id, task, entity, entity_id, before, after, reason, message, "
                f"cause, actor, epoch) SELECT r.tenant_id, r.id, {task}, '{entity}', {id_}, :before, :after, "
                "'cancelled', 'ann: wrong data', :cause, :actor, 7 FROM runs r JOIN task_runs t ON t.run_id = r.id "
                "WHERE t.name = 'load'",
                before=before, after=after, cause=cause, actor=actor,
            )  # fmt: skip
    for what in ("explain", "tasks/load/explain"):
        found = read(api, f"{path}/{what}")
        assert (found["state"], found["decided"]["actor"], found["decided"]["cause"]) == ("cancelled", "ann", "cancel")
        assert found["decided"]["message"] == "ann: wrong data"
    assert read(api, f"{path}/explain")["message"] == "ann: wrong data"


def test_artifacts_tell_where_they_come_from_and_what_removed_them(api: ApiSite) -> None:
    run, other = running(api, MAPPED, "mapped"), running(api, MAPPED, "mapped")
    data, model, cached = (f"artifact://{api.tenant_id}/{name}" for name in ("data", "model", "cached"))
    for uri, made_in, task, by in (
        (data, run, "load", ""),
        (model, run, "sum", "retention"),
        (cached, other, "load", ""),
    ):
        api.sql(
            "INSERT INTO artifacts (tenant_id, uri, digest, size, run_id, task, deleted_at, deleted_by) VALUES "
            "(:tenant, :uri, 'd', 7, :run, :task, CASE WHEN :by = '' THEN NULL ELSE now() END, :by)",
            tenant=api.tenant_id,
            uri=uri,
            run=made_in,
            task=task,
            by=by,
        )
    set_task(api, run, "load", "success", outputs={"dataset": {"uri": data}})
    set_task(api, run, "train", "success", outputs={"deep": [{"uri": cached}]})
    set_task(api, run, "sum", "success", outputs={"model": {"uri": model}})
    path = f"/api/v1/runs/{run}/artifacts"
    found = {item["uri"]: item for item in read(api, path)["items"]}
    assert set(found) == {data, model, cached}
    assert found[data]["producer"] == {"run_id": run, "task": "load"}
    assert found[cached]["producer"] == {"run_id": other, "task": "load"}
    assert [found[uri]["made_from"] for uri in (data, model, cached)] == [[], [cached], []]
    assert (found[model]["deleted_by"], found[data]["deleted_at"]) == ("retention", None)
    assert [item["uri"] for item in read(api, f"{path}?task=train")["items"]] == [cached]
    page = read(api, f"{path}?limit=2&sort=uri")
    rest = read(api, f"{path}?limit=2&sort=uri&cursor={page['next_cursor']}")
    assert [item["uri"] for item in page["items"] + rest["items"]] == sorted(found)
    answer(api, "GET", f"{path}?task=nobody", status=404)
    answer(api, "GET", path, status=404, role="foreign")
    assert json.dumps(read(api, f"/api/v1/runs/{other}/artifacts")["items"]).count("artifact://") == 1
