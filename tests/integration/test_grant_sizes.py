"""A pipeline whose tasks leave more than a grant can carry fails by itself, and holds up nobody."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from orchestrator.errors import TooLarge
from orchestrator.records import AttemptRecord, Plan, Resources
from orchestrator.store import sight
from orchestrator.store.engine import create_store_engine
from orchestrator.store.grants import GrantedTask, build_specs
from orchestrator.wire.messages import GrantSpec
from tests.integration.seeded_runs import SeededRun, planned, seed_run

pytestmark = pytest.mark.timeout(120)

SOURCES = [f"part{n}" for n in range(250)]
PLAN = Plan(
    (*map(planned, SOURCES), planned("join", *SOURCES), planned("few", *SOURCES[:20]), planned("sum", *SOURCES[::-1]))
)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def run(engine: Engine) -> SeededRun:
    """Each of the parts has left about 240 KB of small numbers."""
    run = seed_run(engine, plan=PLAN)
    outputs = (
        "SELECT jsonb_build_object('rows', jsonb_agg(jsonb_build_array(n % 10, 1))) FROM generate_series(1, 40000) n"
    )
    update = f"UPDATE task_runs SET state = 'success', outputs = ({outputs}) WHERE run_id = :run AND name LIKE 'part%'"
    with engine.begin() as connection:
        # To make 60 MB takes as long as the machine is busy, and is not what is tested.
        connection.execute(text("SET LOCAL statement_timeout TO 0"))
        connection.execute(text(update), {"run": run.id})
    return run


def granted(run: SeededRun, name: str) -> GrantedTask:
    task = next(task for task in PLAN.tasks if task.name == name)
    attempt = AttemptRecord(
        str(uuid.uuid4()), run.id, run.tasks[name], 1, "cpu", Resources(), "host", "worker", uuid.uuid4().hex
    )
    return GrantedTask(attempt, run.tenant_id, task, PLAN, 1)


def test_what_no_grant_can_carry_is_refused_before_it_is_read(
    engine: Engine, run: SeededRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, str]] = []
    read_outputs = sight._read_outputs

    def noting(connection: object, wanted: set[tuple[str, str]]) -> object:
        read.extend(wanted)
        return read_outputs(connection, wanted)  # type: ignore[arg-type]

    monkeypatch.setattr(sight, "_read_outputs", noting)
    items = [granted(run, name) for name in ("join", "few", "sum", "part0")]
    with engine.connect() as connection:
        # How long it takes is printed, not judged: on a busy machine anything takes seconds.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout TO 0"))
        begun = time.monotonic()
        specs = build_specs(connection, items, {}, None)
        took = time.monotonic() - begun
    print(f"four grants, two of them too large: {took:.2f} s")
    join, few, total, alone = (specs[item.attempt.id] for item in items)
    for refused in (join, total):
        assert isinstance(refused, TooLarge)
        assert "more than 8 MB" in str(refused)
        assert "context.artifacts" in str(refused)
    assert isinstance(few, GrantSpec)
    assert sorted(few.upstream_outputs) == sorted(SOURCES[:20])
    assert isinstance(alone, GrantSpec)
    assert {name for _, name in read} == set(SOURCES[:20])
