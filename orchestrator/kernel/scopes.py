"""Scopes from rows: the task runs of a run are put where they belong, and all counters worked out from their states."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.kernel.nodes import Inside, RunNode, Scope, TaskNode
from orchestrator.records import TaskRunRecord
from orchestrator.states import TASK_TERMINAL, TaskState

MAX_PARALLEL = "max_parallel"
"""Reason of the task runs of an index that waits for its turn."""


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
        indices = inside.get(node.id)
        body = node.scope.shape.bodies[node.position]
        if indices is None or body is None:
            continue
        node.inside = Inside()
        for index in sorted(indices):
            first = indices[index][0]
            scope = Scope(run, body, node, index, first.map_key, first.item)
            named = {row.name: row for row in indices[index]}
            fill(scope, [named[scope.name_of(position)] for position in range(len(body.plan.tasks))])
            node.inside.scopes.append(scope)
            open_nodes.extend(scope.tasks)


def fill(scope: Scope, rows: Sequence[TaskRunRecord]) -> None:
    """Make the scope's nodes from their rows, by position. Where one is no longer pending the scope was started."""
    for position, row in enumerate(rows):
        scope.tasks.append(TaskNode(row, scope, position))
        if row.state is not TaskState.PENDING:
            scope.is_started = True
    scope.run.tasks.extend(scope.tasks)


def recount(run: RunNode) -> None:
    """Work out all counters of the run from the states of its task runs."""
    run.open = sum(node.state not in TASK_TERMINAL for node in run.tasks)
    run.home = next((node.local_to for node in run.tasks if node.local_to), "")
    for scope in scopes_of(run):
        scope.open = sum(node.state not in TASK_TERMINAL for node in scope.tasks)
    for node in run.tasks:
        node.clear_counts()
        for up in node.scope.shape.upstream[node.position]:
            node.count(node.scope.tasks[up].state)
        if node.inside is not None:
            node.inside.hosts.clear()
    for node in run.tasks:
        note_host(node)


def scopes_of(run: RunNode) -> dict[Scope, None]:
    """Return all scopes of the run, its own first."""
    return dict.fromkeys((run.root, *(node.scope for node in run.tasks)))


def note_host(node: TaskNode) -> None:
    """Tell the containers around it where alone its outputs lie."""
    if node.local_to is None:
        return
    for scope in node.scope.outward():
        if scope.owner is not None and scope.owner.inside is not None:
            scope.owner.inside.hosts[node.local_to] = None
