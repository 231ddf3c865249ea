"""The simulation finds a violation as soon as any one fence is taken away; if not, it would prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from orchestrator import retry, states
from orchestrator.effects import Transition
from orchestrator.kernel import changes, claims, heartbeats, leases, outcomes, settle
from orchestrator.placement import Ask, Ledger
from orchestrator.records import AttemptRecord, Reservation, WorkerRecord
from orchestrator.rules import Verdict
from orchestrator.states import AnyState, AttemptState, Entity
from tests.unit.simulated_store import ModelStore, Undo, Violation
from tests.unit.simulation import Simulation


class SimulationWithoutEpoch(Simulation):
    """The store does not compare the epoch of a transaction with the lease's."""

    checks_epoch = False


def without_token(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(outcomes, "holds_token", lambda attempt, token: True)
    return Simulation


def without_epoch(patch: pytest.MonkeyPatch) -> type[Simulation]:
    return SimulationWithoutEpoch


def without_claim_cas(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """Grants what is granted already; the table of transitions, the second fence behind it, is opened with it."""

    def allows_twice(entity: Entity, before: AnyState, after: AnyState) -> bool:
        # By the word: the task run of an attempt that is granted again is opened too, whatever its state.
        return str(after) == "running" or after == before or states.is_allowed(entity, before, after)

    def live(attempt: AttemptRecord) -> bool:
        return attempt.state in {AttemptState.DISPATCHED, AttemptState.RUNNING}

    patch.setattr(claims, "may_be_granted", live)
    patch.setattr(changes, "is_allowed", allows_twice)
    return Simulation


def without_run_rule(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(settle, "verdict", lambda *_counts, **_options: Verdict.RUN)
    return Simulation


def without_budget_of_losses(patch: pytest.MonkeyPatch) -> type[Simulation]:
    after_loss, after_failure = retry.after_loss, retry.after_failure
    patch.setattr(outcomes, "after_loss", lambda f, n, _max, *rest, spared: after_loss(f, n, 99, *rest, spared=spared))
    patch.setattr(
        outcomes, "after_failure", lambda p, f, n, o, a, _max, spared: after_failure(p, f, n, o, a, 99, spared=spared)
    )
    return Simulation


def without_zombies(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """Nobody ever learns that a tree is dead: what it held leaks."""
    patch.setattr(heartbeats, "_bury_the_dead", lambda _changes, _heartbeat: None)
    return Simulation


def without_leases(patch: pytest.MonkeyPatch) -> type[Simulation]:
    patch.setattr(leases, "end_worker", lambda *_args, **_options: None)
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
    patch.setattr(claims, "_still_offers", lambda _worker, _attempt: True)
    return Simulation


def without_row_cas(patch: pytest.MonkeyPatch) -> type[Simulation]:
    """Nothing compares: the rows take any transition, of an old leader too."""

    def overwrite(self: ModelStore, effect: Transition, undo: Undo, now: float) -> None:
        row = self._table(effect.entity).get(effect.id)
        if row is not None:
            self._set(self._table(effect.entity), effect.id, replace(row, state=effect.after), undo)

    patch.setattr(ModelStore, "_transition", overwrite)
    return SimulationWithoutEpoch


MUTATIONS = {
    # Behind the token stands the rows' compare-and-set: whichever of the two notices first.
    without_token: "I2: an outcome of .* under another token|differs",
    without_epoch: "I[0-9]+: ",
    without_claim_cas: "I2: .* is granted to",
    without_run_rule: "I3: ",
    without_budget_of_losses: "I12: ",
    # What leaks is found at the end, or by whatever needs just that room for ever.
    without_zombies: "I13: reservations leak|I4: run .* hangs in .*waiting_for_",
    without_leases: "I4: run .* hangs",
    without_capacity: "I13: ",
    without_a_look_at_who_holds_a_device: "I13: host .* marks",
    without_masks: "I13: .* is granted",
    without_row_cas: "I[0-9]+: |differs",
}


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("mutate", "finding"), MUTATIONS.items(), ids=[mutate.__name__ for mutate in MUTATIONS])
def test_the_simulation_finds_a_violation_without_this_fence(
    mutate: Callable[[pytest.MonkeyPatch], type[Simulation]], finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = seed(20261123)(mutate(monkeypatch))
    with pytest.raises(Violation, match=finding):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=600,
                stateful_step_count=60,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
            ),
        )
