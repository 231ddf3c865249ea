"""One round of the leader: what comes together is decided together, and what was never sent can't have begun."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import Engine, text

from orchestrator.effects import SendGrant
from orchestrator.events import ClaimReceived, Event, HeartbeatSeen
from orchestrator.kernel import Kernel, KernelSettings
from orchestrator.records import Plan
from orchestrator.store.loader import load_commands, load_queued_runs
from orchestrator.store.plans import PlanCache
from scheduler.outbox import messages_of
from scheduler.transaction import Committed, Leader, Round
from tests.integration.led import EPOCH
from tests.integration.led import engine as engine  # noqa: PLC0414 (a fixture)
from tests.integration.seeded_runs import SeededRun, planned, seed_run
from tests.integration.test_writer import heartbeat, rows

pytestmark = pytest.mark.timeout(60)


class Rounds:
    """A leader with a worker and the one attempt of a run, which waits to be claimed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now = 100.0
        self._leader = Leader(engine, EPOCH, connections={}, registry_url=None)
        self._kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4())), self.now)
        self.run: SeededRun = seed_run(engine, plan=Plan((planned("a"),)))
        self.take_in(HeartbeatSeen(heartbeat()))
        self.take_in(poll=True)
        [(self.attempt,)] = rows(engine, "SELECT id FROM attempts WHERE state = 'dispatched'")

    def take_in(self, *events: Event, poll: bool = False) -> Committed:
        self.now += 0.1
        return self._leader.take_in(self._kernel, Round(self.now, events, poll=poll))

    def claim(self) -> ClaimReceived:
        return ClaimReceived("worker", self.attempt, 1, "nonce")

    def cancel(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                text("INSERT INTO commands (tenant_id, kind, actor, run_id) VALUES (:tenant, 'cancel', 'me', :run)"),
                {"tenant": self.run.tenant_id, "run": self.run.id},
            )

    def states(self) -> tuple[str, str, str]:
        [found] = rows(
            self.engine,
            "SELECT r.state AS run, t.state AS task, a.state AS attempt FROM runs r "
            "JOIN task_runs t ON t.run_id = r.id JOIN attempts a ON a.task_run_id = t.id",
        )
        return (found.run, found.task, found.attempt)


def test_an_attempt_that_is_cancelled_in_the_round_that_granted_it_has_ended_in_the_next(engine: Engine) -> None:
    rounds = Rounds(engine)
    rounds.cancel()
    done = rounds.take_in(rounds.claim(), poll=True)
    assert not messages_of(done.effects, done.specs).replies, "the worker was granted what is cancelled"
    rounds.take_in(*done.follow_up)
    assert rounds.states() == ("cancelled", "cancelled", "cancelled")
    assert not rows(engine, "SELECT * FROM reservations")


def test_an_attempt_whose_grant_was_sent_before_it_was_cancelled_ends_when_its_worker_says_so(engine: Engine) -> None:
    rounds = Rounds(engine)
    granted = rounds.take_in(rounds.claim())
    assert any(isinstance(effect, SendGrant) for effect in granted.effects)
    rounds.cancel()
    # The same claim once more, as a worker sends it that waits for the answer: it may have had that meanwhile.
    done = rounds.take_in(rounds.claim(), poll=True)
    assert done.follow_up == []
    assert rounds.states() == ("cancelling", "cancelling", "running")
    assert rows(engine, "SELECT * FROM reservations")


def command(engine: Engine, run: SeededRun, kind: str = "cancel") -> None:
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO commands (tenant_id, kind, actor, run_id) VALUES (:tenant, :kind, 'me', :run)"),
            {"tenant": run.tenant_id, "kind": kind, "run": run.id},
        )


def test_one_round_takes_commands_for_so_many_tasks_and_at_least_one(engine: Engine) -> None:
    # Of four tasks each.
    for _ in range(5):
        command(engine, seed_run(engine))
    with engine.connect() as connection:
        everything = load_commands(connection)
        assert len(everything) == 5
        assert load_commands(connection, most_tasks=1) == everything[:1]
        assert load_commands(connection, most_tasks=8) == everything[:2]
        assert load_commands(connection, most_tasks=9) == everything[:3]
        assert load_commands(connection, most_tasks=1, put_off=[everything[0].id]) == everything[1:2]


def test_one_round_starts_runs_of_so_many_tasks_and_at_least_one(engine: Engine) -> None:
    queued = [seed_run(engine).id for _ in range(3)]
    with engine.connect() as connection:
        for most, wanted in ((1, 1), (4, 1), (5, 2), (100, 3)):
            found = load_queued_runs(connection, PlanCache(), 0.0, limit=10, most_tasks=most)
            assert [item.run.id for item in found] == queued[:wanted]


def test_what_one_round_leaves_for_the_next_is_asked_for_at_once(engine: Engine) -> None:
    leader = Leader(engine, EPOCH, connections={}, registry_url=None)
    kernel = Kernel(KernelSettings(new_id=lambda: str(uuid.uuid4())), 100.0)
    for _ in range(3):
        command(engine, seed_run(engine))
    left = [3]
    while left[-1]:
        done = leader.take_in(kernel, Round(100.0 + len(left), poll=True, most_tasks=1))
        assert done.more_at_once
        [(count,)] = rows(engine, "SELECT count(*) FROM commands WHERE applied_at IS NULL")
        left.append(count)
        assert len(leader.taking) == 1
    assert left == [3, 2, 1, 0]
    assert not leader.take_in(kernel, Round(200.0, poll=True, most_tasks=1)).more_at_once
