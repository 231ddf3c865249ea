"""Drains: deadlines, and what a leaving worker preempts is never sent back to it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.effects import Annotate, CloseCommand
from orchestrator.events import HeartbeatSeen, WorkerLeft
from orchestrator.records import Outcome
from orchestrator.states import AttemptState, Entity, WorkerState
from tests.unit.kernel_driver import Driver, task

PREEMPTED = Outcome(AttemptState.PREEMPTED, "preempted", infrastructure=True)


def running() -> Driver:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.start("a")
    return driver


def drain(driver: Driver, **payload: Any) -> str:
    driver.command("drain", worker_id="w1", payload=payload)
    return driver.of(CloseCommand)[0].result


def noted(driver: Driver) -> list[dict[str, Any]]:
    """Return what the latest call has changed in workers' rows."""
    return [dict(note.changes) for note in driver.of(Annotate) if note.entity is Entity.WORKER]


def test_a_drain_with_a_deadline_tells_the_worker_until_when_it_may_wait() -> None:
    driver = running()
    assert "what it still runs in 60 s goes elsewhere" in drain(driver, deadline_seconds=60)
    assert noted(driver) == [{"draining": True, "drain_until": ("in", 60.0)}]
    wanted = driver.kernel.desired("w1")
    assert (wanted.drain, wanted.drain_until) == (True, driver.now + 60)


def test_a_drain_without_a_deadline_leaves_it_to_the_worker() -> None:
    driver = running()
    assert "ends when its attempts have ended" in drain(driver)
    assert noted(driver) == [{"draining": True}]
    assert driver.kernel.desired("w1").drain_until is None


def test_a_second_drain_with_another_deadline_replaces_the_first() -> None:
    driver = running()
    drain(driver, deadline_seconds=3600)
    driver.now += 10
    drain(driver, deadline_seconds=0)
    assert noted(driver) == [{"drain_until": ("in", 0.0)}]
    assert driver.kernel.desired("w1").drain_until == driver.now
    drain(driver)
    assert driver.kernel.desired("w1").drain_until == driver.now, "one that names no deadline takes none away"


def test_the_deadline_outlives_heartbeats_and_a_taken_back_drain_has_none() -> None:
    driver = running()
    drain(driver, deadline_seconds=60)
    until = driver.kernel.desired("w1").drain_until
    driver.now += 5
    driver.beat("w1", draining=True)
    assert driver.kernel.desired("w1").drain_until == until
    driver.command("undrain", worker_id="w1")
    assert noted(driver) == [{"draining": False, "drain_until": None}]
    wanted = driver.kernel.desired("w1")
    assert (wanted.drain, wanted.drain_until) == (False, None)


def test_a_preempted_attempt_is_not_sent_back_before_the_heartbeat_that_says_its_worker_leaves() -> None:
    driver = running()
    driver.end("a", PREEMPTED)
    driver.tick(after=30)
    assert driver.kernel.workers["w1"].state is WorkerState.DRAINING
    assert not driver.dispatched()


def test_a_heartbeat_from_before_the_preemption_does_not_bring_its_worker_back() -> None:
    driver = running()
    driver.end("a", PREEMPTED)
    driver.beat("w1", running={})
    driver.tick(after=2)
    assert not driver.dispatched()
    driver.beat("w1", draining=True)
    driver.tick(after=5)
    assert not driver.dispatched()
    driver.feed(WorkerLeft("w1"))
    assert driver.state("a") == "ready"


def test_a_worker_that_preempts_and_then_stays_is_given_work_again() -> None:
    driver = running()
    driver.end("a", PREEMPTED)
    driver.beat("w1", running={})
    driver.now += 5
    driver.beat("w1")
    driver.tick()
    assert driver.dispatched() == ["a"]


def test_an_undrained_worker_is_believed_at_once() -> None:
    driver = running()
    drain(driver, deadline_seconds=0)
    driver.end("a", PREEMPTED)
    driver.tick(after=5)
    driver.command("undrain", worker_id="w1")
    assert driver.dispatched() == ["a"]


def test_what_a_leaving_worker_had_not_claimed_goes_elsewhere_with_its_first_preemption() -> None:
    driver = Driver()
    driver.worker("w1", host="a")
    driver.run(task("a"), task("b"))
    driver.start("a")
    driver.worker("w2", host="b")
    assert driver.attempt("b").worker_id == "w1"
    driver.end("a", PREEMPTED)
    assert driver.attempt("b").worker_id == "w2"


def test_a_preemption_reported_after_the_goodbye_changes_nothing_of_the_worker() -> None:
    driver = running()
    driver.kernel.admit(driver.kernel.workers["w1"])
    attempt = driver.attempt("a")
    driver.feed(WorkerLeft("w1"))
    driver.feed(HeartbeatSeen(driver.beats["w1"]))
    assert driver.kernel.workers["w1"].state is WorkerState.DRAINED
    assert attempt.id not in driver.held()


@pytest.mark.parametrize("payload", [{"deadline_seconds": -1}, {"deadline_seconds": "soon"}])
def test_a_deadline_that_makes_no_sense_is_none(payload: dict[str, Any]) -> None:
    driver = running()
    drain(driver, **payload)
    assert driver.kernel.desired("w1").drain_until is None
