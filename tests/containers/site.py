"""The compose file as a user starts it, under a project of its own, and what tests ask of the site."""
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.client import Client
from orchestrator.local.ports import free_port
from tests.acceptance.system import Questions
from tests.containers import engine as containers
from tests.containers.engine import ROOT, Engine

FILE = ROOT / "compose" / "compose.yaml"
TAG = "container-tests"
BUILT = ("api", "scheduler", "worker-cpu", "worker-gpu")
ADMIN_KEY = "container-admin-key-0123456789abcdef"
OPERATORS = Path(__file__).parent / "operators"
LOG_LINES = 40

SETTINGS = {
    "POSTGRES_PASSWORD": "container-postgres-0123456789",
    "REDIS_PASSWORD": "container-redis-0123456789",
    "SECRET_KEY": "container-secret-key-0123456789abcdef",
    "ADMIN_KEY": ADMIN_KEY,
    "WORKER_KEY": "container-worker-key-0123456789abcdef",
    "ORCHESTRATOR_TAG": TAG,
}


WORKER_SETTINGS = {
    "REDIS_URL": f"redis://:{SETTINGS['REDIS_PASSWORD']}@redis:6379/0",
    "WORKER_KEY": SETTINGS["WORKER_KEY"],
    "ARTIFACT_URL": "file:///artifacts",
}
"""For a worker's container that is started by hand, as on another machine."""


def image(target: str) -> str:
    """Return the name under which the compose file builds a target, with the tests' own tag."""
    return f"pipeline-orchestrator/{target}:{TAG}"


def example(name: str) -> dict[str, Any]:
    """Return a pipeline of ``examples/``."""
    definition: dict[str, Any] = json.loads((ROOT / "examples" / f"{name}.json").read_text())
    return definition


def pipeline(name: str, *tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pipeline of small tasks that do not wait for each other unless they say so."""
    small = {"cpu": 0.1, "memory_gb": 0.1}
    return {"name": name, "tasks": [{**small, **task} for task in tasks]}


def script(name: str, text: str, **settings: Any) -> dict[str, Any]:
    """Return a task that runs a Python script."""
    parameters = {"script_type": "python", "script_content": text}
    return {"name": name, "operator": "custom_script", "parameters": parameters, **settings}


class ComposeSite(Questions):
    """One compose project; usable as a context manager, which removes all of it with its volumes.

    :param folder: for the files that compose reads beside its own.
    :param overrides: merged into the compose file's services, as a user's ``-f override.yaml`` is.
    :param settings: beside :data:`SETTINGS`, what a user writes into ``compose/.env``.
    """

    def __init__(
        self, engine: Engine, folder: Path, overrides: Mapping[str, Any] | None = None, **settings: str
    ) -> None:
        self.engine = engine
        self.project = f"po-{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}", ADMIN_KEY, patience=20.0)
        self._open = ExitStack()
        self._environment = folder / f"{self.project}.env"
        given = {**SETTINGS, "API_PORT": str(self.port), **settings}
        self._environment.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
        self._override = folder / f"{self.project}.yaml"
        self._override.write_text(json.dumps({"services": overrides or with_operators()}))  # JSON is YAML

    def __enter__(self) -> Self:
        self._open.enter_context(self.engine.health_checks(self.project))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")
        self._open.close()

    def compose(self, *arguments: str) -> str:
        """Run a compose command on this project."""
        files = ("-f", str(FILE), "-f", str(self._override), "--env-file", str(self._environment))
        return self.engine.compose("-p", self.project, *files, *arguments)

    def up(self, *services: str, workers: int, **scale: int) -> float:
        """Start the services (all: none named) and wait until these many workers are online; returns the seconds."""
        began = time.monotonic()
        scales = [word for name, count in scale.items() for word in ("--scale", f"{name.replace('_', '-')}={count}")]
        self.compose("up", "-d", "--no-build", *scales, *services)
        self.wait_until_online(workers, 120.0)
        return time.monotonic() - began

    def containers(self, service: str) -> list[Any]:
        """Return the living containers of a service."""
        return self.engine.containers(self.project, service)

    def container_of(self, worker: str) -> Any:
        """Return the container of a worker, by its name in Celery."""
        hostname = worker.partition("@")[2]
        return next(one for one in self.engine.containers(self.project) if one.id.startswith(hostname))

    def online_workers(self, queue: str) -> list[dict[str, Any]]:
        """Return the workers that live and listen to a queue."""
        return [one for one in self.client.workers() if one["state"] == "online" and queue in one["queues"]]

    def network(self, name: str) -> Any:
        """Return a network of the project."""
        (found,) = self.engine.client.networks.list(names=[f"{self.project}_{name}"])
        return found

    def leader(self) -> tuple[str, int]:
        """Return who leads, and its epoch."""
        facts = self.client.health()["components"]["leader"]
        return (str(facts["holder"]), int(facts["epoch"])) if facts["status"] == "healthy" else ("", 0)

    def show_logs(self) -> None:
        """Print the last lines of each container, for whoever looks at a failure."""
        for container in self.engine.containers(self.project):
            print(f"--- {container.name} {containers.state(container)['Status']}")
            print(container.logs(tail=LOG_LINES).decode(errors="replace"))


def with_operators(**worker: Any) -> dict[str, Any]:
    """Return overrides that offer the tests' operators.

    :param worker: what else is different about ``worker-cpu``.
    """
    mount = {"volumes": [f"{OPERATORS}:/operators:ro"], "environment": {"OPERATORS_PATH": "/operators"}}
    return {"api": mount, "worker-highmem": mount, "worker-cpu": {**mount, **worker}}
