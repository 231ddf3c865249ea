"""Scopes from rows: the task runs of a run are put where they belong, and all counters worked out from their states.

Two columns of the rows say what their states don't. ``superseded``: their container was expanded anew without them, so
that they stay as they ended, and count no more. ``awaits_turn``: their index has no place under ``max_parallel`` yet;
the rows that come first in it say so until it begins, whatever becomes of them meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.kernel.inside import Inside
from orchestrator.kernel.nodes import RunNode, Scope, TaskNode
from orchestrator.records import TaskRunRecord
from orchestrator.states import TASK_TERMINAL, TaskState

MAX_PARALLEL, SUPERSEDED = "max_parallel", "superseded"
"""What people are told of either."""


def populate(run: RunNode, rows: Sequence[TaskRunRecord]) -> None:
    """Make the nodes of a run from all its rows: its own tasks, then what its containers have expanded into."""
    by_name: dict[str, TaskRunRecord] = {}
    inside: dict[str, dict[int, list[TaskRunRecord]]] = {}
    for row in rows:
        if row.parent_id is None:
            by_name[row.name] = row
        else:
            inside.setdefault(row.parent_id, {}).setdefault(row.map_index or 0, []).append(row)
    fill(run.root, [by_name[task.name] for task in run.shape.plan.tasks])
    open_nodes = list(run.root.tasks)
    while open_nodes:
        node = open_nodes.pop()
        if node.id in inside and node.body is not None:
            node.inside = Inside()
            for index in sorted(inside[node.id]):
                scope = _scope_of(node, index, inside[node.id][index])
                if scope.tasks[0].superseded:
                    node.inside.former[index] = scope
                else:
                    node.inside.scopes.append(scope)
                open_nodes.extend(scope.tasks)


def _scope_of(container: TaskNode, index: int, rows: Sequence[TaskRunRecord]) -> Scope:
    assert container.body is not None
    scope = Scope(container.run, container.body, container, index, rows[0].map_key, rows[0].item)
    named = {row.name: row for row in rows}
    fill(scope, [named[scope.name_of(position)] for position in range(len(scope.shape.plan.tasks))])
    return scope


def fill(scope: Scope, rows: Sequence[TaskRunRecord]) -> None:
    """Make the scope's nodes from their rows, by position."""
    for position, row in enumerate(rows):
        node = TaskNode(row, scope, position)
        node.keep(row.outputs)
        scope.tasks.append(node)
    scope.run.tasks.extend(scope.tasks)


def has_timer(node: TaskNode) -> bool:
    """Say whether a timer in the row of the task run is one that it waits for."""
    if node.state is TaskState.RUNNING:
        return node.body is not None
    return node.state in (TaskState.RETRY_WAIT, TaskState.WAITING)


def recount(run: RunNode) -> None:
    """Work out all counters of the run from the states of its task runs."""
    run.open = sum(node.state not in TASK_TERMINAL for node in run.tasks)
    run.home = next((node.local_to for node in run.tasks if node.local_to), "")
    for node in run.tasks:
        count_upstreams(node)
        if node.inside is not None:
            node.inside.clear_counts()
            node.inside.hosts.clear()
    for scope in scopes_of(run):
        _count_scope(scope)
    for node in run.tasks:
        note_host(node)


def count_upstreams(node: TaskNode) -> None:
    node.clear_counts()
    for up in node.scope.shape.upstream[node.position]:
        node.count(node.scope.tasks[up].state)


def _count_scope(scope: Scope) -> None:
    """Work out what is open in the scope, whether it has started, and what it comes to for the containers around it."""
    scope.open = sum(node.state not in TASK_TERMINAL for node in scope.tasks)
    if scope.owner is None or scope.owner.inside is None:
        return
    scope.is_started = _has_started(scope, scope.owner)
    scope.result = None
    if scope.is_superseded():
        return
    for around in scope.outward():
        if around.owner is not None and around.owner.inside is not None:
            around.owner.inside.open += scope.open
    if not scope.open:
        scope.owner.inside.count(scope.end())
    elif scope.is_started:
        scope.owner.inside.live += 1


def _has_started(scope: Scope, owner: TaskNode) -> bool:
    """Say whether the rules are looked at in an index or a round of this container: in what has ended without deciding
    anything nothing begins any more, and only what was at work there is still being stopped."""
    if owner.has_ended_undecided:
        return any(node.state not in TASK_TERMINAL and node.state is not TaskState.PENDING for node in scope.tasks)
    return owner.state is not TaskState.PENDING and not any(node.awaits_turn for node in scope.tasks)


def scopes_of(run: RunNode) -> Iterator[Scope]:
    """Yield all scopes of the run, its own first, superseded ones too."""
    yield run.root
    for node in run.tasks:
        if node.inside is not None:
            yield from node.inside.scopes
            yield from node.inside.former.values()


def note_host(node: TaskNode) -> None:
    """Tell the containers around it where alone its outputs lie."""
    if node.local_to is None or node.scope.is_superseded():
        return
    for scope in node.scope.outward():
        if scope.owner is not None and scope.owner.inside is not None:
            scope.owner.inside.hosts[node.local_to] = None
