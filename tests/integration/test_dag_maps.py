"""Fan-out as a user writes it, on the real leader: every way to say what it goes over, its limits and its success."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest

from orchestrator.errors import InvalidDefinition
from orchestrator.records import Outcome
from orchestrator.store.reruns import preview_rerun
from orchestrator.wire.messages import GrantSpec
from tests.integration.dag_site import DagSite, Played, failed, goes_on, left, script, until

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("over", "items"),
    [
        (["a", {"b": 1}, None], ["a", {"b": 1}, None]),
        ({"range": 3}, [0, 1, 2]),
        ({"range": [10, 4, -3]}, [10, 7]),
        ({"grid": {"a": [1, 2], "b": ["x"]}}, [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]),
        ({"zip": {"a": [1, 2], "b": ["x", "y"]}}, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
        ("{{ tasks.list.outputs.found }}", [5, 6]),
        ({"grid": {"a": "{{ params.depths }}"}}, [{"a": 2}, {"a": 4}]),
    ],
)  # fmt: skip
def test_a_map_goes_over_what_is_written_and_the_next_task_has_all_of_it(
    dag: DagSite, over: Any, items: list[Any]
) -> None:
    dag.lead()
    with dag.worker():
        run = dag.run(
            script("list", arguments={"found": [5, 6]}),
            script("use", "list", map={"over": over}, arguments={"it": "{{ map.item }}", "at": "{{ map.index }}"}),
            script("all", "use", arguments={"all": "{{ tasks.use.outputs }}", "text": "n={{ params.depths }}"}),
            parameters={"depths": [2, 4]},
        )
        states = dag.ended(run)
    assert [name for name in states if name.startswith("use[")] == [f"use[{at}]" for at in range(len(items))]
    told = dag.outputs(run)["all"]
    assert told == {"all": [{"it": item, "at": at} for at, item in enumerate(items)], "text": "n=[2, 4]"}
    assert dag.task(run, "use").outputs is None, "it is worked out, never stored"


def test_a_random_sweep_is_the_same_each_time(dag: DagSite) -> None:
    over = {"random": {"rate": {"low": 0.001, "high": 0.1, "log": True}, "depth": [2, 4]}, "samples": 4, "seed": 7}
    tasks = (script("t", map={"over": over}, arguments={"it": "{{ map.item }}"}),)
    dag.save("sweep", *tasks)
    dag.lead()
    with dag.worker():
        runs = [dag.start("sweep"), dag.start("sweep")]
        for run in runs:
            dag.ended(run)
    first, second = (dag.outputs(run) for run in runs)
    assert first == second
    assert len({first[f"t[{at}]"]["it"]["rate"] for at in range(4)}) == 4


def test_nothing_to_go_over_is_skipped_and_what_needs_it_too(dag: DagSite) -> None:
    dag.lead()
    with dag.worker():
        run = dag.run(
            script("t", map={"over": []}),
            script("needs", "t"),
            script("any-way", "t", trigger_rule="none_failed"),
        )
        assert dag.ended(run) == {"t": "skipped", "needs": "skipped", "any-way": "success"}
    assert dag.task(run, "t").reason == "empty"


def test_no_more_than_max_parallel_run_at_once_and_the_others_say_why(dag: DagSite) -> None:
    played = Played(t=goes_on)
    dag.lead()
    with dag.worker(played) as worker:
        run = dag.run(script("t", map={"over": {"range": 5}, "max_parallel": 2}))
        done = 0
        while done < 5:
            until(lambda at=done: len(worker.running) == min(2, 5 - at), 30, lambda: dag.story(run))  # type: ignore[misc]
            waiting = dag.rows("SELECT reason FROM task_runs WHERE parent_id IS NOT NULL AND state = 'pending'")
            assert {row.reason for row in waiting} <= {"max_parallel"}
            assert len(waiting) == max(0, 3 - done)
            first = min(worker.running, key=lambda id_: worker.running[id_].task)
            worker.finish(first, left())
            until(lambda id_=first: id_ not in worker.running)  # type: ignore[misc]
            done += 1
        dag.ended(run)
    assert played.ran == [f"t[{at}]" for at in range(5)]


def bad_at(*indices: int) -> Any:
    def act(spec: GrantSpec) -> Outcome:
        return failed("broken") if spec.task in {f"t[{at}]" for at in indices} else left(ok=1)

    return act


@pytest.mark.parametrize(
    ("success", "bad", "state"),
    [
        ("all", (), "success"),
        ("all", (1,), "failed"),
        ("any", (0, 1, 2), "success"),
        ("any", (0, 1, 2, 3), "failed"),
        ({"min_count": 2}, (0, 1), "success"),
        ({"min_count": 3}, (0, 1), "failed"),
        ({"min_ratio": 0.75}, (2,), "success"),
        ({"min_ratio": 0.75}, (2, 3), "failed"),
    ],
)
def test_the_rule_of_success_decides(dag: DagSite, success: Any, bad: tuple[int, ...], state: str) -> None:
    dag.lead()
    with dag.worker(Played(t=bad_at(*bad))):
        run = dag.run(script("t", map={"over": {"range": 4}, "success": success}), script("next", "t"))
        states = dag.ended(run, None)
    assert states["t"] == state, dag.story(run)
    assert states["next"] == ("success" if state == "success" else "upstream_failed")
    assert [states[f"t[{at}]"] for at in range(4)] == ["failed" if at in bad else "success" for at in range(4)]


def test_fail_fast_cancels_what_is_left_as_soon_as_it_is_certain(dag: DagSite) -> None:
    played = Played(t=lambda spec: failed("broken") if spec.task == "t[1]" else None)
    dag.lead()
    with dag.worker(played) as worker:
        map_ = {"over": {"range": 6}, "max_parallel": 3, "fail_fast": True}
        run = dag.run(script("t", map=map_))
        states = dag.ended(run, "failed")
        until(lambda: not worker.running)
    assert states["t"] == "failed"
    assert {states[f"t[{at}]"] for at in (0, 2, 3, 4, 5)} == {"cancelled"}
    assert dag.task(run, "t[5]").reason == "fail_fast"
    assert set(played.ran) == {"t[0]", "t[1]", "t[2]"}


def test_without_fail_fast_the_rest_runs_on_and_decides_nothing(dag: DagSite) -> None:
    gate = threading.Event()
    played = Played(t=lambda spec: left(n=0) if spec.task == "t[0]" else None)
    dag.lead()
    with dag.worker(played) as worker:
        run = dag.run(script("t", map={"over": {"range": 2}, "success": "any"}), script("next", "t"))
        dag.becomes(run, "next", "success")
        assert dag.states(run)["t[1]"] == "running"
        assert dag.state(run) == "running", "what runs on is open work of the run"
        (last,) = worker.running
        worker.finish(last, failed("late"))
        dag.ended(run)
    gate.set()
    assert dag.task(run, "t").state == "success"


def test_a_map_that_is_too_long_or_has_equal_keys_fails_with_a_sentence_before_it_makes_a_row(dag: DagSite) -> None:
    dag.lead()
    with dag.worker():
        run = dag.run(
            script("list", arguments={"found": [1, 2, 3], "twice": [1, 1]}),
            script("long", "list", map={"over": "{{ tasks.list.outputs.found }}", "max_size": 2}),
            script("same", "list", map={"over": "{{ tasks.list.outputs.twice }}", "key": "k{{ map.item }}"}),
            script("none", "list", map={"over": "{{ tasks.list.outputs.not_there }}"}),
        )
        dag.ended(run, "failed")
    reasons = {name: dag.task(run, name).reason for name in ("long", "same", "none")}
    assert reasons == {"long": "too_many_items", "same": "map_key", "none": "template"}
    assert dag.rows("SELECT * FROM task_runs WHERE parent_id IS NOT NULL") == []
    with pytest.raises(InvalidDefinition) as refused:
        dag.save("known-before", script("t", map={"over": {"range": 3}, "max_size": 2}))
    assert next(iter(refused.value.problems)).pointer.startswith("/tasks/0/map")


GROUP: dict[str, Any] = {
    "name": "folds",
    "upstream_tasks": [],
    "map": {"over": {"range": 2}, "key": "fold-{{ map.index }}"},
    "tasks": [
        script("split", arguments={"fold": "{{ map.item }}"}),
        script(
            "fit", "split",
            map={"over": ["a", "b"]},
            arguments={"m": "{{ map.item }}", "fold": "{{ tasks.split.outputs.fold }}"},
        ),
        script("score", "fit", arguments={"fits": "{{ tasks.fit.outputs }}", "key": "{{ map.key }}"}),
    ],
}  # fmt: skip


def test_a_group_is_mapped_and_a_map_inside_of_it(dag: DagSite) -> None:
    dag.lead()
    with dag.worker():
        run = dag.run(GROUP, script("end", "folds", arguments={"all": "{{ tasks.folds.outputs }}"}))
        states = dag.ended(run)
    assert set(states) == {
        "folds", "end",
        *(f"folds[{n}].{name}" for n in (0, 1) for name in ("split", "fit", "fit[0]", "fit[1]", "score")),
    }  # fmt: skip
    outputs = dag.outputs(run)
    assert outputs["folds[1].fit[0]"] == {"m": "a", "fold": 1}
    fits = [{"m": name, "fold": 1} for name in ("a", "b")]
    assert outputs["folds[1].score"] == {"fits": fits, "key": "fold-1"}
    assert outputs["end"]["all"][1] == {"split": {"fold": 1}, "fit": fits, "score": outputs["folds[1].score"]}


def test_a_rerun_of_one_index_touches_that_index_and_what_is_downstream(dag: DagSite) -> None:
    played = Played(t=bad_at(2))
    tasks = (
        script("list", arguments={"found": [0, 1, 2, 3]}),
        script("t", "list", map={"over": "{{ tasks.list.outputs.found }}", "key": "k{{ map.item }}"}),
        script("next", "t"),
        script("beside", "list"),
    )
    dag.lead()
    with dag.worker(played):
        run = dag.run(*tasks)
        dag.ended(run, "failed")
        played.acts, played.ran = {}, []
        dag.rerun(run, "t[k2]")
        until(lambda: dag.rows("SELECT 1 FROM runs WHERE generation = 2"))
        dag.ended(run)
        assert sorted(played.ran) == ["next", "t[2]"]
        generations = {row.name: row.generation for row in dag.rows("SELECT name, generation FROM task_runs")}
        assert {name for name, generation in generations.items() if generation == 2} == {"t", "t[2]", "next"}
        played.ran = []
        dag.rerun(run, "t")
        until(lambda: dag.rows("SELECT 1 FROM runs WHERE generation = 3"))
        dag.ended(run)
    assert sorted(played.ran) == ["next", *(f"t[{at}]" for at in range(4))]


def test_of_the_maps_downstream_a_rerun_of_one_index_touches_that_index_alone_and_the_preview_says_so(
    dag: DagSite,
) -> None:
    made = iter(range(100))
    played = Played(t=lambda spec: left(n=next(made), of=spec.task))
    by_index = {"over": "{{ tasks.t.outputs }}", "key": "n{{ map.item.n }}"}
    body = [script("a", arguments={"it": "{{ map.item }}"}), script("b", "a", arguments={"of": "{{ map.item.of }}"})]
    tasks = (
        script("t", map={"over": {"range": 3}}),
        script("u", "t", map=by_index, arguments={"it": "{{ map.item.n }}"}),
        {"name": "g", "upstream_tasks": ["t"], "map": {"over": "{{ tasks.t.outputs }}"}, "tasks": body},
        script("all", "u", arguments={"all": "{{ tasks.u.outputs }}"}),
        script("whole", "t", map={"over": by_index["over"]}, arguments={"all": "{{ tasks.t.outputs }}"}),
    )
    stop = dag.lead()
    with dag.worker(played):
        run = dag.run(*tasks)
        dag.ended(run)
        wanted = ["t[1]", "u[1]", "g[1].a", "g[1].b", "all"]
        for generation in (2, 3):
            played.ran = []
            with dag.engine.connect() as connection:
                shown = preview_rerun(connection, dag.tenant, run, ["t[1]"])
            assert sorted(shown.again) == sorted([*wanted, "t", "u", "g", "whole"])
            assert {"t[0]", "u[0]", "u[2]", "g[2].b"} <= set(shown.reused)
            dag.rerun(run, "t[1]")
            until(partial(dag.rows, "SELECT 1 FROM runs WHERE generation = :n", n=generation))
            dag.ended(run)
            assert sorted(played.ran) == sorted([*wanted, *(f"whole[{at}]" for at in range(3))])
            # The next one goes on from the rows of this one alone.
            stop()
            stop = dag.lead()
    outputs = dag.outputs(run)
    now = [outputs[f"t[{at}]"] for at in range(3)]
    assert len({item["n"] for item in now}) == 3
    assert outputs["all"] == {"all": [{"it": item["n"]} for item in now]}
    for at in range(3):
        assert (dag.task(run, f"u[{at}]").item, dag.task(run, f"u[{at}]").map_key) == (now[at], f"n{now[at]['n']}")
        assert outputs[f"g[{at}].a"] == {"it": now[at]}


def test_a_map_that_is_expanded_anew_with_fewer_items_leaves_the_others_behind(dag: DagSite) -> None:
    found = [1, 2, 3]
    played = Played(list=lambda spec: left(found=list(found)))
    dag.lead()
    with dag.worker(played):
        run = dag.run(
            script("list"),
            script("t", "list", map={"over": "{{ tasks.list.outputs.found }}"}, arguments={"it": "{{ map.item }}"}),
            script("all", "t", arguments={"all": "{{ tasks.t.outputs }}"}),
        )
        dag.ended(run)
        found[:] = [9]
        dag.rerun(run, "list")
        until(lambda: dag.rows("SELECT 1 FROM runs WHERE generation = 2"))
        dag.ended(run)
    assert dag.outputs(run)["all"] == {"all": [{"it": 9}]}
    reasons = {row.name: row.reason for row in dag.rows("SELECT name, reason FROM task_runs WHERE name LIKE 't[%'")}
    assert reasons == {"t[0]": "", "t[1]": "superseded", "t[2]": "superseded"}
