"""Runs that are tasks: one is made for the task, takes no place of its own, and its end ends the task."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.documents import MAX_PARAMETERS_BYTES
from orchestrator.effects import StartChild
from orchestrator.events import ChildRefused, EndedRun
from orchestrator.expressions import lookup_in
from orchestrator.expressions.templates import resolve
from orchestrator.expressions.texts import Texts
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.expanding import WEIGHT_OF_PARAMETERS, has_room, is_put_off, put_off
from orchestrator.kernel.keeping import TOO_LARGE, too_large
from orchestrator.kernel.nodes import TEMPLATE, RunNode, TaskNode
from orchestrator.kernel.scopes import populate, recount
from orchestrator.kernel.shape import Shape
from orchestrator.kernel.values import outputs_of, values_in
from orchestrator.kernel.working_out import work_out
from orchestrator.states import RunState, TaskState

CHILD, TOO_DEEP, REFUSED = "child", "too_deep", "child_refused"
MAX_DEPTH = 8
"""How many runs a run may be inside of: a pipeline that runs itself must end."""


def start_child(changes: Changes, node: TaskNode) -> None:
    """Ask for the run that the task is."""
    child, run = node.planned.child, node.run
    assert child is not None
    if run.depth >= MAX_DEPTH:
        message = f"Run {run.id} is inside of {run.depth} others already; at most {MAX_DEPTH} are allowed."
        changes.task(node, TaskState.FAILED, "upstream", reason=TOO_DEEP, message=message, durable=True)
        return
    given = None if is_put_off(changes, node) else _parameters_of(changes, node)
    if given is None:
        return
    own, weight = given
    if not has_room(changes, 0, weight):
        put_off(changes, node)
        return
    id_ = changes.kernel.settings.new_id()
    message = f"Run {id_} of pipeline {child.pipeline}."
    changes.task(node, TaskState.RUNNING, "upstream", reason=CHILD, message=message, durable=True, child_run_id=id_)
    _ask(changes, node, own)


def ask_again(changes: Changes, node: TaskNode) -> None:
    """The run that the task is was asked for and never made: the leader that was to make it is gone."""
    unmade = changes.kernel.unmade_children
    assert node.child_run_id is not None
    unmade.discard(node.child_run_id)
    if node.state is TaskState.CANCELLING:
        _cancelled(changes, node)
    elif node.state is TaskState.RUNNING:
        waits = changes.kernel.expanding.is_full(changes.now)
        given = None if waits else _parameters_of(changes, node)
        if waits or (given is not None and not has_room(changes, 0, given[1])):
            unmade.add(node.child_run_id)
            changes.kernel.expanding.wait(node)
        elif given is not None:
            _ask(changes, node, given[0])


def _parameters_of(changes: Changes, node: TaskNode) -> tuple[dict[str, Any], int] | None:
    """Work out the parameters that are the own ones of the task's run, and what they come to among the characters of a
    round. The task fails where that can't be done."""
    texts = changes.kernel.expanding.texts
    return work_out(changes, node, lambda: _worked_out(node, texts), TEMPLATE)


def _worked_out(node: TaskNode, texts: Texts) -> tuple[dict[str, Any], int]:
    child = node.planned.child
    assert child is not None
    lookup = lookup_in(values_in(node.scope))
    own = resolve(dict(child.parameters), lookup, "/pipeline/parameters", MAX_PARAMETERS_BYTES, texts)
    return own, WEIGHT_OF_PARAMETERS * len(json.dumps(own, ensure_ascii=False, default=str))


def _ask(changes: Changes, node: TaskNode, own: dict[str, Any]) -> None:
    """Ask for it: its own parameters stand over those of the run around, where it inherits them."""
    child, run, id_ = node.planned.child, node.run, node.child_run_id
    assert child is not None
    assert id_ is not None
    parameters = {**run.parameters, **own} if child.inherit else own
    changes.emit(StartChild(run.id, node.id, run.tenant_id, id_, child, parameters, run.depth + 1, run.priority))


def found_ended(changes: Changes, node: TaskNode, ended: EndedRun) -> None:
    """The run that the task is was over before this leader has begun, and the task does not know."""
    run = RunNode(ended.run, Shape(ended.plan))
    run.hands_on = node.is_kept
    populate(run, ended.tasks)
    recount(run)
    let_go(changes, node)
    give_back(changes, run)


def refused(changes: Changes, event: ChildRefused) -> None:
    """The run could not be made: the task has failed."""
    node = changes.kernel.tasks.get(event.task_run_id)
    if node is None or node.planned.child is None:
        return
    if node.state is TaskState.CANCELLING:
        _cancelled(changes, node)
    elif node.state is TaskState.RUNNING:
        changes.task(node, TaskState.FAILED, "child", reason=REFUSED, message=event.message, durable=True)


def parent_of(changes: Changes, run_id: str, parent_task_run_id: str | None) -> TaskNode | None:
    """Return the task that this run is, if it waits for it."""
    node = changes.kernel.tasks.get(parent_task_run_id or "")
    return node if node is not None and node.child_run_id == run_id else None


def let_go(changes: Changes, node: TaskNode) -> None:
    """The run that a task is was made: a task that only starts it is done."""
    child = node.planned.child
    if child is not None and not child.wait and node.state is TaskState.RUNNING:
        _succeed(changes, node, {"run_id": node.child_run_id, "state": str(RunState.QUEUED), "outputs": {}})


def give_back(changes: Changes, run: RunNode) -> None:
    """A run is over that is a task: the task ends as the run did."""
    node = parent_of(changes, run.id, run.parent_task_run_id)
    if node is None:
        return
    if node.state is TaskState.CANCELLING:
        _cancelled(changes, node)
    elif node.state is not TaskState.RUNNING:
        return
    elif run.state is RunState.SUCCESS:
        leaves = (run.root.tasks[at] for at in run.shape.leaves)
        outputs = {leaf.name: outputs_of(leaf) for leaf in leaves}
        _succeed(changes, node, {"run_id": run.id, "state": str(run.state), "outputs": outputs})
    else:
        why = f" ({run.reason})" if run.reason else ""
        message = f"Run {run.id} of pipeline {run.pipeline or run.pipeline_id} ended as {run.state}{why}."
        changes.task(node, TaskState.FAILED, "child", reason=f"child_{run.state}", message=message, durable=True)


def _succeed(changes: Changes, node: TaskNode, outputs: dict[str, Any]) -> None:
    """End the task well. What its run has left is read from there; only what the rules read is kept here as well."""
    if not node.has_room_for(outputs):
        changes.task(node, TaskState.FAILED, "child", reason=TOO_LARGE, message=too_large(node), durable=True)
        return
    row: dict[str, Any] = {}
    if node.is_kept:
        row["outputs"] = outputs
        node.keep(outputs)
    message = f"Run {outputs['run_id']} is {outputs['state']}."
    changes.task(node, TaskState.SUCCESS, "child", message=message, durable=True, row=row)


def _cancelled(changes: Changes, node: TaskNode) -> None:
    changes.task(node, node.stopped_as(node.reason), "child", reason=node.reason, durable=True)
