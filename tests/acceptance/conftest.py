"""Fixtures of the tests on real processes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg2
import pytest


@pytest.fixture(scope="module")
def database(postgres_url: str, template_database: str) -> Iterator[str]:
    """One migrated database for all tests of a file: starting a system takes longer than most of them."""
    name = f"module_{uuid.uuid4().hex[:12]}"
    connection = psycopg2.connect(postgres_url.replace("postgresql+psycopg2://", "postgresql://"))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template_database}")
        yield f"{postgres_url.rpartition('/')[0]}/{name}"
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        cursor.execute(f"DROP DATABASE {name}")
    connection.close()
