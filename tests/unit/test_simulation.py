"""The whole kernel under faults of every kind: nothing lost, nothing twice, nothing hangs (I1–I4, I12, I13).

300 examples × 60 steps; ``SIMULATION=long`` runs 2,000 × 100.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.unit.simulation import Simulation

LONG = os.environ.get("SIMULATION") == "long"
EXAMPLES, STEPS = (2000, 100) if LONG else (300, 60)


@pytest.mark.timeout(1800 if LONG else 170)
def test_no_fault_breaks_an_invariant_and_every_run_ends_once_things_heal() -> None:
    run_state_machine_as_test(
        Simulation,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
