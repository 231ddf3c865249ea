"""Fixtures of the tests on real stores: an API, and a site for pipelines given as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.api_site import ApiSite
    from tests.integration.dag_site import DagSite


@pytest.fixture
def api(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[ApiSite]:
    """An API on an empty database, with a key for each role."""
    from tests.integration.api_site import open_site

    site = open_site(database_url, redis_url, tmp_path)
    yield site
    site.services.close()


@pytest.fixture
def dag(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[DagSite]:
    """A site for pipelines given as JSON: a leader and workers are started by the test."""
    from tests.integration.dag_site import open_site

    site = open_site(database_url, redis_url, tmp_path)
    yield site
    site.close()
