"""A run is run again in place, on the real leader, while a new run is about to take over what is kept of it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.errors import Conflict
from orchestrator.store import linked_reruns
from orchestrator.store.linked_reruns import LinkedRerun, start_linked
from orchestrator.store.run_requests import insert_run
from tests.integration.api_site import ApiSite
from tests.integration.dag_site import DagSite, Played, failed, goes_on, left, script, until
from tests.integration.test_api_requests import over
from tests.integration.waiting_site import commands

pytestmark = pytest.mark.timeout(120)


def between(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Let something happen once, after the new run is planned and before it takes over anything."""

    def insert_later(*args: Any) -> None:
        monkeypatch.setattr(linked_reruns, "insert_run", insert_run)
        happens()
        insert_run(*args)

    monkeypatch.setattr(linked_reruns, "insert_run", insert_later)


def linked(dag: DagSite, run: str) -> str:
    """Ask for a new run that takes over what is kept of this one; returns its id."""
    new = str(uuid.uuid4())
    with dag.engine.begin() as connection:
        start_linked(connection, dag.tenant, run, LinkedRerun(new, "ann", "ann"), dag.compiling)
    dag.wake()
    return new


FIRST: dict[str, tuple[dict[str, Any], str]] = {
    "a script": (script("a"), "running"),
    "an event": ({"name": "a", "event": {}}, "waiting"),
    "another pipeline": ({"name": "a", "pipeline": {"name": "inner"}}, "running"),
}


@pytest.mark.parametrize("kind", FIRST)
def test_what_runs_again_by_now_is_not_taken_over(dag: DagSite, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    first, under_way = FIRST[kind]
    played = Played(b=failed("broken"))
    dag.lead()
    with dag.worker(played) as worker:
        dag.save("inner", script("slow"))
        run = dag.run(first, script("b", "a"))
        if kind == "an event":
            dag.becomes(run, "a", "waiting")
            dag.report(dag.task(run, "a").wait_token, 1)
        dag.ended(run, "failed")
        played.acts |= {"a": goes_on, "slow": goes_on, "b": left()}

        def run_again() -> None:
            dag.rerun(run, "a")
            dag.becomes(run, "a", under_way)

        between(monkeypatch, run_again)
        with pytest.raises(Conflict, match="run again or marked meanwhile"):
            linked(dag, run)
        assert dag.rows("SELECT id FROM runs WHERE rerun_of = :id", id=run) == [], "nothing is left of it"
        # The first run is none the worse for it.
        if kind == "an event":
            dag.report(dag.task(run, "a").wait_token, 2)
        else:

            def going() -> list[str]:
                return [id_ for id_, spec in list(worker.running.items()) if spec.task in ("a", "slow")]

            until(going)
            worker.finish(going()[0], left())
        assert dag.ended(run) == {"a": "success", "b": "success"}


def test_what_has_run_again_and_ended_by_now_is_planned_anew(dag: DagSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over as before, and of another generation: what was planned may take over what has failed by now."""
    played = Played(b=failed("broken"))
    dag.lead()
    with dag.worker(played):
        run = dag.run(script("a"), script("b", "a"), script("c", "a"))
        dag.ended(run, "failed")
        played.acts |= {"b": left(), "c": failed("broken")}

        def run_again() -> None:
            dag.rerun(run, "b", "c")
            until(lambda: dag.rows("SELECT generation FROM runs WHERE id = :id", id=run)[0].generation == 2)
            dag.ended(run, "failed")

        between(monkeypatch, run_again)
        with pytest.raises(Conflict, match="run again or marked meanwhile"):
            linked(dag, run)
        played.acts["c"] = left()
        new = linked(dag, run)
        assert dag.ended(new) == {"a": "success", "b": "success", "c": "success"}
        assert {name: dag.task(new, name).reason for name in "abc"} == {"a": "reused", "b": "reused", "c": ""}


def test_a_mark_that_comes_in_between_is_not_overlooked(dag: DagSite, monkeypatch: pytest.MonkeyPatch) -> None:
    dag.lead()
    with dag.worker(Played(b=failed("broken"))):
        run = dag.run(script("a"), script("b", "a"))
        dag.ended(run, "failed")

        def mark() -> None:
            dag.mark(run, "a", state="failed")
            dag.becomes(run, "a", "failed")

        between(monkeypatch, mark)
        with pytest.raises(Conflict, match="run again or marked meanwhile"):
            linked(dag, run)


def test_of_two_people_who_run_it_again_both_ways_the_one_who_comes_too_late_hears_so(
    api: ApiSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over REST, with a key: what was refused does not use it up."""
    run = over(api)
    path, key = f"/api/v1/runs/{run}/rerun", {"Idempotency-Key": "one"}

    def run_again() -> None:
        other = threading.Thread(target=api.call, args=("POST", path, {}))
        other.start()
        other.join()
        # What the leader does with that.
        api.sql("UPDATE runs SET generation = 2, state = 'queued'")

    between(monkeypatch, run_again)
    refused = api.call("POST", path, {"in_place": False}, headers=key)
    assert refused.status_code == 409
    assert "run again or marked meanwhile" in refused.text
    assert [kind for kind, _, _, _ in commands(api)] == ["rerun"]
    assert api.count("SELECT count(*) FROM runs") == 1
    api.sql("UPDATE runs SET state = 'failed'")
    assert api.call("POST", path, {"in_place": False}, headers=key).status_code == 201
