"""What the rules ask in the middle of a round is answered in the same transaction: sub-runs, and the cache."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator import cache_files
from orchestrator.cache_files import WHOLE
from orchestrator.effects import SendGrant
from orchestrator.events import ClaimReceived, Event, HeartbeatSeen, OutcomeReceived
from orchestrator.kernel import Kernel, KernelSettings
from orchestrator.paths import DataRoots
from orchestrator.records import CachePlan, ChildPlan, MapPlan, Outcome, Plan, PlannedTask
from orchestrator.states import AttemptState
from orchestrator.store.command_requests import request_cancel
from orchestrator.store.loader import load_snapshot
from orchestrator.store.reruns import request_rerun
from orchestrator.wire.messages import GrantSpec
from scheduler import file_looks, questions
from scheduler.drift import find_drift
from scheduler.file_looks import FileLooks
from scheduler.transaction import Committed, Leader, Round
from tests.integration.led import EPOCH
from tests.integration.led import engine as engine  # noqa: PLC0414 (a fixture)
from tests.integration.seeded_runs import SeededRun, planned, seed_run
from tests.integration.test_writer import heartbeat, rows

pytestmark = pytest.mark.timeout(60)


class Site:
    """A leader with one worker; every grant is told to have succeeded at once."""

    def __init__(self, engine: Engine, roots: DataRoots | None = None) -> None:
        self.engine = engine
        self.now = 100.0
        files = None if roots is None else FileLooks(lambda: roots)
        self.leader = Leader(engine, EPOCH, connections={}, registry_url=None, files=files)
        self.kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4()), max_runs=1), self.now)
        self.granted: list[GrantSpec] = []
        self.take_in(HeartbeatSeen(heartbeat()))

    def take_in(self, *events: Event, poll: bool = False) -> Committed:
        self.now += 0.1
        done = self.leader.take_in(self.kernel, Round(self.now, events, poll=poll))
        with self.engine.connect() as connection:
            assert find_drift(connection, self.kernel) is None
        return done

    def rebuild(self) -> None:
        """Forget all but the rows, as another leader would begin."""
        self.kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4()), max_runs=1), self.now)
        with self.engine.connect() as connection:
            self.kernel.load(load_snapshot(connection, self.leader.plans, self.now), self.now)

    def work(self, outputs: Mapping[str, Any] | None = None) -> list[str]:
        """Claim and end whatever is sent out, until nothing is; return the names of the tasks that ran."""
        before = len(self.granted)
        for _ in range(20):
            sent = rows(self.engine, "SELECT id, token FROM attempts WHERE state = 'dispatched' ORDER BY created_at")
            done = self.take_in(*(ClaimReceived("worker", row.id, 1, uuid.uuid4().hex) for row in sent))
            specs = [done.specs[effect.attempt.id] for effect in done.effects if isinstance(effect, SendGrant)]
            self.granted += specs
            outcome = Outcome(AttemptState.SUCCEEDED, outputs=dict(outputs or {}))
            ends = [OutcomeReceived("worker", spec.attempt_id, spec.token, outcome) for spec in specs]
            self.take_in(*ends, *done.follow_up)
            if not sent:
                break
        return [spec.task for spec in self.granted[before:]]


def states(engine: Engine, run: SeededRun) -> dict[str, tuple[str, str]]:
    found = rows(engine, "SELECT name, state, reason FROM task_runs WHERE run_id = :id ORDER BY name", id=run.id)
    return {row.name: (row.state, row.reason) for row in found}


def named(engine: Engine, run: SeededRun, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE pipelines SET name = :name WHERE id = (SELECT pipeline_id FROM runs WHERE id = :id)"),
            {"name": name, "id": run.id},
        )


def test_a_run_that_is_a_task_is_made_run_and_ends_it(engine: Engine) -> None:
    inner = Plan((planned("x"), planned("y", "x")))
    use = replace(planned("use", "sub"), parameters={"score": "{{ tasks.sub.outputs.outputs.y.score }}"})
    outer = Plan((replace(planned("sub"), operator="", child=ChildPlan("inner", parameters={"a": 1})), use))
    other = seed_run(engine, plan=inner)
    named(engine, other, "inner")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM runs"))
    run = seed_run(engine, plan=outer, parameters={"b": 2})
    site = Site(engine)
    site.take_in(poll=True)
    [child] = rows(engine, "SELECT id, state, parameters FROM runs WHERE parent_run_id = :id", id=run.id)
    assert (child.state, child.parameters) == ("running", {"a": 1, "b": 2}), "in the round that asked, beyond max_runs"
    site.rebuild()
    assert site.work({"score": 7}) == ["x", "y", "use"]
    assert states(engine, run) == {"sub": ("success", ""), "use": ("success", "")}
    assert site.granted[-1].parameters == {"score": 7}
    assert rows(engine, "SELECT DISTINCT state FROM runs") == [("success",)]


def test_a_pipeline_that_is_not_there_fails_the_task_at_once(engine: Engine) -> None:
    outer = Plan((replace(planned("sub"), operator="", child=ChildPlan("nobody")),))
    run = seed_run(engine, plan=outer)
    Site(engine).take_in(poll=True)
    assert states(engine, run) == {"sub": ("failed", "child_refused")}
    assert rows(engine, "SELECT state FROM runs") == [("failed",)]


def cached(name: str, *upstream: str) -> PlannedTask:
    return replace(
        planned(name, *upstream), operator="model_training", parameters={"algorithm": name}, cache=CachePlan()
    )


def test_a_chain_of_hits_ends_in_one_round(engine: Engine) -> None:
    plan = Plan((cached("a"), cached("b", "a"), cached("c", "b")))
    site = Site(engine)
    first = seed_run(engine, plan=plan)
    site.take_in(poll=True)
    assert site.work({"n": 1}) == ["a", "b", "c"]
    second = seed_run(engine, plan=plan)
    site.take_in(poll=True)
    assert states(engine, second) == dict.fromkeys("abc", ("success", "cache_hit"))
    found = rows(
        engine, "SELECT name, outputs, cached_from FROM task_runs WHERE run_id = :id ORDER BY name", id=second.id
    )
    assert [tuple(row) for row in found] == [(name, {"n": 1}, first.tasks[name]) for name in "abc"]


def test_what_the_cache_is_asked_beyond_one_round_is_answered_in_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "MOST_LOOKS", 1)
    plan = Plan((cached("a"), cached("b", "a")))
    site = Site(engine)
    seed_run(engine, plan=plan)
    site.take_in(poll=True)
    site.work()
    second = seed_run(engine, plan=plan)
    site.take_in(poll=True)
    assert states(engine, second)["a"] == ("success", "cache_hit")
    assert states(engine, second)["b"][0] == "ready"
    site.take_in()
    assert states(engine, second)["b"] == ("success", "cache_hit")


def test_looking_at_files_for_long_puts_the_others_off_and_forgets_none(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.cache.MOST_SECONDS", -1.0)
    plan = Plan((cached("a"), cached("b"), cached("c")))
    site = Site(engine)
    run = seed_run(engine, plan=plan)
    done = site.take_in(poll=True)
    for left in (2, 1, 0):
        assert [reason for _, reason in states(engine, run).values()].count("cache_lookup") == left
        assert done.more_at_once is (left > 0), "the leader goes on at once, after it has heard the workers"
        done = site.take_in()
    assert sorted(site.work()) == ["a", "b", "c"]


@pytest.mark.parametrize("answers", [True, False])
def test_a_share_that_hangs_holds_up_the_task_that_names_it_and_not_for_ever(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    gate, begun = threading.Event(), threading.Event()
    plain = cache_files.digest_of_file

    def hung(path: Path, whole: int = WHOLE) -> str:
        begun.set()
        gate.wait(30)
        return plain(path, whole)

    monkeypatch.setattr(cache_files, "digest_of_file", hung)
    if not answers:
        monkeypatch.setattr(file_looks, "LONGEST_LOOK", 0.1)
    (tmp_path / "x.csv").write_text("1")
    reading = replace(cached("load"), operator="data_validation", parameters={"input_path": "x.csv"})
    site = Site(engine, DataRoots({"data": tmp_path}))
    run = seed_run(engine, plan=Plan((reading, planned("plain"))))
    done = site.take_in(poll=True)
    assert begun.wait(10)
    try:
        assert site.work() == ["plain"], "what has nothing to do with it goes on"
        if answers:
            assert states(engine, run)["load"] == ("ready", "cache_lookup")
            assert not done.more_at_once, "the leader does not spin meanwhile"
            gate.set()
        deadline = time.monotonic() + 10
        while states(engine, run)["load"][1] == "cache_lookup":
            assert time.monotonic() < deadline
            site.take_in()
            time.sleep(0.01)
    finally:
        gate.set()
    [(detail,)] = rows(engine, "SELECT cache_detail FROM task_runs WHERE id = :id", id=run.tasks["load"])
    assert bool(detail["key"]) is answers
    if not answers:
        assert detail["message"].startswith("Not cached, for no key can be worked out: x.csv could not be looked at")
    site.work()
    assert rows(engine, "SELECT state FROM runs") == [("success",)]


def test_a_rerun_is_not_answered_with_the_file_as_it_was_before(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun = threading.Event(), threading.Event()
    gate.set()
    plain = cache_files.digest_of_file

    def slow(path: Path, whole: int = WHOLE) -> str:
        digest = plain(path, whole)
        begun.set()
        gate.wait(30)
        return digest

    monkeypatch.setattr(cache_files, "digest_of_file", slow)
    (tmp_path / "x.csv").write_text("old")
    reading = replace(cached("load"), operator="data_validation", parameters={"input_path": "x.csv"})
    site = Site(engine, DataRoots({"data": tmp_path}))
    ran: list[str] = []

    def work() -> bool:
        ran.extend(site.work())
        return rows(engine, "SELECT DISTINCT state FROM runs") == [("success",)]

    seed_run(engine, plan=Plan((reading,)))
    site.take_in(poll=True)
    until(work)
    gate.clear()
    begun.clear()
    try:
        run = seed_run(engine, plan=Plan((reading,)))
        site.take_in(poll=True)
        assert begun.wait(10)
        with engine.begin() as connection:
            request_cancel(connection, run.tenant_id, run.id, "me")
        site.take_in(poll=True)
        (tmp_path / "x.csv").write_text("new")
        with engine.begin() as connection:
            request_rerun(connection, run.tenant_id, run.id, "me", "all")
        site.take_in(poll=True)
        site.take_in(poll=True)
        assert states(engine, run)["load"] == ("ready", "cache_lookup")
    finally:
        gate.set()
    until(work)
    assert ran == ["load", "load"], "what is cached was made of the old file"


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_expansion_survives_a_new_leader_and_its_outputs_are_read_from_the_rows(engine: Engine) -> None:
    body = replace(planned("train"), parameters={"lr": "{{ map.item }}"})
    plan = Plan(
        (
            replace(planned("train"), operator="", map=MapPlan([0.1, 0.2, 0.3]), body=Plan((body,))),
            replace(
                planned("best", "train"),
                when="len(tasks.train.outputs) == 3",
                parameters={"all": "{{ tasks.train.outputs }}"},
            ),
        )
    )
    site = Site(engine)
    run = seed_run(engine, plan=plan)
    site.take_in(poll=True)
    assert states(engine, run)["train"] == ("running", "mapped")
    site.rebuild()
    assert sorted(site.work({"loss": 1})) == ["best", "train[0]", "train[1]", "train[2]"]
    parameters = {spec.task: spec.parameters for spec in site.granted}
    assert parameters["train[1]"] == {"lr": 0.2}
    assert parameters["best"] == {"all": [{"loss": 1}] * 3}
    assert rows(engine, "SELECT state FROM runs") == [("success",)]
