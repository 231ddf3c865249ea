"""A real ``celery -A workers worker`` process against a fake scheduler on the real wire."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from orchestrator.nonces import claim_of
from orchestrator.states import AttemptState
from tests.integration.fake_scheduler import WORKER_KEY, FakeScheduler
from tests.integration.fork_server_site import is_alive, wait_for
from tests.integration.worker_process import (
    StartWorker,
    WorkerProcess,
    reported,
    scheduler,
    start_worker,
)
from workers.memory_kills import find_level
from workers.spool import Spool

__all__ = ["scheduler", "start_worker"]

pytestmark = pytest.mark.timeout(120)


def test_a_hint_becomes_an_outcome_and_its_log_arrives(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    worker = start_worker()
    attempt = scheduler.attempt("echo")
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    wait_for(lambda: "hello from task-1" in scheduler.log(attempt), what="log")
    (incarnation,) = scheduler.heartbeats
    beats = scheduler.heartbeats[incarnation]
    assert beats[0].queues == ("cpu",)
    assert beats[0].slots == 4
    assert beats[0].capacity.cpu >= 1000
    assert beats[0].store_scope == f"local:{beats[0].host_id}"
    wait_for(lambda: not list((worker.data / "spool").iterdir()), what="empty spool")
    wait_for(lambda: not list((worker.data / "attempts").iterdir()), what="removed folder")
    wait_for(lambda: not scheduler.latest()[incarnation].running, what="heartbeat without the attempt")
    outcome = scheduler.outcome(attempt)
    assert outcome is not None
    assert outcome.local_to == beats[0].host_id
    assert WORKER_KEY not in str(outcome.outputs)


def test_a_worker_says_in_one_record_how_it_learns_of_the_kernels_kills_for_memory(
    scheduler: FakeScheduler, start_worker: StartWorker
) -> None:
    worker = start_worker("-Q", "cpu", "-c", "1", LOG_LEVEL="DEBUG")
    lines = worker.log.read_text().splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    [start] = [record for record in records if record["action"] == "worker_starts"]
    assert start["memory_kills"] == find_level("probe")
    assert start["worker_id"] in scheduler.heartbeats
    early = [line for line in lines if "no_gpus" in line and not line.startswith("{")]
    assert not early, "written before the logs were set up"


def test_an_own_queue_is_served_too(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    start_worker()
    (incarnation,) = scheduler.heartbeats
    attempt = scheduler.attempt("skip", hint=False)
    scheduler.hint(attempt, queue=f"w.{incarnation}")
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED


def test_a_denied_claim_runs_nothing_and_frees_the_slot(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    start_worker("-Q", "cpu", "-c", "1")
    scheduler.hint("a" * 32)
    scheduler.hint("../../etc")
    attempt = scheduler.attempt("skip")
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    assert {claim.attempt_id for claim in scheduler.claims} == {"a" * 32, attempt}


def test_an_outcome_is_sent_again_until_it_is_answered(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    worker = start_worker()
    scheduler.verdict = None
    attempt = scheduler.attempt("skip")
    wait_for(lambda: len(scheduler.outcomes.get(attempt, [])) >= 2, what="second report")
    (incarnation,) = scheduler.heartbeats
    assert attempt in scheduler.latest()[incarnation].running, "ours until it is answered"
    assert Spool(worker.data / "spool").has(attempt)
    scheduler.verdict = "fenced"
    wait_for(lambda: (worker.data / "spool" / f"{attempt}.json.fenced").exists(), what="fenced outcome kept")
    wait_for(lambda: attempt in scheduler.latest()[incarnation].dead, what="dead attempt in the heartbeat")
    assert attempt not in scheduler.latest()[incarnation].running


def test_redis_flushed_in_the_middle_loses_nothing(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    start_worker()
    attempt = scheduler.attempt("sleep", parameters={"seconds": 3})
    wait_for(lambda: any(attempt in beat.started for beat in scheduler.latest().values()))
    scheduler.client.flushdb()
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    later = scheduler.attempt("skip")
    assert reported(scheduler, later) is AttemptState.SUCCEEDED


def test_logs_that_a_flush_of_redis_took_arrive_all_the_same(
    scheduler: FakeScheduler, start_worker: StartWorker
) -> None:
    worker = start_worker()
    attempt = scheduler.attempt("count", parameters={"lines": 40, "seconds": 4})
    wait_for(lambda: "line 3\n" in scheduler.log(attempt), what="the log's beginning")
    scheduler.collects_logs = False
    log = worker.data / "attempts" / attempt / "log"
    wait_for(lambda: "line 20\n" in log.read_text() and scheduler.client.xlen(scheduler.keys.logs) >= 2)
    scheduler.client.flushdb()
    scheduler.collects_logs = True
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    whole = "".join(f"line {number}\n" for number in range(40))
    wait_for(lambda: scheduler.log(attempt) == whole, what="the whole log")
    wait_for(lambda: not list((worker.data / "attempts").iterdir()), what="removed folder")


def test_a_log_stays_on_its_host_until_it_is_stored(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    worker = start_worker()
    scheduler.collects_logs = False
    attempt = scheduler.attempt("echo")
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    wait_for(lambda: not list((worker.data / "spool").iterdir()), what="answered outcome")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(30) == 0
    assert (worker.data / "attempts" / attempt / "log").exists()
    scheduler.client.delete(scheduler.keys.logs)
    scheduler.collects_logs = True
    start_worker()
    wait_for(lambda: "hello from task-1" in scheduler.log(attempt), what="the log, sent by the next incarnation")
    wait_for(lambda: not list((worker.data / "attempts").iterdir()), what="removed folder")


def test_a_cancel_kills_a_tree_that_double_forks_and_ignores_term(
    scheduler: FakeScheduler, start_worker: StartWorker, tmp_path: Path
) -> None:
    start_worker()
    notes = tmp_path / "pids"
    attempt = scheduler.attempt("escape", parameters={"notes": str(notes)})
    wait_for(lambda: notes.exists() and len(notes.read_text().split()) == 4)
    scheduler.cancel[attempt] = 1.0
    assert reported(scheduler, attempt) is AttemptState.CANCELLED
    assert not any(is_alive(int(pid)) for pid in notes.read_text().split())


def test_a_timeout_is_reported_as_such(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    start_worker()
    assert reported(scheduler, scheduler.attempt("sleep", timeout=0.5, grace=1.0)) is AttemptState.TIMED_OUT


def test_a_fenced_attempt_is_killed(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    start_worker()
    scheduler.verdict = "fenced"
    attempt = scheduler.attempt("sleep")
    wait_for(lambda: any(attempt in beat.started for beat in scheduler.latest().values()))
    scheduler.fence.add(attempt)
    assert reported(scheduler, attempt) is AttemptState.CANCELLED


def test_an_exclusive_attempt_ends_when_the_scheduler_falls_silent(
    scheduler: FakeScheduler, start_worker: StartWorker
) -> None:
    start_worker()
    attempt = scheduler.attempt("sleep", exclusive=True)
    other = scheduler.attempt("sleep", parameters={"seconds": 6})
    wait_for(lambda: any({attempt, other} <= beat.started for beat in scheduler.latest().values()))
    scheduler.replies_to_heartbeats = False
    outcome = wait_for(lambda: scheduler.outcome(attempt), 30)
    assert (outcome.state, outcome.reason) == (AttemptState.LOST, "cut_off")
    assert reported(scheduler, other) is AttemptState.SUCCEEDED, "losing the control plane kills no other"


def test_the_death_of_the_worker_kills_its_trees_and_the_next_incarnation_reports_them(
    scheduler: FakeScheduler, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker()
    (first,) = scheduler.heartbeats
    notes = tmp_path / "pids"
    attempt = scheduler.attempt("escape", parameters={"notes": str(notes)}, grace=0.5)
    wait_for(lambda: notes.exists() and len(notes.read_text().split()) == 4)
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    wait_for(lambda: Spool(worker.data / "spool").has(attempt), what="outcome written without the worker")
    assert not any(is_alive(int(pid)) for pid in notes.read_text().split())
    assert attempt not in scheduler.outcomes
    start_worker()
    outcome = wait_for(lambda: scheduler.outcome(attempt), 30)
    assert (outcome.state, outcome.reason) == (AttemptState.LOST, "worker_lost")
    assert outcome.infrastructure
    report = scheduler.outcomes[attempt][0]
    assert report.worker_id == first
    assert report.reply_to != first


def test_leftovers_of_a_host_where_everything_was_killed_at_once_are_found(
    scheduler: FakeScheduler, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker()
    notes = tmp_path / "pids"
    attempt = scheduler.attempt("escape", parameters={"notes": str(notes)})
    wait_for(lambda: notes.exists() and len(notes.read_text().split()) == 4)
    survivors = [int(pid) for pid in notes.read_text().split()]
    doomed = [pid for pid in worker.tree() if pid not in survivors]
    for pid in (worker.process.pid, *doomed):  # the worker, its fork server, the supervisor
        os.kill(pid, signal.SIGSTOP)
    for pid in (worker.process.pid, *doomed):
        os.kill(pid, signal.SIGKILL)
    worker.process.wait()
    assert any(map(is_alive, survivors))
    (dead,) = scheduler.heartbeats
    scheduler.confirm |= {(attempt, dead), ("never-arrived", dead)}
    start_worker()
    assert reported(scheduler, attempt) is AttemptState.LOST
    assert not any(map(is_alive, survivors))
    (successor,) = set(scheduler.heartbeats) - {dead}
    wait_for(lambda: set(scheduler.latest()[successor].dead) == {attempt, "never-arrived"}, what="confirmed deaths")


def test_a_dead_fork_server_is_replaced(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    worker = start_worker()
    attempt = scheduler.attempt("sleep")
    wait_for(lambda: any(attempt in beat.started for beat in scheduler.latest().values()))
    children = psutil.Process(worker.process.pid).children()
    next(child for child in children if "workers.fork_server" in child.cmdline()).kill()
    assert reported(scheduler, attempt) is AttemptState.LOST
    assert reported(scheduler, scheduler.attempt("skip")) is AttemptState.SUCCEEDED


def test_a_worker_whose_fork_server_can_not_live_eats_no_hints(
    scheduler: FakeScheduler, start_worker: StartWorker, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if 'workers.fork_server' in sys.orig_argv and os.path.exists({str(broken)!r}):\n"
        "    os._exit(3)\n"
    )
    worker = start_worker(PYTHONPATH=f"{site}:{Path(__file__).parents[2]}")
    (incarnation,) = scheduler.heartbeats
    assert not scheduler.heartbeats[incarnation][0].draining
    broken.touch()
    children = psutil.Process(worker.process.pid).children()
    next(child for child in children if "workers.fork_server" in child.cmdline()).kill()
    wait_for(lambda: scheduler.latest()[incarnation].draining, what="heartbeat of a worker that can start nothing")
    queue = scheduler.keys.queue("cpu")
    # Its consumer stops within a second; what it still took is dropped, and the real scheduler sends it again.
    wait_for(lambda: scheduler.attempt("skip") and scheduler.client.llen(queue) > 0, what="a hint that stays")
    assert scheduler.outcomes == {}
    broken.unlink()
    wait_for(lambda: not scheduler.latest()[incarnation].draining, 60, "heartbeat of a worker that is able again")
    wait_for(lambda: scheduler.outcomes, what="an outcome of what waited")
    assert {report.outcome.state for reports in scheduler.outcomes.values() for report in reports} == {
        AttemptState.SUCCEEDED
    }


def test_a_claim_outlasts_a_control_plane_that_is_away(scheduler: FakeScheduler, start_worker: StartWorker) -> None:
    start_worker()
    attempt = scheduler.attempt("skip", hint=False)
    spec = scheduler.specs.pop(attempt)
    scheduler.answers_claims = False
    scheduler.hint(attempt)
    wait_for(lambda: len(scheduler.claims) >= 3, 60, "repeated claims")
    assert len({claim_of(claim.nonce) for claim in scheduler.claims}) == 1
    scheduler.specs[attempt] = spec
    scheduler.answers_claims = True
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED


def test_a_data_dir_of_another_host_is_refused_with_a_sentence(tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "data").mkdir()
    other = {"machine": "another", "hostname": "another-host", "boot_id": "another"}
    (tmp_path / "data" / "host-machine.json").write_text(json.dumps(other))
    worker = WorkerProcess(tmp_path, redis_url)
    assert worker.process.wait(30) != 0
    text = worker.log.read_text()
    assert "which is that of host 'another-host'" in text
    assert "Traceback" not in text


def test_a_warm_shutdown_finishes_what_runs_and_says_goodbye(
    scheduler: FakeScheduler, start_worker: StartWorker
) -> None:
    worker = start_worker()
    (incarnation,) = scheduler.heartbeats
    attempt = scheduler.attempt("sleep", parameters={"seconds": 2})
    wait_for(lambda: any(attempt in beat.started for beat in scheduler.latest().values()))
    worker.process.send_signal(signal.SIGTERM)
    wait_for(lambda: scheduler.latest()[incarnation].draining, what="draining heartbeat")
    assert worker.process.wait(30) == 0
    assert reported(scheduler, attempt) is AttemptState.SUCCEEDED
    wait_for(lambda: scheduler.left == [incarnation], what="goodbye")


@pytest.mark.parametrize("signals", [(signal.SIGQUIT,), (signal.SIGTERM, signal.SIGTERM)])
def test_a_worker_told_to_hurry_preempts_what_runs(
    scheduler: FakeScheduler, start_worker: StartWorker, signals: tuple[signal.Signals, ...]
) -> None:
    worker = start_worker()
    (incarnation,) = scheduler.heartbeats
    attempt = scheduler.attempt("sleep", grace=1.0)
    wait_for(lambda: any(attempt in beat.started for beat in scheduler.latest().values()))
    for one in signals:
        worker.process.send_signal(one)
        wait_for(lambda: scheduler.latest()[incarnation].draining, what="draining heartbeat")
    assert reported(scheduler, attempt) is AttemptState.PREEMPTED
    worker.process.wait(30)
    wait_for(lambda: scheduler.left == [incarnation], what="goodbye")


def test_a_drained_worker_leaves_hints_to_others_until_it_is_undrained(
    scheduler: FakeScheduler, start_worker: StartWorker
) -> None:
    start_worker()
    (incarnation,) = scheduler.heartbeats
    scheduler.drain = True
    wait_for(lambda: scheduler.latest()[incarnation].draining, what="draining heartbeat")
    queue = scheduler.keys.queue("cpu")
    # Its consumer stops within a second; what it still took is dropped, and the real scheduler sends it again.
    wait_for(lambda: scheduler.attempt("skip") and scheduler.client.llen(queue) > 0, what="a hint that stays")
    scheduler.drain = False
    wait_for(lambda: scheduler.outcomes, what="an outcome after the drain")


def test_a_mistyped_queue_is_refused_with_the_queues_there_are(tmp_path: Path, redis_url: str) -> None:
    worker = WorkerProcess(tmp_path, redis_url, "-Q", "cpu,gpuu")
    assert worker.process.wait(30) != 0
    text = worker.log.read_text()
    assert "No queue gpuu: this site has cpu, gpu, highmem." in text
    assert "Traceback" not in text


def test_a_worker_without_its_key_is_refused_with_a_sentence(tmp_path: Path, redis_url: str) -> None:
    worker = WorkerProcess(tmp_path, redis_url, WORKER_KEY="")
    assert worker.process.wait(30) != 0
    text = worker.log.read_text()
    assert "WORKER_KEY must be set for this process." in text
    assert "Traceback" not in text
