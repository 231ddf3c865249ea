"""A store that is away: 503 in time and nothing leaked, while what does not need it goes on."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from api.app import LIMITS, create_app
from api.around import ALLOWANCE
from orchestrator.store.engine import LONGEST_PING
from orchestrator.store.patience import EVIDENCE
from tests.integration.api_site import ApiSite, open_site

pytestmark = pytest.mark.timeout(120)

PROMISED_SECONDS = 3.0
"""I8."""


def seconds_of(act: Callable[[], object]) -> float:
    """Return how long this takes: the best of three tries, for the machine may be busy with something else."""
    best = float("inf")
    for _ in range(3):
        began = time.monotonic()
        act()
        best = min(best, time.monotonic() - began)
        if best < PROMISED_SECONDS:
            break
    return best


def refused_in_time(site: ApiSite, method: str, path: str) -> TestResponse:
    """Return the answer, which has to be 503 at every try and within three seconds at one."""
    answers: list[TestResponse] = []
    assert seconds_of(lambda: answers.append(site.call(method, path, {} if method == "POST" else None))) < (
        PROMISED_SECONDS
    )
    assert {answer.status_code for answer in answers} == {503}
    return answers[-1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nothing listens for as long as the test runs."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


def test_the_waits_for_the_database_leave_room_below_three_seconds() -> None:
    assert LIMITS.pool + LIMITS.connect <= PROMISED_SECONDS - 0.5


def test_what_a_request_may_wait_in_all_is_less_than_two_seconds_and_enough_to_know_a_silent_database() -> None:
    assert ALLOWANCE < 2.0
    # Of a kept connection that does not answer, and then of the new one in its place; of a statement.
    assert ALLOWANCE - LONGEST_PING > EVIDENCE
    assert (LIMITS.statement + LIMITS.answer) / 2 < ALLOWANCE


@pytest.mark.parametrize("kind", ["closed_port", "deaf_port"])
def test_without_the_database_every_answer_is_503_within_three_seconds(
    kind: str, request: pytest.FixtureRequest, redis_url: str, tmp_path: Path, api: ApiSite
) -> None:
    port = request.getfixturevalue(kind)
    settings = replace(api.settings, database_url=f"postgresql+psycopg2://user:hidden@127.0.0.1:{port}/db")
    site = ApiSite(create_app(settings), settings, api.tenant_id, api.keys)
    try:
        for method, path in (("GET", "/api/v1/runs"), ("POST", "/api/v1/pipelines"), ("GET", "/monitoring/health")):
            response = refused_in_time(site, method, path)
            assert int(response.headers["Retry-After"]) >= 1
            assert response.json is not None
            assert response.json["code"] == 503
            assert "hidden" not in response.text
            assert str(port) not in response.text
        assert site.app.test_client().get("/healthz").status_code == 200
    finally:
        site.services.close()


def test_a_key_that_was_just_valid_still_reads_health_while_the_database_is_away(
    api: ApiSite, closed_port: int
) -> None:
    assert api.call("GET", "/monitoring/health").status_code == 200
    api.engine.dispose()
    away = replace(api.settings, database_url=f"postgresql+psycopg2://u:p@127.0.0.1:{closed_port}/db")
    site = ApiSite(create_app(away), away, api.tenant_id, api.keys)
    site.services.keyring._known.update(api.services.keyring._known)
    try:
        detailed = site.call("GET", "/monitoring/health/detailed")
        assert detailed.status_code == 503
        assert detailed.json is not None
        assert detailed.json["status"] == "unhealthy"
        assert detailed.json["components"]["redis"]["status"] == "healthy"
    finally:
        site.services.close()


def test_a_key_that_is_remembered_does_not_make_a_deaf_database_cost_twice_the_time(
    api: ApiSite, deaf_port: int
) -> None:
    assert api.call("GET", "/monitoring/health").status_code == 200
    away = replace(api.settings, database_url=f"postgresql+psycopg2://u:p@127.0.0.1:{deaf_port}/db")
    site = ApiSite(create_app(away), away, api.tenant_id, api.keys)
    remembered = api.services.keyring._known.items()
    site.services.keyring._known.update({prefix: (time.monotonic() - 30, key) for prefix, (_, key) in remembered})
    try:
        refused_in_time(site, "GET", "/api/v1/runs")
    finally:
        site.services.close()


def test_an_exhausted_pool_is_503_within_three_seconds(api: ApiSite) -> None:
    assert api.call("GET", "/api/v1/runs").status_code == 200
    held = [api.engine.connect() for _ in range(api.settings.database_pool_size)]
    try:
        refused_in_time(api, "GET", "/api/v1/runs")
    finally:
        for connection in held:
            connection.close()
    assert api.call("GET", "/api/v1/runs").status_code == 200


@pytest.mark.parametrize("kind", ["closed_port", "deaf_port"])
def test_without_redis_runs_are_still_accepted_at_once(
    kind: str, request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> None:
    port = request.getfixturevalue(kind)
    site = open_site(database_url, f"redis://127.0.0.1:{port}/0", tmp_path)

    def start_and_cancel() -> None:
        # Every try finds out anew that Redis is away.
        site.services.live.circuit.answered()
        run = site.started()
        site.add_attempt(run["id"], "first")
        assert site.call("GET", f"/api/v1/runs/{run['id']}").status_code == 200
        assert site.call("POST", f"/api/v1/runs/{run['id']}/cancel").status_code == 202

    try:
        site.saved()
        assert seconds_of(start_and_cancel) < PROMISED_SECONDS
        health = site.call("GET", "/monitoring/health")
        assert (health.status_code, health.json) == (200, {"status": "degraded"})
        assert "orchestrator_redis_up 0.0" in site.call("GET", "/monitoring/metrics").text
    finally:
        site.services.close()
