"""What follows when tasks end: trigger rules downstream, and the end of the run. O(changed edges)."""

from __future__ import annotations

from orchestrator.kernel.changes import Changes
from orchestrator.kernel.children import ask_again, give_back
from orchestrator.kernel.containers import count_ended
from orchestrator.kernel.evaluating import take_turn
from orchestrator.kernel.mapping import advance_map
from orchestrator.kernel.nodes import RunNode, TaskNode
from orchestrator.kernel.repeating import advance_repeat
from orchestrator.kernel.starting import start
from orchestrator.kernel.stopping import stop_left_inside
from orchestrator.rules import Verdict, verdict
from orchestrator.states import RunState, TaskState


def settle(changes: Changes) -> None:
    """Apply the trigger rules to every task one of whose upstreams has ended, look at the containers in which something
    has ended, then close the runs that are over."""
    kernel = changes.kernel
    while True:
        while kernel.unsettled:
            look_at(changes, kernel.unsettled.pop())
        if kernel.ended_scopes:
            scopes, kernel.ended_scopes = kernel.ended_scopes, []
            count_ended(changes, scopes)
        elif kernel.advancing:
            _advance_all(changes)
        elif kernel.returned:
            give_back(changes, kernel.returned.pop())
        elif kernel.finishing:
            finish(changes, kernel.finishing.popitem()[1])
        elif not take_turn(changes):
            kernel.at_work = None
            return


def look_at(changes: Changes, node: TaskNode) -> None:
    """Look at a task run that may begin, or that is to ask again for the run that it is."""
    changes.kernel.at_work = node
    if node.state is TaskState.PENDING and node.scope.is_started and node.run.state is not RunState.QUEUED:
        apply_rule(changes, node)
    elif node.child_run_id in changes.kernel.unmade_children:
        ask_again(changes, node)


def _advance_all(changes: Changes) -> None:
    kernel = changes.kernel
    containers, kernel.advancing = kernel.advancing, {}
    for container in containers.values():
        kernel.at_work = container
        advance(changes, container)


def advance(changes: Changes, node: TaskNode) -> None:
    """Look at a container in which something has ended."""
    if node.inside is None or node.run.id not in changes.kernel.runs:
        return
    if node.state is TaskState.CANCELLING:
        if not node.inside.open:
            changes.task(node, node.stopped_as(node.reason), "tasks_ended", reason=node.reason, durable=True)
    elif node.planned.map is not None and node.state is not TaskState.PENDING:
        advance_map(changes, node)
    elif node.planned.repeat is not None:
        advance_repeat(changes, node)


def verdict_of(node: TaskNode) -> Verdict:
    """Return what the rule of a pending task makes of its upstreams as they stand."""
    cancelling = not node.is_teardown and node.is_being_cancelled
    said = verdict(node.rule, *node.counts(), node.upstream_count, cancelling=cancelling)
    return Verdict.WAIT if cancelling and said is Verdict.RUN else said


def apply_rule(changes: Changes, node: TaskNode) -> None:
    """Start a pending task, or settle it without running, if its rule says so."""
    rule, said = node.rule, verdict_of(node)
    if said is Verdict.WAIT:
        return
    if said is Verdict.RUN:
        start(changes, node)
        return
    if said is Verdict.UPSTREAM_FAILED:
        changes.task(node, TaskState.UPSTREAM_FAILED, "upstream", reason=rule, message=_why(node))
    else:
        changes.task(node, TaskState.SKIPPED, "upstream", reason=rule, message=_why(node))
    stop_left_inside(changes, node)


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
        changes.run(run, run.stopped_as(run.reason), "tasks_ended", reason=run.reason)
        return
    if run.state is RunState.PAUSED:
        changes.run(run, RunState.RUNNING, "tasks_ended")
    result = run.shape.result([node.state for node in run.root.tasks], run.root.has_succeeded_at)
    reason, message = ("", "") if result is RunState.SUCCESS else _failure(run)
    changes.run(run, result, "tasks_ended", reason=reason, message=message)


def _failure(run: RunNode) -> tuple[str, str]:
    """Return the reason of the earliest task that made the run fail, and a sentence about it: for people, metrics."""
    own = run.root.tasks
    to_blame = {own[at].id for at in run.shape.failing([node.state for node in own], run.root.has_succeeded_at)}
    found = sorted(
        (
            node
            for node in (*own, *run.tasks)
            if node.state in (TaskState.FAILED, TaskState.CANCELLED) and node.counts_for_its_run
        ),
        # What has failed says more than what was cancelled, and what is inside of a container more than that one.
        key=lambda node: (
            _outermost(node).id not in to_blame,
            node.state is TaskState.CANCELLED,
            node.body is not None,
        ),
    )
    if not found:
        return "failed", ""
    node = found[0]
    if node.state is TaskState.CANCELLED:
        return node.reason or "cancelled", f"Task {node.name} was cancelled."
    return node.reason or "failed", f"Task {node.name} has failed ({node.reason or 'failed'})."


def _outermost(node: TaskNode) -> TaskNode:
    while node.scope.owner is not None:
        node = node.scope.owner
    return node
