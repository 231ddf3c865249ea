"""Pipelines over REST: saved as versions, guarded by ETags, deleted only when idle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from tests.integration.api_site import DEFINITION, ApiSite

SEEDS = sorted((Path(__file__).parents[1] / "seed_pipelines").glob("*.json"))


def test_a_saved_pipeline_can_be_read_by_id_and_by_name(api: ApiSite) -> None:
    made = api.call("POST", "/api/v1/pipelines", DEFINITION)

    assert made.status_code == 201
    assert made.json is not None
    assert made.headers["Location"] == f"/api/v1/pipelines/{made.json['id']}"
    by_id = api.call("GET", made.headers["Location"])
    by_name = api.call("GET", "/api/v1/pipelines/by-name/two-scripts")
    assert by_id.json == by_name.json == made.json
    assert by_id.headers["ETag"] == made.headers["ETag"]
    assert made.json["version"] == 1
    assert [task["name"] for task in made.json["definition"]["tasks"]] == ["first", "second"]


def test_an_identical_save_returns_the_same_version(api: ApiSite) -> None:
    first = api.call("POST", "/api/v1/pipelines", DEFINITION)
    again = api.call("POST", "/api/v1/pipelines", DEFINITION)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json == again.json


def test_the_same_content_becomes_a_new_version_when_the_site_makes_another_plan_of_it(api: ApiSite) -> None:
    made = api.call("POST", "/api/v1/pipelines", DEFINITION)
    assert made.json is not None
    settings = replace(api.settings, default_retry_count=7)
    changed = ApiSite(create_app(settings), settings, api.tenant_id, api.keys)
    try:
        posted = [changed.call("POST", "/api/v1/pipelines", DEFINITION) for _ in range(2)]
        put = changed.call("PUT", f"/api/v1/pipelines/{made.json['id']}", DEFINITION)
    finally:
        changed.services.close()
    seen = [(answer.status_code, (answer.json or {})["version"]) for answer in (*posted, put)]
    assert seen == [(200, 2)] * 3
    assert api.count("SELECT (plan #> '{tasks,0,retry,retries}')::int FROM pipeline_versions WHERE version = 2") == 7
    back = api.call("PUT", f"/api/v1/pipelines/{made.json['id']}", DEFINITION)
    assert back.json is not None
    assert (back.json["version"], back.headers["ETag"]) == (1, made.headers["ETag"])
    assert api.count("SELECT count(*) FROM pipeline_versions") == 2


def test_another_content_under_a_taken_name_is_a_conflict(api: ApiSite) -> None:
    api.saved()
    response = api.call("POST", "/api/v1/pipelines", {**DEFINITION, "description": "changed"})
    assert response.status_code == 409
    assert response.json is not None
    assert "PUT" in response.json["message"]


def test_a_save_makes_a_version_and_an_old_content_gets_its_old_version_back(api: ApiSite) -> None:
    made = api.saved()
    path = f"/api/v1/pipelines/{made['id']}"
    second = api.call("PUT", path, {**DEFINITION, "description": "changed"})
    back = api.call("PUT", path, DEFINITION)

    assert second.json is not None
    assert back.json is not None
    assert (second.json["version"], back.json["version"]) == (2, 1)
    versions = api.call("GET", f"{path}/versions").json
    assert versions is not None
    assert [version["version"] for version in versions["items"]] == [2, 1]


def test_a_save_on_top_of_an_older_revision_is_refused(api: ApiSite) -> None:
    made = api.call("POST", "/api/v1/pipelines", DEFINITION)
    assert made.json is not None
    path, etag = f"/api/v1/pipelines/{made.json['id']}", made.headers["ETag"]
    first = api.call("PUT", path, {**DEFINITION, "description": "mine"}, headers={"If-Match": etag})
    stale = api.call("PUT", path, {**DEFINITION, "description": "yours"}, headers={"If-Match": etag})
    weak = api.call("PUT", path, {**DEFINITION, "description": "yours"}, headers={"If-Match": f"W/{etag}"})
    any_one = api.call("PUT", path, {**DEFINITION, "description": "yours"}, headers={"If-Match": "*"})

    assert [r.status_code for r in (first, stale, weak, any_one)] == [200, 412, 412, 200]


def test_a_pipeline_with_active_runs_is_not_deleted(api: ApiSite) -> None:
    made = api.saved()
    run = api.started()
    path = f"/api/v1/pipelines/{made['id']}"

    assert api.call("DELETE", path).status_code == 409
    api.sql("UPDATE runs SET state = 'cancelled', ended_at = now()")
    assert api.call("DELETE", path).status_code == 204
    assert api.call("GET", path).status_code == 404
    assert api.call("GET", f"{path}/versions").status_code == 404
    assert api.call("GET", f"/api/v1/runs/{run['id']}").status_code == 200
    assert api.call("POST", "/api/v1/runs", {"pipeline_id": made["id"]}).status_code == 404
    assert api.call("POST", "/api/v1/pipelines", DEFINITION).status_code == 201


def test_a_rename_to_a_taken_name_is_a_conflict(api: ApiSite) -> None:
    made = api.saved()
    api.saved("taken")
    assert api.call("PUT", f"/api/v1/pipelines/{made['id']}", {**DEFINITION, "name": "taken"}).status_code == 409
    assert api.call("PUT", f"/api/v1/pipelines/{made['id']}", {**DEFINITION, "name": "free"}).status_code == 200


def test_a_list_is_read_page_by_page_in_the_order_asked_for(api: ApiSite) -> None:
    names = [f"p{number}" for number in range(5)]
    for name in names:
        api.saved(name)
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"sort": "name", "limit": "2", **({"cursor": cursor} if cursor else {})}
        page = api.call("GET", "/api/v1/pipelines", query_string=query).json
        assert page is not None
        seen += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == names
    newest = api.call("GET", "/api/v1/pipelines").json
    assert newest is not None
    assert [item["name"] for item in newest["items"]] == names[::-1]
    filtered = api.call("GET", "/api/v1/pipelines?name=p3").json
    assert filtered is not None
    assert [item["name"] for item in filtered["items"]] == ["p3"]


@pytest.mark.parametrize("sort", ["created_at", "-updated_at", "-name"])
def test_a_cursor_is_good_for_its_own_list_alone(api: ApiSite, sort: str) -> None:
    for number in range(3):
        api.saved(f"p{number}")
    page = api.call("GET", f"/api/v1/pipelines?limit=1&sort={sort}").json
    assert page is not None
    cursor = page["next_cursor"]
    assert api.call("GET", f"/api/v1/pipelines?limit=2&sort={sort}&cursor={cursor}").status_code == 200
    assert api.call("GET", f"/api/v1/pipelines?limit=1&sort=name&cursor={cursor}").status_code == 422
    assert api.call("GET", f"/api/v1/pipelines?sort={sort}&cursor={cursor}", role="foreign").status_code == 422
    assert api.call("GET", f"/api/v1/pipelines?sort={sort}&cursor=A{cursor[1:-1]}A").status_code == 422


def test_validate_answers_with_the_plan(api: ApiSite) -> None:
    response = api.call("POST", "/api/v1/pipelines/validate", DEFINITION, role="viewer")
    assert response.status_code == 200
    checked = response.json
    assert checked is not None
    assert checked["valid"]
    assert checked["errors"] == []
    assert [(task["name"], task["queue"]) for task in checked["plan"]["tasks"]] == [("first", "cpu"), ("second", "cpu")]
    assert checked["plan"]["tasks"][1]["upstream_tasks"] == ["first"]
    assert checked["plan"]["tasks"][0]["cpu"] > 0
    assert api.count("SELECT count(*) FROM pipelines") == 0


def test_a_save_warns_of_pipelines_versions_and_parameters_that_are_not_there(api: ApiSite) -> None:
    api.saved("inner", parameters={"rows": 1})
    children = [
        {"name": "nopipe"}, {"name": "inner", "version": 9}, {"name": "inner", "parameters": {"rwos": "{{ run.id }}"}},
        {"name": "inner", "parameters": {"rows": "many"}}, {"name": "inner", "parameters": {"rows": "{{ run.id }}"}},
        {"name": "outer"},
    ]  # fmt: skip
    tasks = [{"name": f"t{at}", "pipeline": child} for at, child in enumerate(children)]
    tasks[0] = {"name": "g", "map": {"over": [1]}, "tasks": [tasks[0]]}
    script = {"script_content": "print('{{ params.x }}')"}
    document = {"name": "outer", "tasks": [*tasks, {"name": "s", "operator": "custom_script", "parameters": script}]}
    checked = api.call("POST", "/api/v1/pipelines/validate", document).json
    made = api.call("POST", "/api/v1/pipelines", document)
    assert checked is not None
    assert made.json is not None
    assert (checked["valid"], made.status_code, made.json["warnings"]) == (True, 201, checked["warnings"])
    assert {warning["pointer"]: warning["message"] for warning in checked["warnings"]} == {
        "/tasks/6/parameters/script_content": "{{ params.x }} stays as it is written: nothing is put into a script's "
        "text. Give it in 'arguments'; the script finds it in ORCHESTRATOR_PARAM_<NAME>, or in the file "
        "ORCHESTRATOR_INPUT_FILE.",
        "/tasks/0/tasks/0/pipeline/name": "There is no pipeline 'nopipe'. Save it before this task starts.",
        "/tasks/1/pipeline/version": "Pipeline 'inner' has no version 9. Save it before this task starts.",
        "/tasks/2/pipeline/parameters/rwos": "The pipeline's parameters have no 'rwos'. Did you mean 'rows'?",
        "/tasks/3/pipeline/parameters/rows": "'rows' is a number by its default in the pipeline, and this is a text; "
        "give one like 1.",
    }


def test_validate_lists_all_problems_as_pointers(api: ApiSite) -> None:
    broken: dict[str, Any] = {
        "name": "x",
        "tasks": [
            {"name": "a", "operator": "custom_script", "upstream_tasks": ["b"], "parameters": {"script_content": "1"}},
            {"name": "b", "operator": "custom_script", "upstream_tasks": ["a"], "parameters": {"script_content": "1"}},
            {"name": "c", "operator": "no_such_operator", "upstream_tasks": ["nobody"]},
        ],
    }
    response = api.call("POST", "/api/v1/pipelines/validate", broken)
    assert response.status_code == 200
    assert response.json is not None
    assert not response.json["valid"]
    assert response.json["plan"] is None
    pointers = {problem["pointer"] for problem in response.json["errors"]}
    assert any(pointer.startswith("/tasks/2/operator") for pointer in pointers)
    assert any(pointer.startswith("/tasks/2/upstream_tasks") for pointer in pointers)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.stem)
def test_every_pipeline_of_the_seed_is_valid(api: ApiSite, seed: Path) -> None:
    response = api.call("POST", "/api/v1/pipelines/validate", json.loads(seed.read_text()))
    assert response.status_code == 200
    assert response.json is not None
    assert response.json["valid"], response.json["errors"]


def test_the_seeds_pipelines_are_there() -> None:
    assert len(SEEDS) == 6
