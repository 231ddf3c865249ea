"""A real ``celery -A workers worker`` process for tests, against a fake scheduler on the real wire."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.states import AttemptState
from tests.integration.fake_scheduler import NAMESPACE, WORKER_KEY, FakeScheduler
from tests.integration.fork_server_site import is_alive, wait_for, write_operators


class WorkerProcess:
    """One worker in a folder of its own, so that nothing is found by the current folder."""

    def __init__(self, tmp_path: Path, redis_url: str, *arguments: str, **variables: str) -> None:
        self.data = tmp_path / "data"
        self.log = tmp_path / "worker.log"
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "REDIS_URL": redis_url,
            "REDIS_TASK_QUEUE": NAMESPACE,
            "WORKER_KEY": WORKER_KEY,
            "DATA_DIR": str(self.data),
            "OPERATORS_PATH": str(write_operators(tmp_path)),
            "HEARTBEAT_INTERVAL_SECONDS": "0.5",
            "WORKER_LEASE_SECONDS": "3",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **variables,
        }
        with open(self.log, "ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "workers", "worker", *(arguments or ("-Q", "cpu", "-c", "4"))],
                cwd=elsewhere,
                env=environment,
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def tree(self) -> list[int]:
        """Return the pids of all its descendants."""
        try:
            return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """End it and all it started, whatever state it is in."""
        tree = self.tree()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        wait_for(lambda: not any(map(is_alive, tree)), 20, "end of the worker's processes")


@pytest.fixture
def scheduler(redis_url: str) -> Iterator[FakeScheduler]:
    made = FakeScheduler(redis_url)
    yield made
    made.close()


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(tmp_path: Path, redis_url: str, scheduler: FakeScheduler) -> Iterator[StartWorker]:
    """Start a worker and wait for its first heartbeat; all of them end with the test."""
    started: list[WorkerProcess] = []

    def start(*arguments: str, **variables: str) -> WorkerProcess:
        known = set(scheduler.heartbeats)
        worker = WorkerProcess(tmp_path, redis_url, *arguments, **variables)
        started.append(worker)
        try:
            wait_for(lambda: set(scheduler.heartbeats) - known or worker.process.poll() is not None, 30)
        except AssertionError:
            print(worker.log.read_text())
            raise
        return worker

    yield start
    for worker in started:
        worker.stop()
    if started:
        print(started[0].log.read_text()[-20_000:])


def reported(scheduler: FakeScheduler, attempt_id: str) -> AttemptState:
    outcome = wait_for(lambda: scheduler.outcome(attempt_id), 30, "outcome")
    return AttemptState(outcome.state)
