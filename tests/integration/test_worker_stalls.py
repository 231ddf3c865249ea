"""A worker process one of whose loops stands still: it ends with a status of its own, and spares what runs."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from orchestrator.states import AttemptState
from orchestrator.watchdog import EXIT_STATUS
from tests.integration.fake_scheduler import FakeScheduler
from tests.integration.fork_server_site import wait_for
from tests.integration.worker_process import StartWorker, WorkerProcess, reported, scheduler, start_worker

__all__ = ["scheduler", "start_worker"]

pytestmark = pytest.mark.timeout(120)

STUCK = """
import os, sys, time

if "celery" in sys.orig_argv:
    from workers import agent, stall
    from celery.worker.consumer import Consumer

    stall.LIMIT, stall.REDIS_LIMIT, stall.REDIS_STEADY_SECONDS, stall.INTERVAL = 6.0, 6.0, 1.0, 0.25
    agent.PING_SECONDS = 0.5
    tend, call_soon = agent.Trees.tend, Consumer.call_soon

    def stuck_pulse(self):
        if os.path.exists({folder!r} + "/pulse"):
            time.sleep(600)
        tend(self)

    def stuck_consumer(self, callback, *args, **kwargs):
        if os.path.exists({folder!r} + "/consumer"):
            return call_soon(self, time.sleep, 600)
        return call_soon(self, callback, *args, **kwargs)

    agent.Trees.tend, Consumer.call_soon = stuck_pulse, stuck_consumer
"""


def start_sticky(start_worker: StartWorker, tmp_path: Path) -> WorkerProcess:
    """Start a worker whose loops a file can stop, and whose limits are short."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(STUCK.format(folder=str(tmp_path)))
    return start_worker(PYTHONPATH=f"{site}:{Path(__file__).parents[2]}")


def test_a_stuck_pulse_ends_the_worker_whatever_runs(
    scheduler: FakeScheduler, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_sticky(start_worker, tmp_path)
    attempt = scheduler.attempt("sleep")
    wait_for(lambda: any(attempt in beat.started for beat in scheduler.latest().values()))
    (tmp_path / "pulse").touch()
    assert worker.process.wait(60) == EXIT_STATUS
    (tmp_path / "pulse").unlink()
    start_worker()
    assert reported(scheduler, attempt) is AttemptState.LOST


def test_a_deaf_consumer_ends_the_worker_when_that_costs_nothing(
    scheduler: FakeScheduler, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_sticky(start_worker, tmp_path)
    (incarnation,) = scheduler.heartbeats
    attempt = scheduler.attempt("sleep", parameters={"seconds": 20})
    wait_for(lambda: any(attempt in beat.started for beat in scheduler.latest().values()))
    (tmp_path / "consumer").touch()
    wait_for(lambda: scheduler.latest()[incarnation].draining, 30, "heartbeat of a worker that can take nothing")
    assert worker.process.poll() is None, "a tree runs that would die"
    assert "consumer_stuck" in worker.log.read_text()
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    assert worker.process.wait(60) == EXIT_STATUS


def test_a_worker_that_is_well_or_was_frozen_lives_on(
    scheduler: FakeScheduler, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_sticky(start_worker, tmp_path)
    attempt = scheduler.attempt("sleep", parameters={"seconds": 20})
    wait_for(lambda: any(attempt in beat.started for beat in scheduler.latest().values()))
    worker.process.send_signal(signal.SIGSTOP)
    thaw_at = time.monotonic() + 9.0
    wait_for(lambda: time.monotonic() > thaw_at, what="more time than a loop may stand still")
    worker.process.send_signal(signal.SIGCONT)
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    assert worker.process.poll() is None
    assert "stuck" not in worker.log.read_text()
