"""A database whose leader is the test, for an hour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.store.engine import SCHEDULER_LIMITS, create_store_engine

EPOCH = 7


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    yield from _led(database_url)


@pytest.fixture
def limited_engine(database_url: str) -> Iterator[Engine]:
    """One whose statements may take no longer than a scheduler's."""
    yield from _led(database_url, limits=SCHEDULER_LIMITS)


def _led(database_url: str, **options: Any) -> Iterator[Engine]:
    made = create_store_engine(database_url, **options)
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
