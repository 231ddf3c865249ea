"""A link to PostgreSQL that swallows bytes while TCP stays up: everybody who waits on it stops waiting in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Engine, event, text

from orchestrator.circuit import Circuit
from orchestrator.errors import StoreUnavailable
from orchestrator.store import engine as engines
from orchestrator.store import patience
from orchestrator.store.engine import LEASE_LIMITS, LONGEST_PING, Limits, create_store_engine
from orchestrator.store.lease import Lease
from tests.chaos.proxy import Direction, Proxies, Proxy
from tests.integration.api_site import ApiSite, open_site

pytestmark = pytest.mark.timeout(120)

BOUNDS = Limits(connect=0.6, pool=0.5, statement=0.8, answer=1.0, lock=0.5)
SLACK = 1.0
"""A busy machine; unbounded waits last for minutes."""


@pytest.fixture
def link(database_url: str) -> Iterator[Proxy]:
    proxies = Proxies()
    yield proxies.add("postgres", lambda: urlsplit(database_url).port or 5432)
    proxies.close()


@pytest.fixture
def url(database_url: str, link: Proxy) -> str:
    """The address of the database through the link."""
    return database_url.replace(f":{urlsplit(database_url).port}/", f":{link.port}/")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = create_store_engine(url, pool_size=2, limits=BOUNDS)
    yield made
    made.dispose()


def fails_within(seconds: float, act: Callable[[], object]) -> None:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        act()
    assert time.monotonic() - began < seconds + SLACK


def ask(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT 1")).scalar_one())


def nap(engine: Engine, times: int) -> None:
    for _ in range(times):
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(0.1)"))


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_a_statement_a_commit_and_a_connect_end_in_time_whichever_way_is_lost(
    engine: Engine, link: Proxy, direction: Direction
) -> None:
    with suppress(StoreUnavailable), engine.connect() as connection:
        link.swallow(direction)
        fails_within(BOUNDS.answer, lambda: connection.execute(text("SELECT 1")))
    link.pass_on()
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS scratch (a int)"))
        link.swallow(direction)
        fails_within(BOUNDS.answer, connection.commit)
    fails_within(LONGEST_PING + BOUNDS.connect, lambda: ask(engine))
    link.pass_on()
    assert ask(engine) == 1


def test_a_statement_too_large_for_the_socket_ends_in_time_when_the_other_side_stops_reading(
    engine: Engine, link: Proxy
) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        link.hold()
        fails_within(BOUNDS.answer, lambda: connection.execute(text("SELECT length(:x)"), {"x": "x" * 30_000_000}))
    link.pass_on()
    assert ask(engine) == 1


def test_a_kept_connection_that_went_silent_is_replaced_without_an_error(engine: Engine, link: Proxy) -> None:
    with engine.connect() as one, engine.connect() as other:
        for connection in (one, other):
            connection.execute(text("SELECT 1"))
    link.swallow()
    # The bytes of the pings are lost, and so those connections are; the new ones come when the link is whole again.
    threading.Timer(0.3, link.pass_on).start()
    began = time.monotonic()
    assert ask(engine) == 1
    assert time.monotonic() - began < LONGEST_PING + BOUNDS.connect + SLACK


def test_a_slow_statement_is_ended_by_the_server_and_costs_no_connection(engine: Engine, link: Proxy) -> None:
    assert ask(engine) == 1
    accepted = link.accepted
    with engine.connect() as connection:
        fails_within(BOUNDS.statement, lambda: connection.execute(text("SELECT pg_sleep(60)")))
    assert ask(engine) == 1
    assert link.accepted == accepted


def test_a_thread_waits_no_longer_than_it_is_allowed_in_all(engine: Engine) -> None:
    assert ask(engine) == 1
    patience.allow(0.5)
    try:
        fails_within(0.5, lambda: nap(engine, 20))
        fails_within(0.0, lambda: ask(engine))
    finally:
        patience.allow(None)
    assert ask(engine) == 1


@pytest.mark.parametrize("answer", [30.0, 0.0])
def test_a_connection_has_its_own_limit_however_long_an_answer_may_take(url: str, link: Proxy, answer: float) -> None:
    engine = create_store_engine(url, limits=Limits(connect=0.4, answer=answer, statement=0.0))
    link.swallow()
    try:
        fails_within(0.4, lambda: ask(engine))
    finally:
        engine.dispose()


def test_a_checkout_whose_new_connection_is_dead_too_is_unavailable(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(engine) == 1
    # Every ping fails, while connections can be made: as with a server that ends them as soon as it has let them in.
    monkeypatch.setattr(engines, "LONGEST_PING", 0.0)
    fails_within(BOUNDS.connect, lambda: ask(engine))
    fails_within(BOUNDS.connect, lambda: Lease(engine, "one", 10.0).acquire())
    monkeypatch.undo()
    assert ask(engine) == 1


def test_a_request_whose_time_is_nearly_up_costs_at_most_one_healthy_connection(engine: Engine) -> None:
    made: list[object] = []
    event.listen(engine, "connect", lambda *arguments: made.append(arguments))
    with engine.connect(), engine.connect():
        pass
    assert len(made) == 2
    patience.allow(0.000_001)
    try:
        fails_within(0.0, lambda: ask(engine))
    finally:
        patience.allow(None)
    with engine.connect(), engine.connect():
        pass
    assert len(made) <= 3


def test_a_slow_statement_that_a_request_had_no_time_left_for_does_not_refuse_the_others(database_url: str) -> None:
    circuit = Circuit(30.0)
    engine = create_store_engine(database_url, limits=Limits(connect=1.3, statement=1.8, answer=2.0), circuit=circuit)
    try:
        patience.allow(1.7)
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(0.1)"))
            fails_within(1.6, lambda: connection.execute(text("SELECT pg_sleep(1.75)")))
    finally:
        patience.allow(None)
    assert not circuit.refuses()
    assert ask(engine) == 1
    engine.dispose()


def test_a_silence_longer_than_the_server_lets_a_statement_take_speaks_of_the_server(url: str, link: Proxy) -> None:
    circuit = Circuit(30.0)
    engine = create_store_engine(url, limits=Limits(connect=0.5, statement=0.2, answer=0.4), circuit=circuit)
    try:
        with suppress(StoreUnavailable), engine.connect() as connection:
            link.swallow()
            fails_within(0.4, lambda: connection.execute(text("SELECT 1")))
        assert circuit.refuses()
    finally:
        link.pass_on()
        engine.dispose()


def test_after_a_silence_one_thread_asks_and_the_others_are_refused_at_once(url: str, link: Proxy) -> None:
    engine = create_store_engine(
        url, limits=Limits(connect=1.2, pool=0.5, statement=1.0, answer=1.2), circuit=Circuit(30.0)
    )
    try:
        assert ask(engine) == 1
        link.swallow()
        fails_within(LONGEST_PING + 1.2, lambda: ask(engine))
        for _ in range(50):
            fails_within(0.0, lambda: ask(engine))
    finally:
        engine.dispose()


def test_a_leader_whose_link_went_silent_stops_trusting_its_lease_and_keeps_it_when_the_link_comes_back(
    url: str, link: Proxy
) -> None:
    engine = create_store_engine(url, pool_size=1, limits=LEASE_LIMITS)
    lease = Lease(engine, "one", 10.0)
    try:
        assert lease.acquire()
        link.swallow()
        fails_within(LONGEST_PING + LEASE_LIMITS.connect, lease.renew)
        link.pass_on()
        lease.renew()
        assert lease.trusted()
    finally:
        engine.dispose()


@pytest.fixture
def site(url: str, redis_url: str, tmp_path: Path) -> Iterator[ApiSite]:
    made = open_site(url, redis_url, tmp_path)
    yield made
    made.services.close()


@pytest.mark.parametrize("direction", ["both", "up", "down"])
def test_the_api_answers_503_within_three_seconds_and_is_back_at_once(
    site: ApiSite, link: Proxy, direction: Direction
) -> None:
    site.saved()
    run = site.started()
    link.swallow(direction)
    for method, path, body in (
        ("GET", f"/api/v1/runs/{run['id']}", None),
        ("POST", "/api/v1/runs", {"pipeline_name": "two-scripts"}),
        ("GET", "/monitoring/health/detailed", None),
    ):
        began = time.monotonic()
        response = site.call(method, path, body)
        assert time.monotonic() - began < 3.0
        assert response.status_code == 503, response.text
        assert path.startswith("/monitoring/health") or int(response.headers["Retry-After"]) >= 1
    link.pass_on()
    deadline = time.monotonic() + 10
    while site.call("GET", f"/api/v1/runs/{run['id']}").status_code != 200:
        assert time.monotonic() < deadline, "The API does not come back."
        time.sleep(0.05)


def test_requests_that_come_together_over_a_silent_link_are_all_503_within_three_seconds(
    site: ApiSite, link: Proxy
) -> None:
    site.saved()
    link.swallow()
    taken: list[tuple[int, float]] = []

    def call() -> None:
        for _ in range(3):
            began = time.monotonic()
            status = site.call("GET", "/api/v1/runs").status_code
            taken.append((status, time.monotonic() - began))

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in taken} == {503}
    assert max(seconds for _, seconds in taken) < 3.0
