"""What people do to a run under way or over: cancel, tear down, mark, pause, run again; and leaders that die in it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from orchestrator.effects import CreateTasks
from orchestrator.errors import StoreUnavailable
from orchestrator.store.definitions import pause_pipeline
from orchestrator.store.linked_reruns import LATEST, LinkedRerun, preview_linked, start_linked
from orchestrator.store.reruns import preview_rerun
from orchestrator.store.writer import write
from scheduler import transaction
from tests.integration.dag_site import DagSite, Played, failed, goes_on, left, script, until

pytestmark = pytest.mark.timeout(120)


TORN_DOWN = (
    script("set-up"),
    script("work", "set-up"),
    script("clean", "work", teardown=["set-up"]),
    script("after", "work"),
)


@pytest.mark.parametrize(("bad", "state", "after"), [("", "success", "success"), ("work", "failed", "upstream_failed")])
def test_teardown_runs_however_the_work_ends_and_decides_nothing(
    dag: DagSite, bad: str, state: str, after: str
) -> None:
    dag.lead()
    with dag.worker(Played(**({bad: failed("broken")} if bad else {}), clean=failed("also broken"))):
        states = dag.ended(dag.run(*TORN_DOWN), state)
    assert states["clean"] == "failed", "it has run"
    assert states["after"] == after


def test_teardown_runs_when_the_run_is_cancelled(dag: DagSite) -> None:
    dag.lead()
    with dag.worker(Played(work=goes_on)) as worker:
        run = dag.run(*TORN_DOWN)
        dag.becomes(run, "work", "running")
        dag.cancel(run)
        states = dag.ended(run, "cancelled")
        assert [spec.task for spec in worker.granted] == ["set-up", "work", "clean"]
    assert states == {"set-up": "success", "work": "cancelled", "clean": "success", "after": "cancelled"}


def test_nothing_is_torn_down_that_was_never_set_up_and_nothing_after_a_forced_cancel(dag: DagSite) -> None:
    played = Played(gate=failed("broken"), work=goes_on)
    dag.lead()
    with dag.worker(played) as worker:
        run = dag.run(script("gate"), script("set-up", "gate"), script("clean", "set-up", teardown=["set-up"]))
        states = dag.ended(run, "failed")
        assert (states["set-up"], states["clean"]) == ("upstream_failed", "skipped")
        run = dag.run(*TORN_DOWN)
        dag.becomes(run, "work", "running")
        dag.cancel(run, mode="force")
        states = dag.ended(run, "cancelled")
        assert states["clean"] == "cancelled"
        assert len(worker.stopped) == 1
    assert "clean" not in played.ran


def test_a_forced_cancel_shortens_a_graceful_one(dag: DagSite) -> None:
    dag.lead()
    worker = dag.worker(Played(t=goes_on))
    worker.obeys = False
    with worker:
        run = dag.run(script("t", grace_seconds=300))
        until(lambda: worker.running)
        dag.cancel(run, grace_seconds=120)
        dag.becomes(run, "t", "cancelling")
        until(lambda: worker.desired is not None and [grace for _, grace in worker.desired.cancel] == [120.0])
        dag.cancel(run, mode="force")
        until(lambda: worker.desired is not None and [grace for _, grace in worker.desired.cancel] == [0.0])
        assert dag.state(run) == "cancelling", "as long as its tree lives"
        worker.obeys = True
        dag.ended(run, "cancelled")


def test_a_cancel_of_a_map_stops_its_indices_also_when_it_is_decided_and_of_one_only_that(dag: DagSite) -> None:
    dag.lead()
    with dag.worker(Played(t=goes_on)) as worker:
        run = dag.run(script("t", map={"over": {"range": 6}, "max_parallel": 3}), script("beside"))
        until(lambda: len(worker.running) == 3)
        dag.cancel(run, task="t[1]")
        dag.becomes(run, "t", "failed")
        until(lambda: len(worker.running) == 3, 30, lambda: dag.story(run))
        dag.cancel(run, task="t")
        states = dag.ended(run, "failed")
        assert {state for name, state in states.items() if name.startswith("t[")} == {"cancelled"}
        assert states["beside"] == "success"
        run = dag.run(script("t", map={"over": {"range": 6}, "max_parallel": 3}))
        until(lambda: len(worker.running) == 3)
        dag.cancel(run, task="t")
        assert set(dag.ended(run, None).values()) == {"cancelled"}


def test_a_mark_lets_a_run_that_failed_go_on(dag: DagSite) -> None:
    played = Played(bad=failed("broken"))
    dag.lead()
    with dag.worker(played):
        run = dag.run(script("bad"), script("use", "bad", arguments={"it": "{{ tasks.bad.outputs.n }}"}))
        assert dag.ended(run, "failed")["use"] == "upstream_failed"
        dag.mark(run, "bad", state="success", outputs={"n": 4})
        dag.becomes(run, "use", "success")
        dag.ended(run)
    assert dag.outputs(run)["use"] == {"it": 4}
    assert dag.task(run, "bad").reason == "marked"
    told = dag.rows("SELECT actor, message FROM events WHERE cause = 'mark' AND entity = 'task_run' AND task = 'bad'")
    assert [tuple(row) for row in told] == [("ann", "ann: known")]


def test_a_mark_of_an_index_decides_its_map_anew(dag: DagSite) -> None:
    dag.lead()
    with dag.worker(Played(**{"t[1]": failed("broken")})):
        run = dag.run(script("t", map={"over": {"range": 3}}), script("next", "t"))
        dag.ended(run, "failed")
        dag.mark(run, "t[1]", state="skipped")
        dag.becomes(run, "next", "success")
        dag.ended(run)
    assert dag.states(run)["t"] == "success"


def test_a_paused_run_starts_nothing_and_goes_on_when_resumed(dag: DagSite) -> None:
    dag.lead()
    with dag.worker(Played(a=goes_on)) as worker:
        run = dag.run(script("a"), script("b", "a"))
        until(lambda: worker.running)
        dag.pause(run)
        until(lambda: dag.state(run) == "paused")
        worker.finish(next(iter(worker.running)), left())
        dag.becomes(run, "b", "ready", "run_paused")
        assert [spec.task for spec in worker.granted] == ["a"]
        dag.pause(run, pause=False)
        dag.ended(run)


def test_runs_of_a_paused_pipeline_wait_until_it_goes_on(dag: DagSite) -> None:
    pipeline = dag.save("rests", script("t"))

    def pause(on: bool) -> None:
        with dag.engine.begin() as connection:
            pause_pipeline(connection, dag.tenant, pipeline, "ann", pause=on)
        dag.wake()

    pause(True)
    dag.lead()
    with dag.worker():
        run, other = dag.start("rests"), dag.run(script("t"))
        dag.ended(other)
        assert dag.state(run) == "queued"
        pause(False)
        dag.ended(run)


def linked(dag: DagSite, run: str, **options: Any) -> tuple[Any, str]:
    wanted = LinkedRerun(run_id=str(uuid.uuid4()), actor="ann", triggered_by="ann", **options)
    with dag.engine.begin() as connection:
        shown = preview_linked(connection, dag.tenant, run, wanted, dag.compiling)
        done = start_linked(connection, dag.tenant, run, wanted, dag.compiling)
    assert shown == done, "the preview is what is done"
    dag.wake()
    return shown, wanted.run_id


def test_a_linked_rerun_takes_over_what_succeeded_maps_too(dag: DagSite) -> None:
    played = Played(last=failed("broken"))
    tasks = (
        script("first", arguments={"n": 1}),
        script("t", "first", map={"over": [1, 2]}, arguments={"n": "{{ map.item }}"}),
        script("last", "t", arguments={"all": "{{ tasks.t.outputs }}", "x": "{{ params.x }}"}),
    )
    dag.save("again", *tasks, parameters={"x": 1})
    dag.lead()
    with dag.worker(played):
        run = dag.start("again")
        dag.ended(run, "failed")
        played.acts, played.ran = {}, []
        shown, new = linked(dag, run)
        assert (shown.again, set(shown.reused)) == (("last",), {"first", "t"})
        dag.ended(new)
        assert played.ran == ["last"]
        assert dag.outputs(new)["last"] == {"all": [{"n": 1}, {"n": 2}], "x": 1}
        assert dag.rows("SELECT rerun_of FROM runs WHERE id = :id", id=new) == [(run,)]
        assert dag.state(run) == "failed", "the first run stays as it was"
        played.ran = []
        shown, patched = linked(dag, run, parameters={"x": 2})
        dag.ended(patched)
        assert dag.outputs(patched)["last"]["x"] == 2
        dag.save("again", *tasks[:2], script("last", "t", arguments={"new": True}), parameters={"x": 1})
        shown, latest = linked(dag, run, version=LATEST)
        dag.ended(latest)
        assert dag.outputs(latest)["last"] == {"new": True}


def test_a_linked_rerun_takes_over_what_a_person_has_said_and_knows_that_it_was_asked(dag: DagSite) -> None:
    """What waits for a person is never ready nor running: when it began is all that tells it from what never did."""
    ask = {"name": "ask", "approval": {"message": "Go?", "on_reject": "skip"}}
    each = {"name": "each", "map": {"over": [1]}, "tasks": [{**ask, "name": "inner"}]}
    never = script("never", "ask")
    dag.lead()
    with dag.worker(Played(last=failed("broken"))):
        run = dag.run(ask, each, never, script("last", "ask", "each", trigger_rule="all_done"))
        for name in ("ask", "each[0].inner"):
            dag.becomes(run, name, "waiting", "approval")
            dag.answer(run, name, approve=False)
        dag.ended(run, "failed")
        _, new = linked(dag, run)
        dag.ended(new, "failed")
    begun = "ready_at IS NOT NULL OR started_at IS NOT NULL"
    rows = dag.rows(f"SELECT name, {begun} FROM task_runs WHERE run_id = :id AND reason = 'reused'", id=new)
    assert dict(map(tuple, rows)) == {"ask": True, "each": True, "each[0].inner": True, "never": False}


def test_a_rerun_in_place_does_what_its_preview_says(dag: DagSite) -> None:
    played = Played(b=failed("broken"))
    dag.lead()
    with dag.worker(played):
        run = dag.run(script("a"), script("b", "a"), script("c", "b"), script("d", "a"))
        dag.ended(run, "failed")
        played.acts, played.ran = {}, []
        with dag.engine.connect() as connection:
            shown = preview_rerun(connection, dag.tenant, run, "failed")
        assert shown.chosen[0] == "b"
        dag.rerun(run)
        dag.becomes(run, "c", "success")
        dag.ended(run)
    assert sorted(played.ran) == sorted(shown.again) == ["b", "c"]


MAP = (script("t", map={"over": {"range": 40}}), script("next", "t", arguments={"all": "{{ tasks.t.outputs }}"}))


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_expansion_whose_transaction_fails_or_is_in_doubt_happens_once(
    dag: DagSite, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    broken: list[str] = []
    take_in = transaction.Leader.take_in

    def expands(effects: Any) -> bool:
        return not broken and any(isinstance(effect, CreateTasks) for effect in effects)

    def cut_off_before(connection: Any, effects: Any, epoch: int) -> None:
        effects = list(effects)
        write(connection, effects, epoch)
        if when == "before" and expands(effects):
            broken.append("before")
            raise StoreUnavailable("The connection is lost before the commit.")

    def cut_off_after(leader: Any, kernel: Any, round_: Any) -> Any:
        done = take_in(leader, kernel, round_)
        if when == "after" and expands(done.effects):
            broken.append("after")
            raise StoreUnavailable("The connection is lost, and what became of the commit is unknown.")
        return done

    monkeypatch.setattr(transaction, "write", cut_off_before)
    monkeypatch.setattr(transaction.Leader, "take_in", cut_off_after)
    dag.lead()
    with dag.worker():
        run = dag.run(*MAP)
        dag.ended(run)
    assert broken == [when]
    require_one_expansion(dag, run)


def require_one_expansion(dag: DagSite, run: str) -> None:
    names = [row.name for row in dag.rows("SELECT name FROM task_runs WHERE parent_id IS NOT NULL")]
    assert sorted(names) == sorted(f"t[{at}]" for at in range(40))
    assert dag.rows("SELECT count(*) FROM events WHERE cause = 'expanded'") == [(40,)]
    assert len(dag.outputs(run)["next"]["all"]) == 40


def test_a_leader_that_is_killed_as_a_map_expands_is_followed_by_one_that_goes_on(dag: DagSite) -> None:
    first = dag.spawn()
    with dag.worker():
        until(lambda: dag.rows("SELECT 1 FROM workers"), 30)
        run = dag.run(*MAP)
        until(lambda: dag.rows("SELECT 1 FROM task_runs WHERE state = 'running'"), 30)
        first.kill()
        dag.lead()
        dag.ended(run)
    require_one_expansion(dag, run)
    assert dag.rows("SELECT count(*) FROM attempts WHERE state = 'succeeded'") == [(41,)]
