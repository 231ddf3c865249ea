"""The trigger rules once more, as naively as DESIGN §10 states them: the judge of the implementation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

from orchestrator.states import TaskState

TERMINAL = (TaskState.SUCCESS, TaskState.FAILED, TaskState.UPSTREAM_FAILED, TaskState.SKIPPED, TaskState.CANCELLED)
_BAD = {TaskState.FAILED, TaskState.UPSTREAM_FAILED, TaskState.CANCELLED}


def runs_when(rule: str, states: Sequence[TaskState | None]) -> bool:
    """Say whether the rule's "runs when" column holds; ``None`` is an upstream that is still open."""
    total = len(states)
    done = sum(state is not None for state in states)
    good = sum(state is TaskState.SUCCESS for state in states)
    skipped = sum(state is TaskState.SKIPPED for state in states)
    bad = sum(state in _BAD for state in states)
    table = {
        "all_success": good == total,
        "all_failed": bad == total,
        "all_done": done == total,
        "all_done_min_one_success": done == total and good >= 1,
        "all_skipped": skipped == total,
        "one_success": good >= 1,
        "one_failed": bad >= 1,
        "one_done": good + bad >= 1,
        "none_failed": done == total and bad == 0,
        "none_failed_min_one_success": done == total and bad == 0 and good >= 1,
        "none_skipped": done == total and skipped == 0,
        "always": True,
    }
    return table[rule]


FAILS = {
    # rule: when all upstreams are done and it did not run, is it upstream_failed (if any is bad), else skipped
    "all_success",
    "all_done_min_one_success",
    "one_success",
    "none_failed",
    "none_failed_min_one_success",
}


def settled_as(rule: str, states: Sequence[TaskState]) -> str:
    """Return what becomes of the task once every upstream is done."""
    if runs_when(rule, states):
        return "run"
    return "upstream_failed" if rule in FAILS and any(state in _BAD for state in states) else "skip"


@cache
def expected(rule: str, states: tuple[TaskState | None, ...]) -> str:
    """Return the verdict on a partial vector: fire early where the column holds; settle only if every possible
    completion settles the same way; wait otherwise."""
    if runs_when(rule, states):
        return "run"
    endings = {
        settled_as(rule, [state or late for state, late in zip(states, filled, strict=True)])
        for filled in product(TERMINAL, repeat=len(states))
    }
    return endings.pop() if len(endings) == 1 and "run" not in endings else "wait"
