"""Task runs that containers expand into: written once, whatever happens, and read back as what they were."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.effects import CreateTasks, RowEffect, Transition
from orchestrator.errors import StaleMemory
from orchestrator.kernel.held_runs import HeldBack
from orchestrator.records import MapPlan, Plan, RetryPolicy, TaskRunRecord
from orchestrator.states import Entity, TaskState
from orchestrator.store.beside_rows import planned_of
from orchestrator.store.engine import create_store_engine
from orchestrator.store.loader import load_ended_runs, load_queued_runs, load_runs
from orchestrator.store.plans import PlanCache
from orchestrator.store.writer import write
from tests.integration.seeded_runs import SeededRun, planned, seed_run
from tests.integration.test_writer import rows

pytestmark = pytest.mark.timeout(60)

TRAIN = replace(planned("train"), memory_auto=True, retry=RetryPolicy(retries=0))
MAPPED = Plan(
    (
        planned("ingest"),
        replace(planned("train", "ingest"), map=MapPlan([1, 2, 3]), body=Plan((TRAIN,))),
        replace(planned("sum", "train"), when="len(tasks.train.outputs) > 0"),
    )
)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


def commit(engine: Engine, *effects: RowEffect) -> None:
    with engine.begin() as connection:
        write(connection, effects, epoch=7)


def indices(run: SeededRun, count: int, container: str = "train") -> tuple[TaskRunRecord, ...]:
    return tuple(
        TaskRunRecord(
            str(uuid.uuid4()),
            run.id,
            f"{container}[{at}]",
            parent_id=run.tasks[container],
            map_index=at,
            map_key=str(at),
            item={"lr": at},
        )
        for at in range(count)
    )


def test_an_expansion_is_written_with_its_audit_and_may_move_on_in_the_same_batch(engine: Engine) -> None:
    run = seed_run(engine, plan=MAPPED)
    made = indices(run, 3)
    ready = Transition(
        Entity.TASK_RUN, made[1].id, TaskState.PENDING, TaskState.READY, "test", run_id=run.id, task="train[1]"
    )
    commit(engine, CreateTasks(run.id, run.tenant_id, made, ("custom_script",) * 3), ready)
    found = rows(
        engine,
        "SELECT name, state, position, map_index, map_key, item, operator, tenant_id, ready_at IS NOT NULL AS is_ready "
        "FROM task_runs WHERE parent_id = :parent ORDER BY map_index",
        parent=run.tasks["train"],
    )
    assert [(row.name, row.state, row.position, row.item, row.is_ready) for row in found] == [
        ("train[0]", "pending", 0, {"lr": 0}, False),
        ("train[1]", "ready", 0, {"lr": 1}, True),
        ("train[2]", "pending", 0, {"lr": 2}, False),
    ]
    assert {row.tenant_id for row in found} == {run.tenant_id}
    told = rows(engine, "SELECT before, after, task, cause, epoch FROM events ORDER BY id")
    assert [tuple(row) for row in told[:3]] == [(None, "pending", f"train[{at}]", "expanded", 7) for at in range(3)]
    assert (told[3].before, told[3].after, told[3].task) == ("pending", "ready", "train[1]")


def test_what_was_expanded_already_is_not_expanded_again(engine: Engine) -> None:
    run = seed_run(engine, plan=MAPPED)
    made = indices(run, 3)
    commit(engine, CreateTasks(run.id, run.tenant_id, made[:2], ("custom_script",) * 2))
    with pytest.raises(StaleMemory, match="1 of 2 task runs"):
        commit(engine, CreateTasks(run.id, run.tenant_id, (indices(run, 2)[1], made[2]), ("custom_script",) * 2))
    assert rows(engine, "SELECT count(*) FROM task_runs WHERE parent_id IS NOT NULL") == [(2,)]


def test_ten_thousand_indices_are_written_at_once(engine: Engine) -> None:
    run = seed_run(engine, plan=MAPPED)
    made = indices(run, 10_000)
    begun = time.monotonic()
    commit(engine, CreateTasks(run.id, run.tenant_id, made, ("custom_script",) * len(made)))
    took = time.monotonic() - begun
    print(f"10,000 task runs and their audit: {took:.2f} s")
    assert rows(engine, "SELECT count(*) FROM events") == [(10_000,)]
    assert took < 5


def test_they_are_read_back_with_what_was_learned_and_left(engine: Engine) -> None:
    run = seed_run(engine, plan=MAPPED, parameters={"lr": 1})
    made = indices(run, 2)
    commit(engine, CreateTasks(run.id, run.tenant_id, made, ("custom_script",) * 2))
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE task_runs SET state = 'success', outputs = '{\"loss\": 1}', "
                "deadline_at = clock_timestamp() + interval '60 s' WHERE name = 'train[0]'"
            )
        )
        connection.execute(
            text("INSERT INTO learned_memory (pipeline_id, task, memory) SELECT pipeline_id, 'train', 77 FROM runs")
        )
    with engine.connect() as connection:
        [found] = load_queued_runs(connection, PlanCache(), 100.0, limit=1)
    assert found.run.parameters == {"lr": 1}
    assert found.run.learned == {"train": 77}
    assert found.run.pipeline
    by_name = {task.name: task for task in found.tasks}
    first, second = by_name["train[0]"], by_name["train[1]"]
    assert (first.parent_id, first.map_index, first.map_key, first.item) == (run.tasks["train"], 0, "0", {"lr": 0})
    assert first.outputs == {"loss": 1}
    assert first.deadline_at == pytest.approx(160, abs=5)
    assert (second.memory, second.outputs) == (77, None)


def test_a_waiting_task_has_what_is_left_of_its_timer_and_an_ended_one_has_none(engine: Engine) -> None:
    run = seed_run(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE task_runs SET retry_at = clock_timestamp() + interval '30 s'"))
        connection.execute(text("UPDATE task_runs SET state = 'waiting', wait_token = 'w' WHERE name = 'a'"))
        connection.execute(text("UPDATE task_runs SET state = 'failed' WHERE name = 'b'"))
        [found] = load_runs(connection, PlanCache(), 100.0, [run.id])
    by_name = {task.name: task for task in found.tasks}
    assert by_name["a"].retry_at == pytest.approx(130, abs=5)
    assert by_name["a"].wait_token == "w"
    assert by_name["b"].retry_at is None


def test_runs_of_a_paused_pipeline_and_those_held_back_are_left_and_children_need_no_place(engine: Engine) -> None:
    paused, held, child = seed_run(engine, plan=Plan((planned("one"),))), seed_run(engine), seed_run(engine)
    free = seed_run(engine)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE pipelines SET paused = true WHERE id = (SELECT pipeline_id FROM runs WHERE id = :id)"),
            {"id": paused.id},
        )
        connection.execute(
            text("UPDATE runs SET parent_run_id = :parent, parent_task_run_id = :task, depth = 1 WHERE id = :id"),
            {"id": child.id, "parent": free.id, "task": free.tasks["a"]},
        )

    def found(limit: int, back: HeldBack, *put_off: str) -> list[str]:
        with engine.connect() as connection:
            runs = load_queued_runs(connection, PlanCache(), 0.0, limit=limit, held_back=back, put_off=put_off)
        return [run.run.id for run in runs]

    assert found(10, HeldBack()) == [child.id, held.id, free.id]
    assert found(0, HeldBack()) == [child.id]
    assert found(10, HeldBack(runs=(held.id,))) == [child.id, free.id]
    assert found(10, HeldBack(), held.id, child.id) == [free.id]
    stopped = HeldBack(runs=(held.id, child.id, free.id), wanted=(paused.id, child.id))
    assert found(10, stopped) == [child.id, paused.id]
    assert found(10, stopped, child.id) == [paused.id]


def test_what_belongs_to_an_unreadable_plan_stands_by_itself(engine: Engine) -> None:
    run = seed_run(engine, plan=MAPPED)
    made = indices(run, 1)
    commit(engine, CreateTasks(run.id, run.tenant_id, made, ("custom_script",)))
    with engine.begin() as connection:
        connection.execute(text("UPDATE pipeline_versions SET plan = '{\"format\": 99}'"))
        connection.execute(text("UPDATE runs SET state = 'failed'"))
        found = load_ended_runs(connection, PlanCache(), 0.0, [run.id])[run.id]
    assert found.unreadable
    assert {task.name for task in found.plan.tasks} == {task.name for task in found.tasks}
    assert all(task.parent_id is None for task in found.tasks)


def test_a_task_run_is_found_in_its_plan_by_its_name() -> None:
    inner = replace(planned("fit"), map=MapPlan([]), body=Plan((planned("fit"),)))
    folds = replace(planned("folds"), map=MapPlan([]), body=Plan((planned("split"), inner)), is_group=True)
    plan = Plan((planned("train2"), *MAPPED.tasks, folds))
    found = {
        "train": MAPPED.tasks[1],
        "train[12]": TRAIN,
        "train2": plan.tasks[0],
        "folds[0].split": planned("split"),
        "folds[0].fit": inner,
        "folds[0].fit[3]": planned("fit"),
    }
    assert {name: planned_of(plan, name) for name in found} == found
    for name in ("nobody", "train[x]", "train[1].x", "folds[0]", "folds[0].x", "ingest[0]"):
        assert planned_of(plan, name) is None, name


@pytest.mark.parametrize(
    ("states", "begun"),
    [
        ((TaskState.PENDING, TaskState.SKIPPED), False),
        ((TaskState.PENDING, TaskState.READY, TaskState.FAILED), True),
        ((TaskState.PENDING, TaskState.RUNNING, TaskState.SKIPPED), True),
        ((TaskState.PENDING, TaskState.WAITING, TaskState.FAILED), True),
        ((TaskState.PENDING, TaskState.RUNNING, TaskState.FAILED, TaskState.PENDING), False),
        ((TaskState.PENDING, TaskState.RUNNING, TaskState.FAILED, TaskState.SKIPPED), True),
    ],
)
def test_a_row_says_whether_its_task_run_has_begun(engine: Engine, states: tuple[TaskState, ...], begun: bool) -> None:
    run = seed_run(engine)
    for before, after in pairwise(states):
        # What the kernel adds to the transitions of which the state alone does not tell: a wait, a rerun and a mark.
        is_told = after is TaskState.WAITING or before is TaskState.FAILED
        columns: dict[str, Any] = {"ready_at": ("in", 0.0), "started_at": None} if is_told else {}
        columns = {"ready_at": None, "started_at": None} if after is TaskState.PENDING else columns
        effect = Transition(Entity.TASK_RUN, run.tasks["a"], before, after, "x", "", "", "ann", run.id, "a")
        commit(engine, replace(effect, changes=columns))
    with engine.begin() as connection:
        [read] = load_runs(connection, PlanCache(), 100.0, [run.id])
    assert {task.name: task.begun for task in read.tasks}["a"] is begun
