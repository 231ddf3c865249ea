"""Everything inside of everything: what holds for a task of a run holds for one of an index, a round or a sub-run."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.records import Outcome
from orchestrator.wire.messages import GrantSpec
from tests.integration.dag_site import Act, DagSite, Played, failed, goes_on, left, script, until

pytestmark = pytest.mark.timeout(120)


def again(dag: DagSite, run: str, *tasks: str) -> None:
    [(generation,)] = dag.rows("SELECT generation FROM runs WHERE id = :id", id=run)
    dag.rerun(run, *tasks)
    until(lambda: dag.rows("SELECT 1 FROM runs WHERE id = :id AND generation > :g", id=run, g=generation))


def test_each_index_asks_a_person_and_waits_for_its_own_event(dag: DagSite) -> None:
    group = {
        "name": "each",
        "map": {"over": ["a", "b"], "success": "any"},
        "tasks": [
            {"name": "ask", "approval": {"message": "{{ map.item }}?", "on_reject": "skip"}},
            {"name": "told", "upstream_tasks": ["ask"], "event": {}},
            script("use", "told", arguments={"it": "{{ tasks.told.outputs.payload }}"}),
        ],
    }
    end = dag.lead()
    with dag.worker():
        run = dag.run(group, script("end", "each", arguments={"all": "{{ tasks.each.outputs[0].use }}"}))
        for at in (0, 1):
            dag.becomes(run, f"each[{at}].ask", "waiting", "approval")
        assert dag.task(run, "each[1].ask").message == "b?"
        end()
        dag.lead()
        dag.answer(run, "each[0].ask", approve=True)
        dag.answer(run, "each[1].ask", approve=False)
        dag.becomes(run, "each[0].told", "waiting", "event")
        dag.report(dag.task(run, "each[0].told").wait_token, 7)
        states = dag.ended(run)
    assert dag.outputs(run)["end"] == {"all": {"it": 7}}
    assert {states[f"each[1].{name}"] for name in ("ask", "told", "use")} == {"skipped"}


def test_a_map_of_runs_of_another_pipeline_leaves_a_list_of_what_they_left(dag: DagSite) -> None:
    dag.save("child", script("only", arguments={"n": "{{ params.n }}"}), parameters={"n": 0})
    each = {
        "name": "each",
        "map": {"over": [1, 2, 3], "max_parallel": 2},
        "pipeline": {"name": "child", "parameters": {"n": "{{ map.item }}"}},
    }
    dag.lead(max_concurrent_runs=1)
    with dag.worker():
        run = dag.run(each, script("end", "each", arguments={"second": "{{ tasks.each.outputs[1].outputs.only.n }}"}))
        dag.ended(run)
        assert dag.outputs(run)["end"] == {"second": 2}
        again(dag, run, "each[1]")
        dag.ended(run)
    assert dag.rows("SELECT count(*) FROM runs WHERE parent_run_id = :id", id=run) == [(4,)]


def test_a_cancel_of_one_index_cancels_the_run_that_it_is(dag: DagSite) -> None:
    dag.save("child", {"name": "stay", "event": {}})
    each = {"name": "each", "map": {"over": [1, 2], "success": "any"}, "pipeline": {"name": "child"}}
    dag.lead()
    run = dag.run(each)
    until(lambda: len(dag.rows("SELECT 1 FROM task_runs WHERE state = 'waiting'")) == 2)
    dag.cancel(run, task="each[0]")
    dag.becomes(run, "each[0]", "cancelled")
    tokens = dag.rows("SELECT wait_token FROM task_runs WHERE state = 'waiting'")
    dag.report(tokens[0].wait_token, None)
    dag.ended(run)
    states = dag.rows("SELECT state FROM runs WHERE parent_run_id = :id ORDER BY state", id=run)
    assert [row.state for row in states] == ["cancelled", "success"]


def test_each_round_of_a_group_expands_its_map_and_knows_the_round_before(dag: DagSite) -> None:
    loop = {
        "name": "loop",
        "repeat": {"until": "tasks.judge.outputs.total >= 5", "max": 4},
        "tasks": [
            script("seed", when="True", arguments={"n": "{{ repeat.index }}"}),
            script(
                "try", "seed",
                map={"over": {"range": [0, 3]}}, arguments={"n": "{{ tasks.seed.outputs.n }}", "at": "{{ map.item }}"},
            ),
            script("judge", "try", arguments={"all": "{{ tasks.try.outputs }}"}),
        ],
    }  # fmt: skip

    def judge(spec: GrantSpec) -> Outcome:
        found = spec.parameters["arguments"]["all"]
        return left(total=sum(one["n"] for one in found), width=len(found))

    dag.lead()
    with dag.worker() as worker:
        worker.behave = Judged(judge)
        run = dag.run(loop, script("end", "loop", arguments={"last": "{{ tasks.loop.outputs.judge }}"}))
        dag.ended(run)
    assert dag.outputs(run)["end"] == {"last": {"total": 6, "width": 3}}
    assert set(dag.states(run)) >= {f"loop[{at}].try[{n}]" for at in range(3) for n in range(3)}


class Judged(Played):
    """Tasks named ``judge`` do as they are told, wherever they are."""

    def __init__(self, judge: Act) -> None:
        super().__init__()
        self._judge = judge

    def __call__(self, spec: GrantSpec) -> Outcome | None:
        return self._judge(spec) if spec.task.endswith("judge") else super().__call__(spec)


def test_a_round_reads_what_the_round_before_has_left(dag: DagSite) -> None:
    dag.lead()
    with dag.worker(Played(t=lambda spec: left(n=1 + ((spec.parameters["arguments"]["before"] or {}).get("n", 0))))):
        run = dag.run(
            script(
                "t",
                repeat={"until": "outputs.n >= 3", "max": 5},
                arguments={"before": "{{ repeat.previous.outputs }}"},
            )
        )
        dag.ended(run)
    assert dag.outputs(run)["t[2]"] == {"n": 3}


def test_each_index_is_torn_down_by_itself_also_when_it_is_cancelled(dag: DagSite) -> None:
    group = {
        "name": "g",
        "map": {"over": {"range": 3}, "max_parallel": 2},
        "tasks": [script("up"), script("work", "up"), script("down", "work", teardown=["up"])],
    }
    played = Played(**{"g[0].work": failed("broken")})
    played.acts["g[1].work"] = goes_on
    dag.lead()
    with dag.worker(played) as worker:
        run = dag.run(group)
        dag.becomes(run, "g[2].down", "success")
        dag.becomes(run, "g[1].work", "running")
        dag.cancel(run)
        states = dag.ended(run, None)
        assert not worker.running
    assert [states[f"g[{at}].down"] for at in range(3)] == ["success"] * 3
    assert [states[f"g[{at}].work"] for at in range(3)] == ["failed", "cancelled", "success"]


def test_a_rerun_of_one_index_deep_inside_touches_only_what_reads_it(dag: DagSite) -> None:
    group = {
        "name": "folds",
        "map": {"over": {"range": 2}},
        "tasks": [
            script("split"),
            script("fit", "split", map={"over": ["a", "b"]}),
            script("score", "fit", arguments={"fits": "{{ tasks.fit.outputs }}"}),
        ],
    }
    played = Played()
    dag.lead()
    with dag.worker(played):
        run = dag.run(group, script("beside"), script("end", "folds"))
        dag.ended(run)
        played.ran = []
        again(dag, run, "folds[1].fit[0]")
        dag.ended(run)
        assert sorted(played.ran) == ["end", "folds[1].fit[0]", "folds[1].score"]
        played.ran = []
        again(dag, run, "folds[0]")
        dag.ended(run)
    assert sorted(played.ran) == [
        "end", "folds[0].fit[0]", "folds[0].fit[1]", "folds[0].score", "folds[0].split",
    ]  # fmt: skip


def test_equal_indices_of_one_map_run_once_by_the_cache(dag: DagSite) -> None:
    played = Played()
    dag.lead()
    with dag.worker(played):
        run = dag.run(
            script("t", map={"over": [1, 2, 1, 1]}, cache=True, arguments={"n": "{{ map.item }}"}),
            script("end", "t", arguments={"all": "{{ tasks.t.outputs }}"}),
        )
        dag.ended(run)
    assert sorted(played.ran) == ["end", "t[0]", "t[1]"]
    assert dag.outputs(run)["end"] == {"all": [{"n": 1}, {"n": 2}, {"n": 1}, {"n": 1}]}


def test_maps_lie_four_deep_in_each_other_and_no_deeper(dag: DagSite) -> None:
    inner: dict[str, Any] = script("leaf", arguments={"at": "{{ map.index }}"})
    for name in "dcba":
        inner = {"name": name, "map": {"over": {"range": 2}}, "tasks": [inner]}
    dag.lead()
    with dag.worker():
        run = dag.run(inner, script("end", "a", arguments={"it": "{{ tasks.a.outputs[1].b[0].c[1].d[1].leaf.at }}"}))
        dag.ended(run, seconds=60)
    assert dag.outputs(run)["end"] == {"it": 1}
    assert sum(name.endswith("leaf") for name in dag.states(run)) == 16
