"""Runs the workloads on the product as it ships: HTTP submission, durable outcomes, a process per attempt."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.workloads import Workload
from orchestrator.client import FINAL_STATES, ApiError, Client
from orchestrator.local.child import ChildProcess, ProcessSpec
from orchestrator.store.bootstrap import ensure_first_rows

ROOT = Path(__file__).resolve().parents[1]
ADMIN_KEY = "benchmark-admin-key-0123456789abcdef"


class Ours:
    """Measures our system on running processes."""

    system = "ours"

    def __init__(self, client: Client) -> None:
        self._client = client

    def run(self, workload: Workload) -> float:
        """Return the seconds from ``POST /runs`` until the API says that the run has succeeded."""
        definition = workload.definition()
        self._client.save_pipeline(definition)
        began = time.perf_counter()
        run = self._client.start_run(definition["name"])
        # The list shows a run without its tasks: asking for all of them every few milliseconds would be measured too.
        while (state := next(self._client.runs(limit=1))["state"]) not in FINAL_STATES:
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if state != "success":
            raise RuntimeError(f"The benchmark's run {run['id']} ended {state}.")
        return seconds


@contextmanager
def our_system(folder: Path, database_url: str, redis_url: str, slots: int) -> Iterator[Ours]:
    """Start API, scheduler and one worker with this many slots, and stop them at the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ensure_first_rows(database_url, ADMIN_KEY)
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "REDIS_TASK_QUEUE": "bench",
        "DATA_DIR": str(folder),
        "SECRET_KEY": "benchmark-secret-key-0123456789abcdef",
        "ADMIN_KEY": ADMIN_KEY,
        "WORKER_KEY": "benchmark-worker-key-0123456789abcdef",
        "LOG_LEVEL": "WARNING",
        "ARTIFACT_URL": (folder / "artifacts").as_uri(),
        "OPERATORS_PATH": str(ROOT / "benchmarks" / "operators"),
    }
    commands = {
        "api": (
            "gunicorn",
            "api.wsgi:app",
            "--bind",
            f"127.0.0.1:{port}",
            "--worker-class",
            "gthread",
            "--threads",
            "16",
            "--no-control-socket",
        ),
        "scheduler": ("scheduler",),
        "worker": ("celery", "-A", "workers", "worker", "-Q", "cpu,highmem", "-c", str(slots)),
    }
    children: list[ChildProcess] = []
    client = Client(f"http://127.0.0.1:{port}", ADMIN_KEY)
    try:
        for name, command in commands.items():
            spec = ProcessSpec(
                name=name, command=(sys.executable, "-m", *command), folder=ROOT, environment=environment
            )
            children.append(ChildProcess(spec, folder / "logs" / f"{name}.log", folder / "run" / f"{name}.json"))
        _wait_until_up(client)
        yield Ours(client)
    finally:
        client.close()
        for child in reversed(children):
            child.stop()


def _wait_until_up(client: Client, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            parts = client.health()["components"]
            if parts["leader"]["status"] == "healthy" and parts["workers"]["status"] == "healthy":
                return
        except ApiError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"The benchmark's system was not up after {seconds:.0f} s.")
