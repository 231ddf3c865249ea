"""A worker process that is killed while a long task runs: the next one of the host reports it, and it ran once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.states import AttemptState
from tests.integration.fake_scheduler import FakeScheduler
from tests.integration.fork_server_site import is_alive, wait_for
from tests.integration.worker_process import StartWorker, WorkerProcess, reported, scheduler, start_worker
from workers.attempt_folder import AttemptFolder

__all__ = ["scheduler", "start_worker"]

pytestmark = pytest.mark.timeout(150)


@dataclass
class Long:
    """A long task that notes every start of it."""

    scheduler: FakeScheduler
    folder: Path
    supervisors: list[int] = field(default_factory=list)

    def start(self, **fields: Any) -> str:
        parameters = {"ledger": str(self.ledger), "end": str(self.folder / "end")}
        return self.scheduler.attempt("keep_ledger", on_worker_loss="adopt", parameters=parameters, **fields)

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    def starts(self) -> list[str]:
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []

    def finish(self) -> None:
        (self.folder / "end").touch()

    def is_shown_by(self, incarnation: str, attempt: str) -> bool:
        beat = self.scheduler.latest()[incarnation]
        token = self.scheduler.specs[attempt].token
        return beat.running.get(attempt) == token and attempt in beat.started

    def running_under(self, worker: WorkerProcess, attempt: str) -> int:
        """Wait until it runs; return the pid of its supervisor."""
        wait_for(lambda: len(self.starts()) == 1, 30, "start of the task")
        state = AttemptFolder(worker.data / "attempts", attempt).read("state")
        self.supervisors.append(state["pid"])
        return int(state["pid"])


@pytest.fixture
def long(scheduler: FakeScheduler, tmp_path: Path) -> Iterator[Long]:
    made = Long(scheduler, tmp_path)
    yield made
    made.finish()
    wait_for(lambda: not any(map(is_alive, made.supervisors)), what="end of all trees")


def kill(worker: WorkerProcess) -> None:
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait()


def newest(scheduler: FakeScheduler, known: set[str]) -> str:
    (incarnation,) = set(scheduler.heartbeats) - known
    return incarnation


def test_a_tree_that_outlives_its_worker_is_reported_by_the_next_and_ran_once(
    scheduler: FakeScheduler, start_worker: StartWorker, long: Long
) -> None:
    first = start_worker()
    (dead,) = scheduler.heartbeats
    attempt = long.start()
    supervisor = long.running_under(first, attempt)
    wait_for(lambda: "line 3\n" in scheduler.log(attempt), what="the log's beginning")
    kill(first)
    start_worker()
    keeper = newest(scheduler, {dead})
    wait_for(lambda: long.is_shown_by(keeper, attempt), what="heartbeat of the keeper that shows it")
    assert is_alive(supervisor)
    assert attempt not in scheduler.outcomes
    long.finish()
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    report = scheduler.outcomes[attempt][0]
    assert (report.worker_id, report.reply_to) == (dead, keeper), "it names the one that ran it"
    assert report.token == scheduler.specs[attempt].token
    assert long.starts() == [f"{attempt} {report.token}"]
    assert report.outcome.outputs["lines"] > 3
    wait_for(lambda: attempt not in scheduler.latest()[keeper].running, what="heartbeat without it")
    wait_for(lambda: scheduler.log(attempt).endswith("the last line\n"), what="the rest of the log")
    assert [line for line in scheduler.log(attempt).splitlines() if line == "line 0"] == ["line 0"]
    wait_for(lambda: not list((first.data / "workers").glob(f"{dead}.*")), 40, "a forgotten incarnation")
    wait_for(lambda: not list((first.data / "attempts").iterdir()), what="removed folder")


def test_an_adopted_tree_is_cancelled_like_any_other(
    scheduler: FakeScheduler, start_worker: StartWorker, long: Long
) -> None:
    first = start_worker()
    known = set(scheduler.heartbeats)
    attempt = long.start(grace=1.0)
    supervisor = long.running_under(first, attempt)
    kill(first)
    start_worker()
    keeper = newest(scheduler, known)
    wait_for(lambda: long.is_shown_by(keeper, attempt), what="heartbeat of the keeper that shows it")
    scheduler.cancel[attempt] = 1.0
    assert reported(scheduler, attempt) is AttemptState.CANCELLED
    assert not is_alive(supervisor)
    assert len(long.starts()) == 1


def test_what_ended_while_no_worker_was_there_is_reported_as_it_ended(
    scheduler: FakeScheduler, start_worker: StartWorker, long: Long
) -> None:
    first = start_worker()
    (dead,) = scheduler.heartbeats
    attempt = long.start()
    supervisor = long.running_under(first, attempt)
    kill(first)
    long.finish()
    wait_for(lambda: not is_alive(supervisor), what="end of the task")
    assert attempt not in scheduler.outcomes
    start_worker()
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    assert scheduler.outcomes[attempt][0].worker_id == dead
    assert len(long.starts()) == 1
    wait_for(lambda: scheduler.log(attempt).endswith("the last line\n"), what="the log")


def test_a_tree_outlives_its_keeper_too(scheduler: FakeScheduler, start_worker: StartWorker, long: Long) -> None:
    first = start_worker()
    known = set(scheduler.heartbeats)
    (dead,) = known
    attempt = long.start()
    supervisor = long.running_under(first, attempt)
    kill(first)
    second = start_worker()
    keeper = newest(scheduler, known)
    wait_for(lambda: long.is_shown_by(keeper, attempt), what="heartbeat of the keeper that shows it")
    kill(second)
    start_worker()
    third = newest(scheduler, known | {keeper})
    wait_for(lambda: long.is_shown_by(third, attempt), what="heartbeat of the next keeper that shows it")
    assert is_alive(supervisor)
    long.finish()
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    report = scheduler.outcomes[attempt][0]
    assert (report.worker_id, report.reply_to) == (dead, third)
    assert len(long.starts()) == 1


def test_a_living_worker_of_the_host_adopts_what_its_neighbour_leaves(
    scheduler: FakeScheduler, start_worker: StartWorker, long: Long
) -> None:
    first = start_worker()
    known = set(scheduler.heartbeats)
    attempt = long.start()
    long.running_under(first, attempt)
    lost = scheduler.attempt("sleep")
    wait_for(lambda: any(lost in beat.started for beat in scheduler.latest().values()))
    start_worker("-Q", "gpu", "-c", "1")
    neighbour = newest(scheduler, known)
    kill(first)
    wait_for(lambda: long.is_shown_by(neighbour, attempt), what="heartbeat of the neighbour that shows it")
    assert reported(scheduler, lost) is AttemptState.LOST, "the other tree died with its worker"
    assert scheduler.outcomes[lost][0].reply_to == neighbour
    (dead,) = known
    scheduler.confirm = {(attempt, dead), ("never-arrived", dead)}
    wait_for(lambda: "never-arrived" in scheduler.latest()[neighbour].dead, what="confirmed death")
    assert attempt not in scheduler.latest()[neighbour].dead
    long.finish()
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
