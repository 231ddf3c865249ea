"""What becomes of a task whose rule is met: its condition is tested, then it starts as what it is."""

from __future__ import annotations

from orchestrator.kernel.changes import Changes
from orchestrator.kernel.children import start_child
from orchestrator.kernel.containers import resume
from orchestrator.kernel.evaluating import CONDITION_ERROR, may_begin
from orchestrator.kernel.expanding import is_put_off
from orchestrator.kernel.gates import gate_of, has_keys_to_read
from orchestrator.kernel.mapping import expand, is_up_to_date
from orchestrator.kernel.nodes import RUN_PAUSED, TaskNode
from orchestrator.kernel.repeating import start_repeat
from orchestrator.kernel.values import values_in
from orchestrator.kernel.waits import wait_for_approval, wait_for_event
from orchestrator.kernel.working_out import work_out
from orchestrator.states import RunState, TaskState

CONDITION, NO_SETUP = "condition", "setup_not_run"


def start(changes: Changes, node: TaskNode) -> None:
    """Start a pending task: one for a worker becomes ready; the others hold no slot."""
    planned = node.planned
    if node.inside is not None and (node.resumed or node.inside.open):
        if is_up_to_date(changes, node):
            resume(changes, node)
    elif not _has_something_to_tear_down(changes, node) or not _condition_is_met(changes, node):
        return
    elif planned.map is not None and planned.body is not None:
        expand(changes, node)
    elif planned.repeat is not None and planned.body is not None:
        start_repeat(changes, node)
    elif planned.child is not None:
        _start_child(changes, node)
    elif planned.approval is not None:
        wait_for_approval(changes, node)
    elif planned.event is not None:
        wait_for_event(changes, node)
    elif _keys_are_known(changes, node):
        changes.task(node, TaskState.READY, "upstream")


def _start_child(changes: Changes, node: TaskNode) -> None:
    """Start the run that the task is, unless its own is paused: else what may not be sent out would be in there."""
    if node.run.state is RunState.PAUSED:
        changes.explain(node, RUN_PAUSED, f"Run {node.run.id} is paused; resume it.")
    else:
        start_child(changes, node)


def _keys_are_known(changes: Changes, node: TaskNode) -> bool:
    """Work out the keys of its limits; it waits where others have taken all of the round."""
    if has_keys_to_read(node):
        if is_put_off(changes, node):
            return False
        gate_of(node, changes.kernel.expanding.texts)
    return True


def _has_something_to_tear_down(changes: Changes, node: TaskNode) -> bool:
    setups = node.planned.setups
    if not (node.planned.teardown and setups):
        return True
    position, tasks = node.scope.shape.position, node.scope.tasks
    if any(tasks[position[name]].has_started for name in setups if name in position):
        return True
    message = f"Nothing is to be torn down: {', '.join(setups)} did not run."
    changes.task(node, TaskState.SKIPPED, "upstream", reason=NO_SETUP, message=message)
    return False


def _condition_is_met(changes: Changes, node: TaskNode) -> bool:
    """Test the task's ``when``; where it is not met, or can't be worked out, that settles the task. It waits where the
    conditions of others have taken all of the round."""
    when = node.planned.when
    if not when:
        return True
    if not may_begin(changes, node):
        return False
    evaluating = changes.kernel.evaluating
    is_met = work_out(changes, node, lambda: evaluating.is_met(when, values_in(node.scope)), CONDITION_ERROR)
    if is_met is None:
        return False
    if not is_met:
        message = f"Its condition is not met: {when}"
        changes.task(node, TaskState.SKIPPED, "upstream", reason=CONDITION, message=message)
    return is_met
