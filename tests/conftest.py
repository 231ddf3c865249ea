"""Real PostgreSQL and Redis for the tests: one pair per test process, or those that ``TEST_*_URL`` name."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import redis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from psycopg2 import sql

from orchestrator.config import normalise_database_url
from orchestrator.errors import ConfigurationError
from orchestrator.local.binaries import postgres_install, redis_binary
from orchestrator.local.postgres import EmbeddedPostgres
from orchestrator.local.redis import EmbeddedRedis
from orchestrator.local.servers import start_server

# A busy machine is no fault of an example.
hypothesis_settings.register_profile(
    "orchestrator", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("orchestrator")


@pytest.fixture(scope="session")
def services_folder() -> Iterator[Path]:
    """A short temporary folder that every account may enter, which PostgreSQL under root needs."""
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(services_folder: Path) -> Iterator[str]:
    """The address of the maintenance database of a real PostgreSQL server."""
    if external := os.environ.get("TEST_DATABASE_URL"):
        yield normalise_database_url(external)
        return
    _need(postgres_install)
    server = EmbeddedPostgres(services_folder / "postgres", durable=False)
    child = start_server(server, services_folder)
    yield server.url()
    child.stop()


@pytest.fixture(scope="session")
def redis_server_url(services_folder: Path) -> Iterator[str]:
    """The address of a real Redis server; tests take ``redis_url``, which is empty."""
    if external := os.environ.get("TEST_REDIS_URL"):
        yield external
        return
    _need(redis_binary)
    server = EmbeddedRedis(services_folder / "redis", durable=False)
    child = start_server(server, services_folder)
    yield server.url()
    child.stop()


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to."""
    from orchestrator.store.migrate import upgrade

    name = f"template_{uuid.uuid4().hex[:12]}"
    _run_sql(postgres_url, "CREATE DATABASE {}", name)
    upgrade(_with_database(postgres_url, name))
    yield name
    _run_sql(postgres_url, "DROP DATABASE IF EXISTS {}", name)


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """The address of a migrated, empty database of this test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _run_sql(postgres_url, "CREATE DATABASE {} TEMPLATE {}", name, template_database)
    yield _with_database(postgres_url, name)
    _end_connections(postgres_url, name)
    _run_sql(postgres_url, "DROP DATABASE IF EXISTS {}", name)


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """The address of an empty Redis database."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushdb()
    return redis_server_url


def _need(find: object) -> None:
    """Skip where a wheel is missing; in CI that is a failure, for a skipped suite proves nothing."""
    try:
        assert callable(find)
        find()
    except ConfigurationError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


def _with_database(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"


def _connect(url: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(url.replace("postgresql+psycopg2://", "postgresql://"))
    connection.autocommit = True
    return connection


def _run_sql(url: str, statement: str, *names: str) -> None:
    connection = _connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
    finally:
        connection.close()


def _end_connections(url: str, name: str) -> None:
    """Cut what a failed test left open; PostgreSQL 12 has no ``DROP DATABASE … WITH (FORCE)``."""
    connection = _connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
    finally:
        connection.close()
