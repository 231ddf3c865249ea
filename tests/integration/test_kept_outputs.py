"""What a new leader reads of outputs: the fields that its rules name, and of sub-runs what somebody reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from orchestrator.records import Plan, TaskRunRecord
from orchestrator.states import TaskState
from orchestrator.store.beside_rows import KeptOutputs, handing_on
from orchestrator.store.engine import create_store_engine
from tests.integration.seeded_runs import planned, seed_run

pytestmark = pytest.mark.timeout(60)

OUTPUTS = {"n": 1, "deep": {"part": 2}, "big": "x" * 1000}
PLAN = Plan((
    planned("a"),
    planned("whole"),
    planned("unread"),
    replace(planned("b", "a"), when="tasks.a.outputs.n > 0 and tasks.a.outputs.deep.part and tasks.whole.outputs"),
))  # fmt: skip


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


def test_only_the_fields_that_the_rules_name_are_read(engine: Engine) -> None:
    run = seed_run(engine, plan=PLAN)
    with engine.begin() as connection:
        statement = "UPDATE task_runs SET state = 'success', outputs = CAST(:outputs AS jsonb) WHERE name <> 'b'"
        connection.execute(text(statement), {"outputs": json.dumps(OUTPUTS)})
        kept = KeptOutputs(connection, {run.id: PLAN})
    found = {
        name: kept.added_to(TaskRunRecord(run.tasks[name], run.id, name, TaskState.SUCCESS)).outputs
        for name in ("a", "whole", "unread", "b")
    }
    assert found == {"a": {"n": 1, "deep": {"part": 2}}, "whole": OUTPUTS, "unread": None, "b": None}


def test_of_a_sub_run_nothing_is_read_where_nobody_reads_the_task_that_it_is() -> None:
    tasks = [TaskRunRecord(f"t-{name}", "r", name) for name in ("a", "unread")]
    inner = [TaskRunRecord("t-c", "child-of-a", "c")]
    runs = [("r", None), ("child-of-a", "t-a"), ("child-of-unread", "t-unread"), ("below", "t-c"), ("lost", "t-gone")]
    plans = {"r": PLAN, "child-of-a": Plan((planned("c"),))}
    assert handing_on(runs, [*tasks, *inner], plans) == {"child-of-a", "below"}
