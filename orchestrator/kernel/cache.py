"""What the cache answers: a hit ends the task with the outputs of an equal one; a miss lets it go on."""

from __future__ import annotations

from typing import Any

from orchestrator.effects import Annotate, LookUp
from orchestrator.events import CacheAnswered
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.gates import Gate, gate_of
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.keeping import TOO_LARGE, too_large
from orchestrator.kernel.nodes import TaskNode
from orchestrator.placement import Ask
from orchestrator.states import Entity, TaskState

CACHE_LOOKUP, CACHE_HIT, CACHE_FLIGHT = "cache_lookup", "cache_hit", "cache_flight"
ONE_OF_MANY = "An equal task is under way, and others wait before this one; outputs are taken when one has left them."
"""Said to those far behind: who leads may change as often as there are tasks before them."""


def answered(changes: Changes, event: CacheAnswered) -> None:
    """Take the answer to a question that still stands.

    - A hit ends the task with the outputs of its origin, unless the cache is only written.
    - A miss lets it run, unless a task with the same key is under way: then it waits for that one.
    - Without a key it runs uncached.
    """
    node, flights = changes.kernel.tasks.get(event.task_run_id), changes.kernel.flights
    if node is None or not flights.is_asking(node) or node.planned.cache is None:
        return
    if event.origin is not None and node.planned.cache.mode != "write":
        _hit(changes, node, event)
        return
    if event.key != node.cache_key:
        # Those that wait for it under its old key would wait for something else now.
        changes.step_aside(node)
        node.cache_key = event.key
        changes.emit(Annotate(Entity.TASK_RUN, node.id, node.state, {"cache_key": event.key}))
    flights.answered(node, has_key=bool(event.key))
    changes.kernel.line_up(node, changes.now)


def _hit(changes: Changes, node: TaskNode, event: CacheAnswered) -> None:
    outputs: dict[str, Any] = dict(event.outputs or {})
    if not node.has_room_for(outputs):
        changes.task(node, TaskState.FAILED, "cache", reason=TOO_LARGE, message=too_large(node), durable=True)
        return
    node.keep(outputs)
    if event.local_to and not node.run.home:
        node.run.home = event.local_to
    changes.task(
        node,
        TaskState.SUCCESS,
        "cache",
        reason=CACHE_HIT,
        message=event.message,
        durable=True,
        row={"outputs": outputs, "cached_from": event.origin},
        cache_key=event.key,
        local_to=event.local_to,
    )


def attend(changes: Changes) -> None:
    """Ask the questions that are open, and tell those that wait for another task which one it is."""
    flights = changes.kernel.flights
    leaders = {leader.id: leader for node in flights.untold.values() if (leader := flights.leader_of(node)) is not None}
    for leader in (leaders | flights.bereft).values():
        if flights.is_stuck(leader):
            make_way(changes, leader)
    flights.bereft.clear()
    for node in list(flights.unasked.values()):
        if node.dispatches:
            del flights.unasked[node.id]
            changes.explain(node, CACHE_LOOKUP, "It looks for the outputs of an equal task.")
            changes.emit(LookUp(node.run.id, node.id))
    while flights.untold:
        _, node = flights.untold.popitem()
        leader = flights.leader_of(node)
        if leader is not None and node.state is TaskState.READY and node.dispatches:
            node.reason = CACHE_FLIGHT
            message = _whom_it_waits_for(leader) if flights.is_near(node) else ONE_OF_MANY
            changes.emit(Annotate(Entity.TASK_RUN, node.id, node.state, {"reason": CACHE_FLIGHT, "message": message}))


def _whom_it_waits_for(leader: TaskNode) -> str:
    return f"Task {leader.name} of run {leader.run.id} works on the same; its outputs are taken when it ends."


def stuck(changes: Changes, node: TaskNode) -> None:
    """This ready task can't be sent out though there may be room: no worker there is could take it, or its gate is
    shut. It keeps nobody waiting who asks for something else or stands before another gate."""
    if node.planned.cache is not None and changes.kernel.flights.stuck(node):
        make_way(changes, node)


def make_way(changes: Changes, node: TaskNode) -> None:
    """Let an equal task of another kind go first, if there is one that is not stuck as well for all that is known; this
    one stays in its line."""
    kernel = changes.kernel
    known = {_kind(kernel, other) for other in kernel.flights.beside(node)}
    heir = kernel.flights.make_way(node, lambda other: _kind(kernel, other) not in known)
    if heir is not None:
        kernel.line_up(heir, changes.now)


def _kind(kernel: Kernel, node: TaskNode) -> tuple[Ask, Gate]:
    """Return the line that the task stands in, or would."""
    return kernel.ask_of(node), gate_of(node)


def goes_back(changes: Changes, node: TaskNode) -> bool:
    """Say whether a task that could be sent out now, having stood aside, first waits for what others have left or are
    at work on; it has left its line then."""
    kernel = changes.kernel
    if node.planned.cache is None or not kernel.flights.comes_back(node):
        return False
    kernel.waiting_lines.drop(node)
    return True
