"""Deadlines of drains, adopted attempts and runs that are left alone: what the rows keep for the next leader."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from orchestrator.effects import Annotate, Reserve, SaveWorker
from orchestrator.kernel import Snapshot
from orchestrator.records import Plan, Reservation
from orchestrator.states import AttemptState, Entity, WorkerState
from orchestrator.store.engine import create_store_engine
from orchestrator.store.loader import load_commands, load_snapshot
from orchestrator.store.plans import PlanCache
from orchestrator.store.worker_queries import get_worker
from tests.integration.seeded_runs import planned, seed_run
from tests.integration.test_writer import RESOURCES, commit, granted_attempt, heartbeat, rows, started

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


def loaded(engine: Engine, now: float = 100_000.0) -> Snapshot:
    with engine.connect() as connection:
        return load_snapshot(connection, PlanCache(), now)


def test_the_next_leader_knows_the_deadline_of_a_drain(engine: Engine) -> None:
    commit(engine, SaveWorker(heartbeat(), joined=True))
    commit(
        engine,
        Annotate(Entity.WORKER, "worker", WorkerState.ONLINE, {"draining": True, "drain_until": ("in", 600.0)}),
    )
    [worker] = loaded(engine).workers
    assert worker.draining
    assert worker.drain_until == pytest.approx(100_600.0, abs=30)


def test_a_drain_that_was_taken_back_has_no_deadline(engine: Engine) -> None:
    commit(engine, SaveWorker(heartbeat(), joined=True))
    commit(engine, Annotate(Entity.WORKER, "worker", WorkerState.ONLINE, {"drain_until": ("in", 600.0)}))
    commit(engine, Annotate(Entity.WORKER, "worker", WorkerState.ONLINE, {"draining": False, "drain_until": None}))
    assert rows(engine, "SELECT drain_until FROM workers") == [(None,)]
    [worker] = loaded(engine).workers
    assert worker.drain_until is None


def test_the_next_leader_knows_orphans_and_since_when(engine: Engine) -> None:
    _, attempt = granted_attempt(engine)
    commit(engine, Annotate(Entity.ATTEMPT, attempt.id, AttemptState.RUNNING, {"orphaned_at": ("in", 0.0)}))
    with engine.begin() as connection:
        connection.execute(text("UPDATE attempts SET orphaned_at = orphaned_at - interval '100 seconds'"))
    [found] = loaded(engine).attempts
    assert found.keeper_id == ""
    assert found.orphaned_at == pytest.approx(99_900.0, abs=30)


def test_the_next_leader_knows_who_keeps_an_attempt(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    commit(engine, SaveWorker(heartbeat(), joined=True), SaveWorker(heartbeat("keeper"), joined=True))
    commit(engine, Annotate(Entity.ATTEMPT, attempt.id, AttemptState.RUNNING, {"orphaned_at": ("in", 0.0)}))
    commit(
        engine,
        Annotate(Entity.ATTEMPT, attempt.id, AttemptState.RUNNING, {"keeper_id": "keeper", "orphaned_at": None}),
        Reserve(Reservation(attempt.id, "host", "keeper", RESOURCES, ("GPU-1",))),
    )
    [found] = loaded(engine).attempts
    assert (found.worker_id, found.keeper_id, found.owner_id, found.orphaned_at) == (
        "worker",
        "keeper",
        "keeper",
        None,
    )
    with engine.connect() as connection:
        keeper = get_worker(connection, run.tenant_id, "keeper")
        ran_it = get_worker(connection, run.tenant_id, "worker")
    assert [held["id"] for held in keeper["running"]] == [attempt.id]
    assert (keeper["slots_used"], ran_it["running"], ran_it["slots_used"]) == (1, [], 0)


def test_a_running_run_with_an_unreadable_plan_is_left_alone_with_all_that_is_of_it(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    other = seed_run(engine, plan=Plan((planned("only"),)))
    commit(engine, started(other))
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE pipeline_versions SET plan = '{\"format\": 99}' "
                "WHERE id = (SELECT version_id FROM runs WHERE id = :id)"
            ),
            {"id": run.id},
        )
        connection.execute(
            text("INSERT INTO commands (tenant_id, kind, actor, run_id) VALUES (:t, 'cancel', 'me', :r)"),
            {"t": run.tenant_id, "r": run.id},
        )
        connection.execute(
            text("INSERT INTO commands (tenant_id, kind, actor, worker_id) VALUES (:t, 'drain', 'me', 'w')"),
            {"t": run.tenant_id},
        )
    snapshot = loaded(engine)
    assert [found.id for found in snapshot.runs] == [other.id]
    assert {task.run_id for task in snapshot.task_runs} == {other.id}
    assert not snapshot.attempts
    assert snapshot.left_alone == {attempt.id}
    assert "format 99" in snapshot.unreadable[run.id]
    assert [held.attempt_id for held in snapshot.reservations] == [attempt.id]
    with engine.connect() as connection:
        assert [command.kind for command in load_commands(connection, left_alone=snapshot.unreadable)] == ["drain"]
        assert len(load_commands(connection)) == 2
