"""Rebuild from rows and reconcile."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from orchestrator.effects import Count, CreateAttempt, SendGrant, Transition
from orchestrator.events import ClaimReceived, HeartbeatSeen, OutcomeReceived, ReconcileDue, Tick
from orchestrator.kernel import Kernel, KernelSettings, Snapshot, decide
from orchestrator.records import (
    AttemptRecord,
    Capacity,
    Heartbeat,
    HostRecord,
    Plan,
    Reservation,
    Resources,
    RunRecord,
    TaskRunRecord,
    WorkerRecord,
)
from orchestrator.states import AttemptState, RunState, TaskState, WorkerState
from tests.unit.kernel_driver import GIB, SUCCESS, Driver, task

ASKED = Resources(1000, GIB)


def rebuilt(*rows: TaskRunRecord, attempts: tuple[AttemptRecord, ...] = ()) -> Kernel:
    plan = Plan((task("a"), task("b", "a"), task("c", "b")))
    ids = count(1)
    kernel = Kernel(KernelSettings(new_id=lambda: f"new{next(ids)}"), 50.0)
    kernel.load(
        Snapshot(
            runs=(RunRecord("r1", "tenant", RunState.RUNNING),),
            plans={"r1": plan},
            task_runs=rows,
            attempts=attempts,
            reservations=tuple(Reservation(a.id, a.host_id, a.worker_id, a.resources) for a in attempts),
            hosts=(HostRecord("a", "boot", Capacity(2000, 4 * GIB)),),
            workers=(
                WorkerRecord("w1", "a", "boot", WorkerState.ONLINE, frozenset({"cpu"}), 2, {}, "shared", 50.0, 7),
            ),
        ),
        50.0,
    )
    return kernel


def row(name: str, state: TaskState, **fields: Any) -> TaskRunRecord:
    return TaskRunRecord(f"r1.{name}", "r1", name, state, **fields)


def attempt(state: AttemptState, **fields: Any) -> AttemptRecord:
    return AttemptRecord("x", "r1", "r1.b", 1, "cpu", ASKED, "a", "w1", "token", state, **fields)


def test_a_ready_task_is_dispatched_by_the_new_leader() -> None:
    kernel = rebuilt(row("a", TaskState.SUCCESS), row("b", TaskState.READY), row("c", TaskState.PENDING))
    effects = [*decide(kernel, ReconcileDue(), 50.0), *decide(kernel, Tick(), 50.0)]
    assert [e.task for e in effects if isinstance(e, CreateAttempt)] == ["b"]
    assert not [e for e in effects if isinstance(e, Count)], "nothing had to be repaired"


def test_an_unclaimed_attempt_may_still_be_claimed_and_runs_on() -> None:
    kernel = rebuilt(
        row("a", TaskState.SUCCESS),
        row("b", TaskState.QUEUED, attempts=1, attempt_id="x"),
        row("c", TaskState.PENDING),
        attempts=(attempt(AttemptState.DISPATCHED, hinted_at=45.0),),
    )
    decide(kernel, ReconcileDue(), 50.0)
    effects = decide(kernel, ClaimReceived("w1", "x", 1, "n"), 50.0)
    assert [e.attempt.token for e in effects if isinstance(e, SendGrant)] == ["token"]


def test_a_running_attempt_reports_to_the_new_leader_and_its_downstream_goes_on() -> None:
    kernel = rebuilt(
        row("a", TaskState.SUCCESS),
        row("b", TaskState.RUNNING, attempts=1, attempt_id="x"),
        row("c", TaskState.PENDING),
        attempts=(attempt(AttemptState.RUNNING, nonce="n", granted_at=40.0),),
    )
    decide(kernel, ReconcileDue(), 50.0)
    decide(kernel, OutcomeReceived("w1", "x", "token", SUCCESS), 50.0)
    effects = decide(kernel, Tick(), 50.0)
    assert [e.task for e in effects if isinstance(e, CreateAttempt)] == ["c"]


def test_the_first_attempt_after_a_rebuild_takes_the_next_number() -> None:
    kernel = rebuilt(
        row("a", TaskState.RETRY_WAIT, attempts=2, failures=1, retry_at=60.0),
        row("b", TaskState.PENDING),
        row("c", TaskState.PENDING),
    )
    assert not [e for e in decide(kernel, Tick(), 59.0) if isinstance(e, CreateAttempt)]
    created = [e.attempt.number for e in decide(kernel, Tick(), 60.0) if isinstance(e, CreateAttempt)]
    assert created == [3]


def test_a_run_whose_last_task_ended_without_closing_it_is_closed() -> None:
    kernel = rebuilt(*(row(name, TaskState.SUCCESS) for name in "abc"))
    effects = decide(kernel, ReconcileDue(), 50.0)
    assert [(e.id, e.after) for e in effects if isinstance(e, Transition)] == [("r1", RunState.SUCCESS)]


def ended_worker(state: WorkerState) -> Kernel:
    kernel = Kernel(KernelSettings(new_id=lambda: "new"), 50.0)
    worker = WorkerRecord("w1", "a", "boot", state, frozenset({"cpu"}), 2, {}, "shared", 50.0, 7)
    kernel.load(Snapshot(hosts=(HostRecord("a", "boot", Capacity(2000, 4 * GIB)),), workers=(worker,)), 50.0)
    return kernel


@pytest.mark.parametrize("state", [WorkerState.LOST, WorkerState.DRAINED])
def test_an_old_heartbeat_of_an_ended_worker_does_not_bring_it_back(state: WorkerState) -> None:
    kernel = ended_worker(state)
    old = Heartbeat("w1", "a", "boot", "a", "w1", 7, ("cpu",), 2, Capacity(2000, 4 * GIB))
    assert decide(kernel, HeartbeatSeen(old), 51.0) == []
    assert kernel.workers["w1"].state is state


def test_a_lost_worker_that_speaks_again_is_online_and_its_row_says_no_end() -> None:
    kernel = ended_worker(WorkerState.LOST)
    new = Heartbeat("w1", "a", "boot", "a", "w1", 8, ("cpu",), 2, Capacity(2000, 4 * GIB))
    [back] = [e for e in decide(kernel, HeartbeatSeen(new), 51.0) if isinstance(e, Transition)]
    assert (back.before, back.after, back.changes) == (WorkerState.LOST, WorkerState.ONLINE, {"ended_at": None})


def test_reconcile_repairs_and_reports_what_events_have_missed() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"), task("b", "a"))
    driver.kernel.tasks["r1.b"].success = 1
    driver.feed(ReconcileDue())
    assert [(c.what, "counts of task b" in c.detail) for c in driver.of(Count)] == [("repaired", True)]
    assert driver.state("b") is TaskState.PENDING


def test_a_task_that_is_admitted_without_an_attempt_is_made_ready_again() -> None:
    kernel = rebuilt(row("a", TaskState.QUEUED, attempts=1), row("b", TaskState.PENDING), row("c", TaskState.PENDING))
    effects = [*decide(kernel, ReconcileDue(), 50.0), *decide(kernel, Tick(), 50.0)]
    assert [e.task for e in effects if isinstance(e, CreateAttempt)] == ["a"]


def test_a_reservation_without_an_attempt_is_released() -> None:
    driver = Driver()
    driver.worker()
    driver.kernel.ledger.take(Reservation("ghost", "a", "w1", ASKED))
    driver.feed(ReconcileDue())
    assert not driver.held()


def test_the_scheduler_can_ask_what_a_grant_is_for() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    attempt_ = driver.attempt("a")
    assert driver.kernel.task_of(attempt_) == ("r1", "tenant", "a")
    assert driver.kernel.planned(attempt_).name == "a"
    assert driver.kernel.holds_attempt(attempt_.id)
    assert driver.kernel.plan_of("r1").tasks[0].name == "a"
    assert driver.kernel.waiting() == {("queued", ""): 1}
    assert len(driver.kernel.reservations()) == 1


def test_settings_of_the_process_become_settings_of_the_kernel() -> None:
    from orchestrator.config import Settings

    settings = KernelSettings.of(Settings(heartbeat_interval_seconds=10, max_concurrent_runs=3), lambda: "id")
    assert (settings.lease, settings.max_runs, settings.redispatch) == (60.0, 3, 20.0)
