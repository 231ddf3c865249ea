"""A worker process that is drained, by TERM or by command: what each task wishes, the deadline, and its end."""

from __future__ import annotations

import signal
import time

import pytest

from orchestrator.states import AttemptState
from tests.integration.fake_scheduler import FakeScheduler
from tests.integration.fork_server_site import wait_for
from tests.integration.worker_process import StartWorker, reported, scheduler, start_worker

__all__ = ["scheduler", "start_worker"]

pytestmark = pytest.mark.timeout(120)


def wait_until_running(scheduler: FakeScheduler, *attempts: str) -> None:
    wait_for(lambda: any(set(attempts) <= beat.started for beat in scheduler.latest().values()), 30, "start")


def wait_for_log(scheduler: FakeScheduler, attempt: str, text: str) -> None:
    wait_for(lambda: text in scheduler.log(attempt), 30, f"{text!r} in the log")


def test_term_waits_until_the_deadline_then_preempts_and_ends_well(
    scheduler: FakeScheduler, start_worker: StartWorker
) -> None:
    worker = start_worker("-Q", "cpu", "-c", "3", DRAIN_SECONDS="8")
    (incarnation,) = scheduler.heartbeats
    short = scheduler.attempt("sleep", parameters={"seconds": 3})
    long = scheduler.attempt("sleep", grace=1.0)
    wait_until_running(scheduler, short, long)
    told_at = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    wait_for(lambda: scheduler.latest()[incarnation].draining, what="draining heartbeat")
    queue = scheduler.keys.queue("cpu")
    # Its consumer stops within a second; what it still took is dropped, and the real scheduler sends it again.
    wait_for(lambda: scheduler.attempt("skip") and scheduler.client.llen(queue) > 0, what="a hint that stays")
    assert reported(scheduler, short) is AttemptState.SUCCEEDED
    assert reported(scheduler, long) is AttemptState.PREEMPTED
    assert time.monotonic() - told_at >= 7.5, "it had the time that was promised"
    assert worker.process.wait(30) == 0
    wait_for(lambda: scheduler.left == [incarnation], what="goodbye")
    assert {claim.attempt_id for claim in scheduler.claims} == {short, long}
    assert scheduler.client.llen(queue) > 0, "the hint waits for another worker"


def test_each_task_is_drained_as_it_wishes(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    worker = start_worker()
    killed = scheduler.attempt("finish_on_term", on_drain="kill", grace=600.0)
    saves = scheduler.attempt("finish_on_term", on_drain="checkpoint", grace=600.0)
    stops = scheduler.attempt("sleep", on_drain="checkpoint", grace=600.0)
    waits = scheduler.attempt("sleep", parameters={"seconds": 12})
    for attempt, text in ((killed, "ready"), (saves, "ready"), (stops, "sleeping"), (waits, "sleeping")):
        wait_for_log(scheduler, attempt, text)
    worker.process.send_signal(signal.SIGTERM)
    assert reported(scheduler, killed) is AttemptState.PREEMPTED
    assert reported(scheduler, stops) is AttemptState.PREEMPTED
    assert reported(scheduler, saves) is AttemptState.SUCCEEDED, "it ended by itself within its grace"
    assert reported(scheduler, waits) is AttemptState.SUCCEEDED
    assert worker.process.wait(30) == 0
    assert scheduler.draining_known[killed], "or it might be planned onto this worker again"
    assert scheduler.draining_known[stops]


def test_a_command_drains_by_its_deadline_and_leaves_the_worker_up(
    scheduler: FakeScheduler, start_worker: StartWorker
) -> None:
    worker = start_worker()
    (incarnation,) = scheduler.heartbeats
    attempt = scheduler.attempt("sleep", grace=1.0)
    wait_until_running(scheduler, attempt)
    scheduler.drain, scheduler.drain_left = True, 600.0
    wait_for(lambda: scheduler.latest()[incarnation].draining, what="draining heartbeat")
    assert attempt not in scheduler.outcomes
    scheduler.drain_left = 0.0
    assert reported(scheduler, attempt) is AttemptState.PREEMPTED
    wait_for(lambda: not scheduler.latest()[incarnation].running, what="an empty worker")
    assert worker.process.poll() is None
    scheduler.drain, scheduler.drain_left = False, None
    wait_for(lambda: not scheduler.latest()[incarnation].draining, what="heartbeat of an undrained worker")
    assert reported(scheduler, scheduler.attempt("skip")) is AttemptState.SUCCEEDED
    scheduler.drain = True
    wait_for(lambda: scheduler.latest()[incarnation].draining, what="draining heartbeat")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(30) == 0
    wait_for(lambda: scheduler.left == [incarnation], what="goodbye")
