"""``cancel_running``: nothing that runs is stopped for a newcomer that could not take its place now."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.events import Tick
from orchestrator.records import ConcurrencyLimit, Outcome, PlannedTask, RateLimit
from orchestrator.states import AttemptState, TaskState
from tests.unit.kernel_driver import GIB
from tests.unit.kernel_driver import task as planned
from tests.unit.written_driver import Written

CANCELLED = Outcome(AttemptState.CANCELLED, "cancelled")
DOWN = Outcome(AttemptState.FAILED, "unreachable", retryable=False)
WINS = ConcurrencyLimit("k", 1, "cancel_running")


def wins(name: str, *others: ConcurrencyLimit, **fields: Any) -> PlannedTask:
    return planned(name, concurrency=(WINS, *others), **fields)


def old_runs(*tasks: PlannedTask, **settings: Any) -> Written:
    """Start a task of a first run that holds the slot, and others beside it."""
    driver = Written(max_runs=50, **settings)
    driver.worker(slots=50, cpu=100_000, memory=100 * GIB)
    driver.run(wins("old"), *tasks, order=1)
    driver.start_of("old", "r1")
    return driver


def gives_way(driver: Written) -> None:
    """Check that the old one is stopped for the new one, which starts then."""
    assert driver.told("old") == (TaskState.CANCELLING, "displaced")
    driver.end_of("old", "r1", CANCELLED)
    assert driver.told("new", "r2")[0] is TaskState.QUEUED


def test_nothing_is_stopped_for_a_newcomer_that_no_worker_can_take() -> None:
    driver = old_runs()
    driver.run(wins("new", gpus=8), run_id="r2", order=2)
    assert driver.state("old") is TaskState.RUNNING
    assert driver.told("new", "r2") == (TaskState.READY, "infeasible")
    driver.worker("w2", host="b", cpu=100_000, memory=100 * GIB, gpus=8)
    driver.feed(Tick())
    gives_way(driver)


def test_nothing_is_stopped_for_a_newcomer_whose_service_is_away() -> None:
    using: dict[str, Any] = {"connections": ("warehouse",)}
    driver = old_runs(*(planned(f"t{n}", **using) for n in range(5)), breaker=True)
    for n in range(5):
        driver.finish(f"t{n}", outcome=DOWN)
    driver.run(wins("new", **using), run_id="r2", order=2)
    assert driver.state("old") is TaskState.RUNNING
    assert driver.told("new", "r2") == (TaskState.READY, "service_open")
    driver.tick(after=40.0)
    gives_way(driver)


def test_nothing_is_stopped_for_a_newcomer_whose_rate_is_used_up() -> None:
    rate: dict[str, Any] = {"rate_limit": RateLimit("rate", 1, 60.0)}
    driver = old_runs(planned("other", **rate))
    driver.run(wins("new", **rate), run_id="r2", order=2)
    assert driver.state("old") is TaskState.RUNNING
    assert driver.told("new", "r2") == (TaskState.READY, "rate_limit")
    driver.tick(after=70.0)
    gives_way(driver)


def test_nothing_is_stopped_for_a_newcomer_that_waits_for_another_slot() -> None:
    other = ConcurrencyLimit("licence", 1)
    driver = old_runs(planned("holder", concurrency=(other,)))
    driver.run(wins("new", other), run_id="r2", order=2)
    assert driver.state("old") is TaskState.RUNNING
    assert driver.told("new", "r2") == (TaskState.READY, "concurrency")
    driver.finish("holder")
    gives_way(driver)


@pytest.mark.parametrize(("on_limit", "state"), [("cancel_new", TaskState.CANCELLED), ("fail", TaskState.FAILED)])
def test_nothing_is_stopped_for_a_newcomer_that_another_limit_ends(on_limit: str, state: TaskState) -> None:
    driver = old_runs(planned("holder", concurrency=(ConcurrencyLimit("licence", 1),)))
    driver.run(wins("new", ConcurrencyLimit("licence", 1, on_limit)), run_id="r2", order=2)
    assert driver.told("new", "r2") == (state, "concurrency")
    assert driver.state("old") is TaskState.RUNNING


def test_a_newcomer_that_may_go_takes_the_place() -> None:
    driver = old_runs()
    driver.run(wins("new"), run_id="r2", order=2)
    assert driver.told("new", "r2") == (TaskState.READY, "concurrency")
    gives_way(driver)


def test_a_newcomer_waits_for_no_other_slot_that_the_older_one_gives_up_with_its_own() -> None:
    pool = ConcurrencyLimit("pool", 2)
    driver = Written(max_runs=50)
    driver.worker(slots=50, cpu=100_000, memory=100 * GIB)
    driver.run(wins("old", pool), planned("beside", concurrency=(pool,)), order=1)
    driver.start_of("old", "r1")
    driver.run(wins("new", pool), run_id="r2", order=2)
    gives_way(driver)
