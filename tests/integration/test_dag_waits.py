"""Tasks that no worker runs, on the real leader: runs of other pipelines, rounds, approvals, events, and waits."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.records import Outcome
from orchestrator.store import command_requests
from orchestrator.store.command_queries import get_command
from orchestrator.wire.messages import GrantSpec
from tests.integration.dag_site import DagSite, Played, failed, goes_on, left, script, until

pytestmark = pytest.mark.timeout(120)


def save_child(dag: DagSite, *, parameters: dict[str, Any] | None = None) -> None:
    tasks = (
        script("inner", arguments={"n": "{{ params.n }}"}),
        script("outer", "inner", arguments={"twice": ["{{ tasks.inner.outputs.n }}", "{{ tasks.inner.outputs.n }}"]}),
    )
    dag.save("child", *tasks, parameters=parameters or {})


def child_of(dag: DagSite, run: str) -> str:
    found = dag.rows("SELECT id FROM runs WHERE parent_run_id = :id", id=run)
    return str(found[0].id) if found else ""


def test_a_run_of_another_pipeline_is_a_task_whose_outputs_keep_their_types(dag: DagSite) -> None:
    save_child(dag, parameters={"n": 1})
    dag.lead(max_concurrent_runs=1)
    with dag.worker():
        run = dag.run(
            script("first", arguments={"n": [1.5, None]}),
            {
                "name": "sub",
                "upstream_tasks": ["first"],
                "pipeline": {"name": "child", "parameters": {"n": "{{ tasks.first.outputs.n }}"}},
            },
            script("last", "sub", arguments={"got": "{{ tasks.sub.outputs.outputs.outer.twice }}"}),
        )
        dag.ended(run)
    child = child_of(dag, run)
    assert dag.state(child) == "success"
    assert dag.task(run, "sub").child_run_id == child
    assert dag.outputs(run)["last"] == {"got": [[1.5, None], [1.5, None]]}


def test_a_run_inherits_parameters_unless_it_shall_not(dag: DagSite) -> None:
    save_child(dag, parameters={"n": 1})
    dag.lead()
    with dag.worker():
        run = dag.run(
            {"name": "with", "pipeline": {"name": "child"}},
            {"name": "without", "pipeline": {"name": "child", "inherit": False}},
            script(
                "last", "with", "without",
                arguments={
                    "with": "{{ tasks.with.outputs.outputs.outer.twice[0] }}",
                    "without": "{{ tasks.without.outputs.outputs.outer.twice[0] }}",
                },
            ),
            parameters={"n": 7},
        )  # fmt: skip
        dag.ended(run)
    assert dag.outputs(run)["last"] == {"with": 7, "without": 1}


def test_a_run_that_fails_or_can_not_start_fails_its_task(dag: DagSite) -> None:
    save_child(dag, parameters={"n": 1})
    dag.lead()
    with dag.worker(Played(outer=failed("broken"))):
        run = dag.run({"name": "sub", "pipeline": {"name": "child"}}, {"name": "who", "pipeline": {"name": "nobody"}})
        dag.ended(run, "failed")
    assert dag.task(run, "sub").reason == "child_failed"
    assert dag.task(run, "who").reason == "child_refused"
    assert "no pipeline 'nobody'" in dag.task(run, "who").message


def test_what_is_only_started_is_not_waited_for(dag: DagSite) -> None:
    save_child(dag, parameters={"n": 1})
    dag.lead()
    with dag.worker(Played(inner=goes_on)) as worker:
        run = dag.run({"name": "sub", "pipeline": {"name": "child", "wait": False}}, script("next", "sub"))
        dag.ended(run)
        child = child_of(dag, run)
        until(lambda: worker.running)
        assert dag.state(child) == "running"
        worker.finish(next(iter(worker.running)), left(n=1))
        dag.ended(child)


def test_a_cancel_reaches_the_runs_inside_of_a_run(dag: DagSite) -> None:
    save_child(dag, parameters={"n": 1})
    dag.save("middle", {"name": "sub", "pipeline": {"name": "child"}})
    dag.lead()
    with dag.worker(Played(inner=goes_on)) as worker:
        run = dag.run({"name": "sub", "pipeline": {"name": "middle"}}, script("next", "sub"))
        until(lambda: worker.running, 30, lambda: dag.story(run))
        dag.cancel(run)
        assert dag.ended(run, "cancelled") == {"sub": "cancelled", "next": "cancelled"}
        middle = child_of(dag, run)
        assert dag.ended(middle, "cancelled") == {"sub": "cancelled"}
        assert set(dag.ended(child_of(dag, middle), "cancelled").values()) == {"cancelled"}
        assert len(worker.stopped) == 1


def test_a_pipeline_that_runs_itself_comes_to_an_end(dag: DagSite) -> None:
    dag.lead()
    dag.save("itself", {"name": "again", "pipeline": {"name": "itself"}})
    with dag.worker():
        dag.ended(dag.start("itself"), "failed")
    assert dag.rows("SELECT max(depth) FROM runs") == [(8,)]
    assert [row.reason for row in dag.rows("SELECT reason FROM task_runs WHERE reason = 'too_deep'")] == ["too_deep"]


def test_rounds_follow_each_other_until_the_condition_holds(dag: DagSite) -> None:
    played = Played(train=lambda spec: left(loss=8 - 2 * len(played.ran), before=spec.parameters["arguments"]))
    dag.lead()
    with dag.worker(played):
        run = dag.run(
            script(
                "train",
                repeat={"until": "outputs.loss < 3 or repeat.index > 8", "max": 9},
                arguments={"round": "{{ repeat.index }}"},
            ),
            script("use", "train", arguments={"loss": "{{ tasks.train.outputs.loss }}"}),
        )
        dag.ended(run)
    assert [name for name in played.ran if name != "use"] == ["train[0]", "train[1]", "train[2]"]
    assert dag.outputs(run)["use"] == {"loss": 2}
    assert dag.outputs(run)["train[2]"]["before"] == {"round": 2}


def test_a_group_is_repeated_and_sees_the_round_before(dag: DagSite) -> None:
    group = {
        "name": "loop",
        "repeat": {"until": "tasks.count.outputs.n >= 2", "max": 5},
        "tasks": [script("count", arguments={"n": "{{ repeat.index }}"}), script("after", "count")],
    }
    dag.lead()
    with dag.worker(Played()) as worker:
        run = dag.run(group, script("use", "loop", arguments={"last": "{{ tasks.loop.outputs }}"}))
        states = dag.ended(run)
        assert [spec.task for spec in worker.granted if "count" in spec.task] == [
            f"loop[{at}].count" for at in (0, 1, 2)
        ]
    assert "loop[3].count" not in states
    assert dag.outputs(run)["use"] == {"last": {"count": {"n": 2}, "after": {}}}


@pytest.mark.parametrize(("on_max", "state"), [("fail", "failed"), ("succeed", "success")])
def test_rounds_without_an_end_stop_at_their_number(dag: DagSite, on_max: str, state: str) -> None:
    played = Played()
    dag.lead()
    with dag.worker(played):
        run = dag.run(
            script("t", repeat={"until": "outputs.done == True", "max": 2, "on_max": on_max}, arguments={"done": False})
        )
        states = dag.ended(run, None)
    assert (states["t"], played.ran) == (state, ["t[0]", "t[1]"]), dag.story(run)


def test_between_rounds_nothing_holds_a_slot(dag: DagSite) -> None:
    dag.lead()
    with dag.worker():
        run = dag.run(
            script(
                "t",
                repeat={"until": "outputs.n == 1", "max": 5, "delay_seconds": 1},
                arguments={"n": "{{ repeat.index }}"},
            )
        )
        dag.becomes(run, "t", "running", "repeat_delay")
        assert dag.rows("SELECT 1 FROM reservations") == []
        dag.ended(run)


APPROVAL: dict[str, Any] = {"name": "ask", "approval": {"message": "Deploy {{ params.what }}?"}}


def test_an_approval_lets_the_run_go_on_with_what_the_person_gave(dag: DagSite) -> None:
    dag.lead()
    with dag.worker():
        run = dag.run(
            APPROVAL,
            script("go", "ask", arguments={"by": "{{ tasks.ask.outputs.by }}", "n": "{{ tasks.ask.outputs.input.n }}"}),
            parameters={"what": "it"},
        )
        dag.becomes(run, "ask", "waiting", "approval")
        assert dag.task(run, "ask").message == "Deploy it?"
        dag.answer(run, "ask", approve=True, input={"n": 3})
        dag.ended(run)
    assert dag.outputs(run)["go"] == {"by": "ann", "n": 3}
    told = dag.rows("SELECT actor FROM events WHERE task = 'ask' AND after = 'success'")
    assert [row.actor for row in told] == ["ann"]


@pytest.mark.parametrize("first", [True, False])
def test_of_two_decisions_at_the_same_moment_the_second_is_refused(dag: DagSite, first: bool) -> None:
    """Both have been accepted before the leader has looked at either."""
    stop = dag.lead()
    run = dag.run({"name": "ask", "approval": {"message": ""}}, {"name": "other", "approval": {"message": ""}})
    dag.becomes(run, "ask", "waiting", "approval")
    stop()
    with dag.engine.begin() as one, dag.engine.begin() as two:
        asked = [
            command_requests.request_approval(connection, dag.tenant, run, "ask", who, approve=approve)["id"]
            for connection, who, approve in ((one, "ann", first), (two, "bob", not first))
        ]
    dag.lead()
    until(lambda: dag.rows("SELECT id FROM commands WHERE applied_at IS NULL") == [])
    with dag.engine.connect() as connection:
        told = [get_command(connection, dag.tenant, id_) for id_ in asked]
    state = "success" if first else "failed"
    assert [command["state"] for command in told] == ["done", "refused"]
    assert told[1]["result"].startswith(f"Refused: task ask of run {run} is {state} already")
    assert dag.task(run, "ask").state == state


@pytest.mark.parametrize(("on_reject", "states"), [("fail", ("failed", "upstream_failed")), ("skip", ("skipped",) * 2)])
def test_a_rejection_fails_or_skips(dag: DagSite, on_reject: str, states: tuple[str, str]) -> None:
    dag.lead()
    with dag.worker():
        run = dag.run({"name": "ask", "approval": {"message": "", "on_reject": on_reject}}, script("go", "ask"))
        dag.becomes(run, "ask", "waiting")
        dag.answer(run, "ask", approve=False, reason="not today")
        found = dag.ended(run, None)
    assert (found["ask"], found["go"]) == states
    assert dag.task(run, "ask").message == "ann: not today"


@pytest.mark.parametrize(
    ("on_timeout", "state", "reason"),
    [
        ("fail", "failed", "approval_timeout"),
        ("approve", "success", "approval_timeout"),
        ("reject", "failed", "approval_timeout"),
    ],
)
def test_an_approval_that_nobody_gives_times_out(dag: DagSite, on_timeout: str, state: str, reason: str) -> None:
    dag.lead()
    approval = {"message": "", "timeout_seconds": 0.5, "on_timeout": on_timeout}
    run = dag.run({"name": "ask", "approval": approval})
    dag.ended(run, None)
    assert (dag.task(run, "ask").state, dag.task(run, "ask").reason) == (state, reason)


def test_an_event_is_reported_by_its_token_and_times_out_without(dag: DagSite) -> None:
    dag.lead()
    with dag.worker():
        run = dag.run(
            {"name": "wait", "event": {}},
            {"name": "late", "event": {"timeout_seconds": 0.5, "on_timeout": "skip"}},
            {"name": "never", "event": {"timeout_seconds": 0.5}},
            script("use", "wait", arguments={"it": "{{ tasks.wait.outputs.payload }}"}),
        )
        dag.becomes(run, "wait", "waiting", "event")
        dag.report(dag.task(run, "wait").wait_token, {"rows": 3})
        states = dag.ended(run, "failed")
    assert states == {"wait": "success", "late": "skipped", "never": "failed", "use": "success"}
    assert dag.outputs(run)["use"] == {"it": {"rows": 3}}
    assert {dag.task(run, name).reason for name in ("late", "never")} == {"event_timeout"}


def test_waits_survive_the_leader_and_their_timers_run_on(dag: DagSite) -> None:
    end = dag.lead()
    run = dag.run(
        {"name": "ask", "approval": {"message": ""}},
        {"name": "soon", "event": {"timeout_seconds": 3, "on_timeout": "skip"}},
    )
    dag.becomes(run, "soon", "waiting")
    token = dag.task(run, "soon").wait_token
    end()
    dag.lead()
    assert dag.task(run, "soon").wait_token == token
    dag.becomes(run, "soon", "skipped", "event_timeout")
    dag.answer(run, "ask", approve=True)
    dag.ended(run)


def test_what_is_not_there_yet_is_looked_for_again_without_a_slot_and_charged_to_nobody(dag: DagSite) -> None:
    looks = 0

    def look(spec: GrantSpec) -> Outcome:
        nonlocal looks
        looks += 1
        if looks < 3:
            return failed("not_yet", message="No file yet.", again=True, retry_after=1.0)
        return left(uri="data:x.csv")

    wait = {"name": "file", "operator": "wait_for", "parameters": {"file": "x.csv"}, "retries": 0}
    dag.lead()
    with dag.worker(Played(file=look)):
        run = dag.run(wait, script("use", "file", arguments={"it": "{{ tasks.file.outputs.uri }}"}))
        dag.becomes(run, "file", "waiting", "not_yet")
        assert dag.rows("SELECT 1 FROM reservations") == []
        dag.ended(run)
    task = dag.task(run, "file")
    assert (task.attempts, task.failures, task.losses) == (3, 0, 0)
