"""One round of the leader is short, whatever saved definitions ask for, and what fails alone stops nobody else."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.events import Event, ReconcileDue
from orchestrator.kernel import Kernel, KernelSettings
from orchestrator.records import ChildPlan, ConcurrencyLimit, MapPlan, Plan, PlannedTask, RepeatPlan
from orchestrator.store.loader import load_snapshot
from scheduler import questions
from scheduler.drift import find_drift
from scheduler.transaction import Committed, Leader, Round
from scheduler.troubles import PUT_OFF_SECONDS, TRIES, Troubles
from tests.integration.led import EPOCH, limited_engine
from tests.integration.seeded_runs import ONCE, SeededRun, planned, seed_run
from tests.integration.test_leader_answers import named
from tests.integration.test_writer import rows

pytestmark = pytest.mark.timeout(120)

engine = limited_engine


class Leading:
    """A leader whose rounds are counted and measured."""

    def __init__(self, engine: Engine, *, max_runs: int = 10) -> None:
        self.engine = engine
        self.now = 100.0
        self.max_runs = max_runs
        self.leader = Leader(engine, EPOCH, connections={}, registry_url=None)
        self.troubles = Troubles()
        self.rebuild()

    def rebuild(self) -> None:
        """Forget all but the rows, as another leader would begin."""
        settings = KernelSettings(new_id=lambda: str(uuid.uuid4()), max_runs=self.max_runs)
        self.kernel = Kernel(settings, self.now)
        with self.engine.connect() as connection:
            self.kernel.load(load_snapshot(connection, self.leader.plans, self.now), self.now)

    def take_in(self, *events: Event, poll: bool = True, **fields: Any) -> Committed:
        self.now += 0.1
        done = self.leader.take_in(self.kernel, Round(self.now, events, poll=poll, **fields))
        with self.engine.connect() as connection:
            assert find_drift(connection, self.kernel) is None
        return done

    def until_idle(self) -> tuple[int, float]:
        """Go on as long as there is more at once; return the number of rounds and the seconds of the longest."""
        count, longest = 0, 0.0
        while True:
            begun = time.monotonic()
            done = self.take_in()
            count, longest = count + 1, max(longest, time.monotonic() - begun)
            assert count < 500, "there is no end to it"
            if not done.more_at_once:
                return count, longest


def other(engine: Engine, plan: Plan) -> None:
    """Save the pipeline ``other``."""
    named(engine, seed_run(engine, plan=plan), "other")
    with engine.begin() as connection:
        connection.execute(text("UPDATE pipeline_versions SET definition = '{}'"))
        connection.execute(text("DELETE FROM runs"))


def child(name: str = "m", **fields: Any) -> PlannedTask:
    return PlannedTask(name, "pipeline", retry=ONCE, child=ChildPlan("other", **fields))


def mapped(size: int, body: PlannedTask, **fields: Any) -> Plan:
    container = PlannedTask("m", "pipeline", retry=ONCE, map=MapPlan({"range": size}, **fields), body=Plan((body,)))
    return Plan((container,))


def states(engine: Engine) -> dict[str, int]:
    return {row.state: row.n for row in rows(engine, "SELECT state, count(*) AS n FROM runs GROUP BY state")}


def test_runs_that_are_not_waited_for_one_after_the_other_start_round_after_round(engine: Engine) -> None:
    other(engine, Plan((planned("x"),)))
    run = seed_run(engine, plan=mapped(101, child(wait=False), max_parallel=1))
    leading = Leading(engine)
    count, _ = leading.until_idle()
    assert count > 101 / questions.MOST_TURNS, "no round takes as many turns as it would need"
    assert states(engine) == {"running": 101, "success": 1}
    assert rows(engine, "SELECT state FROM runs WHERE id = :id", id=run.id) == [("success",)]


def test_a_repeat_of_runs_that_end_at_once_ends_after_some_rounds(engine: Engine) -> None:
    other(engine, Plan((replace(planned("x"), when="false"),)))
    repeat = PlannedTask(
        "m", "pipeline", retry=ONCE, repeat=RepeatPlan("false", 150, on_max="succeed"), body=Plan((child(),))
    )
    seed_run(engine, plan=Plan((repeat,)))
    Leading(engine).until_idle()
    assert states(engine) == {"success": 151}


def test_a_thousand_runs_at_once_are_made_a_part_in_each_round(engine: Engine) -> None:
    other(engine, Plan((planned("x"),)))
    seed_run(engine, plan=mapped(1000, child()))
    count, longest = Leading(engine).until_idle()
    print(f"{count} rounds, the longest {longest:.1f} s")
    assert states(engine) == {"running": 1001}
    assert count >= 10
    assert longest < 10.0, "a leader that hears nobody for so long gives workers up"


def test_a_new_leader_makes_the_runs_that_the_last_one_has_left_over(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.transaction.MOST_CHILDREN", 2)
    other(engine, Plan((planned("x"),)))
    seed_run(engine, plan=mapped(5, child(parameters={"n": "{{ map.item }}"})))
    leading = Leading(engine)
    assert leading.take_in().more_at_once
    assert states(engine) == {"running": 3}
    wanted = {row[0] for row in rows(engine, "SELECT child_run_id FROM task_runs WHERE child_run_id IS NOT NULL")}
    leading.rebuild()
    assert len(leading.kernel.unmade_children) == 3
    leading.take_in(ReconcileDue())
    leading.until_idle()
    made = rows(engine, "SELECT id, parameters FROM runs WHERE parent_run_id IS NOT NULL")
    assert {row.id for row in made} == wanted
    assert sorted(row.parameters["n"] for row in made) == [0, 1, 2, 3, 4]
    assert states(engine) == {"running": 6}


def cancel(engine: Engine, run: SeededRun) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO commands (tenant_id, kind, actor, run_id) VALUES (:tenant, 'cancel', 'me', :run)"),
            {"tenant": run.tenant_id, "run": run.id},
        )


def test_runs_that_are_left_over_are_never_made_when_their_task_is_cancelled(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.transaction.MOST_CHILDREN", 2)
    other(engine, Plan((planned("x"),)))
    run = seed_run(engine, plan=mapped(5, child()))
    leading = Leading(engine)
    leading.take_in()
    cancel(engine, run)
    leading.until_idle()
    assert states(engine) == {"cancelled": 3}


def test_a_run_that_ended_while_nobody_could_read_the_plan_around_it_ends_its_task(engine: Engine) -> None:
    other(engine, Plan((planned("x"),)))
    use = replace(planned("use", "m"), when="tasks.m.outputs.outputs.x.n == 3")
    run = seed_run(engine, plan=Plan((child(), use)))
    leading = Leading(engine)
    leading.until_idle()
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE task_runs SET state = 'success', outputs = '{\"n\": 3}' "
                "WHERE run_id IN (SELECT id FROM runs WHERE parent_run_id = :id)"
            ),
            {"id": run.id},
        )
        connection.execute(text("UPDATE runs SET state = 'success' WHERE parent_run_id = :id"), {"id": run.id})
    leading.rebuild()
    leading.take_in(ReconcileDue())
    found = rows(engine, "SELECT name, state FROM task_runs WHERE run_id = :id ORDER BY name", id=run.id)
    assert [tuple(row) for row in found] == [("m", "success"), ("use", "ready")]


def limited(key: str) -> Plan:
    return Plan((planned("x"),), concurrency=(ConcurrencyLimit(key, 1),))


def test_a_run_behind_many_that_are_held_back_is_found_in_the_rounds_that_follow_at_once(engine: Engine) -> None:
    plan = limited("{{ params.user }}")
    for _ in range(91):
        seed_run(engine, plan=plan, parameters={"user": "a"})
    last = seed_run(engine, plan=plan, parameters={"user": "b"})
    leading = Leading(engine, max_runs=2)
    count, _ = leading.until_idle()
    assert count <= 4
    assert rows(engine, "SELECT state FROM runs WHERE id = :id", id=last.id) == [("running",)]
    told = rows(engine, "SELECT reason, count(*) FROM runs WHERE state = 'queued' GROUP BY reason")
    assert [tuple(row) for row in told] == [("concurrency", 90)]


def test_another_customers_run_of_the_same_pipeline_starts_however_many_of_the_first_are_held_back(
    engine: Engine,
) -> None:
    plan = limited("{{ params.user }}")
    for _ in range(205):
        seed_run(engine, plan=plan, parameters={"user": "a"})
    leading = Leading(engine)
    leading.until_idle()
    late = seed_run(engine, plan=plan, parameters={"user": "b"})
    leading.take_in()
    assert rows(engine, "SELECT state FROM runs WHERE id = :id", id=late.id) == [("running",)]


def test_a_run_of_a_paused_pipeline_lets_those_behind_it_go_first(engine: Engine) -> None:
    plan, same = limited("k"), replace(limited("k"), deadline=900.0)
    first, _, behind = seed_run(engine, plan=plan), seed_run(engine, plan=plan), seed_run(engine, plan=same)
    leading = Leading(engine)
    leading.until_idle()
    with engine.begin() as connection:
        paused = "UPDATE pipelines SET paused = true WHERE id = (SELECT pipeline_id FROM runs WHERE id = :id)"
        connection.execute(text(paused), {"id": first.id})
    cancel(engine, first)
    leading.until_idle()
    leading.take_in()
    assert rows(engine, "SELECT state FROM runs WHERE id = :id", id=behind.id) == [("running",)]


class Broken(Exception):
    """Whatever nobody foresaw."""


def test_a_run_whose_start_fails_every_time_waits_and_says_so_while_all_others_start(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = seed_run(engine, plan=Plan((planned("x"),))), seed_run(engine)
    ended = seed_run(engine)
    cancel(engine, ended)
    leading, decide = Leading(engine), __import__("scheduler.transaction", fromlist=["decide"]).decide

    def fail(kernel: Kernel, event: Any, now: float) -> Any:
        if bad.id == getattr(getattr(event, "run", None), "id", ""):
            raise Broken
        return decide(kernel, event, now)

    monkeypatch.setattr("scheduler.transaction.decide", fail)
    failures = steps = 0
    while rows(engine, "SELECT state FROM runs WHERE id = :id", id=good.id) != [("running",)]:
        steps += 1
        assert steps < 20, "it stops all others"
        troubles, now = leading.troubles, 0.0
        try:
            leading.take_in(
                most_tasks=troubles.most_tasks,
                put_off=troubles.put_off(now),
                put_off_runs=troubles.put_off_runs(now),
            )
        except Broken:
            failures += 1
            troubles.note_taken(leading.leader.taking, leading.leader.starting, now)
            troubles.back_off()
            leading.rebuild()
    assert failures == TRIES + 1
    assert leading.troubles.put_off_runs(PUT_OFF_SECONDS - 1.0) == {bad.id}
    leading.take_in(put_off_runs=frozenset({bad.id}))
    [told] = rows(engine, "SELECT state, reason, message FROM runs WHERE id = :id", id=bad.id)
    assert (told.state, told.reason) == ("queued", "put_off")
    assert "failed each time" in told.message
    assert rows(engine, "SELECT state FROM runs WHERE id = :id", id=ended.id) == [("cancelled",)]
    monkeypatch.setattr("scheduler.transaction.decide", decide)
    leading.take_in()
    [told] = rows(engine, "SELECT state, reason, message FROM runs WHERE id = :id", id=bad.id)
    assert (told.state, told.reason) == ("running", "")
