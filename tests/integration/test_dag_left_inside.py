"""Containers that a rerun settles without running them, and rounds that run again, on the real leader and its rows."""

from __future__ import annotations

import pytest

from orchestrator.records import Outcome
from orchestrator.store.reruns import preview_rerun
from orchestrator.wire.messages import GrantSpec
from tests.integration.dag_site import DagSite, Played, goes_on, left, script, until

pytestmark = pytest.mark.timeout(120)


def test_what_a_map_had_before_a_rerun_is_given_to_nobody(dag: DagSite) -> None:
    played = Played(a=left(go=True))
    shown = {"all": "{{ tasks.m.outputs }}"}
    tasks = (
        script("a"),
        script("b"),
        script("m", "a", map={"over": [1, 2]}, when="tasks.a.outputs.go", arguments={"x": "{{ map.item }}"}),
        script("early", "b", "m", trigger_rule="one_success", arguments=shown),
        script("late", "m", trigger_rule="all_done", arguments=shown),
    )
    stop = dag.lead()
    with dag.worker(played) as worker:
        run = dag.run(*tasks)
        dag.ended(run)
        assert dag.outputs(run)["late"] == {"all": [{"x": 1}, {"x": 2}]}
        played.acts = {"a": goes_on}
        dag.rerun(run, "a", "b")
        until(lambda: dag.rows("SELECT 1 FROM runs WHERE generation = 2"))
        dag.becomes(run, "early", "success")
        assert dag.state(run) == "running"
        assert dag.outputs(run)["early"] == {"all": []}, "it waits to go over its list anew"
        stop()
        dag.lead()
        worker.finish(str(dag.task(run, "a").attempt_id), left(go=False))
        assert dag.ended(run) == {"a": "success", "b": "success", "early": "success", "late": "success", "m": "skipped"}
    assert dag.outputs(run)["late"] == {"all": []}
    assert dag.task(run, "m[0]").superseded


def test_a_round_that_runs_again_takes_the_later_ones_with_it(dag: DagSite) -> None:
    def count(spec: GrantSpec) -> Outcome:
        before = spec.parameters["arguments"]["before"]
        return left(n=(before["outputs"]["n"] if before else 0) + step)

    step = 1
    loop = {"until": "outputs.n >= 3", "max": 5}
    tasks = (
        script("t", repeat=loop, arguments={"before": "{{ repeat.previous }}"}),
        script("next", "t", arguments={"n": "{{ tasks.t.outputs.n }}"}),
    )
    played = Played(t=count)
    stop = dag.lead()
    with dag.worker(played):
        run = dag.run(*tasks)
        assert set(dag.ended(run)) == {"t", "t[0]", "t[1]", "t[2]", "next"}
        stop()
        step, played.ran = 2, []
        with dag.engine.connect() as connection:
            found = preview_rerun(connection, dag.tenant, run, ["t[0]"])
        assert (set(found.again), found.reused, found.kept) == ({"t", "t[0]", "next"}, (), ())
        dag.rerun(run, "t[0]")
        dag.lead()
        until(lambda: dag.rows("SELECT 1 FROM runs WHERE generation = 2"))
        assert set(dag.ended(run)) == {"t", "t[0]", "t[1]", "next"}
    assert played.ran == ["t[0]", "t[1]", "next"]
    assert dag.outputs(run)["next"] == {"n": 4}
