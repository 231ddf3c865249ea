"""A whole system as real processes on free ports, driven over REST alone; each worker stands for a host of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.client import ApiError, Client
from orchestrator.local.child import ChildProcess, ProcessSpec, last_lines
from orchestrator.local.ports import free_port
from orchestrator.store.bootstrap import ensure_first_rows

ROOT = Path(__file__).resolve().parents[2]
ADMIN_KEY = "acceptance-admin-key-0123456789abcdef"

SCALED_DOWN = {
    "HEARTBEAT_INTERVAL_SECONDS": "0.5",
    "WORKER_LEASE_SECONDS": "3",
    "LEADER_LEASE_SECONDS": "3",
    "REDISPATCH_SECONDS": "2",
    "RECONCILE_SECONDS": "3",
    "DEFAULT_RETRY_DELAY_SECONDS": "0.2",
}
"""A tenth of the product's times, so that a test waits seconds where a site waits half a minute."""


def site_environment(folder: Path, operators: Path) -> dict[str, str]:
    """Return the variables that all processes of a system on ``folder`` share, the addresses of its stores aside.

    :param operators: folder with the site's own operators.
    """
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONUNBUFFERED": "1",
        "WORKER_KEY": "acceptance-worker-key-0123456789abcdef",
        "ARTIFACT_URL": (folder / "artifacts").as_uri(),
        "DATA_ROOTS": f"data={folder / 'data'},examples={ROOT / 'examples' / 'data'}",
        "OPERATORS_PATH": f"{ROOT / 'examples' / 'operators'}:{operators}",
        "DATA_DIR": str(folder / "site"),
        **SCALED_DOWN,
    }


def control_plane_environment(database_url: str, port: int) -> dict[str, str]:
    """Return what the API and the schedulers are given beside that."""
    return {
        "DATABASE_URL": database_url,
        "SECRET_KEY": "acceptance-secret-key-0123456789abcdef",
        "ADMIN_KEY": ADMIN_KEY,
        "PORT": str(port),
    }


def host_environment(folder: Path, name: str) -> dict[str, str]:
    """Return what makes a worker the worker of a pretended host."""
    return {"HOST_ID": f"host-{name}", "DATA_DIR": str(folder / f"host-{name}")}


SCHEDULER_COMMAND = ("scheduler",)


def api_command(port: int, worker_class: str = "api.server.Threads") -> tuple[str, ...]:
    """Return the module and arguments that serve the API as the one-host command does."""
    return (
        *("gunicorn", "api.wsgi:app", "--bind", f"127.0.0.1:{port}"),
        *("--worker-class", worker_class, "--threads", "32"),
        *("--no-control-socket", "--graceful-timeout", "3", "--keep-alive", "75"),
    )


def worker_command(name: str, queues: str, slots: int) -> tuple[str, ...]:
    """Return the module and arguments of a Celery worker that Flower can see."""
    return ("celery", "-A", "workers", "worker", "-Q", queues, "-c", str(slots), "-n", f"{name}@%h", "-E")


class Questions:
    """What a test asks a system of real processes, over REST alone.

    :ivar client: speaks with the system's API.
    """

    client: Client

    def wait_until(self, question: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
        """Return the first truthy answer to ``question``; an API that is not there yet is no answer."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if answer := question():
                    return answer
            except ApiError as error:
                if error.status not in (0, 503):
                    raise
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:.0f} s: {what}")
            time.sleep(0.05)

    def wait_until_online(self, workers: int, seconds: float = 30.0) -> None:
        """Wait until the API answers, a scheduler leads and this many workers are online."""

        def is_up() -> bool:
            parts = self.client.health()["components"]
            return bool(parts["leader"]["status"] == "healthy" and parts["workers"].get("online", 0) >= workers)

        self.wait_until(is_up, f"a leader and {workers} workers", seconds)

    def start_run(self, definition: Mapping[str, Any], parameters: Mapping[str, Any] | None = None) -> str:
        """Save the pipeline and start a run of it; returns the run's id."""
        self.client.save_pipeline(definition)
        return str(self.client.start_run(str(definition["name"]), parameters)["id"])

    def finish(self, run_id: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait for the end of a run and return it."""
        return self.client.wait(run_id, seconds=seconds, pause=0.1)

    def succeed(self, run_id: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait for the end of a run that must succeed and return it."""
        run = self.finish(run_id, seconds)
        told = [(task["name"], task["state"], task["reason"], task["message"]) for task in run["tasks"]]
        assert run["state"] == "success", told
        return run

    def task(self, run_id: str, name: str) -> dict[str, Any]:
        """Return one task run of a run."""
        return next(task for task in self.client.get_run(run_id)["tasks"] if task["name"] == name)

    def wait_for_task(self, run_id: str, name: str, *states: str, seconds: float = 30.0) -> dict[str, Any]:
        """Wait until a task run is in one of these states and return it."""

        def reached() -> dict[str, Any] | None:
            task = self.task(run_id, name)
            return task if task["state"] in states else None

        found: dict[str, Any] = self.wait_until(reached, f"task {name} {' or '.join(states)}", seconds)
        return found

    def attempts(self, run_id: str, name: str) -> list[dict[str, Any]]:
        """Return the attempts of a task run, oldest first."""
        page = self.client._request("GET", f"/api/v1/runs/{run_id}/tasks/{name}/attempts")
        return sorted(page["items"], key=lambda attempt: attempt["number"])

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """Return the audit of a run's transitions, oldest first."""
        return list(self.client._items(f"/api/v1/runs/{run_id}/events", {"limit": 200}))


class System(Questions):
    """Starts and ends the processes of one system; usable as a context manager."""

    def __init__(self, folder: Path, database_url: str, redis_url: str, **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.children: dict[str, ChildProcess] = {}
        (folder / "data").mkdir(parents=True, exist_ok=True)
        ensure_first_rows(database_url, ADMIN_KEY)
        operators = ROOT / "tests" / "acceptance" / "site_operators"
        self.environment = {**site_environment(folder, operators), "REDIS_URL": redis_url, **settings}
        self._control_plane = control_plane_environment(database_url, self.port)
        self.client = Client(f"http://127.0.0.1:{self.port}", ADMIN_KEY, patience=20.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        for child in reversed(self.children.values()):
            child.ask_to_stop()
        for child in reversed(self.children.values()):
            child.stop(seconds=10.0)
        if kind is not None:
            for name, child in self.children.items():
                print(f"--- {name}\n{last_lines(child.log, 60)}")

    # --- processes ---

    def start_api(self) -> ChildProcess:
        """Start the API as the one-host command does."""
        return self._start("api", api_command(self.port), self._control_plane)

    def start_scheduler(self, name: str = "scheduler", **settings: str) -> ChildProcess:
        """Start a scheduler; the first one leads."""
        return self._start(name, SCHEDULER_COMMAND, {**self._control_plane, **settings})

    def start_worker(
        self, name: str, queues: str = "cpu,highmem", slots: int = 2, incarnation: int = 1, **settings: str
    ) -> ChildProcess:
        """Start a worker on a pretended host called ``name``; a later incarnation is the same host again."""
        host = {**host_environment(self.folder, name), **settings}
        return self._start(f"worker-{name}-{incarnation}", worker_command(name, queues, slots), host)

    def start_all(self, workers: tuple[str, ...] = ("a", "b")) -> None:
        """Start the API, two schedulers and these workers, and wait until all of it works."""
        self.start_api()
        self.start_scheduler("scheduler-1")
        self.start_scheduler("scheduler-2")
        for worker in workers:
            self.start_worker(worker)
        self.wait_until_online(len(workers))

    def start_flower(self, password: str) -> str:
        """Start Flower as the one-host command does; returns its address."""
        port = free_port()
        settings = {
            "FLOWER_BASIC_AUTH": f"admin:{password}",
            "FLOWER_ADDRESS": "127.0.0.1",
            "FLOWER_PORT": str(port),
        }
        self._start("flower", ("celery", "-A", "workers", "flower"), settings)
        return f"http://127.0.0.1:{port}"

    def kill(self, child: ChildProcess) -> None:
        """SIGKILL one process of ours: the process alone, as an out-of-memory killer would."""
        os.kill(child.pid, signal.SIGKILL)

    def _start(self, name: str, command: tuple[str, ...], settings: Mapping[str, str]) -> ChildProcess:
        spec = ProcessSpec(
            name=name,
            command=(sys.executable, "-m", *command),
            folder=ROOT,
            environment={**self.environment, **settings},
        )
        child = ChildProcess(spec, self.folder / "logs" / f"{name}.log", self.folder / "run" / f"{name}.json")
        self.children[name] = child
        return child
