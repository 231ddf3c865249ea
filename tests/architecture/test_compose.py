"""The compose file and Dockerfile: well-formed, pinned, nothing published that should not be."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import Settings

COMPOSE = Path(__file__).resolve().parents[2] / "compose"
WORKERS = ("worker-cpu", "worker-highmem", "worker-gpu")
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
    for name in (*WORKERS, "flower"):
        assert not {"DATABASE_URL", "ADMIN_KEY", "SECRET_KEY"} & set(compose["services"][name]["environment"])


def test_flower_can_not_seal_a_grant(compose: dict[str, Any]) -> None:
    assert set(compose["services"]["flower"]["environment"]) == {"REDIS_URL", "LOG_LEVEL", "FLOWER_BASIC_AUTH"}


def test_workers_stop_before_the_schedulers_and_have_time_to_drain(compose: dict[str, Any]) -> None:
    dockerfile = (COMPOSE / "Dockerfile").read_text()
    assert set(re.findall(r"^STOPSIGNAL (\S+)", dockerfile, re.MULTILINE)) == {"SIGTERM"}
    for name in WORKERS:
        service = compose["services"][name]
        assert service["stop_signal"] == "SIGTERM"
        waits = re.fullmatch(r"\$\{DRAIN_SECONDS:-(\d+)\}", service["environment"]["DRAIN_SECONDS"])
        assert waits is not None
        preempting = 3 * Settings().cancel_grace_seconds
        assert int(service["stop_grace_period"].removesuffix("s")) >= int(waits[1]) + preempting
        assert {"scheduler", "redis"} <= set(service["depends_on"])


def test_each_kind_of_worker_shares_a_network_with_redis_alone(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in (*WORKERS, "flower"):
        (network,) = services[name]["networks"]
        assert {other for other, service in services.items() if network in service["networks"]} == {name, "redis"}


def test_our_own_programs_keep_no_privileges_and_write_only_where_they_must(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name in {"postgres", "redis"}:
            continue
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.get("read_only", False) is (name not in WORKERS)


def test_no_health_check_holds_a_space_that_podman_would_cut_it_at(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        kind, *words = service.get("healthcheck", {}).get("test", ["CMD"])
        assert kind == "CMD-SHELL" or not any(" " in word for word in words)


def test_no_command_line_holds_a_secret(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert "${" not in str(service.get("command"))


def test_flower_refuses_to_start_without_a_password(compose: dict[str, Any], tmp_path: Path) -> None:
    flower = compose["services"]["flower"]
    refused = run(flower["command"], tmp_path, "celery", {"FLOWER_BASIC_AUTH": "admin:"})
    assert refused.returncode == 1
    assert "Set FLOWER_PASSWORD in compose/.env" in refused.stderr
    started = run(flower["command"], tmp_path, "celery", {"FLOWER_BASIC_AUTH": "admin:word"})
    assert started.stdout.split() == ["-A", "workers", "flower", "--address=0.0.0.0", "--port=5555"]


def test_redis_reads_its_password_from_its_input(compose: dict[str, Any], tmp_path: Path) -> None:
    started = run(compose["services"]["redis"]["command"], tmp_path, "redis-server", {"REDISCLI_AUTH": "the-word"})
    arguments, *configuration = started.stdout.splitlines()
    assert arguments.startswith("- --appendonly yes")
    assert "the-word" not in arguments
    assert configuration == ["requirepass the-word"]


def run(
    command: list[str], folder: Path, program: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a service's command with ``program`` replaced by one that shows its arguments and its input."""
    stand_in = folder / program
    stand_in.write_text('#!/bin/sh\necho "$*"\nexec cat\n')
    stand_in.chmod(0o755)
    return subprocess.run(
        [word.replace("$$", "$") for word in command],
        env={"PATH": f"{folder}:/usr/bin:/bin", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


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


def test_every_service_that_ends_by_itself_is_started_again(compose: dict[str, Any]) -> None:
    """Watchdogs end a process that hangs; without a policy it would stay ended."""
    policies = {name: service.get("restart") for name, service in compose["services"].items()}
    assert policies.pop("migrate") == "on-failure"
    assert set(policies.values()) == {"unless-stopped"}, policies
