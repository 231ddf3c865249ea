"""What the examples do not show of the DAG engine: what ends, bounds and refuses, over REST on real processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from orchestrator.client import ApiError
from orchestrator.definition_text import read_documents
from tests.acceptance.system import System
from tests.acceptance.test_dag_examples import system as system  # noqa: PLC0414 (a fixture)
from tests.acceptance.test_dag_examples import tasks_of

pytestmark = pytest.mark.timeout(120)

LONG = "{script_type: bash, script_content: 'echo working; sleep 60'}"
SHORT = "{script_type: bash, script_content: 'echo done'}"
BROKEN = "{script_type: bash, script_content: 'exit 64'}"


def save(system: System, text: str) -> str:
    """Save the definitions in this text and return the name of the last one."""
    filled = text.replace("LONG", LONG).replace("SHORT", SHORT).replace("BROKEN", BROKEN)
    for document in read_documents(filled, "test.yaml"):
        system.client.save_pipeline(document.value)
    return document.name


def start(system: System, name: str, **parameters: Any) -> str:
    return str(system.client.start_run(name, parameters)["id"])


def end(system: System, text: str, **parameters: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Run this pipeline to its end; returns the run and its tasks."""
    run = system.finish(start(system, save(system, text), **parameters))
    return run, tasks_of(run)


def told(task: dict[str, Any]) -> tuple[str, str]:
    return task["state"], task["reason"]


# --- time ---


def test_a_run_that_is_over_its_deadline_is_stopped_and_has_failed(system: System) -> None:
    run, tasks = end(
        system,
        """
        name: run-deadline
        deadline_seconds: 1.5
        tasks:
          - {name: long, operator: custom_script, grace_seconds: 1, parameters: LONG}
          - {name: after, operator: custom_script, upstream_tasks: [long], parameters: SHORT}
        """,
    )
    assert told(run) == ("failed", "run_deadline")
    assert told(tasks["long"]) == told(tasks["after"]) == ("cancelled", "run_deadline")


def test_each_time_limit_ends_what_it_bounds_and_says_so(system: System) -> None:
    run, tasks = end(
        system,
        """
        name: limits
        tasks:
          - {name: slow, operator: custom_script, timeout_seconds: 0.5, retries: 0, grace_seconds: 1, parameters: LONG}
          - {name: silent, operator: custom_script, progress_timeout_seconds: 1, retries: 0, grace_seconds: 1,
             parameters: LONG}
          - {name: never-placed, operator: custom_script, memory_gb: 90000, max_queued_seconds: 0.5, retries: 0,
             parameters: SHORT}
          - {name: tried-for-long, operator: custom_script, deadline_seconds: 2, retries: 50, retry_delay_seconds: 60,
             parameters: {script_type: bash, script_content: exit 1}}
        """,
    )
    assert run["state"] == "failed"
    assert {name: task["reason"] for name, task in tasks.items()} == {
        "slow": "timeout", "silent": "no_progress", "never-placed": "max_queued", "tried-for-long": "deadline",
    }  # fmt: skip
    assert tasks["tried-for-long"]["state"] == "failed", "and not tried again, though it has retries left"


# --- cancelling ---


def test_force_leaves_the_teardown_out_and_a_cancel_goes_down_into_inner_runs(system: System) -> None:
    outer = """
        name: inner-long
        tasks:
          - {name: work, operator: custom_script, grace_seconds: 1, parameters: LONG}
          - {name: tidy, operator: custom_script, upstream_tasks: [work], teardown: [work], parameters: SHORT}
---
        name: outer-long
        tasks:
          - {name: inner, pipeline: {name: inner-long}}
          - {name: each, operator: custom_script, map: {over: [1, 2]}, grace_seconds: 1, parameters: LONG}
          - {name: tidy, operator: custom_script, upstream_tasks: [inner], teardown: true, parameters: SHORT}
    """
    name = save(system, outer)
    for mode, tidied in (("graceful", "success"), ("force", "cancelled")):
        run_id = start(system, name)
        inner_id = system.wait_for_task(run_id, "inner", "running")["child_run_id"]
        system.wait_for_task(inner_id, "work", "running")
        system.client.settled(system.client.cancel(run_id, mode=mode, reason="wrong data"))
        run = system.finish(run_id)
        inner = system.finish(inner_id)
        assert (run["state"], inner["state"]) == ("cancelled", "cancelled")
        assert {task["state"] for task in system.client.tasks(run_id, inside="each")} == {"cancelled"}
        assert [tasks_of(one)["tidy"]["state"] for one in (run, inner)] == [tidied, tidied], mode


def test_one_task_is_cancelled_and_the_run_goes_on(system: System) -> None:
    name = save(
        system,
        """
        name: cancel-one
        tasks:
          - {name: each, operator: custom_script, map: {over: [1, 60], success: any}, grace_seconds: 1,
             parameters: {script_type: bash, script_content: 'sleep "$ORCHESTRATOR_PARAM_N"',
                          arguments: {n: "{{ map.item }}"}}}
          - {name: after, operator: custom_script, upstream_tasks: [each], parameters: SHORT}
        """,
    )
    run_id = start(system, name)
    system.wait_until(
        lambda: {task["state"] for task in system.client.tasks(run_id, inside="each")} & {"running"}, "an index runs"
    )
    system.client.settled(system.client.cancel_task(run_id, "each[1]", reason="too long"))
    run = system.succeed(run_id)
    assert tasks_of(run)["after"]["state"] == "success"
    assert [task["state"] for task in system.client.tasks(run_id, inside="each")] == ["success", "cancelled"]


def test_a_paused_run_starts_nothing_until_it_is_resumed(system: System) -> None:
    name = save(
        system,
        """
        name: paused
        tasks:
          - {name: gate, approval: {message: go}}
          - {name: after, operator: custom_script, upstream_tasks: [gate], parameters: SHORT}
        """,
    )
    run_id = start(system, name)
    system.wait_for_task(run_id, "gate", "waiting")
    system.client.settled(system.client.pause(run_id, reason="the store moves"))
    system.client.settled(system.client.approve(run_id, "gate"))
    ready = system.wait_for_task(run_id, "after", "ready")
    assert ready["attempt_number"] == 0
    assert [one["kind"] for one in system.client.explain(run_id)["blockers"]] == ["run_paused"]
    system.client.settled(system.client.resume(run_id))
    system.succeed(run_id)


# --- maps, loops, waits ---


def test_maps_that_are_empty_too_large_or_not_good_enough_say_so(system: System) -> None:
    _, tasks = end(
        system,
        """
        name: maps
        parameters: {nothing: [], many: [1, 2, 3]}
        tasks:
          - {name: empty, operator: custom_script, map: {over: "{{ params.nothing }}"}, parameters: SHORT}
          - {name: below, operator: custom_script, upstream_tasks: [empty], parameters: SHORT}
          - {name: large, operator: custom_script, map: {over: "{{ params.many }}", max_size: 2}, parameters: SHORT}
          - {name: alike, operator: custom_script, map: {over: [1, 1], key: "{{ map.item }}"}, parameters: SHORT}
          - {name: bad, operator: custom_script, map: {over: [1, 2, 3], success: {min_count: 1}}, parameters: BROKEN}
        """,
    )
    assert {name: told(task) for name, task in tasks.items()} == {
        "empty": ("skipped", "empty"),
        "below": ("skipped", "all_success"),
        "large": ("failed", "too_many_items"),
        "alike": ("failed", "map_key"),
        "bad": ("failed", "index_failed"),
    }
    assert tasks["large"]["inside"] == {}


def test_a_loop_ends_at_its_bound_as_it_says(system: System) -> None:
    loop = "operator: custom_script, repeat: {until: 'false', max: 2, on_max: %s}, parameters: SHORT"
    _, tasks = end(
        system,
        f"""
        name: loops
        tasks:
          - {{name: fails, {loop % "fail"}}}
          - {{name: ends, {loop % "succeed"}}}
        """,
    )
    assert (told(tasks["fails"]), told(tasks["ends"])) == (("failed", "max_rounds"), ("success", "max_rounds"))


def test_what_waits_ends_when_its_time_is_over(system: System) -> None:
    _, tasks = end(
        system,
        """
        name: waits
        tasks:
          - {name: ask, approval: {message: go, timeout_seconds: 0.5, on_timeout: reject, on_reject: skip}}
          - {name: hear, event: {timeout_seconds: 0.5, on_timeout: skip}}
          - {name: look, operator: wait_for, retries: 0,
             parameters: {file: "data:never", interval_seconds: 1, timeout_seconds: 1}}
        """,
    )
    assert told(tasks["ask"]) == ("skipped", "approval_timeout")
    assert told(tasks["hear"]) == ("skipped", "event_timeout")
    assert told(tasks["look"]) == ("failed", "wait_timeout")
    assert tasks["look"]["failures"] == 1


def test_a_pipeline_that_runs_itself_ends_at_its_depth(system: System) -> None:
    name = save(system, "name: itself\ntasks:\n  - {name: again, pipeline: {name: itself}}\n")
    run = system.finish(start(system, name))
    assert run["state"] == "failed"
    depth = 0
    while children := list(system.client.children(run["id"])):
        [run] = children
        depth += 1
    assert depth == 8
    assert system.task(run["id"], "again")["reason"] == "too_deep"


# --- outputs and templates ---


def test_outputs_that_break_their_schema_and_paths_that_lead_nowhere_are_not_tried_again(system: System) -> None:
    _, tasks = end(
        system,
        """
        name: data
        tasks:
          - name: bad
            operator: custom_script
            retries: 3
            outputs: {type: object, required: [rows]}
            parameters: {script_content: print(1)}
          - name: some
            operator: custom_script
            parameters: {script_content: print(1)}
          - name: nowhere
            operator: custom_script
            retries: 3
            upstream_tasks: [some]
            parameters: {script_content: print(1), arguments: {x: "{{ tasks.some.outputs.x }}"}}
        """,
    )
    assert (told(tasks["bad"]), tasks["bad"]["attempt_number"]) == (("failed", "bad_outputs"), 1)
    assert told(tasks["nowhere"]) == ("failed", "template")
    assert "tasks.some.outputs.x" in tasks["nowhere"]["message"]


# --- concurrency ---


@pytest.mark.parametrize(
    ("on_limit", "first", "second"),
    [
        ("queue", "success", "success"),
        ("cancel_new", "success", "cancelled"),
        ("cancel_running", "cancelled", "success"),
        ("fail", "success", "failed"),
    ],
)
def test_at_the_limit_it_goes_as_the_pipeline_says(system: System, on_limit: str, first: str, second: str) -> None:
    name = save(
        system,
        f"""
        name: limited-{on_limit.replace("_", "-")}
        concurrency: [{{key: "{on_limit}", limit: 1, on_limit: {on_limit}}}]
        tasks:
          - {{name: gate, approval: {{message: go}}}}
        """,
    )
    runs = [start(system, name)]
    system.wait_for_task(runs[0], "gate", "waiting")
    runs.append(start(system, name))
    if on_limit == "queue":
        system.wait_until(lambda: system.client.get_run(runs[1])["reason"] == "concurrency", "the second waits")
    else:
        system.finish(runs[0] if on_limit == "cancel_running" else runs[1])
    for run_id, state in zip(runs, (first, second), strict=True):
        if state == "success":
            system.wait_for_task(run_id, "gate", "waiting")
            system.client.approve(run_id, "gate")
    assert [system.finish(run_id)["state"] for run_id in runs] == [first, second]


def test_so_many_runs_of_a_pipeline_are_active_and_so_many_tasks_start_in_a_while(system: System) -> None:
    name = save(
        system,
        """
        name: bounded
        max_active_runs: 1
        tasks:
          - {name: each, operator: custom_script, map: {over: {range: 4}}, parameters: SHORT,
             rate_limit: {key: starts, units: 2, per_seconds: 1}}
        """,
    )
    runs = [start(system, name), start(system, name)]
    first, second = (system.succeed(run_id) for run_id in runs)
    assert datetime.fromisoformat(second["started_at"]) >= datetime.fromisoformat(first["ended_at"])
    begun = sorted(
        datetime.fromisoformat(task["queued_at"])
        for run_id in runs
        for task in system.client.tasks(run_id, inside="each")
    )
    assert len(begun) == 8
    assert all((late - early).total_seconds() > 0.9 for early, late in zip(begun, begun[2:], strict=False)), begun


# --- what is refused ---


def test_what_can_not_be_done_is_409_and_what_is_not_there_404(system: System) -> None:
    name = save(system, "name: short\ntasks:\n  - {name: a, operator: custom_script, parameters: SHORT}\n")
    run_id = start(system, name)
    system.succeed(run_id)
    client = system.client
    asked: tuple[tuple[Callable[[], Any], int], ...] = (
        (lambda: client.cancel(run_id), 409),
        (lambda: client.cancel_task(run_id, "a"), 409),
        (lambda: client.pause(run_id), 409),
        (lambda: client.approve(run_id, "a"), 409),
        (lambda: client.rerun(run_id), 409),
        (lambda: client.rerun(run_id, ["nope"]), 422),
        (lambda: client.mark(run_id, "nope", "success"), 404),
        (lambda: client.mark(run_id, "a", "running"), 422),
        (lambda: client.send_event("nope"), 404),
        (lambda: client.explain(run_id, "nope"), 404),
    )
    found = []
    for ask, _ in asked:
        with pytest.raises(ApiError) as caught:
            ask()
        found.append(caught.value.status)
    assert found == [status for _, status in asked]
