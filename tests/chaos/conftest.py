"""What the fault suite needs: the seed of the session, PostgreSQL's template, and sites that tests may break."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigurationError
from tests.chaos.servers import have_servers, make_template
from tests.chaos.site import ChaosSite

SECONDS = 90
"""Of one scenario, start and end of its site included."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="Repeat the random choices of an earlier chaos run.")
    parser.addoption("--burst", type=int, default=1000, help="How many runs test_burst.py asks for at once.")


def pytest_report_header(config: pytest.Config) -> str:
    return f"chaos: --seed={_seed(config)}"


def _seed(config: pytest.Config) -> int:
    if config.getoption("--seed", default=None) is None:
        config.option.seed = random.SystemRandom().randrange(1_000_000)
    return int(config.option.seed)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bound every scenario in time, unless it says how long it may take, or its module does by ``time_limit``."""
    for item in items:
        if item.get_closest_marker("chaos") and not item.get_closest_marker("timeout"):
            limit = getattr(getattr(item, "module", None), "time_limit", None)
            item.add_marker(pytest.mark.timeout(limit(config) if limit else SECONDS))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed and item.get_closest_marker("chaos"):
        report.sections.append(
            ("chaos", f"repeat it with: make chaos ARGS='--seed={_seed(item.config)} -k {item.name}'")
        )


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this session; a scenario's dice follow from it and from the scenario's name."""
    return _seed(request.config)


@pytest.fixture(scope="session")
def postgres_template(services_folder: Path) -> Path:
    """A PostgreSQL folder with a migrated database, made once."""
    try:
        have_servers()
    except ConfigurationError as error:
        pytest.fail(f"The fault suite needs servers of its own: {error}")
    folder = services_folder / "chaos-template"
    folder.mkdir()
    folder.chmod(0o711)
    return make_template(folder)


Chaos = Callable[..., ChaosSite]


@pytest.fixture
def chaos(request: pytest.FixtureRequest, seed: int, postgres_template: Path) -> Iterator[Chaos]:
    """Make a site: ``with chaos(workers=("a", "b")) as site: …``; its parameters are those of :class:`ChaosSite`.

    In the end nothing of it may live.
    """
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.chmod(0o711)
    made: list[ChaosSite] = []

    def make(**options: Any) -> ChaosSite:
        part = folder / str(len(made))
        part.mkdir(mode=0o711)
        made.append(ChaosSite(part, seed, options.pop("template", postgres_template), **options))
        return made[-1]

    yield make
    shutil.rmtree(folder, ignore_errors=True)
