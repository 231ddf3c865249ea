"""Who may do what: closed by default, roles by route, tenants apart, limits, and no route without documentation."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, cast
from unittest.mock import patch

import pytest

from api.access import PUBLIC_ENDPOINTS, required_role
from api.app import create_app
from api.keyring import Keyring
from api.services import EXTENSION, Services
from api.throttle import Throttle
from orchestrator.store.api_keys import Role
from tests.integration.api_site import DEFINITION, ApiSite

pytestmark = pytest.mark.timeout(120)

WRITERS = {Role.OPERATOR: {"/api/v1/runs", "/cancel"}, Role.AUTHOR: {"/api/v1/pipelines"}}


def operations(api: ApiSite) -> Iterator[tuple[str, str, str, Role | None]]:
    """Yield (endpoint, method, path, role) of everything the application answers."""
    for rule in api.app.url_map.iter_rules():
        path = rule.rule
        for argument in rule.arguments:
            converter = rule._converters[argument]
            known = {"UUIDConverter": str(uuid.uuid4()), "IntegerConverter": "1"}
            value = known.get(type(converter).__name__, "nobody")
            path = re.sub(rf"<(?:uuid|int|string):{argument}>", value, path)
        assert "<" not in path
        for method in sorted(rule.methods or ()):
            yield rule.endpoint, method, path, required_role(api.app, rule.endpoint, method)


def test_only_liveness_is_public(api: ApiSite) -> None:
    client = api.app.test_client()
    for endpoint, method, path, _ in operations(api):
        response = client.open(path, method=method)
        if endpoint in PUBLIC_ENDPOINTS:
            assert response.status_code == 200
            assert response.text == ("" if method == "HEAD" else '{"status":"ok"}\n')
        else:
            assert response.status_code == 401, (method, path)
            assert "WWW-Authenticate" in response.headers
    for path in ("/", "/api/v1/nothing", "/api/v1/pipelines/", "/docs/../healthz", "/%2e%2e/etc/passwd"):
        assert client.get(path).status_code == 401
    assert {endpoint for endpoint, *_ in operations(api)} >= PUBLIC_ENDPOINTS


def test_every_route_declares_the_role_it_needs(api: ApiSite) -> None:
    undeclared = [
        (method, path)
        for endpoint, method, path, role in operations(api)
        if role is None and endpoint not in PUBLIC_ENDPOINTS
    ]
    assert undeclared == []


def test_each_role_passes_exactly_where_the_routes_say(api: ApiSite) -> None:
    for endpoint, method, path, needed in operations(api):
        if endpoint in PUBLIC_ENDPOINTS or needed is None:
            continue
        for role in Role:
            status = api.call(method, path, role=role.word).status_code
            assert (status == 403) == (role < needed), (method, path, role, status)
            assert status < 500 or path.startswith("/monitoring/health"), (method, path, role, status)


def test_writes_need_more_than_reading(api: ApiSite) -> None:
    for _, method, path, needed in operations(api):
        if method in {"POST", "PUT", "DELETE", "PATCH"} and not path.endswith("/validate"):
            assert needed is not None
            assert needed > Role.VIEWER, (method, path)


def test_every_route_is_documented_and_nothing_else(api: ApiSite) -> None:
    document: dict[str, Any] = json.loads(api.call("GET", "/openapi.json").text)
    documented = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item if method != "parameters"
    }
    served = set()
    for rule in api.app.url_map.iter_rules():
        path = rule.rule
        for argument in rule.arguments:
            for converter in ("uuid", "int", "string"):
                path = path.replace(f"<{converter}:{argument}>", f"{{{argument}}}")
        served |= {(method, path) for method in (rule.methods or ()) if method not in {"HEAD", "OPTIONS"}}
    assert documented == served


def test_another_tenants_things_do_not_exist(api: ApiSite) -> None:
    made = api.saved()
    run = api.started()
    attempt_id = api.add_attempt(run["id"], "first")
    api.sql(
        "INSERT INTO models (id, tenant_id, name, version, digest, uri) VALUES (:id, :tenant, 'm', '1', 'd', 'u')",
        id=str(uuid.uuid4()),
        tenant=api.tenant_id,
    )
    keys = api.call("GET", "/api/v1/keys").json
    assert keys is not None
    pipeline, this_run = f"/api/v1/pipelines/{made['id']}", f"/api/v1/runs/{run['id']}"
    for method, path in [
        ("GET", pipeline),
        ("DELETE", pipeline),
        ("GET", f"{pipeline}/versions"),
        ("GET", "/api/v1/pipelines/by-name/two-scripts"),
        ("GET", this_run),
        ("POST", f"{this_run}/cancel"),
        ("GET", f"{this_run}/tasks"),
        ("GET", f"{this_run}/tasks/first"),
        ("POST", f"{this_run}/tasks/first/cancel"),
        ("GET", f"{this_run}/tasks/first/logs"),
        ("GET", f"{this_run}/tasks/first/logs?follow=true"),
        ("GET", f"{this_run}/tasks/first/attempts"),
        ("GET", f"{this_run}/events"),
        ("GET", f"{this_run}/events?follow=true"),
        ("GET", "/api/v1/models/m"),
        ("GET", "/api/v1/models/m/versions"),
        ("GET", "/api/v1/models/m/versions/1"),
        ("DELETE", f"/api/v1/keys/{keys['items'][0]['id']}"),
    ]:
        assert api.call(method, path, role="foreign").status_code == 404, (method, path)
    assert api.call("PUT", pipeline, DEFINITION, role="foreign").status_code == 404
    for body in ({"pipeline_id": made["id"]}, {"pipeline_name": "two-scripts"}):
        assert api.call("POST", "/api/v1/runs", body, role="foreign").status_code == 404
    for path in ("pipelines", "runs", "models"):
        page = api.call("GET", f"/api/v1/{path}", role="foreign").json
        assert page == {"items": [], "next_cursor": None}
    workers = api.call("GET", "/api/v1/workers", role="foreign").json
    assert workers is not None
    assert workers["items"][0]["running"] == []
    assert attempt_id not in json.dumps(workers)
    assert api.call("POST", "/api/v1/pipelines", DEFINITION, role="foreign").status_code == 201
    assert api.count("SELECT count(*) FROM commands") == 0


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic eDp5",
        "Token x",
        "Bearer \x00",
        "Bearer é",
        f"Bearer {'x' * 5000}",
    ],
)
def test_no_key_or_a_wrong_one_is_401(api: ApiSite, authorization: str) -> None:
    response = api.app.test_client().get("/api/v1/runs", headers={"Authorization": authorization})
    assert response.status_code == 401
    assert response.json is not None
    assert response.json["code"] == 401


def test_a_key_with_the_right_prefix_alone_is_refused(api: ApiSite) -> None:
    assert api.call("GET", "/api/v1/runs", key=api.keys["admin"][:20] + "A" * 27).status_code == 401


def test_basic_authentication_opens_the_documentation_and_nothing_else(api: ApiSite) -> None:
    client = api.app.test_client()
    auth = ("any", api.keys["viewer"])
    for path in ("/docs", "/openapi.json", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/start.js"):
        with client.get(path, auth=auth) as response:
            assert response.status_code == 200
    refused = client.get("/docs")
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic")
    assert client.get("/api/v1/runs", auth=auth).status_code == 401
    assert client.get("/monitoring/health", auth=auth).status_code == 401


def test_a_key_is_shown_once_works_and_ends_when_revoked(api: ApiSite) -> None:
    made = api.call("POST", "/api/v1/keys", {"name": "ci", "role": "viewer"}).json
    assert made is not None
    assert api.call("GET", "/api/v1/runs", key=made["key"]).status_code == 200
    listed = api.call("GET", "/api/v1/keys")
    assert made["key"] not in listed.text
    assert api.call("POST", "/api/v1/keys", {"name": "ci", "role": "viewer"}).status_code == 409
    assert api.call("DELETE", f"/api/v1/keys/{made['id']}").status_code == 204
    assert api.call("GET", "/api/v1/runs", key=made["key"]).status_code == 401
    revoked = api.call("GET", "/api/v1/keys?revoked=true").json
    assert revoked is not None
    assert [key["name"] for key in revoked["items"]] == ["ci"]
    assert api.count("SELECT count(*) FROM api_keys WHERE encode(digest, 'escape') LIKE :key", key=made["key"]) == 0


def test_a_revoked_key_is_forgotten_at_once_and_no_other(api: ApiSite) -> None:
    made = api.call("POST", "/api/v1/keys", {"name": "ci", "role": "viewer"}).json
    assert made is not None
    for key in (made["key"], api.keys["viewer"]):
        assert api.call("GET", "/api/v1/runs", key=key).status_code == 200
    assert api.call("DELETE", f"/api/v1/keys/{made['id']}").status_code == 204
    keyring = api.services.keyring
    assert (keyring.remembers(made["key"]), keyring.remembers(api.keys["viewer"])) == (False, True)


def test_an_expired_key_is_refused(api: ApiSite) -> None:
    body = {"name": "old", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z"}
    made = api.call("POST", "/api/v1/keys", body).json
    assert made is not None
    assert api.call("GET", "/api/v1/runs", key=made["key"]).status_code == 401


def test_the_last_administrators_key_can_not_be_revoked(api: ApiSite) -> None:
    found = api.call("GET", "/api/v1/keys?role=admin").json
    assert found is not None
    ids = [key["id"] for key in found["items"]]
    other = next(key["id"] for key in found["items"] if key["name"] != "admin")
    assert len(ids) == 2
    assert api.call("DELETE", f"/api/v1/keys/{other}").status_code == 204
    own = next(key for key in ids if key != other)
    assert api.call("DELETE", f"/api/v1/keys/{own}").status_code == 409


def test_too_many_requests_are_told_when_to_come_back(api: ApiSite) -> None:
    throttle = api.services.throttle
    throttle._rate, throttle._burst = 0.5, 1.0
    assert api.call("GET", "/api/v1/operators").status_code == 200
    refused = api.call("GET", "/api/v1/operators")
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json is not None
    assert refused.json["code"] == 429
    assert api.call("GET", "/api/v1/operators", role="viewer").status_code == 200


def test_guessing_keys_is_refused_before_the_database_is_asked_and_locks_nobody_else_out(api: ApiSite) -> None:
    guesses = api.services.guesses
    guesses._rate, guesses._burst = 0.5, 3.0
    assert api.call("GET", "/api/v1/operators", role="viewer").status_code == 200
    seen = [api.call("GET", "/api/v1/operators", key=key).status_code for key in ("", "a", "b", "c", "d")]
    assert seen == [401, 401, 401, 429, 429]
    with patch.object(Keyring, "identify", side_effect=AssertionError("a guess went further")):
        refused = api.call("GET", "/api/v1/operators", key="another-guess")
    assert int(refused.headers["Retry-After"]) >= 1
    assert api.call("GET", "/api/v1/operators", role="viewer").status_code == 200
    away = {"REMOTE_ADDR": "192.0.2.7"}
    assert api.call("GET", "/api/v1/operators", key="e", environ_overrides=away).status_code == 401
    assert api.app.test_client().get("/healthz").status_code == 200


def test_guesses_from_one_network_of_ipv6_count_together(api: ApiSite) -> None:
    guesses = api.services.guesses
    guesses._rate, guesses._burst = 0.5, 1.0
    seen = [
        api.call("GET", "/api/v1/runs", key="x", environ_overrides={"REMOTE_ADDR": address}).status_code
        for address in ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1", "not an address")
    ]
    assert seen == [401, 429, 401, 401]


@pytest.mark.parametrize(
    "proxies, seen",
    [
        (0, [401, 429, 429, 429]),  # what a caller says of itself is not believed
        (1, [401, 401, 429, 429]),
        (2, [401, 401, 401, 429]),
    ],
)
def test_guesses_count_against_the_address_that_the_trusted_proxies_saw(
    api: ApiSite, proxies: int, seen: list[int]
) -> None:
    app = create_app(replace(api.settings, trusted_proxies=proxies))
    services = cast("Services", app.extensions[EXTENSION])
    services.guesses._rate, services.guesses._burst = 0.01, 1.0
    chains = ("192.0.2.1, 10.0.0.1", "192.0.2.2, 10.0.0.2", "192.0.2.3, 10.0.0.2", "203.0.113.9, 192.0.2.3, 10.0.0.2")
    with closing(services):
        found = [
            app.test_client().get("/api/v1/runs", headers={"X-Forwarded-For": chain}).status_code for chain in chains
        ]
    assert found == seen


def test_answers_carry_an_id_and_careful_headers(api: ApiSite) -> None:
    answer = api.call("GET", "/api/v1/runs", headers={"X-Request-Id": "mine-1"})
    assert answer.headers["X-Request-Id"] == "mine-1"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"
    missing = api.call("GET", "/api/v1/nothing", headers={"X-Request-Id": "<script>"})
    assert missing.json is not None
    assert missing.json["request_id"] == missing.headers["X-Request-Id"] != "<script>"


def test_a_throttle_refills_with_time() -> None:
    now = [0.0]
    throttle = Throttle(2.0, clock=lambda: now[0])
    assert [throttle.wait("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert throttle.wait("b") == 0
    now[0] = 0.5
    assert throttle.wait("a") == 0
    assert throttle.wait("a") > 0


def test_the_keyring_asks_the_database_again_after_five_seconds(api: ApiSite) -> None:
    now = [0.0]
    keyring = Keyring(api.engine, clock=lambda: now[0])
    assert keyring.identify(api.keys["viewer"]) is not None
    api.sql("UPDATE api_keys SET revoked_at = now() WHERE name = 'viewer'")
    assert keyring.identify(api.keys["viewer"]) is not None
    now[0] = 5.1
    assert keyring.identify(api.keys["viewer"]) is None
