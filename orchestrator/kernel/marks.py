"""Marks: a person says what a task run is to count as; what it has settled before is looked at anew."""

from __future__ import annotations

from orchestrator.events import Command
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.choosing import tasks_named
from orchestrator.kernel.nodes import MARKED, RunNode, TaskNode
from orchestrator.kernel.repeating import end_delay
from orchestrator.kernel.scopes import recount
from orchestrator.kernel.stopping import Stop, stop_inside
from orchestrator.states import MARKS, RUN_TERMINAL, TASK_TERMINAL, RunState, TaskState

AT_WORK = frozenset({TaskState.QUEUED, TaskState.RUNNING, TaskState.CANCELLING})


def mark(changes: Changes, command: Command) -> str:
    """Mark a task run of which nothing runs as success, failed or skipped.

    - One that was over is its next generation then. Task runs below it that it had settled without their running wait
      anew for their rules; those that have run stay as they are.
    - The containers around it that are over go on, and are decided anew; a repeat that waits for its next round too.
    - A run that is over starts again for that, and ends anew.
    """
    state = command.payload.get("state")
    if state not in MARKS:
        return f"Refused: a task is marked as {', '.join(sorted(MARKS))}, not as {state!r}."
    run, ended = changes.kernel.runs.get(command.run_id or ""), command.ended
    if run is None and (ended is None or ended.run.state not in RUN_TERMINAL or ended.unreadable):
        return f"Refused: there is no run {command.run_id} that can be read."
    is_over = run is None
    if run is None:
        assert ended is not None
        if ended.run.generation < changes.kernel.closed.get(ended.run.id, 0):
            return f"Refused: run {ended.run.id} has been started again in between; look at it and ask again."
        run = changes.kernel.adopt_run(ended.run, ended.tasks, ended.plan, changes.now)
    nodes = tasks_named(run, command.task or "")
    refused = _why_not(run, nodes, TaskState(state), command)
    if refused:
        if is_over:
            changes.kernel.drop_run(run)
        return refused
    return _mark(changes, run, nodes[0], TaskState(state), command, is_over=is_over)


def _why_not(run: RunNode, nodes: list[TaskNode], state: TaskState, command: Command) -> str:
    if len(nodes) != 1:
        names = f"is {len(nodes)} task runs, of which one is to be named" if nodes else "is no task of it"
        return f"Refused: in run {run.id} {command.task!r} {names}."
    node = nodes[0]
    if node.state in AT_WORK:
        return f"Refused: task {node.name} of run {run.id} is {node.state}; cancel it or wait for its end."
    if stopped := _being_cancelled_around(node):
        return f"Refused: {stopped} is being cancelled; wait for its end."
    if node.body is not None and command.payload.get("outputs"):
        return f"Refused: the outputs of {node.name} are those of its indices or rounds; mark these."
    if node.state is state and not command.payload.get("outputs"):
        return f"Nothing to do: task {node.name} of run {run.id} is {state} already."
    begun = _begun_below(node)
    return "" if begun is None else f"Refused: task {begun.name} has begun on what there was; cancel it or wait for it."


def _being_cancelled_around(node: TaskNode) -> str:
    """Name the run or the container around a task run that is being cancelled: nothing may begin anew in there."""
    if node.run.is_cancelling:
        return f"run {node.run.id}"
    owners = (scope.owner for scope in node.scope.outward() if scope.owner is not None)
    return next((f"{owner.name} around it" for owner in owners if owner.state is TaskState.CANCELLING), "")


def _begun_below(node: TaskNode) -> TaskNode | None:
    """Return a task run that is under way because of what would be changed."""
    if node.state not in TASK_TERMINAL:
        return None
    anew, _ = _looked_at_anew(node)
    for other in (node, *anew):
        for child in (other.scope.tasks[below] for below in other.scope.shape.downstream[other.position]):
            if child.state is not TaskState.PENDING and child.state not in TASK_TERMINAL:
                return child
    return None


def _mark(changes: Changes, run: RunNode, node: TaskNode, state: TaskState, command: Command, *, is_over: bool) -> str:
    said = command.payload.get("reason")
    message = f"{command.actor}: {said}" if isinstance(said, str) and said else f"Marked by {command.actor}."
    outputs = dict(command.payload.get("outputs") or {}) if state is TaskState.SUCCESS else None
    anew, resumed = _looked_at_anew(node)
    was_pending = node.state is TaskState.PENDING
    changes.renew(node, state, "mark", actor=command.actor, reason=MARKED, message=message, row={"outputs": outputs})
    node.keep(outputs)
    if is_over:
        told = f"Task {node.name} was marked as {state}"
        changes.reopen(run, anew, command.actor, cause="mark", resumed=resumed, message=told)
        return f"{told}; run {run.id} is queued as its generation {run.generation}, to be decided anew."
    changes.look_anew(anew, command.actor, resumed)
    recount(run)
    # Of a container nothing is to run any more, whether it waited to go on or was decided before all of it had ended.
    stop_inside(changes, node, Stop(MARKED, message, "mark", command.actor), spare=not was_pending)
    _go_on(changes, run, node, anew)
    return f"Task {node.name} of run {run.id} is {state}."


def _go_on(changes: Changes, run: RunNode, node: TaskNode, anew: list[TaskNode]) -> None:
    """Look at what follows a mark in a run that is under way; one that waits for its place is looked at later."""
    if run.state is RunState.QUEUED:
        # Nothing of it may be open now; that does not mean that somebody has cancelled it.
        changes.kernel.finishing.pop(run.id, None)
        return
    scope = node.scope
    changes.kernel.unsettled.extend(scope.tasks[at] for at in scope.shape.downstream[node.position])
    for other in anew:
        changes.kernel.unsettled.append(other)
        below = other.scope
        changes.kernel.unsettled.extend(below.tasks[at] for at in below.shape.downstream[other.position])
    for around in scope.outward():
        if around.owner is not None and around.owner.state is not TaskState.PENDING:
            end_delay(changes, around.owner)
            changes.kernel.advancing[around.owner.id] = around.owner
    if run.open == 0:
        changes.kernel.finishing[run.id] = run


def _looked_at_anew(node: TaskNode) -> tuple[list[TaskNode], list[TaskNode]]:
    """Return what is settled anew when the state of a task run changes, and the containers around it among that, which
    go on with what is inside of them."""
    anew, resumed = _settled_by(node), list[TaskNode]()
    for scope in node.scope.outward():
        if scope.owner is None or scope.owner.state not in TASK_TERMINAL:
            break
        resumed.append(scope.owner)
        anew += [scope.owner, *_settled_by(scope.owner)]
    return anew, resumed


def _settled_by(node: TaskNode) -> list[TaskNode]:
    """Return the task runs below this one that were settled without having run."""
    found: dict[TaskNode, None] = {}
    open_nodes = [node]
    while open_nodes:
        scope, position = (at := open_nodes.pop()).scope, at.position
        for child in (scope.tasks[below] for below in scope.shape.downstream[position]):
            if child not in found and child.was_settled:
                found[child] = None
                open_nodes.append(child)
    return list(found)
