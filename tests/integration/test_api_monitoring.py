"""Monitoring: health part by part, metrics from the rows, statistics over days, and the offline documentation."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import pytest

from api.openapi import text as openapi_text
from tests.integration.api_site import ApiSite

pytestmark = pytest.mark.timeout(60)


def test_health_says_which_part_is_missing(api: ApiSite) -> None:
    detailed = api.call("GET", "/monitoring/health/detailed")
    assert detailed.status_code == 200
    assert detailed.json is not None
    parts = detailed.json["components"]
    assert set(parts) == {"database", "redis", "leader", "workers", "stream", "services"}
    assert detailed.json["status"] == "degraded"
    assert parts["database"]["status"] == parts["redis"]["status"] == "healthy"
    assert parts["leader"]["status"] == parts["workers"]["status"] == "degraded"
    assert "python -m scheduler" in parts["leader"]["message"]
    assert parts["database"]["version"]
    assert parts["redis"]["version"]


def test_health_is_healthy_with_a_leader_and_a_worker(api: ApiSite) -> None:
    api.saved()
    api.add_attempt(api.started()["id"], "first")
    api.sql(
        "INSERT INTO leases (role, epoch, holder, expires_at) "
        "VALUES ('scheduler', 3, 's1', now() + interval '1 min') ON CONFLICT (role) DO UPDATE "
        "SET epoch = 3, holder = 's1', expires_at = now() + interval '1 min'"
    )
    health = api.call("GET", "/monitoring/health")
    assert (health.status_code, health.json) == (200, {"status": "healthy"})
    detailed = api.call("GET", "/monitoring/health/detailed").json
    assert detailed is not None
    assert detailed["components"]["leader"]["epoch"] == 3


def test_health_names_the_outside_services_that_are_left_alone(api: ApiSite) -> None:
    path = "/monitoring/health/detailed"

    def services() -> dict[str, Any]:
        shown = api.call("GET", path).json
        assert shown is not None
        return dict(shown["components"]["services"])

    assert services() == {"status": "healthy", "message": "", "circuits": []}
    api.sql(
        "INSERT INTO circuits (service, state, failures, reason, open_until) VALUES "
        "('feature-store', 'open', 6, 'unreachable', now() + interval '1 min'), ('registry', 'closed', 0, '', NULL)"
    )
    found = services()
    assert found["status"] == "degraded"
    assert "feature-store" in found["message"]
    assert [(each["service"], each["state"], each["failures"], each["reason"]) for each in found["circuits"]] == [
        ("feature-store", "open", 6, "unreachable"),
        ("registry", "closed", 0, ""),
    ]
    assert found["circuits"][0]["open_until"]
    api.sql("UPDATE circuits SET state = 'closed'")
    assert services()["status"] == "healthy"


def test_metrics_are_read_from_the_rows(api: ApiSite) -> None:
    api.saved()
    run = api.started()
    api.started()
    api.sql("UPDATE runs SET state = 'running' WHERE id = :id", id=run["id"])
    api.add_attempt(run["id"], "first", state="dispatched")
    api.sql("INSERT INTO refusals (what, count) VALUES ('fenced', 4)")
    response = api.call("GET", "/monitoring/metrics", role="viewer")
    assert response.status_code == 200
    assert response.mimetype == "text/plain"
    lines = response.text.splitlines()
    for line in (
        'orchestrator_runs{state="queued"} 1.0',
        'orchestrator_runs{state="running"} 1.0',
        'orchestrator_runs{state="failed"} 0.0',
        'orchestrator_open_tasks{reason="",state="pending"} 1.0',
        'orchestrator_queue_attempts{queue="cpu",state="dispatched"} 1.0',
        'orchestrator_workers{state="online"} 1.0',
        'orchestrator_host_capacity_cpu_cores{host="host-1/h1"} 4.0',
        'orchestrator_host_reserved_cpu_cores{host="host-1/h1"} 0.5',
        'orchestrator_refusals_total{what="fenced"} 4.0',
        "orchestrator_leader_held 0.0",
        "orchestrator_redis_up 1.0",
    ):
        assert line in lines, (line, response.text)
    assert re.search(r'orchestrator_queue_oldest_seconds\{queue="cpu",state="dispatched"\} \d', response.text)
    assert re.search(
        r'orchestrator_http_requests_total\{method="POST",route="/api/v1/runs",status="201"\} 2.0', response.text
    )
    foreign = api.call("GET", "/monitoring/metrics", role="foreign").text
    assert 'orchestrator_runs{state="queued"} 0.0' in foreign


def test_statistics_sum_up_what_became_of_runs(api: ApiSite) -> None:
    api.saved()
    done, failed = api.started(), api.started()
    for run, state in ((done, "success"), (failed, "failed")):
        api.sql(
            "UPDATE runs SET state = :state, started_at = created_at + interval '1 s', "
            "ended_at = created_at + interval '11 s' WHERE id = :id",
            state=state,
            id=run["id"],
        )
    api.sql(
        "UPDATE task_runs SET attempts = 3, state = 'success', started_at = now(), "
        "ended_at = now() + interval '2 s' WHERE run_id = :id AND name = 'first'",
        id=done["id"],
    )
    response = api.call("GET", "/monitoring/statistics?days=7")
    assert response.status_code == 200
    found = response.json
    assert found is not None
    assert (found["days"], found["runs"]["total"], found["runs"]["by_state"]) == (7, 2, {"success": 1, "failed": 1})
    assert found["runs"]["success_rate"] == 0.5
    assert found["runs"]["duration_seconds"]["p50"] == pytest.approx(10.0)
    assert found["runs"]["wait_seconds"]["p95"] == pytest.approx(1.0)
    assert found["pipelines"][0]["pipeline_name"] == "two-scripts"
    assert found["operators"][0]["operator"] == "custom_script"
    assert found["operators"][0]["retries"] == 2
    assert found["tasks"]["retries"] == 2
    empty = api.call("GET", "/monitoring/statistics", role="foreign").json
    assert empty is not None
    assert empty["runs"]["total"] == 0
    assert empty["runs"]["success_rate"] is None


def test_the_documentation_works_without_any_other_host(api: ApiSite) -> None:
    page = api.call("GET", "/docs")
    assert page.mimetype == "text/html"
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert linked
    for link in linked:
        assert link.startswith("/docs/")
        with api.call("GET", link) as asset:
            assert asset.status_code == 200, link
    assert "http" not in re.sub(r"<!--.*?-->", "", page.text)
    start = api.call("GET", "/docs/start.js").text
    assert '"/openapi.json"' in start
    document = api.call("GET", "/openapi.json").json
    assert document is not None
    assert document["openapi"] == "3.0.3"
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["security"] == [{"bearer": []}]


def test_the_openapi_document_is_the_same_every_time() -> None:
    assert openapi_text() == openapi_text()


def test_models_are_listed_with_their_latest_version(api: ApiSite) -> None:
    for name, version in (("churn", "1"), ("churn", "2"), ("fraud", "1")):
        api.sql(
            "INSERT INTO models (id, tenant_id, name, version, digest, uri, metrics, tags) VALUES "
            "(:id, :tenant, :name, :version, 'sha256:x', 'artifact://m', '{\"accuracy\": 0.9}', '[\"a\"]')",
            id=str(uuid.uuid4()),
            tenant=api.tenant_id,
            name=name,
            version=version,
        )
    listed = api.call("GET", "/api/v1/models").json
    assert listed is not None
    assert [(model["name"], model["version"]) for model in listed["items"]] == [("churn", "2"), ("fraud", "1")]
    latest = api.call("GET", "/api/v1/models/churn").json
    assert latest is not None
    assert (latest["version"], latest["metrics"], latest["tags"]) == ("2", {"accuracy": 0.9}, ["a"])
    versions = api.call("GET", "/api/v1/models/churn/versions").json
    assert versions is not None
    assert [model["version"] for model in versions["items"]] == ["2", "1"]
    assert api.call("GET", "/api/v1/models/churn/versions/1").json == versions["items"][1]
    assert api.call("GET", "/api/v1/models/churn/versions/3").status_code == 404


def test_operators_are_listed_with_their_schemas(api: ApiSite) -> None:
    listed = api.call("GET", "/api/v1/operators", role="viewer").json
    assert listed is not None
    names = [operator["name"] for operator in listed["items"]]
    assert names == sorted(names)
    assert {"data_ingestion", "custom_script", "model_training"} <= set(names)
    one = api.call("GET", f"/api/v1/operators/{names[0]}").json
    assert one == listed["items"][0]
    assert one["parameters_schema"]["type"] == "object"
    page = api.call("GET", "/api/v1/operators?limit=1").json
    assert page is not None
    following = api.call("GET", f"/api/v1/operators?limit=1&cursor={page['next_cursor']}").json
    assert following is not None
    assert [page["items"][0]["name"], following["items"][0]["name"]] == names[:2]


def test_whatever_takes_a_body_shows_one_as_an_example() -> None:
    document = json.loads(openapi_text())
    without = [
        f"{method} {path}"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
        and not {"example", "examples"} & operation["requestBody"]["content"]["application/json"].keys()
    ]
    assert not without
