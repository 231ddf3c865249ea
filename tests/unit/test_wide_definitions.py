"""Definitions of 2,000 tasks compile in time that grows with their number, and not with its square.

The bar itself, 10,000 tasks in a second, is measured by ``tests/load/test_compile_speed.py`` on a quiet machine.
"""

from __future__ import annotations

import time

import pytest

from orchestrator.compile import Site, all_tasks, compile_pipeline
from orchestrator.registry import load_operators
from tests.load.wide_definitions import KINDS, Kind, document

TASKS = 2000
BOUND = 3.0
"""Seconds of the processor. It takes 0.2 of them; looking at all tasks once more for each of them takes 30."""


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_of_compiling_looks_at_all_tasks_for_each_task(kind: Kind) -> None:
    definition, operators = document(kind, TASKS), load_operators()
    began = time.process_time()
    compiled = compile_pipeline(definition, operators, Site())
    took = time.process_time() - began
    assert sum(1 for _ in all_tasks(compiled.plan)) >= TASKS
    assert took < BOUND, f"{TASKS} {kind.__name__} tasks took {took:.2f} s of the processor"
