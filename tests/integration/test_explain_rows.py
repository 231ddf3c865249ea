"""Why a task does not run, from the rows; removing what is named is what lets it go on."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.errors import NotFound
from orchestrator.records import ChildPlan, MapPlan, Plan, RepeatPlan
from orchestrator.store.explain import MOST_TASKS, RunExplained, TaskExplained, explain_run, explain_task
from tests.integration.expanded_rows import add_task, set_task
from tests.integration.led import engine as engine  # noqa: PLC0414 (a fixture)
from tests.integration.seeded_runs import DIAMOND, SeededRun, planned, seed_run
from tests.integration.test_writer import granted_attempt

pytestmark = pytest.mark.timeout(60)


def execute(engine: Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def explained(engine: Engine, run: SeededRun, task: str, plan: Plan = DIAMOND, most_runs: int = 10) -> TaskExplained:
    with engine.connect() as connection:
        return explain_task(connection, run.tenant_id, run.id, task, plan, most_runs)


def kinds(engine: Engine, run: SeededRun, task: str, plan: Plan = DIAMOND, most_runs: int = 10) -> list[str]:
    return [blocker.kind for blocker in explained(engine, run, task, plan, most_runs).blockers]


def test_a_queued_run_says_for_what(engine: Engine) -> None:
    first, second = seed_run(engine), seed_run(engine)
    assert kinds(engine, second, "a") == ["admission"]
    execute(engine, "UPDATE runs SET state = 'running' WHERE id = :id", id=first.id)
    assert kinds(engine, second, "a", most_runs=1) == ["run_place"]
    execute(engine, "UPDATE pipelines SET paused = true")
    assert kinds(engine, second, "a") == ["pipeline_paused"]
    execute(engine, "UPDATE leases SET expires_at = now() - interval '1 min'")
    assert kinds(engine, second, "a")[0] == "no_leader"
    with engine.connect() as connection:
        whole = explain_run(connection, second.tenant_id, second.id, DIAMOND, 10)
    assert (whole.state, [blocker.kind for blocker in whole.blockers]) == ("queued", ["no_leader", "pipeline_paused"])
    assert whole.tasks == ()


def test_open_upstreams_are_named_until_they_end(engine: Engine) -> None:
    run = seed_run(engine)
    execute(engine, "UPDATE runs SET state = 'running', started_at = now()")
    set_task(engine, run, "a")
    set_task(engine, run, "b", "running")
    set_task(engine, run, "c", "retry_wait")
    assert [blocker.needs for blocker in explained(engine, run, "d").blockers] == ["task b to end", "task c to end"]
    set_task(engine, run, "b")
    assert [blocker.needs for blocker in explained(engine, run, "d").blockers] == ["task c to end"]
    assert kinds(engine, run, "a") == []
    with engine.connect() as connection:
        whole = explain_run(connection, run.tenant_id, run.id, DIAMOND, 10)
    assert [task.name for task in whole.tasks] == ["c", "d"]
    assert all(task.blockers for task in whole.tasks)


def test_an_index_says_what_it_waits_for_inside_and_around(engine: Engine) -> None:
    body = Plan((planned("split"), planned("fit", "split")))
    plan = Plan(
        (planned("load"), replace(planned("folds", "load"), map=MapPlan([], max_parallel=2), body=body, is_group=True))
    )
    run = seed_run(engine, plan=plan)
    execute(engine, "UPDATE runs SET state = 'running'")
    set_task(engine, run, "load")
    set_task(engine, run, "folds", "running")
    add_task(engine, run, "folds[0].split", "folds", 0, state="running")
    add_task(engine, run, "folds[0].fit", "folds", 0, state="pending", position=1)
    add_task(engine, run, "folds[2].split", "folds", 2, state="pending", reason="max_parallel")
    [upstream] = explained(engine, run, "folds[0].fit", plan).blockers
    assert upstream.needs == "task folds[0].split to end"
    [parallel] = explained(engine, run, "folds[2].split", plan).blockers
    assert (parallel.kind, "2 indices run at once" in parallel.message) == ("max_parallel", True)


def test_a_task_that_was_sent_out_names_its_queue_and_worker(engine: Engine) -> None:
    run, _ = granted_attempt(engine)
    execute(engine, "UPDATE task_runs SET state = 'queued' WHERE id = :id", id=run.tasks["a"])
    [blocker] = explained(engine, run, "a").blockers
    assert blocker.kind == "hint"
    assert "queue cpu" in blocker.message


def test_a_ready_task_tells_its_reason_and_the_services_that_are_left_alone(engine: Engine) -> None:
    plan = Plan((replace(planned("a"), connections=("warehouse",)),))
    run = seed_run(engine, plan=plan)
    execute(engine, "UPDATE runs SET state = 'running'")
    execute(
        engine,
        "UPDATE task_runs SET state = 'ready', reason = 'waiting_for_memory', message = 'Asks 4; has 2.', "
        "ready_at = now()",
    )
    [blocker] = explained(engine, run, "a", plan).blockers
    assert (blocker.kind, blocker.message) == ("waiting_for_memory", "Asks 4; has 2.")
    assert blocker.since is not None
    execute(engine, "INSERT INTO circuits (service, state) VALUES ('warehouse', 'open'), ('other', 'open')")
    assert kinds(engine, run, "a", plan) == ["waiting_for_memory", "service_open"]


def ended(engine: Engine, run: SeededRun, state: str, plan: Plan, message: str = "") -> RunExplained:
    execute(
        engine, "UPDATE runs SET state = :state, message = :message, ended_at = now()", state=state, message=message
    )
    with engine.connect() as connection:
        return explain_run(connection, run.tenant_id, run.id, plan, 10)


def say(engine: Engine, run: SeededRun, name: str, reason: str, message: str = "") -> None:
    execute(
        engine,
        "UPDATE task_runs SET reason = :reason, message = :message, ended_at = clock_timestamp() WHERE id = :id",
        id=run.tasks[name],
        reason=reason,
        message=message,
    )


def test_a_run_that_has_failed_names_the_tasks_to_blame_and_not_what_could_not_run(engine: Engine) -> None:
    plan = Plan((*DIAMOND.tasks, planned("handled"), replace(planned("mend", "handled"), trigger_rule="one_failed")))
    run = seed_run(engine, plan=plan)
    for name, state in {"a": "success", "b": "success", "c": "failed", "d": "upstream_failed", "handled": "failed",
                        "mend": "success"}.items():  # fmt: skip
        set_task(engine, run, name, state)
    say(engine, run, "c", "oom", "It asked for too much.")
    found = ended(engine, run, "failed", plan, "Task c has failed (oom).")
    assert [(task.name, task.state, task.reason, task.message) for task in found.tasks] == [
        ("c", "failed", "oom", "It asked for too much.")
    ]
    assert (found.state, found.blockers, found.more) == ("failed", (), 0)
    assert found.message == "Task c has failed (oom). Its tasks: 2 failed, 3 success, 1 upstream_failed."
    blamed = explained(engine, run, "c", plan)
    assert (blamed.reason, blamed.message, blamed.blockers) == ("oom", "It asked for too much.", [])


@pytest.mark.parametrize(("handler", "blamed"), [("success", ["b"]), ("skipped", ["a", "b"])])
def test_a_failure_that_a_task_inside_of_a_map_has_handled_is_not_to_blame(
    engine: Engine, handler: str, blamed: list[str]
) -> None:
    body = (planned("other"), replace(planned("asks"), when="tasks.a.state == 'failed'"))
    rest = replace(planned("m", "a"), trigger_rule="all_done", map=MapPlan([1]), body=Plan(body), is_group=True)
    plan = Plan((planned("a"), planned("b"), rest))
    run = seed_run(engine, plan=plan)
    set_task(engine, run, "a", "failed")
    set_task(engine, run, "b", "failed")
    set_task(engine, run, "m")
    add_task(engine, run, "m[0].other", "m", 0, position=0)
    add_task(engine, run, "m[0].asks", "m", 0, state=handler, position=1)
    found = ended(engine, run, "failed", plan)
    assert sorted(task.name for task in found.tasks) == blamed


def test_of_a_container_it_names_the_indices_that_failed_and_of_a_repeat_what_failed_in_its_last_round(
    engine: Engine,
) -> None:
    body = Plan((planned("split"), planned("fit", "split"), replace(planned("mend", "fit"), trigger_rule="one_failed")))
    plan = Plan(
        (
            replace(planned("folds"), map=MapPlan([]), body=body, is_group=True),
            replace(planned("loop"), repeat=RepeatPlan("false", 5), body=Plan((planned("loop"),))),
            replace(planned("empty"), map=MapPlan([]), body=Plan((planned("empty"),))),
        )
    )
    run = seed_run(engine, plan=plan)
    for name in ("folds", "loop", "empty"):
        set_task(engine, run, name, "failed")
    for index, states in enumerate((("success", "failed", "success"), ("failed", "upstream_failed", "skipped"))):
        for position, (name, state) in enumerate(zip(("split", "fit", "mend"), states, strict=True)):
            add_task(engine, run, f"folds[{index}].{name}", "folds", index, state=state, position=position)
    add_task(engine, run, "folds[2].split", "folds", 2, state="failed", superseded=True)
    add_task(engine, run, "loop[0]", "loop", 0, state="success")
    add_task(engine, run, "loop[1]", "loop", 1, state="failed")
    say(engine, run, "empty", "map", "It goes over nothing.")
    found = ended(engine, run, "failed", plan)
    assert {task.name for task in found.tasks} == {"folds[1].split", "loop[1]", "empty"}
    assert next(task for task in found.tasks if task.name == "empty").message == "It goes over nothing."
    assert next(task for task in found.tasks if task.name == "loop[1]").message == "It has failed."


def test_no_more_than_a_page_of_failed_indices_is_named_and_the_rest_is_counted(engine: Engine) -> None:
    plan = Plan((replace(planned("m"), map=MapPlan([]), body=Plan((planned("m"),))), planned("other")))
    run = seed_run(engine, plan=plan)
    for name in ("m", "other"):
        set_task(engine, run, name, "failed")
    for index in range(MOST_TASKS + 7):
        add_task(engine, run, f"m[{index}]", "m", index, state="failed")
    found = ended(engine, run, "failed", plan)
    assert (len(found.tasks), found.more) == (MOST_TASKS, 8)


def test_a_run_that_was_cancelled_or_has_succeeded_says_so(engine: Engine) -> None:
    run = seed_run(engine)
    found = ended(engine, run, "cancelled", DIAMOND, "ann: wrong data")
    assert (found.message, found.tasks) == ("ann: wrong data", ())
    for name in run.tasks:
        set_task(engine, run, name)
    found = ended(engine, run, "success", DIAMOND)
    assert (found.message, found.tasks) == ("All tasks that decide it have succeeded or were skipped: 4 success.", ())


def test_what_is_not_there_is_not_explained(engine: Engine) -> None:
    run = seed_run(engine)
    with pytest.raises(NotFound):
        explained(engine, run, "nobody")
    with engine.connect() as connection, pytest.raises(NotFound):
        explain_run(connection, run.id, run.id, DIAMOND, 10)


def test_a_task_that_is_a_run_says_what_that_waits_for_also_before_it_is_made(engine: Engine) -> None:
    plan = Plan((replace(planned("sub"), child=ChildPlan("inner")), planned("end", "sub")))
    run, child = seed_run(engine, plan=plan), seed_run(engine)
    child_id = str(uuid.uuid4())
    execute(engine, "UPDATE runs SET state = 'running' WHERE id = :id", id=run.id)
    execute(
        engine,
        "UPDATE task_runs SET state = 'running', reason = 'child', child_run_id = :child WHERE id = :id",
        id=run.tasks["sub"],
        child=child_id,
    )
    assert kinds(engine, run, "sub", plan) == ["child"]
    with engine.connect() as connection:
        whole = explain_run(connection, run.tenant_id, run.id, plan, 10)
    assert [task.name for task in whole.tasks] == ["sub", "end"]
    execute(
        engine,
        "UPDATE task_runs SET child_run_id = :child WHERE id = :id",
        id=run.tasks["sub"],
        child=child.id,
    )
    told = "reason = 'put_off', message = 'It waits.', parent_run_id = :around"
    execute(engine, f"UPDATE runs SET {told} WHERE id = :id", id=child.id, around=run.id)
    [blocker] = explained(engine, run, "sub", plan).blockers
    assert (blocker.kind, f"run {child.id} of pipeline" in blocker.message) == ("put_off", True)
    execute(engine, "UPDATE runs SET state = 'running' WHERE id = :id", id=child.id)
    with engine.connect() as connection:
        whole = explain_run(connection, run.tenant_id, run.id, plan, 10)
    assert [task.name for task in whole.tasks] == ["end"]
