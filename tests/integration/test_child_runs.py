"""Runs that are tasks of others, as the leader makes them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.compile import Site
from orchestrator.effects import StartChild
from orchestrator.events import ChildRefused, RunSubmitted
from orchestrator.records import ChildPlan, Plan, RunInput
from orchestrator.store.children import Asked, start_children
from orchestrator.store.engine import create_store_engine
from orchestrator.store.loader import load_queued_runs
from orchestrator.store.plans import PlanCache
from orchestrator.store.run_requests import count_unfinished
from tests.integration.seeded_runs import SeededRun, planned, seed_run
from tests.integration.test_writer import rows

pytestmark = pytest.mark.timeout(60)

OTHER = Plan((planned("x"), replace(planned("y", "x"), run_inputs=(RunInput("data", "dataset"),))))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def parent(engine: Engine) -> SeededRun:
    """A run; beside it a pipeline ``other`` that needs a dataset and says what ``depth`` is."""
    other = seed_run(engine, plan=OTHER)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE pipelines SET name = 'other' WHERE id = (SELECT pipeline_id FROM runs WHERE id = :id)"),
            {"id": other.id},
        )
        connection.execute(
            text(
                'UPDATE pipeline_versions SET definition = \'{"parameters": {"depth": 1, "width": 2}}\' '
                "WHERE pipeline_id = (SELECT pipeline_id FROM runs WHERE id = :id)"
            ),
            {"id": other.id},
        )
        connection.execute(text("DELETE FROM runs"))
    return seed_run(engine)


def started(
    engine: Engine, parent: SeededRun, child: ChildPlan, inherited: dict[str, Any] | None = None, depth: int = 1,
    child_run_id: str = "", **given: Any,
) -> RunSubmitted | ChildRefused | None:  # fmt: skip
    effect = StartChild(
        parent.id, parent.tasks["a"], parent.tenant_id, child_run_id or str(uuid.uuid4()), child, given, depth, 5
    )
    with engine.begin() as connection:
        found = start_children(connection, PlanCache(), [Asked(effect, inherited or {})], Site(), 100.0)
    [(id_, answer)] = found.items()
    assert id_ == effect.child_run_id
    return answer


def test_a_child_is_inserted_with_its_tasks_and_submitted(engine: Engine, parent: SeededRun) -> None:
    id_ = str(uuid.uuid4())
    found = started(engine, parent, ChildPlan("other"), {"width": 3, "more": 1}, child_run_id=id_, data="x.csv")
    assert isinstance(found, RunSubmitted)
    assert (found.run.id, found.hold) == (id_, False)
    assert (found.run.parent_task_run_id, found.run.depth, found.run.priority) == (parent.tasks["a"], 1, 5)
    assert found.run.parameters == {"depth": 1, "width": 3, "more": 1, "data": "x.csv"}
    assert [task.name for task in found.tasks] == ["x", "y"]
    [row] = rows(engine, "SELECT parent_run_id, trigger, state FROM runs WHERE id = :id", id=id_)
    assert tuple(row) == (parent.id, "pipeline", "queued")
    again = started(engine, parent, ChildPlan("other"), child_run_id=id_)
    assert isinstance(again, RunSubmitted), "asked twice, it is made once"
    assert rows(engine, "SELECT count(*) FROM runs WHERE parent_run_id = :id", id=parent.id) == [(1,)]


def test_what_it_does_not_inherit_it_has_to_be_given(engine: Engine, parent: SeededRun) -> None:
    found = started(engine, parent, ChildPlan("other", inherit=False), {"data": "x.csv"})
    assert isinstance(found, ChildRefused)
    assert found.task_run_id == parent.tasks["a"]
    assert "needs a dataset" in found.message


@pytest.mark.parametrize(
    ("child", "depth", "why"),
    [
        (ChildPlan("nobody"), 1, "no pipeline 'nobody'"),
        (ChildPlan("other", version=9), 1, "no version 9"),
        (ChildPlan("other"), 9, "at most 8 deep"),
    ],
)
def test_what_is_not_there_or_too_deep_is_refused_with_a_sentence(
    engine: Engine, parent: SeededRun, child: ChildPlan, depth: int, why: str
) -> None:
    found = started(engine, parent, child, depth=depth, data="x.csv")
    assert isinstance(found, ChildRefused)
    assert why in found.message
    assert rows(engine, "SELECT count(*) FROM runs") == [(1,)]


def test_only_so_many_are_made_below_one_run_at_whatever_depth(engine: Engine, parent: SeededRun) -> None:
    def make(run_id: str, count: int) -> list[RunSubmitted | ChildRefused | None]:
        effects = [
            StartChild(run_id, parent.tasks["a"], parent.tenant_id, str(uuid.uuid4()), ChildPlan("other"), {}, 1, 5)
            for _ in range(count)
        ]
        asked = [Asked(effect, {"data": "x.csv"}) for effect in effects]
        with engine.begin() as connection:
            return list(start_children(connection, PlanCache(), asked, Site(), 100.0, most_below=3).values())

    [first] = make(parent.id, 1)
    assert isinstance(first, RunSubmitted)
    # Below the child they count for the run around it, and stay counted for the next leader.
    second, third, fourth = make(first.run.id, 3)
    assert isinstance(second, RunSubmitted)
    assert isinstance(third, RunSubmitted)
    assert isinstance(fourth, ChildRefused)
    assert f"3 runs have been made below run {parent.id}" in fourth.message
    [fifth] = make(third.run.id, 1)
    assert isinstance(fifth, ChildRefused)
    assert rows(engine, "SELECT runs_below FROM runs ORDER BY seq") == [(3,), (0,), (0,), (0,)]
    with engine.begin() as connection:
        assert count_unfinished(connection, parent.tenant_id, 100) == 4, "each counts for MAX_QUEUED_RUNS"
    [elsewhere] = make(seed_run(engine).id, 1)
    assert isinstance(elsewhere, RunSubmitted)


def test_a_child_of_a_paused_pipeline_waits_in_the_queue(engine: Engine, parent: SeededRun) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE pipelines SET paused = true WHERE name = 'other'"))
    assert started(engine, parent, ChildPlan("other"), data="x.csv") is None
    assert rows(engine, "SELECT state FROM runs WHERE parent_run_id IS NOT NULL") == [("queued",)]


def test_many_children_are_made_at_once_in_their_order_and_only_so_many(engine: Engine, parent: SeededRun) -> None:
    def asked(child: ChildPlan, **given: Any) -> Asked:
        id_ = str(uuid.uuid4())
        return Asked(StartChild(parent.id, parent.tasks["a"], parent.tenant_id, id_, child, given, 1, 5), {})

    wanted = [asked(ChildPlan("other"), data=f"{number}.csv") for number in range(4)]
    wanted.insert(1, asked(ChildPlan("nobody")))
    ids = [one.effect.child_run_id for one in wanted]
    with engine.begin() as connection:
        found = start_children(connection, PlanCache(), wanted, Site(), 100.0, most_tasks=5)
    # Of two tasks each: the third is the one with which there are five or more.
    assert list(found) == ids[:4]
    assert [type(answer) for answer in found.values()] == [RunSubmitted, ChildRefused, RunSubmitted, RunSubmitted]
    made = rows(engine, "SELECT id, parameters FROM runs WHERE parent_run_id = :id ORDER BY seq", id=parent.id)
    assert [(row.id, row.parameters["data"]) for row in made] == [
        (ids[0], "0.csv"), (ids[2], "1.csv"), (ids[3], "2.csv")
    ]  # fmt: skip
    assert rows(engine, "SELECT count(*) FROM task_runs WHERE run_id = :id", id=ids[3]) == [(2,)]
    assert rows(engine, "SELECT count(*) FROM events WHERE run_id = :id", id=ids[3]) == [(1,)]


def test_one_that_is_run_again_by_itself_is_read_only_where_there_is_a_place(engine: Engine, parent: SeededRun) -> None:
    def read(limit: int) -> list[str]:
        with engine.begin() as connection:
            found = load_queued_runs(connection, PlanCache(), 100.0, limit=limit)
        return [one.run.id for one in found if one.run.id != parent.id]

    made = started(engine, parent, ChildPlan("other"), data="x.csv")
    assert isinstance(made, RunSubmitted)
    assert read(0) == [made.run.id]
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET generation = 2 WHERE id = :id"), {"id": made.run.id})
    assert read(0) == []
    assert read(10) == [made.run.id]
