"""The simulation of the policies finds a violation as soon as one limit is not kept; else it would prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from orchestrator.kernel import Kernel, admission, dispatch, reconcile, submit
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.flights import Flights
from orchestrator.kernel.gatekeeping import shut
from orchestrator.kernel.gates import Gate
from orchestrator.kernel.held_runs import HeldBack, HeldRuns
from orchestrator.kernel.nodes import TaskNode
from orchestrator.kernel.waiting import Waiting
from orchestrator.limits import Dispatches
from orchestrator.placement import Wait
from orchestrator.records import Plan
from tests.unit import simulated_world
from tests.unit.simulated_judge import Violation
from tests.unit.simulated_policies import PLANS, slot, task
from tests.unit.test_simulation_policies import PolicySimulation

RATED = next(plan for plan in PLANS if any(task.rate_limit for task in plan.tasks))


CALLING = next(plan for plan in PLANS if sum(task.child is not None or task.map is not None for task in plan.tasks) > 1)
"""It asks for more runs than are made in one transaction."""
CROWD = Plan(tuple(task(f"k{n}", **slot(1, key=f"own {n}")) for n in range(12)))
"""More lines of one ask than there are slots for."""


class SimulationOfSuccessors(PolicySimulation):
    """A leader that has used up a rate is followed by another, which otherwise takes a rare chance."""

    @rule(more=st.booleans())
    def a_leader_that_has_used_up_a_rate_is_followed_by_another(self, more: bool) -> None:
        self.world.mend()
        if len(self.world.store.runs) < 8:
            self.world.submit(RATED, 1)
        self.world.step([])
        self.world.change_leader(lose_tail=False, keep_old=more)
        self.world.everyone_works()


class SimulationOfUnmadeRuns(PolicySimulation):
    """A leader that has asked for runs is followed by another before all of them were made."""

    @rule(runs=st.integers(2, 4), turns=st.integers(0, 2))
    def a_leader_that_has_asked_for_runs_is_followed_by_another(self, runs: int, turns: int) -> None:
        """Several runs that begin at once ask for more than one transaction makes."""
        self.world.mend()
        for _ in range(min(runs, 10 - len(self.world.store.runs))):
            self.world.submit(CALLING, 1)
        self.world.step([])
        self.world.change_leader(lose_tail=False, keep_old=False)
        for _ in range(turns):
            self.world.everyone_works()


class SimulationOfCrowds(PolicySimulation):
    """Tasks with keys of their own want more slots than there are, and get them one after the other."""

    @rule()
    def more_ask_for_the_same_than_can_have_it(self) -> None:
        self.world.mend()
        if len(self.world.store.runs) < 4:
            self.world.submit(CROWD, 1)
        self.world.step([])
        self.world.everyone_works()


def without_slots(patch: pytest.MonkeyPatch) -> None:
    def without_its_slots(changes: Changes, gate: Gate) -> Wait | None:
        return shut(changes, Gate(rate=gate.rate, services=gate.services))

    patch.setattr(dispatch, "shut", without_its_slots)


def without_limits_of_runs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(submit, "look", lambda _changes, _event: None)


def without_slots_of_those_that_are_being_stopped(patch: pytest.MonkeyPatch) -> None:
    """A run that is to make way counts as gone before it has ended."""
    look = admission.look

    def hasty(changes: Changes, event: object) -> admission.Refusal | None:
        refusal = look(changes, event)  # type: ignore[arg-type]
        return (
            None if refusal is not None and any(run.is_cancelling for run in changes.kernel.runs.values()) else refusal
        )

    patch.setattr(submit, "look", hasty)


def without_rates(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatches, "next_at", lambda _self, _rate, now: now)


def without_the_dispatches_of_the_leader_before(patch: pytest.MonkeyPatch) -> None:
    load = Kernel.load
    patch.setattr(Kernel, "load", lambda self, rows, now: load(self, replace(rows, dispatches=()), now))


def without_single_flight(patch: pytest.MonkeyPatch) -> None:
    def asks_only(self: Flights, node: TaskNode) -> bool:
        if node.planned.cache is None or node.cache_key:
            return False
        self.ask(node)
        return True

    patch.setattr(Flights, "holds", asks_only)


def without_a_second_look_at_held_runs(patch: pytest.MonkeyPatch) -> None:
    """What was held back once is never read again."""
    patch.setattr(HeldRuns, "left_out", lambda self, *_: HeldBack(tuple(self._runs)))


def without_a_look_for_runs_that_are_to_be_stopped(patch: pytest.MonkeyPatch) -> None:
    """A run that is held back, or whose pipeline is paused, is not read though its task waits for its end."""
    held_back = Kernel.held_back
    patch.setattr(Kernel, "held_back", lambda self, *paused: replace(held_back(self, *paused), wanted=()))


def without_asking_again_for_runs_never_made(patch: pytest.MonkeyPatch) -> None:
    """A new leader leaves a task alone whose run its predecessor was to make."""
    patch.setattr(reconcile, "ask_again", lambda _changes, _node: None)


def without_a_bound_on_the_runs_of_one_round(patch: pytest.MonkeyPatch) -> None:
    """The leader makes all runs that its tasks ask to be, however many."""
    patch.setattr(simulated_world, "MOST_CHILDREN", 1_000)


def without_waking_lines_that_rest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Waiting, "woken", lambda _self, _ask: None)


MUTATIONS: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
    without_slots,
    without_limits_of_runs,
    without_slots_of_those_that_are_being_stopped,
    without_rates,
    without_the_dispatches_of_the_leader_before,
    without_single_flight,
    without_a_second_look_at_held_runs,
    without_a_look_for_runs_that_are_to_be_stopped,
    without_asking_again_for_runs_never_made,
    without_a_bound_on_the_runs_of_one_round,
    without_waking_lines_that_rest,
)

RULES_OF_THEIR_OWN: dict[Callable[[pytest.MonkeyPatch], None], type[PolicySimulation]] = {
    without_the_dispatches_of_the_leader_before: SimulationOfSuccessors,
    without_asking_again_for_runs_never_made: SimulationOfUnmadeRuns,
    without_waking_lines_that_rest: SimulationOfCrowds,
}


@pytest.mark.timeout(170)
@pytest.mark.usefixtures("examples_of_the_seed_alone")
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_limit_that_is_not_kept_is_noticed(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    machine = seed(7)(RULES_OF_THEIR_OWN.get(mutate, PolicySimulation))
    with pytest.raises(Violation):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=400,
                stateful_step_count=50,
                deadline=None,
                database=None,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
            ),
        )
