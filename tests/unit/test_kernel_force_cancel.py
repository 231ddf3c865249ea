"""Cancel: graceful with a grace, by force at once, asked twice; of a run and of a task."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.effects import Annotate, CloseCommand, Transition
from orchestrator.kernel import Kernel, Snapshot
from orchestrator.records import Outcome, PlannedTask
from orchestrator.states import AttemptState, Entity, RunState, TaskState
from tests.unit.kernel_driver import GIB, Driver, task
from tests.unit.written_driver import Written, mapped

CANCELLED = Outcome(AttemptState.CANCELLED, "cancelled")
TASKS = (task("setup"), task("work", "setup", grace=20.0), task("clean", "work", teardown=True, setups=("setup",)))


def at_work(*tasks: PlannedTask) -> Driver:
    """A run whose task ``work`` runs."""
    driver = Driver()
    driver.worker()
    driver.run(*(tasks or TASKS))
    driver.start("setup")
    driver.end("setup")
    driver.start("work")
    return driver


def graces(driver: Driver) -> list[float]:
    return [grace for _, grace in driver.kernel.desired("w1").cancel]


def cancel(driver: Driver, task_name: str | None = None, **payload: Any) -> str:
    driver.command("cancel", run_id="r1", task=task_name, payload=payload)
    return driver.of(CloseCommand)[0].result


def test_a_graceful_cancel_leaves_the_task_its_own_grace_or_the_one_given() -> None:
    driver = at_work()
    cancel(driver)
    assert graces(driver) == [20.0]
    driver = at_work()
    cancel(driver, grace_seconds=90)
    assert graces(driver) == [90.0]


@pytest.mark.parametrize("grace", [-1, "5", None, True])
def test_a_grace_that_is_none_is_passed_over(grace: object) -> None:
    driver = at_work()
    cancel(driver, grace_seconds=grace)
    assert graces(driver) == [20.0]


def test_force_kills_at_once() -> None:
    driver = at_work()
    cancel(driver, mode="force")
    assert graces(driver) == [0.0]
    assert driver.last("r1").reason == "force_cancelled"


def test_force_after_graceful_shortens_the_grace_and_never_the_other_way_round() -> None:
    driver = at_work()
    cancel(driver)
    cancel(driver, grace_seconds=60)
    assert graces(driver) == [20.0]
    cancel(driver, grace_seconds=5)
    assert graces(driver) == [5.0]
    cancel(driver, mode="force")
    assert graces(driver) == [0.0]
    cancel(driver)
    assert graces(driver) == [0.0]


def test_asking_twice_changes_nothing() -> None:
    driver = at_work()
    cancel(driver)
    cancel(driver)
    assert not driver.of(Transition)
    assert not driver.of(Annotate)


def test_a_graceful_cancel_tears_down_and_force_does_not() -> None:
    driver = at_work()
    cancel(driver)
    driver.end("work", CANCELLED)
    assert driver.state("clean") is TaskState.QUEUED
    driver = at_work()
    cancel(driver, mode="force")
    assert driver.state("clean") is TaskState.CANCELLED
    driver.end("work", CANCELLED)
    assert driver.run_state() is RunState.CANCELLED


def test_force_ends_a_teardown_that_runs_already() -> None:
    driver = at_work()
    cancel(driver)
    driver.end("work", CANCELLED)
    driver.start("clean")
    cancel(driver, mode="force")
    assert driver.state("clean") is TaskState.CANCELLING
    assert graces(driver) == [0.0]
    driver.end("clean", CANCELLED)
    assert driver.run_state() is RunState.CANCELLED


def test_one_task_is_killed_by_force_and_the_run_goes_on() -> None:
    driver = at_work(task("setup"), task("work", "setup"), task("side"))
    cancel(driver, "work", mode="force")
    assert graces(driver) == [0.0]
    assert driver.run_state() is RunState.RUNNING


def test_the_reason_that_was_given_is_told() -> None:
    driver = at_work()
    cancel(driver, reason="wrong data")
    assert driver.last("r1").message == "ann: wrong data"


@pytest.mark.parametrize("is_new", [False, True], ids=["the same leader", "a new leader"])
@pytest.mark.parametrize("outcome", [CANCELLED, Outcome(AttemptState.SUCCEEDED)], ids=lambda one: one.state)
def test_who_has_cancelled_it_and_why_is_told_of_what_has_ended(is_new: bool, outcome: Outcome) -> None:
    driver = Written()
    driver.worker()
    driver.run(task("a"), mapped("m", over=[1], memory=GIB), task("z", "a"))
    for name in ("a", "m[0]"):
        driver.start_of(name, "r1")
    driver.ask("cancel", reason="wrong data")
    if is_new:
        driver.take_over()
        driver.beat(running={a.id: a.token for a in driver.kernel.attempts.values()})
    for name in ("a", "m[0]"):
        driver.end_of(name, "r1", outcome)
    run = driver.store.runs["r1"]
    assert (run.state, run.reason, run.message) == (RunState.CANCELLED, "cancelled", "ann: wrong data")
    told = {row.name: (row.state, row.message) for row in driver.rows_of()}
    assert told == dict.fromkeys(("a", "m", "m[0]", "z"), (TaskState.CANCELLED, "Its run is stopped. ann: wrong data"))


def test_who_has_cancelled_one_task_without_a_reason_is_told_of_it_too() -> None:
    driver = Written()
    driver.worker()
    driver.run(task("a"), task("b"))
    driver.start_of("a", "r1")
    driver.ask("cancel", task="a")
    driver.end_of("a", "r1", CANCELLED)
    assert driver.row("a").message == "ann has cancelled it."
    driver.finish("b")
    assert driver.store.runs["r1"].message == "Task a was cancelled."


def test_the_wait_for_a_lost_worker_is_no_part_of_what_the_end_tells() -> None:
    driver = Written()
    driver.worker()
    driver.run(task("a", on_worker_loss="adopt"))
    driver.start_of("a", "r1")
    driver.now += 60.0
    driver.tick()
    driver.ask("cancel", reason="wrong data")
    assert "Its worker is lost" in driver.row("a").message
    driver.take_over()
    driver.now += 4000.0
    driver.worker("w2", boot_id="another")
    driver.tick()
    assert (driver.state("a"), driver.row("a").message) == (TaskState.CANCELLED, "Its run is stopped. ann: wrong data")


def test_a_new_leader_knows_the_grace_and_the_force() -> None:
    driver = at_work()
    cancel(driver)
    cancel(driver, mode="force")
    columns = [effect.changes for effect in driver.all_of(Annotate) if effect.entity is Entity.ATTEMPT]
    assert columns[-1] == {"cancel_grace": 0.0}
    rows = driver.rows()
    told = [effect for effect in driver.all_of(Annotate) if effect.id == "r1"]
    assert told[-1].changes["reason"] == "force_cancelled"
    old = driver.kernel
    driver.kernel = Kernel(old.settings, driver.now)
    driver.kernel.load(
        Snapshot(
            runs=(rows.run,),
            plans={"r1": rows.plan},
            task_runs=rows.tasks,
            attempts=tuple(old.attempts.values()),
            reservations=old.reservations(),
            workers=tuple(old.workers.values()),
        ),
        driver.now,
    )
    driver.beat("w1")
    assert graces(driver) == [0.0]


def test_force_after_the_deadline_of_the_run_kills_its_teardown_too() -> None:
    driver = Driver()
    driver.worker()
    driver.run(*TASKS, plan={"deadline": 60.0})
    driver.start("setup")
    driver.end("setup")
    driver.start("work")
    for _ in range(12):
        driver.now += 5.0
        driver.beat("w1")
    driver.tick()
    assert driver.last("r1").reason == "run_deadline"
    driver.end("work", CANCELLED)
    assert driver.state("clean") is TaskState.QUEUED, "it tears down all the same"
    cancel(driver, mode="force")
    assert driver.state("clean") is TaskState.CANCELLED
    assert driver.run_state() is RunState.CANCELLED
