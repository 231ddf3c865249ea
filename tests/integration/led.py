"""A database whose leader is the test, for an hour."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from orchestrator.store.engine import create_store_engine

EPOCH = 7


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    with made.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO leases (role, holder, epoch, expires_at) "
                "VALUES ('scheduler', 'test', :epoch, now() + interval '1 hour')"
            ),
            {"epoch": EPOCH},
        )
    yield made
    made.dispose()
