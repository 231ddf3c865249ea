"""Bad input: each kind of it is a clear 4xx in the one shape of errors, and none is a fault."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from api.app import create_app
from tests.integration.api_site import DEFINITION, ApiSite

pytestmark = pytest.mark.timeout(120)

SCRIPT = {"operator": "custom_script", "parameters": {"script_content": "print(1)"}}


def refused(api: ApiSite, body: Any, status: int = 422) -> dict[str, Any]:
    """Save a definition that has to be refused and return the error."""
    response = api.call("POST", "/api/v1/pipelines", body)
    assert response.status_code == status, response.text
    error: Any = response.json
    assert set(error) == {"code", "status", "message", "errors", "request_id"}
    assert error["code"] == status
    assert error["message"]
    assert api.count("SELECT count(*) FROM pipelines") == 0
    return dict(error)


def pointers(error: dict[str, Any]) -> set[str]:
    return {problem["pointer"] for problem in error["errors"]}


def test_a_cycle_is_told_as_its_path(api: ApiSite) -> None:
    error = refused(
        api,
        {
            "name": "x",
            "tasks": [
                {"name": "a", **SCRIPT, "upstream_tasks": ["c"]},
                {"name": "b", **SCRIPT, "upstream_tasks": ["a"]},
                {"name": "c", **SCRIPT, "upstream_tasks": ["b"]},
                {"name": "d", **SCRIPT},
            ],
        },
    )
    [problem] = error["errors"]
    path = problem["message"]
    assert any(f"{x} → {y} → {z} → {x}" in path for x, y, z in (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")))


@pytest.mark.parametrize(("levels", "status"), [(27, 201), (28, 422), (59, 422), (60, 400)])
def test_how_deep_a_definition_may_be_is_told(api: ApiSite, levels: int, status: int) -> None:
    deep: Any = 1
    for _ in range(levels):
        deep = [deep]
    # Around the lists: the body, its tasks, the task, its parameters, the arguments.
    task = {"name": "a", **SCRIPT, "parameters": {"script_content": "print(1)", "arguments": {"x": deep}}}
    response = api.call("POST", "/api/v1/pipelines", {"name": "deep", "tasks": [task]})
    assert response.status_code == status, response.text


def test_all_faults_of_a_definition_are_told_at_once(api: ApiSite) -> None:
    error = refused(
        api,
        {
            "name": "x",
            "tasks": [
                {"name": "a", **SCRIPT, "upstream_tasks": ["nobody"]},
                {"name": "a", **SCRIPT},
                {"name": "c", "operator": "no_such_operator"},
                {"name": "d", "operator": "model_training", "parameters": {"min_accuracy": "high"}},
                {"name": "e", **SCRIPT, "cpu": -1},
                {"name": "f", **SCRIPT, "surprise": 1},
            ],
        },
    )
    found = pointers(error)
    for pointer in (
        "/tasks/0/upstream_tasks/0",
        "/tasks/1/name",
        "/tasks/2/operator",
        "/tasks/4/cpu",
        "/tasks/3/parameters/min_accuracy",
        "/tasks/5/surprise",
    ):
        assert pointer in found, (pointer, error["errors"])


def test_too_many_tasks_are_refused(api: ApiSite) -> None:
    tasks = [{"name": f"t{number}", "operator": "x"} for number in range(10_001)]
    body = {"name": "x", "tasks": tasks}
    assert len(json.dumps(body)) < api.settings.max_body_bytes
    assert pointers(refused(api, body)) == {"/tasks"}


def test_a_large_body_is_refused_before_it_is_read(api: ApiSite) -> None:
    response = api.call("POST", "/api/v1/pipelines", raw=b'{"name": "' + b"x" * 10_000_000 + b'"}')
    assert response.status_code == 413
    assert response.json is not None
    assert response.json["code"] == 413


@pytest.mark.parametrize(
    "raw, status",
    [
        (b"", 400),
        (b"   ", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"x"', 400),
        (b'{"name": NaN}', 400),
        (b'{"name": Infinity}', 400),
        (b'{"name": -Infinity}', 400),
        (b'{"name": 1e999}', 400),
        (b'{"name": ' + b"9" * 5000 + b"}", 400),
        (b'{"name": 9223372036854775808}', 400),
        (b'{"name": "\xff\xfe"}', 400),
        ('{"name": "é"}'.encode("latin-1"), 400),
        ("{}".encode("utf-16"), 400),
        (b'{"name": "\\u0000"}', 400),
        (b'{"name": "\\ud800"}', 400),
        (b'{"\\u0000": 1}', 400),
        (b'{"name": "a", "name": "b"}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 400),
        (b'{"a":' * 70 + b"1" + b"}" * 70, 400),
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/pipelines", "/api/v1/runs", "/api/v1/pipelines/validate"])
def test_a_body_that_can_not_be_read_is_refused(api: ApiSite, path: str, raw: bytes, status: int) -> None:
    response = api.call("POST", path, raw=raw)
    # A list is JSON and only does not fit the schema of a run.
    assert response.status_code in {status, 422 if path.endswith("runs") else status}, response.text
    assert response.json is not None
    assert response.json["message"]


def test_another_content_type_is_refused(api: ApiSite) -> None:
    body = json.dumps(DEFINITION).encode()
    for path in ("/api/v1/pipelines", "/api/v1/keys", "/api/v1/runs"):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            response = api.call("POST", path, raw=body, headers={"Content-Type": kind})
            assert response.status_code == 415, (path, kind)
    gzipped = api.call("POST", "/api/v1/pipelines", raw=body, headers={"Content-Encoding": "gzip"})
    assert gzipped.status_code == 415
    assert api.count("SELECT count(*) FROM pipelines") == 0


@pytest.mark.parametrize(
    "parameters",
    [
        {"source_type": "local", "source_path": "../../etc/passwd", "format": "csv"},
        {"source_type": "local", "source_path": "data/../../x.csv", "format": "csv"},
        {"source_type": "api", "source_path": "http://169.254.169.254/latest/meta-data", "format": "json"},
        {"source_type": "api", "source_path": "http://127.0.0.1:8001/api", "format": "json"},
        {"source_type": "api", "source_path": "file:///etc/passwd", "format": "json"},
        {"source_type": "api", "source_path": "http://2130706433/", "format": "json"},
        {"source_type": "api", "source_path": "http://[::ffff:10.0.0.1]/x", "format": "json"},
    ],
)
def test_a_path_outside_and_a_private_address_are_refused_at_the_save(api: ApiSite, parameters: dict[str, Any]) -> None:
    task = {"name": "a", "operator": "data_ingestion", "parameters": parameters}
    assert pointers(refused(api, {"name": "x", "tasks": [task]})) == {"/tasks/0/parameters/source_path"}


def test_a_private_registry_is_refused_unless_the_site_allows_it(api: ApiSite) -> None:
    parameters = {"registry_url": "http://localhost:8080", "model_name": "m"}
    definition = {"name": "x", "tasks": [{"name": "a", "operator": "model_registration", "parameters": parameters}]}
    assert pointers(refused(api, definition)) == {"/tasks/0/parameters/registry_url"}
    settings = replace(api.settings, allowed_private_hosts=("localhost:8080",))
    allowed = ApiSite(create_app(settings), settings, api.tenant_id, api.keys)
    checked = allowed.call("POST", "/api/v1/pipelines/validate", definition).json
    allowed.services.close()
    assert checked is not None
    assert checked["valid"], checked["errors"]


def test_a_url_that_a_connections_credentials_are_not_for_is_refused_at_the_save(api: ApiSite) -> None:
    connections = {"crm": {"url": "https://crm.example/api", "token": "geheim"}, "lake": {"url": "s3://lake/in"}}
    settings = replace(api.settings, connections=connections)
    site = ApiSite(create_app(settings), settings, api.tenant_id, api.keys)
    try:
        for source, path, valid in (
            ("crm", "https://attacker.example/x", False),
            ("crm", "https://crm.example/admin", False),
            ("crm", "https://crm.example/api/customers", True),
            ("crm", "customers", True),
            ("lake", "s3://other/in/x.csv", False),
            ("lake", "s3://[other/in/x.csv", False),
            ("lake", "s3://lake/in/x.csv", True),
        ):
            task = {"name": "a", "operator": "data_ingestion", "parameters": {"source": source, "source_path": path}}
            checked = site.call("POST", "/api/v1/pipelines/validate", {"name": "x", "tasks": [task]})
            assert checked.json is not None
            told = [problem["pointer"] for problem in checked.json["errors"]]
            assert told == ([] if valid else ["/tasks/0/parameters/source_path"]), path
            assert "geheim" not in checked.text
    finally:
        site.services.close()


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/pipelines/by-name/%00",
        "/api/v1/runs?pipeline_name=%00",
        "/api/v1/models/a%00b",
        "/api/v1/pipelines/by-name/..%2f..%2fetc",
        "/api/v1/operators/%ff%fe",
        "/api/v1/pipelines?name=%ed%a0%80",
        "/docs/..%2f..%2fsetup.cfg",
        "/docs/%2e%2e",
        "/api/v1/runs/not-a-uuid",
        "/api/v1/nothing",
        "/api/v1/workers/%ed%a0%80",
        "/api/v1/pipelines?limit=0",
        "/api/v1/pipelines?limit=x",
        "/api/v1/pipelines?sort=id",
        "/api/v1/pipelines?unknown=1",
        "/api/v1/pipelines?cursor=x",
        "/api/v1/pipelines?cursor=%c3%a9",
        "/monitoring/statistics?days=0",
        "/monitoring/statistics?days=99999999999999999999",
    ],
)
def test_an_address_that_leads_nowhere_is_a_clear_4xx(api: ApiSite, path: str) -> None:
    response = api.call("GET", path)
    assert response.status_code in {400, 404, 422, 200 if "%ed" in path else 404}, response.text
    if response.status_code != 200:
        assert response.json is not None
        assert response.json["code"] == response.status_code


def test_a_method_that_is_not_served_is_405_with_those_that_are(api: ApiSite) -> None:
    response = api.call("PATCH", "/api/v1/pipelines")
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert response.json is not None
    assert response.json["status"] == "Method Not Allowed"
    assert api.call("OPTIONS", "/api/v1/pipelines").status_code == 405


def test_a_fault_of_ours_tells_nothing_of_the_inside(api: ApiSite, monkeypatch: pytest.MonkeyPatch) -> None:
    from api import operators

    def break_down(*_: Any) -> None:
        raise RuntimeError("postgresql://user:password@10.0.0.1/db")

    monkeypatch.setattr(operators, "_shown", break_down)
    response = api.call("GET", "/api/v1/operators")
    assert response.status_code == 500
    assert "password" not in response.text
    assert "Traceback" not in response.text
    assert response.json is not None
    assert response.json["request_id"] == response.headers["X-Request-Id"]
