"""The simulation finds a violation as soon as any one fence is taken away; if not, it would prove nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from orchestrator import retry
from orchestrator.events import OutcomeReceived, RedisAway
from orchestrator.kernel import (
    Kernel,
    KernelSettings,
    adoption,
    claims,
    hearing,
    heartbeats,
    leases,
    mapping,
    marks,
    outcomes,
    rerun,
    settle,
)
from orchestrator.kernel.changes import Changes
from orchestrator.placement import Ask, Ledger
from orchestrator.records import AttemptRecord, Outcome, Plan, Reservation, WorkerRecord
from orchestrator.retry import NextTry
from orchestrator.rules import Verdict, map_result
from orchestrator.states import AttemptState, TaskState, WorkerState
from tests.unit.simulated_judge import Violation
from tests.unit.simulated_plans import task
from tests.unit.simulated_site import OUTCOMES, Worker
from tests.unit.simulation import PICK, Simulation


class SimulationWithoutEpoch(Simulation):
    """The store does not compare the epoch of a transaction with the lease's."""

    checks_epoch = False


WITH_A_LIMIT = Plan((task("limited", timeout=20.0),))


class SimulationOfLateReports(Simulation):
    """A report lies unread just while the limit of its attempt passes, which otherwise takes a rare chance."""

    def limited(self) -> list[tuple[Worker, str, float]]:
        """Return the trees whose attempts have a limit, and when the leader gives them up."""
        attempts = self.world.kernel.attempts
        found = [(worker, attempts.get(attempt_id)) for worker, attempt_id in self.trees()]
        return [(w, a.id, a.deadline) for w, a in found if a is not None and a.deadline is not None]

    @rule(pick=PICK, outcome=st.sampled_from(OUTCOMES[:3]), turns=st.integers(1, 3))
    def a_report_lies_unread_while_a_limit_passes(self, pick: int, outcome: Outcome, turns: int) -> None:
        if len(self.world.store.runs) < 8:
            self.world.submit(WITH_A_LIMIT, 1)
        self.all_goes_well_for_a_moment(turns=turns, mend=True)
        limited = self.limited()
        if limited:
            worker, attempt_id, deadline = limited[pick % len(limited)]
            self.world.finish(worker, attempt_id, outcome)
            self.time_passes_while_the_others_speak(max(1.0, deadline + 1.0 - self.world.now))


def without_token(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(outcomes, "holds_token", lambda attempt, token: True)
    return Simulation


def without_epoch(patch: pytest.MonkeyPatch) -> type[Simulation]:
    return SimulationWithoutEpoch


def without_claim_cas(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """Grants what is granted already; the table of transitions, which stands behind it, notices."""
    patch.setattr(claims, "may_be_granted", lambda _attempt: True)
    return Simulation


def without_run_rule(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(settle, "verdict", lambda *_counts, **_options: Verdict.RUN)
    return Simulation


def without_budget_of_losses(patch: pytest.MonkeyPatch) -> type[Simulation]:
    after_failure = retry.after_failure
    patch.setattr(outcomes, "after_failure", lambda p, f, n, o, a, _m, **more: after_failure(p, f, n, o, a, 99, **more))
    return Simulation


def without_zombies(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """Nobody ever learns that a tree is dead: what it held leaks."""
    patch.setattr(heartbeats, "_bury_the_dead", lambda _changes, _heartbeat: None)
    return Simulation


def without_leases(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(leases, "end_worker", lambda *_args, **_options: None)
    return Simulation


def without_a_look_whether_redis_is_away(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """Silence counts although nobody can be heard."""
    patch.setitem(import_module("orchestrator.kernel.decide")._STEPS, RedisAway, lambda _changes, _event: None)
    return Simulation


def without_a_lease_after_what_could_not_be_heard(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """After an absence of Redis or PostgreSQL silence counts from before it."""
    for module in (leases, hearing):
        patch.setattr(module, "trusted_again", lambda *_times: -math.inf)
    return Simulation


def without_a_look_for_reports_of_what_is_overdue(patch: pytest.MonkeyPatch) -> type[Simulation]:
    give_up_overdue = leases._give_up_overdue

    def at_once(changes: Changes, _read_until: float) -> None:
        kernel = changes.kernel
        trusted_from, kernel.trusted_from = kernel.trusted_from, -math.inf
        give_up_overdue(changes, changes.now)
        kernel.trusted_from = trusted_from

    patch.setattr(leases, "_give_up_overdue", at_once)
    return SimulationOfLateReports


def without_breaker(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(leases, "_admitted_by_breaker", lambda _changes, expired, _silent, _live: expired)
    return Simulation


def without_grant_life(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """What a worker does not show is given up and freed though a grant under way may still start it."""
    make = KernelSettings.__init__

    def shorter(self: KernelSettings, **fields: Any) -> None:
        make(self, **{**fields, "grant_life": 0.0})

    patch.setattr(KernelSettings, "__init__", shorter)
    return Simulation


def without_capacity(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """A claim by another worker moves there whether it has a slot and room or not."""
    patch.setattr(claims, "devices_there", lambda _changes, attempt, _worker: attempt.devices)
    return Simulation


def without_a_look_at_who_holds_a_device(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """While two attempts change places, the release of one frees the device that the other has just been given."""
    release = Ledger.release

    def forgetful(self: Ledger, attempt_id: str) -> Reservation | None:
        if (released := release(self, attempt_id)) is not None:
            for device in released.devices:
                self.hosts[released.host_id].devices_used.pop(device, None)
        return released

    patch.setattr(Ledger, "release", forgetful)
    return Simulation


def without_masks(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """Every worker may get every device of its host."""
    fit = Ledger.fit

    def all_of_the_host(self: Ledger, worker: WorkerRecord, ask: Ask) -> tuple[str, ...] | None:
        devices = frozenset(device.uuid for device in self.hosts[worker.host_id].capacity.gpus)
        return fit(self, replace(worker, devices=devices), ask)

    patch.setattr(Ledger, "fit", all_of_the_host)
    return Simulation


def without_generations(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """A report of an ended attempt counts for the attempt that its task run has now, of a later generation."""
    keep_attempt, ingest = Kernel.keep_attempt, outcomes.ingest
    task_run_of: dict[str, str] = {}

    def remember(self: Kernel, attempt: AttemptRecord, reason: str = "") -> None:
        task_run_of[attempt.id] = attempt.task_run_id
        keep_attempt(self, attempt, reason)

    def ingest_for_the_task(changes: Changes, event: OutcomeReceived) -> None:
        node = changes.kernel.tasks.get(task_run_of.get(event.attempt_id, ""))
        now = changes.kernel.attempts.get(node.attempt_id or "") if node is not None else None
        if now is not None and node is not None and node.generation > 1 and event.token not in {"", "made-up"}:
            event = replace(event, attempt_id=now.id, token=now.token, worker_id=now.worker_id)
        ingest(changes, event)

    patch.setattr(Kernel, "keep_attempt", remember)
    # The package's ``decide`` is the function; its module is asked for by name.
    patch.setitem(import_module("orchestrator.kernel.decide")._STEPS, OutcomeReceived, ingest_for_the_task)
    return Simulation


def without_the_generation_that_was_seen(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """A rerun that was asked for twice, the second time late, does not ask whether it has been made already."""
    patch.setattr(rerun, "_why_not", lambda *_arguments: "")
    return Simulation


def without_a_look_at_the_token_of_what_is_adopted(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(adoption, "holds_token", lambda _attempt, _token: True)
    return Simulation


def without_a_look_at_the_host_of_what_is_adopted(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(adoption, "can_keep", lambda kernel, attempt, _worker: kernel.planned(attempt).is_adoptable)
    return Simulation


def without_drains(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """A worker that leaves is granted what it claims all the same."""
    patch.setattr(claims, "TAKES_WORK", frozenset(WorkerState))
    return Simulation


def without_mercy_for_the_preempted(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """A preempted try is charged to the task's retries."""
    after_failure = retry.after_failure

    def charge(policy: Any, failures: int, losses: int, outcome: Outcome, *rest: Any, **more: Any) -> NextTry:
        state = AttemptState.FAILED if outcome.state is AttemptState.PREEMPTED else outcome.state
        return after_failure(policy, failures, losses, replace(outcome, state=state), *rest, **more)

    patch.setattr(outcomes, "after_failure", charge)
    return Simulation


def without_waiting_until_a_map_is_certain(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """The first index that has ended well decides its map."""

    def hasty(_success: str, _least: float, good: int, bad: int, skipped: int, total: int) -> TaskState | None:
        return TaskState.SUCCESS if good else map_result("all", 0, good, bad, skipped, total)

    patch.setattr(mapping, "map_result", hasty)
    return Simulation


def without_an_end_of_what_is_left_inside(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """What a rerun was to begin inside of a container stays open when that one is settled without running."""
    patch.setattr(settle, "stop_left_inside", lambda _changes, _node: False)
    return Simulation


def without_a_new_beginning_of_what_is_inside(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """A container that a rerun settles without running it keeps what it had expanded into before."""
    patch.setattr(Changes, "_leave_nothing_inside", lambda _self, _node: None)
    return Simulation


def without_the_end_of_runs_that_are_tasks(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(settle, "give_back", lambda _changes, _run: None)
    return Simulation


def without_a_look_at_what_runs_before_it_is_marked(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """A mark changes what tasks below have begun on already."""
    patch.setattr(marks, "_begun_below", lambda _node: None)
    return Simulation


MUTATIONS = {
    # Each takes out one fence. The rows' own compare-and-set is not among them: it stands behind the token and the
    # epoch, and notices for them; that it does is shown on rows (tests/integration/test_writer.py).
    without_token: "I2: an outcome of .* under another token|differs",
    without_epoch: "(I[0-9]+|drain): ",
    without_claim_cas: "a transition was refused|I2: .* is granted to",
    without_run_rule: "I3: ",
    without_budget_of_losses: "I12: ",
    # What leaks is found at the end, or by whatever needs just that room for ever.
    without_zombies: "I13: reservations leak|I4: run .* hangs in .*waiting_for_",
    without_leases: "I6: .* is gone|I4: run .* hangs",
    without_a_look_whether_redis_is_away: "live: .*, which speaks, is lost",
    without_a_lease_after_what_could_not_be_heard: "live: .*, which speaks, is lost",
    without_a_look_for_reports_of_what_is_overdue: "live: .*, which speaks, is lost: overdue",
    without_breaker: "I11: .* are given up at once",
    without_grant_life: "I13: .* starts at .*, and nothing is charged|live: .* is lost: never_started",
    without_capacity: "I13: ",
    without_a_look_at_who_holds_a_device: "I13: host .* marks",
    without_masks: "I13: .* is granted",
    without_generations: "I2: an outcome of .* under another token",
    without_the_generation_that_was_seen: "I1: .* is run again as it was",
    without_a_look_at_the_token_of_what_is_adopted: "I2: .* never had its tree",
    without_a_look_at_the_host_of_what_is_adopted: "I2: .* never had its tree",
    without_drains: "drain: .* is granted to worker",
    without_mercy_for_the_preempted: "I12: .* charged for having been preempted",
    without_waiting_until_a_map_is_certain: "map: ",
    without_an_end_of_what_is_left_inside: "I4: .* of .* is (skipped|upstream_failed), and .* pending",
    without_a_new_beginning_of_what_is_inside: "end: of run .* there is something left inside of it",
    without_the_end_of_runs_that_are_tasks: "I4: task sub of .* is running without an owner",
    without_a_look_at_what_runs_before_it_is_marked: "I3: ",
}

SEED = 20261123


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("examples_of_the_seed_alone")
@pytest.mark.parametrize(("mutate", "finding"), MUTATIONS.items(), ids=[mutate.__name__ for mutate in MUTATIONS])
def test_the_simulation_finds_a_violation_without_this_fence(
    mutate: Callable[[pytest.MonkeyPatch], type[Simulation]], finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = seed(SEED)(mutate(monkeypatch))
    with pytest.raises(Violation, match=finding):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=1500,
                stateful_step_count=60,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
            ),
        )


def test_late_reports_are_no_violation_where_every_fence_stands() -> None:
    run_state_machine_as_test(
        SimulationOfLateReports,
        settings=settings(
            max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
