"""The audit of a real scheduler: the fault suite's checker finds nothing in it, and everything that it needs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from orchestrator.records import GRANT_LIFETIME, Outcome, Plan, PlannedTask, Resources, RetryPolicy
from orchestrator.states import AttemptState
from orchestrator.wire.messages import GrantSpec
from tests.chaos.checker import check
from tests.chaos.history import History, read_history
from tests.chaos.ledger import Accepted, Line
from tests.integration.fake_worker import FakeWorker
from tests.integration.seeded_runs import SeededRun
from tests.integration.test_scheduler import Site, until
from tests.integration.test_scheduler import site as site  # noqa: PLC0414 (a fixture)

pytestmark = pytest.mark.timeout(300)

LARGE = Resources(cpu=2500, memory=2**30)
"""Three of them fill a host."""


def planned(name: str, *upstream: str, rule: str = "all_success") -> PlannedTask:
    policy = RetryPolicy(retries=3, delay=0.1, jitter=0.0)
    return PlannedTask(name, "chaos_task", upstream=upstream, trigger_rule=rule, resources=LARGE, retry=policy, grace=1)


PLAN = Plan(
    (
        planned("a"),
        planned("b", "a"),
        planned("c", "a"),
        planned("d", "b", "c"),
        planned("alarm", "b", "c", rule="one_failed"),
        planned("tidy", "d", rule="all_done"),
    )
)


@dataclass
class Tasks:
    """Behave by chance, and note what they do as real tasks would."""

    dice: random.Random
    lines: list[Line] = field(default_factory=list)

    def on(self, host: str) -> Callable[[GrantSpec], Outcome | None]:
        def behave(spec: GrantSpec) -> Outcome | None:
            self.note("start", spec, host)
            outcome = self._outcome(spec)
            if outcome is not None:
                self.note("end", spec, host)
            return outcome

        return behave

    def note(self, what: str, spec: GrantSpec, host: str) -> None:
        now = time.monotonic()
        self.lines.append(Line(what, spec.run_id, spec.task, spec.attempt_id, spec.token, host, 1, now))

    def _outcome(self, spec: GrantSpec) -> Outcome | None:
        ends = [
            (Outcome(AttemptState.FAILED, "chaos", "It was told to fail."), 2),
            (Outcome(AttemptState.FAILED, "bad_data", "It never gets better.", retryable=False), 1),
            (Outcome(AttemptState.LOST, "supervisor_died", "Killed.", infrastructure=True), 2),
            (Outcome(AttemptState.PREEMPTED, "preempted", "Its worker drains."), 1),
            (Outcome(AttemptState.SUCCEEDED, skipped=True), 1),
            (Outcome(AttemptState.SUCCEEDED, outputs={"fence": spec.token}), 14),
        ]
        [outcome] = self.dice.choices([outcome for outcome, _ in ends], [weight for _, weight in ends])
        return outcome


def judged(site: Site, tasks: Tasks, runs: list[SeededRun]) -> History:
    """Wait until nothing is held, judge, and return what was judged.

    On a busy machine a live worker may be silent for its lease and be given up: what it was granted and does not show
    stays charged for as long as that grant could start something.
    """
    until(lambda: not site.rows("SELECT 1 FROM reservations"), GRANT_LIFETIME + 30.0)
    history = read_history(site.engine)
    found = check(history, tasks.lines, [Accepted(run.id, "", 0.0) for run in runs], quiescent=True)
    assert found == [], "\n".join(map(str, found))
    return history


@pytest.mark.parametrize("seed", range(2))
def test_the_audit_of_an_eventful_time_is_clean(site: Site, seed: int) -> None:
    site = replace(site, settings=replace(site.settings, worker_lease_seconds=1.5, enable_circuit_breaker=False))
    dice = random.Random(seed)
    tasks = Tasks(dice)
    stop = site.lead()
    with site.worker(host="one", behave=lambda spec: tasks.note("start", spec, "one")) as silent:
        first = site.submit(PLAN)
        until(lambda: len(silent.running) == 1)
    with (
        site.worker(host="one", behave=tasks.on("one"), repeats=2),
        site.worker(host="one", behave=tasks.on("one")),
        site.worker(host="two", behave=tasks.on("two"), repeats=3),
    ):
        runs = [first, *(site.submit(PLAN) for _ in range(10))]
        for run in dice.sample(runs, 3):
            site.command(run)
        stop.set()  # another leader takes over
        site.lead()
        for run in runs:
            until(lambda run=run: site.state(run) in ("success", "failed", "cancelled"), 60.0)  # type: ignore[misc]
        again = [run for run in runs if site.state(run) == "failed"]
        for run in again:
            site.rerun(run)
        until(lambda: not site.rows("SELECT 1 FROM commands WHERE applied_at IS NULL"))
        for run in runs:
            until(lambda run=run: site.state(run) in ("success", "failed", "cancelled"), 60.0)  # type: ignore[misc]
        history = judged(site, tasks, runs)
    assert {event.epoch for event in history.events} == {1, 2}
    lost = [event for event in history.events if event.detail.get("held")]
    assert lost
    assert {event.entity_id for event in history.events if event.after == "released"} == {e.entity_id for e in lost}
    assert any(event.cause == "rerun" for event in history.events) == bool(again)


class Deaf(FakeWorker):
    """Says that it listens to its queue, and does not."""

    def _work(self) -> None:
        self._beat()
        self._ended.wait(self.heartbeat)


def test_the_audit_tells_where_an_attempt_is_charged_and_when_that_changes(site: Site) -> None:
    """A worker claims what was planned for its neighbour: the grant tells so, or a row before it if the first claim
    came before the first heartbeat was read."""
    site.lead()
    tasks = Tasks(random.Random(0))
    settings = site.settings
    with Deaf(settings.redis_url, settings.redis_task_queue, settings.worker_key, host="one") as deaf:
        run = site.submit(Plan((planned("a"),)))
        until(lambda: len(site.rows("SELECT 1 FROM attempts")) == 1)
        with site.worker(host="two", behave=lambda spec: tasks.note("start", spec, "two")) as worker:
            until(lambda: len(worker.running) == 1)
            [attempt_id] = worker.running
            worker.finish(attempt_id, Outcome(AttemptState.SUCCEEDED))
            site.wait_for(run)
            history = judged(site, tasks, [run])
    sent, moved = [event for event in history.events if event.entity == "attempt" and "host" in event.detail]
    charge = {"cpu": 2500, "memory": 2**30, "gpus": 0, "gpu_memory": 0, "devices": []}
    assert sent.detail == {"host": "one", "worker": deaf.id, **charge}
    assert moved.detail == {"host": "two", "worker": worker.id, **charge}
    assert (moved.after, moved.cause) in (("running", "claim"), ("dispatched", "moved"))
