"""What the leader writes: compare-and-set, in bulk, audited; and what it reads back."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from orchestrator.effects import (
    Annotate,
    CloseCommand,
    Count,
    CreateAttempt,
    Release,
    Reserve,
    RowEffect,
    SaveOutcome,
    SaveWorker,
    Transition,
)
from orchestrator.errors import StaleMemory
from orchestrator.events import OutcomeReceived
from orchestrator.records import (
    AttemptRecord,
    Capacity,
    GpuDevice,
    Heartbeat,
    Outcome,
    Plan,
    Reservation,
    Resources,
    Usage,
)
from orchestrator.states import AttemptState, Entity, RunState, TaskState, WorkerState
from orchestrator.store.engine import create_store_engine
from orchestrator.store.loader import load_attempts, load_commands, load_queued_runs, load_runs, load_snapshot
from orchestrator.store.plans import PlanCache
from orchestrator.store.writer import write
from scheduler.registered_models import settle_registrations
from tests.integration.seeded_runs import SeededRun, planned, seed_run

pytestmark = pytest.mark.timeout(60)

RESOURCES = Resources(cpu=500, memory=2**30, gpus=1, gpu_memory=2**33)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


def commit(engine: Engine, *effects: RowEffect) -> None:
    with engine.begin() as connection:
        write(connection, effects, epoch=7)


def rows(engine: Engine, query: str, **values: Any) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(query), values).all())


def started(run: SeededRun) -> Transition:
    return Transition(Entity.RUN, run.id, RunState.QUEUED, RunState.RUNNING, "admission", run_id=run.id)


def moved(run: SeededRun, task: str, before: TaskState, after: TaskState, **changes: Any) -> Transition:
    return Transition(
        Entity.TASK_RUN, run.tasks[task], before, after, "test", run_id=run.id, task=task, changes=changes
    )


def dispatched(run: SeededRun, task: str, *, number: int = 1, worker: str = "worker") -> AttemptRecord:
    return AttemptRecord(
        id=str(uuid.uuid4()),
        run_id=run.id,
        task_run_id=run.tasks[task],
        number=number,
        queue="cpu",
        resources=RESOURCES,
        host_id="host",
        worker_id=worker,
        token=str(uuid.uuid4()),
        devices=("GPU-1",),
    )


def heartbeat(worker: str = "worker", seq: int = 1) -> Heartbeat:
    return Heartbeat(
        worker_id=worker,
        host_id="host",
        boot_id="boot",
        hostname="hostname",
        name=f"celery@{worker}",
        seq=seq,
        queues=("cpu", "highmem"),
        slots=2,
        capacity=Capacity(4000, 2**34, (GpuDevice("GPU-1", "H200", 2**37),)),
        labels={"zone": "a"},
        version="1",
    )


def test_the_path_of_a_task_is_written_with_its_audit(engine: Engine) -> None:
    run = seed_run(engine)
    attempt = dispatched(run, "a")
    commit(
        engine,
        started(run),
        moved(run, "a", TaskState.PENDING, TaskState.READY),
        CreateAttempt(attempt, run.tenant_id, "a"),
        Reserve(Reservation(attempt.id, "host", "worker", RESOURCES, ("GPU-1",))),
        moved(run, "a", TaskState.READY, TaskState.QUEUED, attempts=1, attempt_id=attempt.id),
    )
    [task] = rows(engine, "SELECT * FROM task_runs WHERE name = 'a'")
    assert (task.state, task.attempts, task.attempt_id) == ("queued", 1, attempt.id)
    assert task.ready_at is not None
    assert task.queued_at is not None
    assert task.started_at is None
    [row] = rows(engine, "SELECT * FROM attempts")
    assert (row.state, row.devices, row.gpu_memory, row.seq) == ("dispatched", ["GPU-1"], 2**33, 1)
    [(run_state, began)] = rows(engine, "SELECT state, started_at IS NOT NULL FROM runs")
    assert (run_state, began) == ("running", True)
    audit = rows(engine, "SELECT entity, before, after, epoch, tenant_id, task FROM events ORDER BY id")
    assert [(e.entity, e.before, e.after) for e in audit] == [
        ("run", "queued", "running"),
        ("task_run", "pending", "ready"),
        ("attempt", None, "dispatched"),
        ("task_run", "ready", "queued"),
    ]
    assert {e.epoch for e in audit} == {7}
    assert {e.tenant_id for e in audit} == {run.tenant_id}


def told(engine: Engine) -> list[tuple[Any, ...]]:
    """Return what the audit says besides transitions."""
    found = rows(engine, "SELECT entity, before, after, detail FROM events WHERE detail IS NOT NULL ORDER BY id")
    return [(row.entity, row.before, row.after, row.detail) for row in found]


CHARGE = {
    "host": "host",
    "worker": "worker",
    "cpu": 500,
    "memory": 2**30,
    "gpus": 1,
    "gpu_memory": 2**33,
    "devices": ["GPU-1"],
}


def test_the_audit_tells_where_an_attempt_is_charged_wherever_it_moves(engine: Engine) -> None:
    run = seed_run(engine)
    attempt = dispatched(run, "a")
    held = Reservation(attempt.id, "host", "worker", RESOURCES, ("GPU-1",))
    commit(engine, CreateAttempt(attempt, run.tenant_id, "a"), Reserve(held))
    assert told(engine) == [("attempt", None, "dispatched", CHARGE)]
    commit(engine, Reserve(replace(held, worker_id="another"), attempt, "a"))
    commit(engine, Reserve(held, attempt, "a"), claimed(run, attempt))
    assert told(engine)[1:] == [
        ("attempt", "dispatched", "dispatched", {**CHARGE, "worker": "another"}),
        ("attempt", "dispatched", "running", CHARGE),
    ]
    assert rows(engine, "SELECT count(*) FROM events WHERE run_id = :id", id=run.id) == [(3,)], "one row for each"


def test_the_audit_tells_what_is_held_after_the_end_of_an_attempt_until_it_is_released(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    before = len(told(engine))
    held = Reservation(attempt.id, "host", "worker", RESOURCES, ("GPU-1",), zombie=True)
    lost = Transition(
        Entity.ATTEMPT, attempt.id, AttemptState.RUNNING, AttemptState.LOST, "lease", run_id=run.id, token=attempt.token
    )
    commit(engine, lost, Reserve(held))
    commit(engine, Release(attempt.id, held))
    assert told(engine)[before:] == [
        ("attempt", "running", "lost", {"held": True, **CHARGE}),
        ("reservation", "held", "released", CHARGE),
    ]


def test_the_audit_tells_the_size_of_a_host_when_a_worker_joins_and_when_it_changes(engine: Engine) -> None:
    size = {"host": "host", "cpu": 4000, "memory": 2**34, "gpus": ["GPU-1"], "slots": 2}
    commit(engine, SaveWorker(heartbeat(), joined=True, resized=True))
    commit(engine, SaveWorker(heartbeat(seq=2), joined=False))
    smaller = replace(heartbeat(seq=3), capacity=Capacity(2000, 2**34))
    commit(engine, SaveWorker(smaller, joined=False, resized=True))
    assert told(engine) == [
        ("worker", None, "online", size),
        ("host", None, "resized", {**size, "cpu": 2000, "gpus": []}),
    ]


def test_the_audit_tells_which_ends_are_blamed_on_the_infrastructure(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    before = len(told(engine))
    outcome = Outcome(AttemptState.FAILED, "supervisor_died", infrastructure=True)
    commit(engine, *ending(run, attempt, outcome, AttemptState.FAILED, TaskState.READY))
    assert told(engine)[before:] == [("attempt", "running", "failed", {"infrastructure": True})]


def test_an_outcome_publishes_outputs_and_registers_models(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    record = {"kind": "model", "name": "m", "version": "1", "digest": "d", "uri": "artifact://m", "metrics": {"f1": 1}}
    outcome = Outcome(
        AttemptState.SUCCEEDED,
        exit_code=0,
        outputs={"dataset": {"uri": "artifact://x"}},
        records=(record, {"kind": "other"}),
        usage=Usage(peak_memory=5, cpu_seconds=1.5, wall_seconds=2.5, gpu_memory=7),
    )
    commit(engine, *ending(run, attempt, outcome, AttemptState.SUCCEEDED, TaskState.SUCCESS))
    [task] = rows(engine, "SELECT * FROM task_runs WHERE name = 'a'")
    assert task.outputs == {"dataset": {"uri": "artifact://x"}}
    assert task.attempt_id is None
    assert task.ended_at is not None
    [row] = rows(engine, "SELECT * FROM attempts")
    assert (row.exit_code, row.peak_memory, row.cpu_seconds, row.gpu_memory_used) == (0, 5, 1.5, 7)
    [model] = rows(engine, "SELECT * FROM models")
    assert (model.name, model.version, model.stage, model.metrics, model.task) == ("m", "1", "none", {"f1": 1}, "a")
    assert (model.tenant_id, model.run_id) == (run.tenant_id, run.id)
    assert rows(engine, "SELECT * FROM reservations") == []


def test_an_outcome_that_is_not_published_leaves_no_outputs(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    outcome = Outcome(AttemptState.SUCCEEDED, outputs={"x": 1}, records=({"kind": "model", "name": "m"},))
    commit(
        engine,
        *ending(run, attempt, outcome, AttemptState.SUCCEEDED, TaskState.CANCELLED, publish=False),
    )
    assert rows(engine, "SELECT outputs FROM task_runs WHERE name = 'a'") == [(None,)]
    assert rows(engine, "SELECT * FROM models") == []


def test_a_row_in_another_state_refuses_the_whole_transaction(engine: Engine) -> None:
    run = seed_run(engine)
    with pytest.raises(StaleMemory):
        commit(engine, started(run), moved(run, "a", TaskState.READY, TaskState.QUEUED))
    assert rows(engine, "SELECT state FROM runs") == [("queued",)]
    assert rows(engine, "SELECT * FROM events") == []


def test_another_token_refuses_the_transaction(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    forged = Transition(
        Entity.ATTEMPT, attempt.id, AttemptState.RUNNING, AttemptState.SUCCEEDED, "outcome", run_id=run.id, token="x"
    )
    with pytest.raises(StaleMemory):
        commit(engine, forged)


def test_effects_that_contradict_each_other_are_refused(engine: Engine) -> None:
    run = seed_run(engine)
    with pytest.raises(StaleMemory):
        commit(
            engine,
            moved(run, "a", TaskState.PENDING, TaskState.READY),
            moved(run, "a", TaskState.PENDING, TaskState.SKIPPED),
        )


def test_an_attempt_may_come_and_go_in_one_transaction(engine: Engine) -> None:
    run = seed_run(engine)
    first, second = dispatched(run, "a"), dispatched(run, "a", number=2)
    commit(
        engine,
        CreateAttempt(first, run.tenant_id, "a"),
        Transition(
            Entity.ATTEMPT,
            first.id,
            AttemptState.DISPATCHED,
            AttemptState.EXPIRED,
            "lease",
            reason="worker_lost",
            run_id=run.id,
            token=first.token,
        ),
        CreateAttempt(second, run.tenant_id, "a"),
    )
    found = rows(engine, "SELECT number, state, reason, ended_at IS NOT NULL FROM attempts ORDER BY number")
    assert [tuple(row) for row in found] == [(1, "expired", "worker_lost", True), (2, "dispatched", "", False)]


def test_rows_of_different_shape_keep_what_they_do_not_change(engine: Engine) -> None:
    run = seed_run(engine)
    commit(
        engine,
        Annotate(Entity.TASK_RUN, run.tasks["a"], TaskState.PENDING, {"reason": "capacity", "failures": 2}),
        Annotate(Entity.TASK_RUN, run.tasks["b"], TaskState.PENDING, {"losses": 1, "retry_at": ("in", 60)}),
    )
    found = rows(
        engine,
        "SELECT name, reason, failures, losses, "
        "retry_at - clock_timestamp() BETWEEN interval '50 s' AND interval '60 s' "
        "FROM task_runs WHERE name IN ('a', 'b') ORDER BY name",
    )
    assert [tuple(row) for row in found] == [("a", "capacity", 2, 0, None), ("b", "", 0, 1, True)]
    commit(engine, Annotate(Entity.TASK_RUN, run.tasks["b"], TaskState.PENDING, {"retry_at": None}))
    assert rows(engine, "SELECT retry_at FROM task_runs WHERE name = 'b'") == [(None,)]


def test_an_unknown_column_is_refused(engine: Engine) -> None:
    run = seed_run(engine)
    with pytest.raises(ValueError, match="tenant_id"):
        commit(engine, Annotate(Entity.TASK_RUN, run.tasks["a"], TaskState.PENDING, {"tenant_id": "x"}))


@pytest.mark.parametrize("words", ["a\x00b", "a\ud800b", "naïve – 模型 🙂"])
def test_a_tasks_own_words_never_make_its_outcome_impossible_to_commit(engine: Engine, words: str) -> None:
    run, attempt = granted_attempt(engine)
    outcome = Outcome(AttemptState.SUCCEEDED, message=words, outputs={words: [words, float("nan")]}, exit_code=2**40)
    commit(engine, *ending(run, attempt, outcome, AttemptState.SUCCEEDED, TaskState.SUCCESS, message=words))
    [(message, outputs)] = rows(engine, "SELECT message, outputs FROM task_runs WHERE name = 'a'")
    assert "\x00" not in message
    assert outputs == {message: [message, None]}


def test_workers_and_hosts_follow_their_heartbeats(engine: Engine) -> None:
    commit(engine, SaveWorker(heartbeat(), joined=True))
    commit(engine, SaveWorker(heartbeat(seq=9), joined=False), SaveWorker(heartbeat("second"), joined=True))
    found = rows(engine, "SELECT id, state, queues, heartbeat_seq, labels, boot_id FROM workers ORDER BY seq")
    assert [tuple(row)[:4] for row in found] == [
        ("worker", "online", ["cpu", "highmem"], 9),
        ("second", "online", ["cpu", "highmem"], 1),
    ]
    [host] = rows(engine, "SELECT cpu, memory, gpus FROM hosts")
    assert host.gpus == [{"uuid": "GPU-1", "model": "H200", "memory": 2**37, "busy_with": ""}]
    audit = rows(engine, "SELECT entity_id, after FROM events ORDER BY id")
    assert [tuple(row) for row in audit] == [("worker", "online"), ("second", "online")]


def test_a_worker_that_was_given_up_may_join_again(engine: Engine) -> None:
    commit(engine, SaveWorker(heartbeat(), joined=True))
    commit(engine, Transition(Entity.WORKER, "worker", WorkerState.ONLINE, WorkerState.LOST, "lease"))
    assert rows(engine, "SELECT state, ended_at IS NULL FROM workers") == [("lost", False)]
    commit(engine, SaveWorker(heartbeat(seq=5), joined=True))
    assert rows(engine, "SELECT state, ended_at IS NULL FROM workers") == [("online", True)]


@pytest.mark.parametrize("leaving", [False, True])
def test_a_worker_that_joins_again_is_no_longer_drained_by_an_old_command(engine: Engine, leaving: bool) -> None:
    commit(engine, SaveWorker(heartbeat(), joined=True))
    drained = {"draining": True, "drain_until": ("in", 60.0)}
    commit(
        engine, Transition(Entity.WORKER, "worker", WorkerState.ONLINE, WorkerState.DRAINING, "drain", changes=drained)
    )
    found = "SELECT state, draining, drain_until IS NULL FROM workers"
    assert rows(engine, found) == [("draining", True, False)]
    commit(engine, SaveWorker(replace(heartbeat(seq=5), draining=leaving), joined=True))
    assert rows(engine, found) == [("draining" if leaving else "online", False, True)]
    again = Transition(
        Entity.WORKER, "worker", WorkerState.ONLINE, WorkerState.DRAINING, "drain", changes={"draining": True}
    )
    if not leaving:
        commit(engine, SaveWorker(heartbeat(seq=6), joined=True), again)
        assert rows(engine, found) == [("draining", True, True)], "a drain that comes with it is of now"


def test_commands_are_closed_once(engine: Engine) -> None:
    run = seed_run(engine)
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO commands (tenant_id, kind, actor, run_id) VALUES (:t, 'cancel', 'me', :r)"),
            {"t": run.tenant_id, "r": run.id},
        )
        [command] = load_commands(connection)
    assert (command.kind, command.actor, command.run_id) == ("cancel", "me", run.id)
    commit(engine, CloseCommand(command.id, "done"))
    with engine.connect() as connection:
        assert load_commands(connection) == []
    with pytest.raises(StaleMemory):
        commit(engine, CloseCommand(command.id, "again"))


def test_refusals_are_counted(engine: Engine) -> None:
    commit(engine, Count("denied", "one"), Count("denied", "two"), Count("fenced"))
    commit(engine, Count("denied", "three"))
    found = rows(engine, "SELECT what, count, last_detail FROM refusals ORDER BY what")
    assert [tuple(row) for row in found] == [("denied", 3, "three"), ("fenced", 1, "")]


def test_a_snapshot_gives_back_what_was_written(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    commit(
        engine,
        SaveWorker(heartbeat(), joined=True),
        Annotate(
            Entity.ATTEMPT, attempt.id, AttemptState.RUNNING, {"deadline_at": ("in", 100.0), "hinted_at": ("in", 0.0)}
        ),
    )
    with engine.connect() as connection:
        snapshot = load_snapshot(connection, PlanCache(), now=1000.0)
    [loaded] = snapshot.attempts
    assert (loaded.token, loaded.state, loaded.resources) == (attempt.token, AttemptState.RUNNING, RESOURCES)
    assert loaded.deadline == pytest.approx(1100.0, abs=5)
    assert loaded.hinted_at == pytest.approx(1000.0, abs=5)
    assert loaded.granted_at == pytest.approx(1000.0, abs=5)
    [held] = snapshot.reservations
    assert (held.attempt_id, held.resources, held.devices) == (attempt.id, RESOURCES, ("GPU-1",))
    assert [task.name for task in snapshot.task_runs] == ["a", "b", "c", "d"]
    assert [task.name for task in snapshot.plans[run.id].tasks] == ["a", "b", "c", "d"]
    [worker] = snapshot.workers
    assert (worker.queues, worker.slots, worker.seen_at) == (frozenset({"cpu", "highmem"}), 2, 1000.0)
    [host] = snapshot.hosts
    assert host.capacity == heartbeat().capacity


def test_queued_runs_come_by_priority_then_age_as_far_as_there_is_room(engine: Engine) -> None:
    first, second, urgent = seed_run(engine), seed_run(engine), seed_run(engine, priority=5)
    with engine.connect() as connection:
        plans = PlanCache()
        loaded = load_queued_runs(connection, plans, 0.0, limit=2)
        assert [item.run.id for item in loaded] == [urgent.id, first.id]
        assert [task.name for task in loaded[0].tasks] == ["a", "b", "c", "d"]
        assert not loaded[0].hold
        assert load_queued_runs(connection, plans, 0.0, limit=0) == []
        [held] = load_runs(connection, plans, 0.0, [second.id, str(uuid.uuid4())])
        assert (held.run.id, held.hold) == (second.id, True)


def test_attempts_the_memory_does_not_hold_are_read_by_id(engine: Engine) -> None:
    _, attempt = granted_attempt(engine)
    with engine.connect() as connection:
        found = load_attempts(connection, [attempt.id, str(uuid.uuid4()), "no id at all"])
    assert [item.token for item in found.values()] == [attempt.token]


def test_a_usual_batch_takes_at_most_ten_statements(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)
    following = dispatched(run, "b")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    outcome = Outcome(AttemptState.SUCCEEDED, outputs={"x": 1})
    commit(
        engine,
        *ending(run, attempt, outcome, AttemptState.SUCCEEDED, TaskState.SUCCESS),
        moved(run, "b", TaskState.PENDING, TaskState.READY),
        CreateAttempt(following, run.tenant_id, "b"),
        Reserve(Reservation(following.id, "host", "worker", RESOURCES)),
        moved(run, "b", TaskState.READY, TaskState.QUEUED, attempts=1, attempt_id=following.id),
        SaveWorker(heartbeat(), joined=False),
        Count("denied"),
    )
    assert len(statements) <= 10, "\n".join(s.strip()[:90] for s in statements)


def test_a_conflicting_registration_becomes_a_failure_and_an_open_version_the_next(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)

    def reported(version: str, digest: str) -> OutcomeReceived:
        record = {"kind": "model", "name": "m", "version": version, "digest": digest, "uri": "artifact://m"}
        outputs = {"registration": {"name": "m", "version": version}}
        outcome = Outcome(AttemptState.SUCCEEDED, records=(record,), outputs=outputs)
        return OutcomeReceived("worker", attempt.id, attempt.token, outcome)

    commit(engine, *ending(run, attempt, reported("7", "x").outcome, AttemptState.SUCCEEDED, TaskState.SUCCESS))
    with engine.connect() as connection:
        reports = [reported("7", "x"), reported("7", "y"), reported("", "z"), reported("", "z")]
        settled = settle_registrations(connection, reports, lambda _report: True)
        same, other, following, next_one = [item.outcome for item in settled if isinstance(item, OutcomeReceived)]
    assert same.state is AttemptState.SUCCEEDED
    assert (other.state, other.reason, other.retryable) == (AttemptState.FAILED, "registry_conflict", False)
    assert other.outputs == {}
    assert following.records[0]["version"] == "8"
    assert following.outputs["registration"]["version"] == "8"
    assert next_one.records[0]["version"] == "9"


def test_a_report_that_will_not_count_takes_no_version_and_makes_no_conflict(engine: Engine) -> None:
    run, attempt = granted_attempt(engine)

    def reported(token: str, digest: str) -> OutcomeReceived:
        record = {"kind": "model", "name": "m", "version": "1", "digest": digest, "uri": "artifact://m"}
        return OutcomeReceived("worker", attempt.id, token, Outcome(AttemptState.SUCCEEDED, records=(record,)))

    forged, real = reported("forged", "x"), reported(attempt.token, "y")
    with engine.connect() as connection:
        settled = list(settle_registrations(connection, [forged, real], lambda report: report.token == attempt.token))
    assert settled[0] is forged
    assert [item.outcome.state for item in settled if isinstance(item, OutcomeReceived)] == [AttemptState.SUCCEEDED] * 2
    assert run.tasks


def test_a_worker_that_ended_lately_or_still_holds_something_is_loaded_as_ended(engine: Engine) -> None:
    _, attempt = granted_attempt(engine)
    names = ("worker", "lately", "long_ago")
    commit(engine, *(SaveWorker(heartbeat(name, seq=4), joined=True) for name in names))
    ends = (Transition(Entity.WORKER, name, WorkerState.ONLINE, WorkerState.LOST, "lease") for name in names)
    commit(engine, *ends)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE workers SET ended_at = ended_at - interval '1 day' WHERE id IN ('worker', 'long_ago')")
        )
        snapshot = load_snapshot(connection, PlanCache(), now=100_000.0)
    assert {worker.id: (worker.state, worker.seq) for worker in snapshot.workers} == {
        "lately": (WorkerState.LOST, 4),
        "worker": (WorkerState.LOST, 4),
    }, f"attempt {attempt.id} is still charged to 'worker'"
    assert {worker.id: worker.seen_at for worker in snapshot.workers} == {
        "lately": pytest.approx(100_000.0, abs=30),
        "worker": pytest.approx(100_000.0 - 86_400.0, abs=30),
    }


def test_only_hosts_with_a_worker_that_counts_or_something_held_are_loaded(engine: Engine) -> None:
    """Where every pod is a host of its own there are soon thousands of rows of them."""
    granted_attempt(engine)
    names = ("live", "lately", "long_ago", "holds")
    commit(engine, *(SaveWorker(replace(heartbeat(name), host_id=f"host-{name}"), joined=True) for name in names))
    commit(
        engine, *(Transition(Entity.WORKER, name, WorkerState.ONLINE, WorkerState.LOST, "lease") for name in names[1:])
    )
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE workers SET ended_at = ended_at - interval '1 day' WHERE id IN ('long_ago', 'holds')")
        )
        connection.execute(text("UPDATE reservations SET host_id = 'host-holds'"))
        snapshot = load_snapshot(connection, PlanCache(), now=100_000.0)
    loaded = {host.id for host in snapshot.hosts}
    assert "host-long_ago" not in loaded
    assert loaded >= {"host-live", "host-lately", "host-holds"}
    assert loaded >= {worker.host_id for worker in snapshot.workers}


def test_an_unreadable_plan_stands_in_nobodys_way(engine: Engine) -> None:
    unreadable = seed_run(engine, plan=Plan((planned("only"),)), priority=9)
    following = seed_run(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE pipeline_versions SET plan = '{\"format\": 99}' WHERE id = (SELECT version_id "
                                "FROM runs WHERE id = :id)"), {"id": unreadable.id})  # fmt: skip
        bad, good = load_queued_runs(connection, PlanCache(), 0.0, limit=2)
    assert (bad.run.id, [task.name for task in bad.plan.tasks]) == (unreadable.id, ["only"])
    assert "format 99" in bad.unreadable
    assert (good.run.id, good.unreadable) == (following.id, "")


def granted_attempt(engine: Engine) -> tuple[SeededRun, AttemptRecord]:
    run = seed_run(engine)
    attempt = dispatched(run, "a")
    commit(
        engine,
        started(run),
        moved(run, "a", TaskState.PENDING, TaskState.READY),
        CreateAttempt(attempt, run.tenant_id, "a"),
        Reserve(Reservation(attempt.id, "host", "worker", RESOURCES, ("GPU-1",))),
        moved(run, "a", TaskState.READY, TaskState.QUEUED, attempts=1, attempt_id=attempt.id),
    )
    commit(engine, claimed(run, attempt), moved(run, "a", TaskState.QUEUED, TaskState.RUNNING))
    return run, attempt


def claimed(run: SeededRun, attempt: AttemptRecord) -> Transition:
    return Transition(
        Entity.ATTEMPT,
        attempt.id,
        AttemptState.DISPATCHED,
        AttemptState.RUNNING,
        "claim",
        run_id=run.id,
        token=attempt.token,
        changes={"nonce": "n", "worker_id": "worker"},
    )


def ending(
    run: SeededRun,
    attempt: AttemptRecord,
    outcome: Outcome,
    attempt_state: AttemptState,
    task_state: TaskState,
    *,
    publish: bool = True,
    message: str = "",
) -> list[RowEffect]:
    return [
        Transition(
            Entity.ATTEMPT,
            attempt.id,
            AttemptState.RUNNING,
            attempt_state,
            "outcome",
            run_id=run.id,
            token=attempt.token,
        ),
        SaveOutcome(attempt.id, attempt.task_run_id, outcome, publish=publish),
        Release(attempt.id),
        Transition(
            Entity.TASK_RUN,
            run.tasks["a"],
            TaskState.RUNNING,
            task_state,
            "outcome",
            message=message,
            run_id=run.id,
            task="a",
            changes={"attempt_id": None},
        ),
    ]
