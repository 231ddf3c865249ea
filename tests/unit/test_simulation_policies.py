"""The kernel under faults of every kind, with limits, caches, deadlines, retry rules and cancels by force.

60 examples × 50 steps; ``SIMULATION=long`` runs 1,000 × 100.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from orchestrator.records import Plan
from orchestrator.states import RUN_TERMINAL, RunState
from tests.unit.simulated_policies import OOM, PLANS, UNREACHABLE, PolicyWorld
from tests.unit.simulated_site import OUTCOMES
from tests.unit.simulation import PICK, Simulation

LONG = os.environ.get("SIMULATION") == "long"
EXAMPLES, STEPS = (1000, 100) if LONG else (60, 50)


class PolicySimulation(Simulation):
    """The same faults, other plans; tasks fail by their service and for want of memory, people lose patience."""

    world: PolicyWorld

    @initialize(plan=st.sampled_from(PLANS), turns=st.integers(0, 2), breaker=st.booleans())
    def begin(self, plan: Plan, turns: int, breaker: bool) -> None:
        self.world = PolicyWorld(breaker=breaker)
        self.world.store.checks_epoch = self.checks_epoch
        self.world.step([])
        self.world.submit(plan, 0)
        self.world.submit(plan, 0)
        for _ in range(turns):
            self.world.everyone_works()

    @rule(plan=st.sampled_from(PLANS), priority=st.integers(0, 1))
    def submit(self, plan: Plan, priority: int) -> None:
        if len(self.world.store.runs) < 8:
            self.world.submit(plan, priority)

    @rule(which=st.integers(0, 5), priority=st.integers(0, 1), turns=st.integers(0, 2))
    def one_more_of_a_run_that_is_at_work_comes(self, which: int, priority: int, turns: int) -> None:
        for _ in range(turns):
            self.world.everyone_works()
        runs = [run for run in self.world.store.runs.values() if run.parent_task_run_id is None]
        runs = [run for run in runs if run.state is RunState.RUNNING] or runs
        if len(runs) < 10:
            self.world.submit(self.world.store.plans[runs[which % len(runs)].id], priority)
            self.world.step([])

    @precondition(lambda self: self.trees())
    @rule(outcome=st.sampled_from((UNREACHABLE, OOM)), turns=st.integers(1, 4))
    def whatever_runs_fails_alike(self, outcome: object, turns: int) -> None:
        self.world.mend()
        for _ in range(turns):
            for worker, attempt_id in self.trees():
                self.world.finish(worker, attempt_id, outcome)  # type: ignore[arg-type]
            self.world.everyone_works()

    @rule(pick=PICK, pauses=st.booleans())
    def somebody_pauses_a_pipeline(self, pick: int, pauses: bool) -> None:
        names = sorted({run.pipeline for run in self.world.store.runs.values()} | {"limited"})
        (self.world.paused.add if pauses else self.world.paused.discard)(names[pick % len(names)])
        self.world.step([])

    @rule(pick=PICK, whole=st.booleans(), again=st.booleans())
    def somebody_loses_patience(self, pick: int, whole: bool, again: bool) -> None:
        runs = [run for run in self.world.store.runs.values() if run.state not in RUN_TERMINAL]
        if not runs:
            return
        run = runs[pick % len(runs)]
        tasks = self.world.store.plans[run.id].tasks
        name = None if whole else tasks[pick % len(tasks)].name
        if again:
            self.world.command("cancel", run_id=run.id, task=name, grace_seconds=5)
            self.world.step([])
        self.world.command("cancel", run_id=run.id, task=name, mode="force")
        self.world.step([])
        for worker_id in self.world.desired:
            # What the leader wants: while Redis is away no worker is told of it.
            wanted = self.world.kernel.desired(worker_id)
            graces = [grace for attempt, grace in wanted.cancel if self._is_of(attempt, run.id)]
            assert not whole or all(grace == 0.0 for grace in graces), f"{worker_id} leaves {graces}"

    def _is_of(self, attempt_id: str, run_id: str) -> bool:
        return self.world.store.attempts[attempt_id].run_id == run_id


@pytest.mark.timeout(1800 if LONG else 170)
def test_no_fault_breaks_a_limit_and_every_run_ends_once_things_heal() -> None:
    run_state_machine_as_test(
        PolicySimulation,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )


def test_the_outcomes_of_the_policies_are_none_of_the_others() -> None:
    assert UNREACHABLE not in OUTCOMES
    assert OOM not in OUTCOMES
