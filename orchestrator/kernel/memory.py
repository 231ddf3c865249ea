"""What the next run of a task with ``memory_gb: "auto"`` asks for: learned from what its tries have used."""

from __future__ import annotations

import math
import re

from orchestrator.effects import LearnMemory
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.nodes import TaskNode
from orchestrator.records import AttemptRecord

HEADROOM = 1.2
"""How much more is asked for than was used."""
SLOWEST_FALL = 0.75
"""A request falls by no more than to this share of the last one: one small run does not starve the next large one."""
STEP = 64 * 2**20
_INDEX = re.compile(r"\[\d+\]")


def planned_name(node: TaskNode) -> str:
    """Return what the task run is called in the plan: ``folds.train`` for ``folds[2].train``."""
    return _INDEX.sub("", node.name)


def learn_from_success(changes: Changes, node: TaskNode, attempt: AttemptRecord, peak: int) -> None:
    """Remember what it would have needed, as far as that was measured."""
    if node.planned.memory_auto and peak > 0:
        wanted = max(peak * HEADROOM, attempt.resources.memory * SLOWEST_FALL)
        learn(changes, node, math.ceil(wanted / STEP) * STEP, peak)


def learn(changes: Changes, node: TaskNode, memory: int, peak: int) -> None:
    """Remember a request; of the indices of one run, the largest."""
    run, name = node.run, planned_name(node)
    if not node.planned.memory_auto or not run.pipeline_id or memory <= run.taught.get(name, 0):
        return
    run.taught[name] = memory
    run.learned[name] = memory
    changes.emit(LearnMemory(run.pipeline_id, name, memory, peak))
