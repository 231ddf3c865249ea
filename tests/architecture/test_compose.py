"""The compose file and Dockerfile: well-formed, pinned, nothing published that should not be."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

COMPOSE = Path(__file__).resolve().parents[2] / "compose"
SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "SECRET_KEY", "ADMIN_KEY", "WORKER_KEY", "FLOWER_PASSWORD")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())  # type: ignore[no-any-return]


def test_every_process_of_the_system_is_there(compose: dict[str, Any]) -> None:
    assert {
        "api",
        "scheduler",
        "worker-cpu",
        "worker-highmem",
        "worker-gpu",
        "flower",
        "postgres",
        "redis",
        "migrate",
    } == set(compose["services"])


def test_only_the_api_and_flower_are_published_and_on_loopback_unless_said_otherwise(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(published) == {"api", "flower"}
    assert all("127.0.0.1" in port for ports in published.values() for port in ports)


def test_workers_get_no_database_and_no_administrators_key(compose: dict[str, Any]) -> None:
    for name in ("worker-cpu", "worker-highmem", "worker-gpu", "flower"):
        assert not {"DATABASE_URL", "ADMIN_KEY", "SECRET_KEY"} & set(compose["services"][name]["environment"])


def test_every_built_target_exists_in_the_dockerfile(compose: dict[str, Any]) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE))
    assert {"api", "scheduler", "worker-cpu", "worker-gpu"} <= targets
    built = {service["build"]["target"] for service in compose["services"].values() if "build" in service}
    assert built <= targets


def test_every_variable_that_compose_needs_is_in_the_example() -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    needed = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    assert needed
    assert needed <= {line.split("=")[0] for line in (COMPOSE / "example.env").read_text().splitlines()}


def test_a_compose_implementation_accepts_the_file() -> None:
    command = next((c for c in (["docker", "compose"], ["docker-compose"]) if _answers(c)), None)
    if command is None:
        pytest.skip("no compose implementation is installed")
    environment = {"PATH": "/usr/bin:/usr/local/bin:/bin", "HOME": "/nonexistent", **dict.fromkeys(SECRETS, "x")}
    result = subprocess.run(
        [*command, "-f", str(COMPOSE / "compose.yaml"), "--profile", "gpu", "--profile", "flower", "config"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def _answers(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False).returncode == 0
