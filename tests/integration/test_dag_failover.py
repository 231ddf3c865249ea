"""A leader that forgets everything again and again, and goes on from the rows: a run ends as if nothing had been."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.records import Outcome
from orchestrator.wire.messages import GrantSpec
from scheduler.term import Term
from tests.integration.dag_site import DagSite, Played, failed, left, script, until

pytestmark = pytest.mark.timeout(180)

TASKS: tuple[dict[str, Any], ...] = (
    script("list", arguments={"found": [1, 2, 3], "wide": "{{ params.wide }}"}),
    script(
        "t", "list",
        map={"over": "{{ tasks.list.outputs.found }}", "max_parallel": 2, "success": {"min_count": 2}},
        retries=1, arguments={"n": "{{ map.item }}"},
    ),
    {
        "name": "folds", "upstream_tasks": ["list"], "map": {"over": {"range": 2}, "key": "f{{ map.index }}"},
        "tasks": [
            script("split", arguments={"fold": "{{ map.item }}"}),
            script(
                "fit", "split",
                map={"over": ["a", "b"]}, arguments={"it": "{{ map.item }}", "of": "{{ tasks.split.outputs.fold }}"},
            ),
            script("score", "fit", when="len(tasks.fit.outputs) == 2", arguments={"fits": "{{ tasks.fit.outputs }}"}),
        ],
    },
    script(
        "loop", "list",
        repeat={"until": "outputs.n >= 2", "max": 5}, arguments={"n": "{{ repeat.index }}"},
    ),
    {"name": "sub", "upstream_tasks": ["list"], "pipeline": {"name": "child", "parameters": {"n": 5}}},
    {"name": "ask", "upstream_tasks": ["list"], "approval": {"message": "Go on?"}},
    script("cached", "list", cache=True),
    script("clean", "t", "folds", "loop", "sub", "ask", "cached", teardown=True),
    script(
        "end", "t", "folds", "loop", "sub", "ask", "cached",
        when="tasks.loop.outputs.n == 2 and tasks.sub.outputs.outputs.last.n == 5 and tasks.ask.outputs.approved",
        arguments={"t": "{{ tasks.t.outputs }}", "folds": "{{ tasks.folds.outputs[1].score }}"},
    ),
)  # fmt: skip


def act(spec: GrantSpec) -> Outcome:
    if spec.task == "t[1]" or (spec.task == "t[2]" and spec.number == 1):
        return failed("broken")
    return left(**spec.parameters["arguments"])


@pytest.mark.parametrize("seed", range(3))
def test_a_run_of_everything_ends_the_same_however_often_its_leader_forgets(
    dag: DagSite, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    step = Term._round

    def forgetful(term: Term, kernel: Any, found: Any) -> None:
        step(term, kernel, found)
        if chance.random() < 0.6:
            term._drop_memory()

    monkeypatch.setattr(Term, "_round", forgetful)
    dag.save("child", script("first"), script("last", "first", arguments={"n": "{{ params.n }}"}))
    dag.lead()
    with dag.worker(Played(t=act)) as worker:
        run = dag.run(*TASKS, parameters={"wide": True})
        dag.becomes(run, "ask", "waiting")
        dag.answer(run, "ask", approve=True)
        states = dag.ended(run, "success", 120)
        ran = Counter(spec.task for spec in worker.granted)
    indices = {f"folds[{at}].{name}" for at in (0, 1) for name in ("split", "fit", "fit[0]", "fit[1]", "score")}
    assert set(states) == {
        *(task["name"] for task in TASKS), *indices, *(f"{name}[{at}]" for name in ("t", "loop") for at in range(3)),
    }  # fmt: skip
    assert {name for name, state in states.items() if state != "success"} == {"t[1]"}
    assert {name: count for name, count in ran.items() if count > 1} == {"t[1]": 2, "t[2]": 2}
    fits = [{"it": it, "of": 1} for it in ("a", "b")]
    assert dag.outputs(run)["end"] == {"t": [{"n": 1}, None, {"n": 3}], "folds": {"fits": fits}}
    assert dag.rows("SELECT count(*) FROM runs WHERE parent_run_id = :id", id=run) == [(1,)]
    assert dag.rows("SELECT 1 FROM reservations") == []


def test_a_cancel_ends_a_run_inside_that_waits_because_its_pipeline_is_paused(dag: DagSite) -> None:
    dag.save("child", script("only"))
    dag.lead()
    with dag.engine.begin() as connection:
        connection.execute(text("UPDATE pipelines SET paused = true"))
    run = dag.run({"name": "sub", "pipeline": {"name": "child"}})
    until(lambda: dag.rows("SELECT 1 FROM runs WHERE parent_run_id = :id AND state = 'queued'", id=run))
    dag.cancel(run)
    dag.ended(run, "cancelled")
    assert dag.rows("SELECT state FROM runs WHERE parent_run_id = :id", id=run) == [("cancelled",)]
