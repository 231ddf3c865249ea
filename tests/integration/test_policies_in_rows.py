"""Limits, learned memory and circuits on real rows: what one leader has written the next one goes on with."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.effects import Transition
from orchestrator.events import ClaimReceived, Event, HeartbeatSeen, OutcomeReceived, ReconcileDue
from orchestrator.kernel import Kernel, KernelSettings
from orchestrator.limits import DISPATCHES, Rate
from orchestrator.records import (
    CachePlan,
    ConcurrencyLimit,
    Outcome,
    Plan,
    PlannedTask,
    RateLimit,
    RetryPolicy,
    RetryRule,
    Usage,
)
from orchestrator.states import AttemptState, Entity, RunState
from orchestrator.store.loader import load_snapshot
from orchestrator.store.plans import PlanCache
from orchestrator.store.writer import write
from scheduler.transaction import Committed, Leader, Round
from tests.integration.led import EPOCH
from tests.integration.led import engine as engine  # noqa: PLC0414 (a fixture)
from tests.integration.seeded_runs import SeededRun, planned, seed_run
from tests.integration.test_writer import heartbeat, rows

pytestmark = pytest.mark.timeout(60)

MIB = 2**20


class Site:
    """A leader, and the one worker ``worker``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now = 100.0
        self._leader = Leader(engine, EPOCH, connections={}, registry_url=None)
        self.lead()
        self.take_in(HeartbeatSeen(heartbeat()))

    def lead(self, after: float = 0.0) -> None:
        """Build the memory anew from the rows."""
        self.now += after
        self.kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4()), max_runs=100), self.now)
        with self.engine.connect() as connection:
            self.kernel.load(load_snapshot(connection, PlanCache(), self.now), self.now)
        self.take_in(ReconcileDue())

    def take_in(self, *events: Event, poll: bool = False, after: float = 0.1) -> Committed:
        self.now += after
        return self._leader.take_in(self.kernel, Round(self.now, events, poll=poll))

    def claim(self) -> None:
        for attempt in list(self.kernel.attempts.values()):
            if attempt.state is AttemptState.DISPATCHED:
                self.take_in(ClaimReceived("worker", attempt.id, 1, "nonce"))

    def end(self, outcome: Outcome) -> None:
        for attempt in list(self.kernel.attempts.values()):
            self.take_in(OutcomeReceived("worker", attempt.id, attempt.token, outcome))

    def submit(self, plan: Plan, **fields: Any) -> SeededRun:
        return seed_run(self.engine, plan=plan, **fields)

    def runs(self) -> list[tuple[str, str]]:
        return [(row.state, row.reason) for row in rows(self.engine, "SELECT state, reason FROM runs ORDER BY seq")]


def alone(name: str = "a", **fields: Any) -> PlannedTask:
    return replace(planned(name), **fields)


def test_runs_beyond_a_limit_stay_queued_and_those_behind_them_start(engine: Engine) -> None:
    exclusive, free = Plan((alone(),), max_active_runs=1), Plan((alone("b"),))
    site = Site(engine)
    for plan in (exclusive, exclusive, exclusive, free):
        site.submit(plan)
    site.take_in(poll=True)
    assert site.runs() == [("running", ""), ("queued", "concurrency"), ("queued", "concurrency"), ("running", "")]
    site.claim()
    site.end(Outcome(AttemptState.SUCCEEDED))
    site.take_in(poll=True)
    assert [state for state, _ in site.runs()] == ["success", "running", "queued", "success"]
    site.lead()
    site.take_in(poll=True)
    assert [state for state, _ in site.runs()] == ["success", "running", "queued", "success"]


def test_a_run_may_take_the_place_of_an_older_one(engine: Engine) -> None:
    plan = Plan((alone(),), concurrency=(ConcurrencyLimit("{{ params.user }}", 1, "cancel_running"),))
    site = Site(engine)
    for _ in range(2):
        site.submit(plan, parameters={"user": "ann"})
    site.take_in(poll=True)
    site.take_in(poll=True)
    assert site.runs() == [("cancelled", "superseded"), ("running", "")]


def test_memory_that_a_task_was_killed_for_is_asked_for_by_the_next_try_and_by_the_next_run(engine: Engine) -> None:
    again = RetryPolicy(retries=2, delay=0, jitter=0, rules=(RetryRule("retry", ("oom",), memory_factor=2.0),))
    plan = Plan((alone(memory_auto=True, retry=again),))
    site = Site(engine)
    site.submit(plan)
    site.take_in(poll=True)
    site.claim()
    site.end(Outcome(AttemptState.FAILED, "oom", usage=Usage(peak_memory=MIB)))
    assert rows(engine, "SELECT memory FROM task_runs") == [(2 * MIB,)]
    site.lead()
    site.take_in(HeartbeatSeen(heartbeat(seq=2)))
    [(memory,)] = rows(engine, "SELECT memory FROM attempts WHERE state = 'dispatched'")
    assert memory == 2 * MIB
    site.claim()
    site.end(Outcome(AttemptState.SUCCEEDED, usage=Usage(peak_memory=100 * MIB)))
    assert rows(engine, "SELECT task, memory, peak FROM learned_memory") == [("a", 128 * MIB, 100 * MIB)]
    site.submit(plan)
    site.take_in(poll=True)
    assert rows(engine, "SELECT memory FROM attempts WHERE state = 'dispatched'") == [(128 * MIB,)]


def test_deadlines_are_the_same_for_the_next_leader(engine: Engine) -> None:
    plan = Plan((alone(deadline=50.0, max_queued=40.0),), deadline=70.0)
    site = Site(engine)
    site.submit(plan)
    site.take_in(poll=True)
    before = site.kernel.timers.all()
    assert len(before) == 3
    site.lead()
    after = site.kernel.timers.all()
    assert after.keys() == before.keys()
    for key, at in after.items():
        assert at == pytest.approx(before[key], abs=5.0)


def test_circuits_of_an_earlier_leader_are_closed_by_the_next(engine: Engine) -> None:
    site = Site(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO circuits (service, state, failures) VALUES ('lake', 'open', 5)"))
    site.lead()
    assert rows(engine, "SELECT service, state FROM circuits") == [("lake", "closed")]


def test_a_grace_that_a_cancel_asked_for_is_known_to_the_next_leader(engine: Engine) -> None:
    plan = Plan((alone(),))
    site = Site(engine)
    run = site.submit(plan)
    site.take_in(poll=True)
    site.claim()
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO commands (tenant_id, kind, actor, run_id, payload) VALUES (:tenant, 'cancel', 'me', :run, "
                'CAST(\'{"mode": "force"}\' AS jsonb))'
            ),
            {"tenant": run.tenant_id, "run": run.id},
        )
    site.take_in(poll=True)
    site.lead()
    [(_, grace)] = site.kernel.desired("worker").cancel
    assert grace == 0.0
    assert site.runs() == [("cancelling", "force_cancelled")]


def test_an_equal_task_takes_the_outputs_of_the_one_before_or_waits_for_it(engine: Engine) -> None:
    plan = Plan((alone(cache=CachePlan(), operator_version="1"),))
    site = Site(engine)
    site.submit(plan)
    site.submit(plan)
    site.take_in(poll=True)
    found = rows(engine, "SELECT state, reason FROM task_runs t ORDER BY (SELECT seq FROM runs WHERE id = t.run_id)")
    assert [tuple(row) for row in found] == [("queued", ""), ("ready", "cache_flight")]
    site.claim()
    site.end(Outcome(AttemptState.SUCCEEDED, outputs={"rows": 3}))
    assert site.runs() == [("success", ""), ("success", "")]
    site.submit(plan)
    site.take_in(poll=True)
    hits = rows(engine, "SELECT outputs, reason FROM task_runs WHERE cached_from IS NOT NULL")
    assert [tuple(row) for row in hits] == [({"rows": 3}, "cache_hit")] * 2
    assert rows(engine, "SELECT count(*) FROM attempts") == [(1,)]


def test_what_was_sent_out_counts_against_its_rate_under_the_next_leader_though_its_run_is_over(engine: Engine) -> None:
    plan = Plan((alone(rate_limit=RateLimit("api", 2, 3600.0)),))
    site = Site(engine)
    runs = [site.submit(plan) for _ in range(3)]
    for _ in range(2):
        site.take_in(poll=True)
        site.claim()
        site.end(Outcome(AttemptState.SUCCEEDED))
    assert sorted(site.runs()) == [("running", ""), ("success", ""), ("success", "")]
    site.lead(after=1000.0)
    site.take_in(HeartbeatSeen(heartbeat(seq=2)))
    with engine.connect() as connection:
        sent = load_snapshot(connection, PlanCache(), site.now).dispatches
    assert [rate for rate, _ in sent] == [Rate((runs[0].tenant_id, DISPATCHES, "api"), 2, 3600.0)] * 2
    assert all(at == pytest.approx(site.now, abs=30.0) for _, at in sent)
    assert rows(engine, "SELECT reason FROM task_runs WHERE state = 'ready'") == [("rate_limit",)]
    with engine.begin() as connection:
        connection.execute(text("UPDATE attempts SET rate_until = rate_until - interval '1 hour'"))
    site.lead()
    site.take_in(HeartbeatSeen(heartbeat(seq=3)))
    assert rows(engine, "SELECT state FROM task_runs WHERE state <> 'success'") == [("queued",)]


def test_of_a_key_no_more_dispatches_are_read_than_its_widest_limit_lets_through(engine: Engine) -> None:
    plan = Plan(tuple(alone(name, rate_limit=RateLimit("api", 3, 60.0)) for name in "abc"))
    site = Site(engine)
    site.submit(plan)
    site.take_in(poll=True)
    with engine.begin() as connection:
        connection.execute(text("UPDATE attempts SET rate_units = 2"))
        assert len(load_snapshot(connection, PlanCache(), site.now).dispatches) == 2


def test_a_new_leader_knows_whose_pause_a_run_is_under(engine: Engine) -> None:
    site = Site(engine)
    run = site.submit(Plan((alone(),)))
    site.take_in(poll=True)
    changes = {"paused_with_parent": True}
    paused = Transition(Entity.RUN, run.id, RunState.RUNNING, RunState.PAUSED, "pause", run_id=run.id, changes=changes)
    with engine.begin() as connection:
        write(connection, [paused], EPOCH)
    site.lead()
    assert site.kernel.runs[run.id].paused_with_parent
