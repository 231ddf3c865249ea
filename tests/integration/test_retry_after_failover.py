"""What the next leader makes of a retry's time, though the database's clock may have jumped since it was set (I14)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from orchestrator.effects import CreateAttempt, Transition
from orchestrator.records import AttemptRecord, Resources, TaskRunRecord
from orchestrator.states import AttemptState, Entity, RunState, TaskState
from orchestrator.store.engine import create_store_engine
from orchestrator.store.loader import load_snapshot
from orchestrator.store.plans import PlanCache
from orchestrator.store.writer import write
from tests.integration.seeded_runs import SeededRun, seed_run

pytestmark = pytest.mark.timeout(60)

NOW = 1000.0
DELAY = 0.2
SLACK = 30.0
"""Seconds that a busy machine may take between two statements."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


def test_a_clock_that_went_back_an_hour_costs_a_retry_no_more_than_its_own_delay(engine: Engine) -> None:
    run = wait_for_retry(engine, DELAY)
    shift(engine, "+1 hour")  # what a clock would have written that was an hour ahead of this one
    assert NOW < due(engine, run) <= NOW + DELAY + SLACK


def test_a_clock_that_went_ahead_an_hour_makes_a_retry_due_at_once(engine: Engine) -> None:
    run = wait_for_retry(engine, 600.0)
    shift(engine, "-1 hour")
    assert due(engine, run) <= NOW


def test_without_a_jump_what_is_left_of_the_delay_is_waited(engine: Engine) -> None:
    run = wait_for_retry(engine, 600.0)
    shift(engine, "-100 seconds")  # as much as has passed since
    assert NOW + 500.0 - SLACK <= due(engine, run) <= NOW + 500.0 + SLACK


def test_the_delay_of_the_last_try_counts_not_that_of_an_earlier_one(engine: Engine) -> None:
    run = wait_for_retry(engine, 600.0)
    shift(engine, "-1 hour")
    write_effects(engine, move(run, TaskState.RETRY_WAIT, TaskState.READY))
    fail(engine, run, number=2, delay=DELAY)
    shift(engine, "+2 hours")
    assert NOW < due(engine, run) <= NOW + DELAY + SLACK


def wait_for_retry(engine: Engine, delay: float) -> SeededRun:
    """Start a run whose first task has failed and waits for its second try."""
    run = seed_run(engine)
    write_effects(
        engine,
        Transition(Entity.RUN, run.id, RunState.QUEUED, RunState.RUNNING, "admission", run_id=run.id),
        move(run, TaskState.PENDING, TaskState.READY),
    )
    fail(engine, run, number=1, delay=delay)
    return run


def fail(engine: Engine, run: SeededRun, *, number: int, delay: float) -> None:
    """Give the first task a try that fails, in the two transactions of a leader."""
    tried = AttemptRecord(
        id=str(uuid.uuid4()),
        run_id=run.id,
        task_run_id=run.tasks["a"],
        number=number,
        queue="cpu",
        resources=Resources(cpu=500, memory=2**30),
        host_id="host",
        worker_id="worker",
        token=str(uuid.uuid4()),
        state=AttemptState.RUNNING,
    )
    write_effects(
        engine,
        CreateAttempt(tried, run.tenant_id, "a"),
        move(run, TaskState.READY, TaskState.RUNNING, attempts=number, attempt_id=tried.id),
    )
    write_effects(
        engine,
        Transition(
            Entity.ATTEMPT,
            tried.id,
            AttemptState.RUNNING,
            AttemptState.FAILED,
            "outcome",
            run_id=run.id,
            token=tried.token,
        ),
        move(run, TaskState.RUNNING, TaskState.RETRY_WAIT, retry_at=("in", delay), failures=number, attempt_id=None),
    )


def move(run: SeededRun, before: TaskState, after: TaskState, **changes: object) -> Transition:
    return Transition(Entity.TASK_RUN, run.tasks["a"], before, after, "test", run_id=run.id, task="a", changes=changes)


def write_effects(engine: Engine, *effects: Transition | CreateAttempt) -> None:
    with engine.begin() as connection:
        write(connection, effects, epoch=7)


def shift(engine: Engine, by: str) -> None:
    """Write what a clock that was so far off would have written so far."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE task_runs SET retry_at = retry_at + CAST(:by AS interval)"), {"by": by})
        connection.execute(text("UPDATE attempts SET ended_at = ended_at + CAST(:by AS interval)"), {"by": by})


def due(engine: Engine, run: SeededRun) -> float:
    """Return when a new leader tries the task again, on its own clock, which shows ``NOW``."""
    with engine.connect() as connection:
        snapshot = load_snapshot(connection, PlanCache(), now=NOW)
    found: dict[str, TaskRunRecord] = {task.name: task for task in snapshot.task_runs if task.run_id == run.id}
    assert found["a"].state is TaskState.RETRY_WAIT
    assert found["a"].retry_at is not None
    return found["a"].retry_at
