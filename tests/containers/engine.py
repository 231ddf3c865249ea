"""The container engine that the tests use: whether one answers, and what they do to containers.

The engine is the one that ``docker`` would use: that of ``DOCKER_HOST``, else the local socket.
"""
# mypy: disable-error-code="import-untyped, no-any-return"
# The engine's own client has no annotations.

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker

ROOT = Path(__file__).resolve().parents[2]
HEALTH_PAUSE = 1.0
COMPOSE_SECONDS = 900


def why_not() -> str:
    """Return why these tests can't run here; empty when they can."""
    address = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    if address.scheme == "unix" and not Path(address.path).exists():
        return f"no container engine: there is no {address.path}, and DOCKER_HOST names no other"
    try:
        client = docker.from_env(timeout=10)
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        return f"no container engine answers: {error}"
    client.close()
    return "" if compose_command() else "neither `docker compose` nor `docker-compose` is installed"


def compose_command() -> tuple[str, ...]:
    """Return the command of the compose implementation that is installed here; empty without one."""
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) is None:
            continue
        found = subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False)
        if found.returncode == 0:
            return command
    return ()


class Engine:
    """One container engine, and a compose implementation beside it."""

    def __init__(self) -> None:
        self.client = docker.from_env(timeout=120)
        self._compose = compose_command()

    def close(self) -> None:
        """Close the connections to the engine."""
        self.client.close()

    def compose(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        """Run a compose command at low priority; returns what it wrote.

        :raises AssertionError: it failed; the message ends with what it said last.
        """
        done = subprocess.run(
            ["nice", "-n", "10", *self._compose, *arguments],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMPOSE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout[-4000:]}"
        return done.stdout

    def containers(self, project: str, service: str = "") -> list[Any]:
        """Return the living containers of a compose project, or of one service of it, by name."""
        labels = [f"com.docker.compose.project={project}"]
        if service:
            labels.append(f"com.docker.compose.service={service}")
        found = self.client.containers.list(filters={"label": labels})
        return sorted(found, key=lambda container: container.name)

    def stop(self, container: Any, seconds: int) -> None:
        """Stop a container as ``docker stop`` does: its stop signal, and SIGKILL after these seconds."""
        client = docker.from_env(timeout=seconds + 30)
        client.api.stop(container.id, timeout=seconds)
        client.close()

    @contextmanager
    def health_checks(self, project: str) -> Iterator[None]:
        """Have the project's health checks run. Engines do so themselves, but for Podman where no systemd runs: it has
        no timer of its own, so we ask it to look."""
        if not self.is_podman():
            yield
            return
        done = threading.Event()
        thread = threading.Thread(target=self._look_after, args=(project, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def is_podman(self) -> bool:
        """Say whether the engine is Podman."""
        return any("Podman" in part["Name"] for part in self.client.version().get("Components", []))

    def _look_after(self, project: str, done: threading.Event) -> None:
        client = docker.from_env(timeout=30)
        while not done.wait(HEALTH_PAUSE):
            with suppress(docker.errors.DockerException, OSError):
                for container in client.containers.list(filters={"label": f"com.docker.compose.project={project}"}):
                    client.api.get(f"{client.api.base_url}/v4.0.0/libpod/containers/{container.id}/healthcheck")
        client.close()


def kill_like_a_host(container: Any) -> bool:
    """SIGKILL the container's first process behind the engine's back, as the kernel would: only then does a restart
    policy apply, since an engine takes its own ``kill`` for a wish. Returns whether that was possible from here."""
    pid = int(state(container)["Pid"])
    try:
        if container.id not in Path(f"/proc/{pid}/cgroup").read_text():
            return False  # the engine is on another machine, and the pid somebody else's
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def state(container: Any) -> dict[str, Any]:
    """Return how the container stands now."""
    container.reload()
    return container.attrs["State"]


def networks(container: Any) -> list[str]:
    """Return the names of the networks the container is on."""
    container.reload()
    return sorted(container.attrs["NetworkSettings"]["Networks"])


def execute(container: Any, *command: str, environment: dict[str, str] | None = None) -> str:
    """Run a command in the container and return what it wrote.

    :raises AssertionError: it failed.
    """
    done = container.exec_run(list(command), environment=environment or {})
    text = done.output.decode(errors="replace")
    assert done.exit_code == 0, text
    return text


def wait_until(question: Callable[[], Any], what: str, seconds: float) -> Any:
    """Return the first truthy answer."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return answer
