"""What follows when tasks end: trigger rules downstream, and the end of the run. O(changed edges)."""

from __future__ import annotations

from orchestrator.kernel.changes import Changes
from orchestrator.kernel.nodes import RunNode, TaskNode
from orchestrator.rules import Verdict, run_result, verdict
from orchestrator.states import RunState, TaskState


def settle(changes: Changes) -> None:
    """Apply the trigger rules to every task one of whose upstreams has ended, then close the runs that are over."""
    kernel = changes.kernel
    while kernel.unsettled:
        node = kernel.unsettled.pop()
        if node.state is TaskState.PENDING and node.run.state is not RunState.QUEUED:
            apply_rule(changes, node)
    while kernel.finishing:
        finish(changes, kernel.finishing.popitem()[1])


def apply_rule(changes: Changes, node: TaskNode) -> None:
    """Make a pending task ready, or settle it without running, if its rule says so."""
    run = node.run
    said = verdict(
        node.rule,
        *node.counts(),
        node.upstream_count,
        cancelling=run.is_cancelling,
    )
    if said is Verdict.WAIT or (run.is_cancelling and said is Verdict.RUN):
        return
    rule = node.rule
    if said is Verdict.RUN:
        changes.task(node, TaskState.READY, "upstream")
    elif said is Verdict.UPSTREAM_FAILED:
        changes.task(node, TaskState.UPSTREAM_FAILED, "upstream", reason=rule, message=_why(node))
    else:
        changes.task(node, TaskState.SKIPPED, "upstream", reason=rule, message=_why(node))


def _why(node: TaskNode) -> str:
    """Tell which upstream states the rule has decided on."""
    words = ("success", "failed", "upstream_failed", "skipped", "cancelled")
    seen = ", ".join(f"{count} {word}" for word, count in zip(words, node.counts(), strict=True) if count)
    return f"Of {node.upstream_count} upstream tasks: {seen}; rule {node.rule} can no longer be met."


def finish(changes: Changes, run: RunNode) -> None:
    """Close a run none of whose tasks is open."""
    if run.open or run.id not in changes.kernel.runs:
        return
    if run.state is RunState.QUEUED or run.is_cancelling:
        changes.run(run, RunState.CANCELLED, "tasks_ended", reason=run.reason)
        return
    if run.state is RunState.PAUSED:
        changes.run(run, RunState.RUNNING, "tasks_ended")
    shape = run.shape
    result = run_result([node.state for node in run.root.tasks], shape.downstream, shape.rules, shape.critical)
    changes.run(run, result, "tasks_ended", reason="" if result is RunState.SUCCESS else _first_failure(run))


def _first_failure(run: RunNode) -> str:
    """Name the reason of the earliest task that failed, for people and metrics."""
    for node in run.tasks:
        if node.state is TaskState.FAILED:
            return node.reason or "failed"
    return "failed"
