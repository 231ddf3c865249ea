"""Builds the images once, and removes them at the end unless ``KEEP_CONTAINER_IMAGES`` is set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import site
from tests.containers.engine import Engine, why_not


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The container engine; tests are skipped where there is none."""
    if reason := why_not():
        pytest.skip(reason)
    found = Engine()
    yield found
    found.close()


@pytest.fixture(scope="session")
def images(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The four images, built by compose from this checkout."""
    # The build reaches its package index as the machine does, whatever the engine's own networks are.
    builds = {
        service: {"build": {"network": "host"}}
        for service in ("migrate", "api", "scheduler", "worker-cpu", "worker-highmem", "worker-gpu", "flower")
    }
    builder = site.ComposeSite(engine, tmp_path_factory.mktemp("build"), builds)
    builder.compose("--profile", "gpu", "build", "api", "scheduler", "worker-cpu", "worker-gpu")
    yield
    if not os.environ.get("KEEP_CONTAINER_IMAGES"):
        for target in site.BUILT:
            engine.client.images.remove(site.image(target), force=True)


@pytest.fixture(autouse=True)
def _show_logs_of_failures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print what the containers said last when a test has failed."""
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before:
        for value in request.node.funcargs.values():
            if isinstance(value, site.ComposeSite):
                value.show_logs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a site's own compose files lie."""
    return tmp_path_factory.mktemp("site")
