"""Maps, groups, loops and runs inside of runs on real processes: how they expand, end early, inherit and are rerun."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from orchestrator.client import TASK_FINAL_STATES, ApiError
from tests.acceptance.system import System
from tests.acceptance.test_dag_edges import end, save, start, told
from tests.acceptance.test_dag_policies import service as service  # noqa: PLC0414 (a fixture)
from tests.acceptance.test_dag_policies import system as system  # noqa: PLC0414 (a fixture)

pytestmark = pytest.mark.timeout(120)


def inside(system: System, run_id: str, container: str) -> list[dict[str, Any]]:
    return list(system.client.tasks(run_id, inside=container))


# --- maps ---


def test_a_random_sweep_is_the_same_for_the_same_seed_and_the_best_of_it_is_chosen(system: System) -> None:
    name = save(
        system,
        """
        name: random-sweep
        parameters: {seed: 7}
        tasks:
          - name: train
            operator: custom_script
            map:
              over: {random: {rate: {low: 0.001, high: 1, log: true}, depth: {low: 2, high: 8, integer: true},
                              kind: [tree, forest]}, samples: 4, seed: "{{ params.seed }}"}
              max_parallel: 2
            parameters:
              arguments: {point: "{{ map.item }}"}
              script_content: |
                import json, os, time

                point = json.load(open(os.environ["ORCHESTRATOR_INPUT_FILE"]))["arguments"]["point"]
                time.sleep(0.3)
                json.dump({"loss": point["rate"]}, open(os.environ["ORCHESTRATOR_OUTPUT_FILE"], "w"))
          - {name: choose, operator: best_of, upstream_tasks: [train],
             parameters: {results: "{{ tasks.train.outputs }}", metric: loss, mode: min}}
        """,
    )
    runs = [system.succeed(start(system, name, **given)) for given in ({}, {}, {"seed": 8})]
    first, again, other = ([task["item"] for task in inside(system, run["id"], "train")] for run in runs)
    assert len(first) == 4
    assert first == again != other
    for point in (*first, *other):
        assert 0.001 <= point["rate"] <= 1
        assert point["depth"] in range(2, 9)
        assert point["kind"] in ("tree", "forest")
    rates = [point["rate"] for point in first]
    chosen = next(task for task in runs[0]["tasks"] if task["name"] == "choose")["outputs"]
    assert (chosen["index"], chosen["value"]) == (rates.index(min(rates)), min(rates))
    for run in runs:
        tries = [try_ for index in range(4) for try_ in system.attempts(run["id"], f"train[{index}]")]
        spans = [(one["created_at"], one["ended_at"]) for one in tries]
        assert max(sum(begun <= at < ended for begun, ended in spans) for at, _ in spans) == 2, "max_parallel"


def test_a_map_goes_over_what_is_zipped_counted_or_left_upstream(system: System) -> None:
    run, tasks = end(
        system,
        """
        name: kinds-of-maps
        parameters: {names: [a, b]}
        tasks:
          - {name: list, operator: custom_script, parameters: {script_type: bash,
             script_content: 'echo "{\\"files\\": [\\"x\\", {\\"y\\": 1}]}" > "$ORCHESTRATOR_OUTPUT_FILE"'}}
          - {name: left, operator: mishap, upstream_tasks: [list], map: {over: "{{ tasks.list.outputs.files }}"}}
          - {name: zipped, operator: mishap, map: {over: {zip: {n: [1, 2], name: "{{ params.names }}"}}}}
          - {name: counted, operator: mishap, map: {over: {range: [1, 6, 2]}, key: "no-{{ map.item }}"}}
        """,
    )
    assert run["state"] == "success", tasks
    items = {name: [task["item"] for task in inside(system, run["id"], name)] for name in ("left", "zipped", "counted")}
    assert items == {
        "left": ["x", {"y": 1}],
        "zipped": [{"n": 1, "name": "a"}, {"n": 2, "name": "b"}],
        "counted": [1, 3, 5],
    }
    assert [task["map_key"] for task in inside(system, run["id"], "counted")] == ["no-1", "no-3", "no-5"]


def test_a_ratio_is_decided_as_soon_as_it_is_certain(system: System) -> None:
    scripted = """operator: custom_script, retries: 0, grace_seconds: 1, parameters: {script_type: bash,
             script_content: 'sleep "$ORCHESTRATOR_PARAM_N"; exit "$ORCHESTRATOR_PARAM_E"',
             arguments: {n: "{{ map.item[0] }}", e: "{{ map.item[1] }}"}}"""
    name = save(
        system,
        f"""
        name: certain-ratio
        tasks:
          - {{name: good, map: {{over: [[0, 0], [0, 0], [60, 0], [60, 0]], max_parallel: 3, fail_fast: true,
                                success: {{min_ratio: 0.5}}}}, {scripted}}}
          - {{name: bad, map: {{over: [[0, 64], [60, 0], [60, 0]], max_parallel: 2, fail_fast: true}}, {scripted}}}
          - {{name: patient, map: {{over: [[0, 0], [60, 0]], success: {{min_ratio: 0.5}}}}, {scripted}}}
          - {{name: use, operator: custom_script, upstream_tasks: [patient], parameters: SHORT}}
        """,
    )
    run_id = start(system, name)
    ended = {name: system.wait_for_task(run_id, name, "success", "failed") for name in ("good", "bad", "patient")}
    assert {name: told(task) for name, task in ended.items()} == {
        "good": ("success", ""), "bad": ("failed", "index_failed"), "patient": ("success", ""),
    }  # fmt: skip
    system.wait_for_task(run_id, "use", "success")
    assert [task["state"] for task in inside(system, run_id, "patient")] == ["success", "running"]
    assert system.client.get_run(run_id)["state"] == "running", "what it does not wait for any more goes on"
    system.wait_until(lambda: not _open(system, run_id, "good", "bad"), "what is left of them is cancelled")
    system.client.cancel(run_id, mode="force")
    system.finish(run_id)
    good, bad = inside(system, run_id, "good"), inside(system, run_id, "bad")
    assert [told(task) for task in good] == [("success", "")] * 2 + [("cancelled", "fail_fast")] * 2
    assert [told(task) for task in bad] == [("failed", "exit_code")] + [("cancelled", "fail_fast")] * 2
    assert bad[2]["attempt_number"] == 0, "it was never started"


def _open(system: System, run_id: str, *containers: str) -> list[str]:
    tasks = [task for container in containers for task in inside(system, run_id, container)]
    return [task["name"] for task in tasks if task["state"] not in TASK_FINAL_STATES]


def test_groups_of_tasks_are_mapped_four_deep_and_no_deeper(system: System) -> None:
    def nested(depth: int) -> dict[str, Any]:
        if depth == 0:
            return {"name": "leaf", "operator": "mishap"}
        over = [1, 2] if depth in (1, 4) else ["one"]
        tasks = [nested(depth - 1)]
        if depth == 1:
            tasks.append({"name": "after", "operator": "mishap", "upstream_tasks": ["leaf"]})
        return {"name": f"g{depth}", "map": {"over": over}, "tasks": tasks}

    run_id = system.start_run({"name": "nested", "tasks": [nested(4)]})
    run = system.succeed(run_id)
    names = [f"g4[{a}].g3[0].g2[0].g1[{b}].{leaf}" for a in (0, 1) for b in (0, 1) for leaf in ("leaf", "after")]
    assert {system.client.get_task(run_id, name)["state"] for name in names} == {"success"}
    assert [task["inside"] for task in run["tasks"]] == [{"success": 2}]
    with pytest.raises(ApiError) as caught:
        system.client.save_pipeline({"name": "too-nested", "tasks": [nested(5)]})
    assert caught.value.status == 422


def test_a_rerun_of_one_index_touches_only_that_and_what_is_downstream(system: System) -> None:
    name = save(
        system,
        """
        name: one-index
        tasks:
          - {name: each, operator: mishap, map: {over: [a, b, c]}}
          - {name: mapped, operator: mishap, upstream_tasks: [each], map: {over: "{{ tasks.each.outputs }}"}}
          - {name: below, operator: mishap, upstream_tasks: [mapped]}
          - {name: beside, operator: mishap}
        """,
    )
    run_id = start(system, name)
    system.succeed(run_id)
    shown = system.client.preview_rerun(run_id, ["each[1]"])["run"]
    assert {again["task"] for again in shown} == {"each", "each[1]", "mapped", "mapped[1]", "below"}
    assert system.client.rerun(run_id, ["each[1]"])["generation"] == 2
    run = system.succeed(run_id)
    for name in ("each", "mapped"):
        assert [task["attempt_number"] for task in inside(system, run_id, name)] == [1, 2, 1]
    tried = {task["name"]: task["attempt_number"] for task in run["tasks"]}
    assert tried == {"each": 0, "mapped": 0, "below": 2, "beside": 1}


def test_a_loop_repeats_a_group_and_ends_with_a_round_that_fails(system: System) -> None:
    def loop(name: str, until: str, content: str) -> dict[str, Any]:
        parameters = {"script_type": "bash", "script_content": content, "arguments": {"round": "{{ repeat.index }}"}}
        script = {"name": f"{name}-a", "operator": "custom_script", "retries": 0, "parameters": parameters}
        after = {"name": f"{name}-b", "operator": "mishap", "upstream_tasks": [f"{name}-a"]}
        return {"name": name, "repeat": {"until": until, "max": 5}, "tasks": [script, after]}

    tells = 'echo "{\\"round\\": $ORCHESTRATOR_PARAM_ROUND}" > "$ORCHESTRATOR_OUTPUT_FILE"'
    loops = [
        loop("reaches", "tasks['reaches-a'].outputs.round >= 1", tells),
        loop("breaks", "false", 'exit "$ORCHESTRATOR_PARAM_ROUND"'),
    ]
    run = system.finish(system.start_run({"name": "loops-of-groups", "tasks": loops}))
    assert [told(task) for task in run["tasks"]] == [("success", ""), ("failed", "round_failed")]
    for loop_name in ("reaches", "breaks"):
        rounds = [task["name"] for task in inside(system, run["id"], loop_name)]
        assert rounds == [f"{loop_name}[{at}].{loop_name}-{task}" for at in (0, 1) for task in "ab"]


# --- sub-pipelines ---


def test_a_run_inside_of_another_inherits_as_it_is_told_and_may_be_left_to_itself(system: System) -> None:
    save(system, "name: inner\nparameters: {rows: 1, colour: red}\ntasks:\n  - {name: a, operator: mishap}\n")
    name = save(
        system,
        """
        name: inner
        parameters: {rows: 10, colour: blue}
        tasks:
          - {name: a, operator: mishap}
          - {name: gate, approval: {message: go}}
---
        name: outer
        parameters: {rows: 25, colour: green}
        tasks:
          - {name: inherits, pipeline: {name: inner, version: 1, parameters: {rows: "{{ params.rows }}"}}}
          - {name: bequeaths-nothing, pipeline: {name: inner, version: 1, inherit: false}}
          - {name: each, map: {over: [3, 4]}, pipeline: {name: inner, version: 1, parameters: {rows: "{{ map.item }}"}}}
          - {name: only-started, pipeline: {name: inner, wait: false}}
        """,
    )
    run = system.succeed(start(system, name))
    tasks = {task["name"]: task for task in run["tasks"]}

    def parameters(task: dict[str, Any]) -> tuple[int, str]:
        found = system.client.get_run(task["child_run_id"])["parameters"]
        return found["rows"], found["colour"]

    assert parameters(tasks["inherits"]) == (25, "green")
    assert parameters(tasks["bequeaths-nothing"]) == (1, "red")
    assert [parameters(task) for task in inside(system, run["id"], "each")] == [(3, "green"), (4, "green")]
    left = tasks["only-started"]["child_run_id"]
    system.wait_for_task(left, "gate", "waiting")
    system.client.approve(left, "gate")
    system.succeed(left)


def test_who_approved_is_in_the_audit(system: System) -> None:
    run_id = start(system, save(system, "name: asked\ntasks:\n  - {name: gate, approval: {message: go}}\n"))
    system.wait_for_task(run_id, "gate", "waiting")
    [worker] = system.client.workers()
    assert run_id not in [attempt["run_id"] for attempt in worker["running"]]
    system.client.approve(run_id, "gate", reason="looks right")
    system.succeed(run_id)
    [event] = [event for event in system.events(run_id) if event["task"] == "gate" and event["after"] == "success"]
    assert event["actor"] not in ("", "scheduler")
    assert "looks right" in event["message"]


def test_a_scheduler_that_is_killed_while_maps_expand_loses_no_index_and_makes_none_twice(system: System) -> None:
    name = save(
        system,
        "name: wide\ntasks:\n  - {name: each, approval: {message: go}, map: {over: {range: 400}, max_parallel: 300}}\n",
    )
    runs = [start(system, name) for _ in range(3)]
    system.wait_until(lambda: any(system.task(run_id, "each")["inside"] for run_id in runs), "one of them expands")
    system.kill(system.children["scheduler"])
    system.start_scheduler("scheduler-2")

    def is_expanded(run_id: str) -> bool:
        return bool(system.task(run_id, "each")["inside"] == {"waiting": 300, "pending": 100})

    for run_id in runs:
        system.wait_until(partial(is_expanded, run_id), "it is expanded")
        assert sorted(task["map_index"] for task in inside(system, run_id, "each")) == list(range(400))
        system.client.cancel(run_id, mode="force")
        assert system.finish(run_id)["state"] == "cancelled"
