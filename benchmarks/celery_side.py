"""Runs the workloads on Celery itself: ``chain`` and ``chord``, prefork, results in Redis."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.workloads import Workload
from orchestrator.local.child import ChildProcess, ProcessSpec

SECONDS_AT_MOST = 120.0


class CeleryCanvas:
    """Measures Celery's own canvas on a running worker."""

    system = "celery-canvas"

    def __init__(self, noop: Any) -> None:
        self._noop = noop

    def run(self, workload: Workload) -> float:
        """Return the seconds from submission until the last result is there."""
        from celery import chain, chord

        began = time.perf_counter()
        if workload.name == "chain":
            result = chain(*(self._noop.si() for _ in range(workload.size))).apply_async()
        else:
            middle = chord([self._noop.si() for _ in range(workload.size)], self._noop.si())
            result = (self._noop.si() | middle).apply_async()
        result.get(timeout=SECONDS_AT_MOST, interval=0.002)
        return time.perf_counter() - began


@contextmanager
def celery_canvas(folder: Path, redis_url: str, slots: int) -> Iterator[CeleryCanvas]:
    """Start a prefork worker with this many processes, and stop it at the end of the block."""
    os.environ["BENCHMARK_REDIS_URL"] = redis_url
    spec = ProcessSpec(
        name="celery-worker",
        command=(
            sys.executable,
            "-m",
            "celery",
            "-A",
            "benchmarks.celery_app",
            "worker",
            "--pool",
            "prefork",
            "-c",
            str(slots),
            "--without-gossip",
            "--without-mingle",
        ),
        folder=Path(__file__).resolve().parents[1],
        environment=dict(os.environ),
    )
    worker = ChildProcess(spec, folder / "logs" / "celery-worker.log", folder / "run" / "celery-worker.json")
    try:
        from benchmarks.celery_app import app, noop

        noop.delay().get(timeout=60)  # the worker is up and its children are warm
        yield CeleryCanvas(noop)
        app.close()
    finally:
        worker.stop()
