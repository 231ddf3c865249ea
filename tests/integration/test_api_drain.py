"""Draining a worker over the API: with a deadline, without one, and what health says of runs that are left alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.api_site import ApiSite

pytestmark = pytest.mark.timeout(60)
DRAIN = "/api/v1/workers/w1/drain"


@pytest.fixture
def site(api: ApiSite) -> ApiSite:
    """A site with worker w1 and an attempt on it."""
    api.saved()
    api.add_attempt(api.started()["id"], "first")
    return api


def payloads(site: ApiSite, deadline: str) -> int:
    return site.count("SELECT count(*) FROM commands WHERE payload = CAST(:payload AS jsonb)", payload=deadline)


@pytest.mark.parametrize("seconds", [0, 0.5, 600, 366 * 86400])
def test_a_drain_may_have_a_deadline(site: ApiSite, seconds: float) -> None:
    assert site.call("POST", DRAIN, {"deadline_seconds": seconds}).status_code == 202
    assert payloads(site, f'{{"deadline_seconds": {float(seconds)}}}') == 1


def test_a_drain_needs_no_body(site: ApiSite) -> None:
    assert site.call("POST", DRAIN).status_code == 202
    assert site.call("POST", DRAIN, {}).status_code == 202
    assert payloads(site, "{}") == 2


@pytest.mark.parametrize(
    "body",
    [
        {"deadline_seconds": -1},
        {"deadline_seconds": 366 * 86400 + 1},
        {"deadline_seconds": "soon"},
        {"deadline_seconds": None},
        {"deadline": 1},
    ],
)
def test_a_deadline_that_makes_no_sense_is_refused(site: ApiSite, body: dict[str, Any]) -> None:
    answer = site.call("POST", DRAIN, body)
    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["errors"]
    assert site.count("SELECT count(*) FROM commands") == 0


@pytest.mark.parametrize("body", [[1], "text"])
def test_a_body_that_is_no_object_is_refused(site: ApiSite, body: Any) -> None:
    assert site.call("POST", DRAIN, body).status_code in {400, 422}


def test_a_worker_shows_until_when_it_drains(site: ApiSite) -> None:
    shown = site.call("GET", "/api/v1/workers/w1").json
    assert shown is not None
    assert shown["drain_until"] is None
    site.sql("UPDATE workers SET draining = true, drain_until = '2030-01-02T03:04:05Z'")
    shown = site.call("GET", "/api/v1/workers/w1").json
    assert shown is not None
    assert shown["drain_until"].startswith("2030-01-02T03:04:05")


def test_a_definition_says_what_a_drain_and_a_lost_worker_mean_to_its_tasks(api: ApiSite) -> None:
    task = {"name": "a", "operator": "custom_script", "parameters": {"script_content": "pass"}}
    good = {"name": "p", "tasks": [{**task, "on_drain": "checkpoint", "on_worker_loss": "adopt"}]}
    answer = api.call("POST", "/api/v1/pipelines/validate", good).json
    assert answer is not None
    [shown] = answer["plan"]["tasks"]
    assert (shown["on_drain"], shown["on_worker_loss"]) == ("checkpoint", "adopt")
    bad = {"name": "p", "tasks": [{**task, "exclusive": True, "on_worker_loss": "adopt"}]}
    refused = api.call("POST", "/api/v1/pipelines", bad)
    assert refused.status_code == 422
    assert refused.json is not None
    assert "/tasks/0/on_worker_loss" in str(refused.json["errors"])


def test_health_says_that_runs_are_left_alone(api: ApiSite) -> None:
    api.sql(
        "INSERT INTO leases (role, epoch, holder, expires_at) "
        "VALUES ('scheduler', 3, 's1', now() + interval '1 min') ON CONFLICT (role) DO UPDATE "
        "SET epoch = 3, holder = 's1', expires_at = now() + interval '1 min'"
    )
    api.sql("INSERT INTO refusals (what, count) VALUES ('unreadable_plan', 1)")
    detailed = api.call("GET", "/monitoring/health/detailed").json
    assert detailed is not None
    leader = detailed["components"]["leader"]
    assert leader["status"] == "degraded"
    assert "leaves them alone" in leader["message"]
    api.sql("UPDATE refusals SET last_at = now() - interval '1 hour'")
    detailed = api.call("GET", "/monitoring/health/detailed").json
    assert detailed is not None
    assert detailed["components"]["leader"]["status"] == "healthy"
