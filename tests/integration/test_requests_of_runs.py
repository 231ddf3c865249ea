"""What is asked of the leader about runs and their tasks, and what is read of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.compile import Site
from orchestrator.errors import Conflict, InvalidDefinition, NotFound
from orchestrator.plan_json import plan_to_json
from orchestrator.records import Plan, PlannedTask, RunInput
from orchestrator.store import command_requests, linked_reruns, reruns, run_queries
from orchestrator.store.definitions import orders, pause_pipeline
from orchestrator.store.engine import create_store_engine
from orchestrator.store.linked_reruns import LATEST, LinkedRerun
from orchestrator.store.loader import load_commands
from orchestrator.store.pages import Window
from tests.integration.expanded_rows import add_task, set_task
from tests.integration.seeded_runs import DIAMOND, SeededRun, planned, seed_run
from tests.integration.test_dynamic_rows import MAPPED
from tests.integration.test_sight import task
from tests.integration.test_writer import rows

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


def execute(engine: Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def commands(engine: Engine) -> list[tuple[str, str | None, dict[str, Any]]]:
    with engine.connect() as connection:
        return [(one.kind, one.task, dict(one.payload)) for one in load_commands(connection)]


def ended(engine: Engine, plan: Plan = DIAMOND, state: str = "failed", **parameters: Any) -> SeededRun:
    run = seed_run(engine, plan=plan, parameters=parameters)
    execute(engine, "UPDATE runs SET state = :state WHERE id = :id", id=run.id, state=state)
    return run


def test_a_cancel_says_how_and_a_plain_one_says_nothing_more(engine: Engine) -> None:
    run = seed_run(engine)
    with engine.begin() as connection:
        command_requests.request_cancel(connection, run.tenant_id, run.id, "me")
        command_requests.request_cancel(
            connection, run.tenant_id, run.id, "me", task="a", mode="force", grace_seconds=2, reason="why"
        )
    assert commands(engine) == [
        ("cancel", None, {}),
        ("cancel", "a", {"mode": "force", "grace_seconds": 2, "reason": "why"}),
    ]


def test_only_a_run_that_runs_is_paused_or_resumed(engine: Engine) -> None:
    run = seed_run(engine)
    with engine.begin() as connection, pytest.raises(Conflict, match="is queued"):
        command_requests.request_pause(connection, run.tenant_id, run.id, "me", pause=True)
    execute(engine, "UPDATE runs SET state = 'running'")
    with engine.begin() as connection:
        for pause in (True, False):
            command_requests.request_pause(connection, run.tenant_id, run.id, "me", pause=pause)
    assert [kind for kind, _, _ in commands(engine)] == ["pause", "resume"]


def test_a_pause_after_a_resume_that_is_still_to_be_applied_is_asked_for(engine: Engine) -> None:
    run = seed_run(engine)
    execute(engine, "UPDATE runs SET state = 'paused'")
    with engine.begin() as connection:
        for pause in (True, False, False, True, True):
            command_requests.request_pause(connection, run.tenant_id, run.id, "me", pause=pause)
    assert [kind for kind, _, _ in commands(engine)] == ["resume", "pause"]


def test_a_run_that_is_paused_with_the_one_around_it_may_be_paused_and_resumed_by_itself(engine: Engine) -> None:
    run = seed_run(engine)
    execute(engine, "UPDATE runs SET state = 'paused', paused_with_parent = true")
    with engine.begin() as connection:
        command_requests.request_pause(connection, run.tenant_id, run.id, "me", pause=True)
    assert [kind for kind, _, _ in commands(engine)] == ["pause"]
    execute(engine, "UPDATE commands SET applied_at = now()")
    with engine.begin() as connection:
        command_requests.request_pause(connection, run.tenant_id, run.id, "me", pause=False)
    assert [kind for kind, _, _ in commands(engine)] == ["resume"]


def test_a_mark_is_refused_while_an_attempt_lives_and_when_it_makes_no_sense(engine: Engine) -> None:
    run = seed_run(engine)

    def mark(**fields: Any) -> None:
        with engine.begin() as connection:
            command_requests.request_mark(connection, run.tenant_id, run.id, "a", "me", reason="known", **fields)

    mark(state="success", outputs={"x": 1})
    assert commands(engine) == [("mark", "a", {"state": "success", "reason": "known", "outputs": {"x": 1}})]
    with pytest.raises(InvalidDefinition, match="none of failed, skipped, success"):
        mark(state="running")
    with pytest.raises(InvalidDefinition, match="Only a success has outputs"):
        mark(state="failed", outputs={})
    with pytest.raises(InvalidDefinition, match="more than 262144 bytes"):
        mark(state="success", outputs={"x": "y" * 300_000})
    execute(engine, "UPDATE task_runs SET state = 'running', attempt_id = :id", id=str(uuid.uuid4()))
    with pytest.raises(Conflict, match="cancel it before"):
        mark(state="success")


def test_an_approval_is_taken_only_while_it_is_waited_for(engine: Engine) -> None:
    run = seed_run(engine)
    with engine.begin() as connection, pytest.raises(Conflict, match="does not wait for an approval"):
        command_requests.request_approval(connection, run.tenant_id, run.id, "a", "me", approve=True)
    execute(engine, "UPDATE task_runs SET state = 'waiting', reason = 'approval' WHERE name = 'a'")
    with engine.begin() as connection:
        for approve in (True, False):
            command_requests.request_approval(
                connection, run.tenant_id, run.id, "a", "me", approve=approve, input={"n": 1}
            )
        waits = run_queries.list_waits(
            connection, run.tenant_id, Window(orders(run_queries.WAIT_ORDERS, "id")), kind="approval"
        )
    told = commands(engine)
    assert [(kind, task, payload["input"]) for kind, task, payload in told] == [
        ("approve", "a", {"n": 1}),
        ("reject", "a", {"n": 1}),
    ]
    assert datetime.fromisoformat(told[0][2]["at"]).utcoffset() == timedelta()
    assert [(item["run_id"], item["task"], item["reason"]) for item in waits.items] == [(run.id, "a", "approval")]


def test_an_event_finds_its_task_by_the_token_alone(engine: Engine) -> None:
    run = seed_run(engine)
    execute(engine, "UPDATE task_runs SET state = 'waiting', reason = 'event', wait_token = 'secret' WHERE name = 'b'")
    with engine.begin() as connection:
        with pytest.raises(NotFound):
            command_requests.report_event(connection, "guess", {})
        wait = command_requests.find_wait(connection, "secret")
        assert (wait.tenant_id, wait.run_id, wait.task) == (run.tenant_id, run.id, "b")
        command_requests.report_event(connection, "secret", {"x": 1})
    [(kind, name, payload)] = commands(engine)
    assert (kind, name, payload["payload"], payload["token"]) == ("event", "b", {"x": 1}, "secret")
    execute(engine, "UPDATE task_runs SET state = 'success' WHERE name = 'b'")
    with engine.begin() as connection, pytest.raises(Conflict, match="does not wait"):
        command_requests.report_event(connection, "secret", {})


def test_a_pipeline_is_paused_once_and_it_is_told_who_did_it(engine: Engine) -> None:
    run = seed_run(engine)
    [(pipeline,)] = rows(engine, "SELECT pipeline_id FROM runs")
    with engine.begin() as connection:
        for _ in range(2):
            assert pause_pipeline(connection, run.tenant_id, pipeline, "me", pause=True)["paused"]
        assert not pause_pipeline(connection, run.tenant_id, pipeline, "you", pause=False)["paused"]
        with pytest.raises(NotFound):
            pause_pipeline(connection, str(uuid.uuid4()), pipeline, "me", pause=True)
    told = rows(engine, "SELECT after, actor FROM events WHERE entity = 'pipeline' ORDER BY id")
    assert [tuple(row) for row in told] == [("paused", "me"), ("active", "you")]


def test_the_tasks_of_a_container_are_read_by_themselves_and_in_pages(engine: Engine) -> None:
    run = seed_run(engine, plan=MAPPED)
    for at in range(12):
        add_task(engine, run, f"train[{at}]", "train", at, state="success" if at < 5 else "pending")
    with engine.connect() as connection:
        assert [row["name"] for row in run_queries.all_tasks(connection, run.tenant_id, run.id)] == [
            "ingest", "train", "sum",
        ]  # fmt: skip
        names: list[str] = []
        after = None
        while True:
            window = Window(orders(run_queries.TASK_ORDERS, "position"), after, 5)
            page = run_queries.list_tasks(connection, run.tenant_id, run.id, window, parent="train")
            names += [item["name"] for item in page.items]
            if (after := page.after) is None:
                break
        assert names == [f"train[{at}]" for at in range(12)]
        counts = run_queries.count_inside(connection, run.tenant_id, run.id)
    assert counts == {run.tasks["train"]: {"success": 5, "pending": 7}}


def test_a_rerun_in_place_takes_along_what_is_gone(engine: Engine) -> None:
    run = ended(engine)
    uri = f"artifact://{run.tenant_id}/x"
    set_task(engine, run, "a", outputs={"deep": [{"uri": uri}]})
    set_task(engine, run, "b", "failed")
    set_task(engine, run, "c", outputs={"n": 1})
    set_task(engine, run, "d", "upstream_failed")
    with engine.begin() as connection:
        found = reruns.preview_rerun(connection, run.tenant_id, run.id, "failed")
        assert (found.again, found.reused) == (("b", "d"), ("a", "c"))
        reruns.request_rerun(connection, run.tenant_id, run.id, "me", "failed")
    execute(
        engine,
        "INSERT INTO artifacts (tenant_id, uri, digest, size, run_id, task, deleted_at, deleted_by) "
        "VALUES (:tenant, :uri, '', 1, :run, 'a', clock_timestamp(), 'a rule')",
        tenant=run.tenant_id,
        uri=uri,
        run=run.id,
    )
    with engine.begin() as connection:
        found = reruns.preview_rerun(connection, run.tenant_id, run.id, "failed")
        reruns.request_rerun(connection, run.tenant_id, run.id, "me", "failed")
    assert found.again == ("a", "b", "c", "d")
    assert "a rule" in found.missing["a"]
    assert [payload["from"] for _, _, payload in commands(engine)] == ["failed", ["b", "d", "a"]]


def linked(engine: Engine, run: SeededRun, **fields: Any) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    wanted = LinkedRerun(str(uuid.uuid4()), "me", "me", **fields)
    with engine.begin() as connection:
        preview = linked_reruns.preview_linked(connection, run.tenant_id, run.id, wanted, Site())
        found = linked_reruns.start_linked(connection, run.tenant_id, run.id, wanted, Site())
    assert preview == found, "what was shown is what is done"
    return wanted.run_id, found.again, found.reused


def test_a_linked_rerun_takes_over_what_has_succeeded(engine: Engine) -> None:
    run = ended(engine, x=1)
    set_task(engine, run, "a", outputs={"n": 1})
    set_task(engine, run, "b", "failed")
    set_task(engine, run, "c", "skipped")
    set_task(engine, run, "d", "upstream_failed")
    made, again, reused = linked(engine, run)
    assert (again, reused) == (("b", "d"), ("a", "c"))
    [row] = rows(engine, "SELECT state, rerun_of, parameters, trigger FROM runs WHERE id = :id", id=made)
    assert tuple(row) == ("queued", run.id, {"x": 1}, "rerun")
    found = rows(
        engine, "SELECT name, state, reason, outputs, cached_from FROM task_runs WHERE run_id = :id ORDER BY 1", id=made
    )
    assert [tuple(row) for row in found] == [
        ("a", "success", "reused", {"n": 1}, run.tasks["a"]),
        ("b", "pending", "", None, None),
        ("c", "skipped", "reused", None, run.tasks["c"]),
        ("d", "pending", "", None, None),
    ]
    told = rows(engine, "SELECT task, after FROM events WHERE run_id = :id ORDER BY id", id=made)
    assert [tuple(row) for row in told] == [(None, "queued"), ("a", "success"), ("c", "skipped")]


def test_a_linked_rerun_sets_up_again_what_was_taken_down(engine: Engine) -> None:
    down = PlannedTask("down", "custom_script", ("work",), teardown=True, setups=("up",))
    run = ended(engine, Plan((planned("load"), planned("up", "load"), planned("work", "up"), down)))
    for name in ("load", "up", "down"):
        set_task(engine, run, name)
    set_task(engine, run, "work", "failed")
    assert linked(engine, run)[1:] == (("up", "work", "down"), ("load",))
    with engine.connect() as connection:
        wanted = LinkedRerun(str(uuid.uuid4()), "me", "me")
        assert linked_reruns.preview_linked(connection, run.tenant_id, run.id, wanted, Site()).why["up"] == "setup"
    assert linked(engine, run, chosen=["down"])[1:] == (("up", "work", "down"), ("load",))
    set_task(engine, run, "work")
    assert linked(engine, run, chosen=["down"])[1:] == (("down",), ("load", "up", "work"))


def test_other_parameters_make_other_tasks_of_those_that_read_them(engine: Engine) -> None:
    plan = Plan(
        (
            task("a", lr="{{ params.lr }}"),
            replace(task("b"), operator="model_training"),
            replace(task("c"), operator="model_training", run_inputs=(RunInput("data", "dataset", required=False),)),
        )
    )
    plan = Plan(tuple(replace(one, operator="model_training") for one in plan.tasks))
    run = ended(engine, plan, lr=1, data="x.csv")
    for name in "abc":
        set_task(engine, run, name, outputs={})
    with pytest.raises(Conflict, match="Nothing of run"):
        linked(engine, run)
    made, again, reused = linked(engine, run, parameters={"lr": 2})
    assert (again, reused) == (("a",), ("b", "c"))
    assert rows(engine, "SELECT parameters FROM runs WHERE id = :id", id=made) == [({"lr": 2, "data": "x.csv"},)]
    assert linked(engine, run, parameters={"data": "y.csv"})[1] == ("c",)


@pytest.mark.parametrize("operator", ["custom_script", "model_registration", "operator_of_the_site"])
def test_what_may_read_all_parameters_is_another_task_with_others(engine: Engine, operator: str) -> None:
    reads_its_own = replace(task("a"), operator="model_training")
    run = ended(engine, Plan((reads_its_own, replace(task("b"), operator=operator))), lr=1)
    for name in "ab":
        set_task(engine, run, name, outputs={})
    assert linked(engine, run, parameters={"lr": 2})[1:] == (("b",), ("a",))


def test_the_latest_version_runs_what_is_new_or_other_in_it_and_refuses_names_it_has_not(engine: Engine) -> None:
    run = ended(engine)
    for name in "abcd":
        set_task(engine, run, name, outputs={})
    latest = Plan((planned("a"), replace(planned("b", "a"), timeout=5.0), planned("e", "a")))
    version = str(uuid.uuid4())
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO pipeline_versions (id, tenant_id, pipeline_id, version, content_hash, plan) "
                "SELECT :id, tenant_id, pipeline_id, 2, 'x', CAST(:plan AS jsonb) FROM pipeline_versions"
            ),
            {"id": version, "plan": json.dumps(plan_to_json(latest))},
        )
        connection.execute(text("UPDATE pipelines SET version = 2, version_id = :id"), {"id": version})
    _, again, reused = linked(engine, run, version=LATEST)
    assert (again, reused) == (("b", "e"), ("a",))
    with pytest.raises(InvalidDefinition, match="removed or renamed"):
        linked(engine, run, version=LATEST, chosen=["a", "d"])


def test_a_container_is_taken_over_with_all_inside_of_it(engine: Engine) -> None:
    run = ended(engine, MAPPED)
    set_task(engine, run, "ingest", outputs={})
    set_task(engine, run, "train")
    set_task(engine, run, "sum", "failed")
    add_task(engine, run, "train[0]", "train", 0, outputs={"loss": 1}, item={"lr": 1})
    add_task(engine, run, "train[1]", "train", 1, state="failed")
    made, again, reused = linked(engine, run)
    assert (again, reused) == (("sum",), ("ingest", "train"))
    inside = rows(
        engine,
        "SELECT t.name, t.state, t.outputs, t.item, p.name AS parent FROM task_runs t "
        "JOIN task_runs p ON p.id = t.parent_id AND p.run_id = t.run_id WHERE t.run_id = :id ORDER BY t.map_index",
        id=made,
    )
    assert [tuple(row) for row in inside] == [
        ("train[0]", "success", {"loss": 1}, {"lr": 1}, "train"),
        ("train[1]", "failed", None, None, "train"),
    ]
    with pytest.raises(InvalidDefinition, match="runs 'train' as a whole"):
        linked(engine, run, chosen=["train[0]"])


def test_what_is_active_is_not_run_again(engine: Engine) -> None:
    run = seed_run(engine)
    with engine.begin() as connection, pytest.raises(Conflict, match="is queued"):
        reruns.request_rerun(connection, run.tenant_id, run.id, "me", "all")
    with pytest.raises(Conflict, match="is queued"):
        linked(engine, run, chosen="all")
