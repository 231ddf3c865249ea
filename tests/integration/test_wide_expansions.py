"""The widest expansion that is allowed is made by the leader in its one transaction, in statements of bounded size."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine, event

from orchestrator.kernel import Kernel, KernelSettings
from orchestrator.records import MapPlan, Plan, PlannedTask
from orchestrator.store.writer import MOST_ROWS
from scheduler.transaction import Committed, Leader, Round
from tests.integration.led import EPOCH, limited_engine
from tests.integration.seeded_runs import ONCE, planned, seed_run
from tests.integration.test_writer import rows

pytestmark = pytest.mark.timeout(120)

engine = limited_engine


def poll(engine: Engine, kernel: Kernel, now: float) -> Committed:
    return Leader(engine, EPOCH, connections={}, registry_url=None).take_in(kernel, Round(now, poll=True))


def group(items: int, *body: PlannedTask, **fields: Any) -> Plan:
    map_ = MapPlan({"range": items}, max_size=10_000, **fields)
    return Plan((PlannedTask("m", "group", retry=ONCE, map=map_, body=Plan(body), is_group=True),))


@pytest.mark.parametrize("parallel", [8, None])
def test_ten_thousand_indices_are_made_in_one_round(engine: Engine, parallel: int | None) -> None:
    seed_run(engine, plan=group(10_000, planned("t"), max_parallel=parallel))
    longest: list[int] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, _statement: str, parameters: Any, *_: Any) -> None:
        longest.extend(len(json.loads(p)) for p in parameters if isinstance(p, str) and p.startswith("[{"))

    kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4())), 100.0)
    began, worked = time.monotonic(), time.process_time()
    poll(engine, kernel, 100.1)
    worked = time.process_time() - worked
    print(f"10,000 indices took {time.monotonic() - began:.2f} s, {worked:.2f} s of them the leader's own work")
    assert worked < 2.0
    assert max(longest) == MOST_ROWS
    assert rows(engine, "SELECT count(*) FROM task_runs WHERE parent_id IS NOT NULL")[0][0] == 10_000
    told = rows(engine, "SELECT task FROM events WHERE cause = 'expanded' ORDER BY id")
    assert [row.task for row in told] == [f"m[{n}].t" for n in range(10_000)]


def test_one_that_is_too_wide_fails_its_task_with_a_sentence(engine: Engine) -> None:
    seed_run(engine, plan=group(10_000, planned("a"), planned("b")))
    kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4())), 100.0)
    poll(engine, kernel, 100.1)
    [row] = rows(engine, "SELECT t.state, t.reason, r.state AS run FROM task_runs t JOIN runs r ON r.id = t.run_id")
    assert (row.state, row.reason, row.run) == ("failed", "too_many_items", "failed")


def test_runs_that_come_together_are_expanded_in_rounds_of_their_own(engine: Engine) -> None:
    for _ in range(3):
        seed_run(engine, plan=group(4000, planned("t")))
    kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4())), 100.0)
    poll(engine, kernel, 100.1)
    inside = "SELECT count(*) FROM task_runs WHERE parent_id IS NOT NULL"
    assert rows(engine, inside)[0][0] == 8000
    waiting = "SELECT reason FROM task_runs WHERE state = 'pending' AND parent_id IS NULL"
    assert [row.reason for row in rows(engine, waiting)] == ["expansion"]
    assert kernel.next_due(100.1) == 0.0
    poll(engine, kernel, 100.2)
    assert rows(engine, inside)[0][0] == 12_000
