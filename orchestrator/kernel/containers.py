"""Containers: a task that runs the tasks of its body, once for each item of a map or round after round.

It holds no slot. Its indices and rounds are scopes with task runs of their own; a crash expands it once, for these are
made in the transaction of the transition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.effects import Annotate, CreateTasks
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.inside import Inside
from orchestrator.kernel.nodes import Scope, TaskNode
from orchestrator.kernel.scopes import MAX_PARALLEL, SUPERSEDED, fill
from orchestrator.records import PlannedTask, TaskRunRecord
from orchestrator.states import TASK_TERMINAL, Entity, TaskState

MAPPED, REPEATING = "mapped", "repeating"
STILL = TASK_TERMINAL | {TaskState.PENDING}


def run_container(changes: Changes, node: TaskNode, message: str) -> None:
    """Let it be under way; what it expanded into before waits to be used again."""
    reason = MAPPED if node.planned.map is not None else REPEATING
    changes.task(node, TaskState.RUNNING, "upstream", reason=reason, message=message, durable=True)
    if node.inside is None:
        node.inside = Inside()
    node.inside.former.update((scope.index, scope) for scope in node.inside.scopes)
    node.inside.scopes = []
    node.inside.hosts.clear()
    node.inside.clear_counts()


def resume(changes: Changes, node: TaskNode) -> None:
    """Go on with what is inside of a container: some of it is run again, as much at once as it allows, the rest stands
    as it is."""
    assert node.inside is not None
    reason = MAPPED if node.planned.map is not None else REPEATING
    changes.task(node, TaskState.RUNNING, "upstream", reason=reason, durable=True, resumed=False)
    node.inside.live = node.inside.next = 0
    for scope in node.inside.scopes:
        scope.is_started = False
        if any(_is_at_work(task) for task in scope.tasks):
            begin(changes, scope)
    start_scopes(changes, node)
    for scope in node.inside.scopes:
        if scope.open and not scope.is_started:
            for task in filter(_comes_first, scope.tasks):
                _let_wait(changes, task)
    changes.kernel.advancing[node.id] = node


def _is_at_work(node: TaskNode) -> bool:
    """Say whether anything of it is under way, though it may wait itself to go on with what is inside of it."""
    if node.state not in STILL:
        return True
    inside = node.inside
    if inside is None or not inside.open:
        return False
    return any(_is_at_work(task) for scope in inside.scopes for task in scope.tasks)


def begin(changes: Changes, scope: Scope) -> None:
    """Let an index have its place: its rules are looked at from now on."""
    assert scope.owner is not None
    assert scope.owner.inside is not None
    scope.is_started = True
    scope.owner.inside.live += 1
    for task in scope.tasks:
        if task.awaits_turn:
            task.awaits_turn = False
            changes.emit(Annotate(Entity.TASK_RUN, task.id, task.state, {"awaits_turn": False}))


def _let_wait(changes: Changes, node: TaskNode) -> None:
    node.awaits_turn, node.reason = True, MAX_PARALLEL
    columns = {"awaits_turn": True, "reason": MAX_PARALLEL, "message": "It waits for its turn."}
    changes.emit(Annotate(Entity.TASK_RUN, node.id, node.state, columns))


def _comes_first(node: TaskNode) -> bool:
    """Say whether it is the next to move when its index starts."""
    scope, pending = node.scope, TaskState.PENDING
    above = (scope.tasks[at] for at in scope.shape.upstream[node.position])
    return node.state is pending and not any(other.state is pending for other in above)


def place(changes: Changes, node: TaskNode, items: Sequence[tuple[str, Any]], *, at_once: int | None) -> None:
    """Add an index or a round for each of these pairs of key and item: rows of an earlier expansion are brought back
    as their next generation, the others are made.

    :param at_once: how many of them start now; the others say that they wait for their turn.
    """
    assert node.inside is not None
    made: list[TaskRunRecord] = []
    for offset, (key, item) in enumerate(items):
        waits = at_once is not None and offset >= at_once
        former = node.inside.former.pop(len(node.inside.scopes), None)
        if former is None:
            made += _make(changes, node, key, item, waits)
        else:
            _bring_back(changes, former, key, item, waits)
    if made:
        assert node.body is not None
        operators = tuple(task.operator for task in node.body.plan.tasks)
        each = operators * (len(made) // len(operators))
        changes.emit(CreateTasks(node.run.id, node.run.tenant_id, tuple(made), each))


def _make(changes: Changes, node: TaskNode, key: str, item: Any, waits: bool) -> list[TaskRunRecord]:
    assert node.inside is not None
    assert node.body is not None
    index, shape, new_id = len(node.inside.scopes), node.body, changes.kernel.settings.new_id
    scope = Scope(node.run, shape, node, index, key, item)
    rows = [
        TaskRunRecord(
            new_id(),
            node.run.id,
            scope.name_of(position),
            reason=MAX_PARALLEL if waits and not shape.upstream[position] else "",
            awaits_turn=waits and not shape.upstream[position],
            parent_id=node.id,
            map_index=index,
            map_key=key,
            item=item,
            memory=_learned(node, task),
        )
        for position, task in enumerate(shape.plan.tasks)
    ]
    fill(scope, rows)
    changes.kernel.tasks.update((task.id, task) for task in scope.tasks)
    _join(scope)
    return rows


def _bring_back(changes: Changes, scope: Scope, key: str, item: Any, waits: bool) -> None:
    scope.key, scope.item, scope.result, scope.is_started = key, item, None, False
    columns = {"map_key": key, "item": item}
    for position, task in enumerate(scope.tasks):
        is_first = not scope.shape.upstream[position]
        reason = MAX_PARALLEL if waits and is_first else ""
        changes.renew(task, TaskState.PENDING, "rerun", reason=reason, row=columns, awaits_turn=waits and is_first)
        task.clear_counts()
    _join(scope)


def renew_item(changes: Changes, scope: Scope, key: str, item: Any) -> None:
    """Let an index that has not begun have another key and item."""
    scope.key, scope.item = key, item
    for task in scope.tasks:
        changes.emit(Annotate(Entity.TASK_RUN, task.id, task.state, {"map_key": key, "item": item}))


def _join(scope: Scope) -> None:
    """Count a scope whose tasks are all pending with what is around it."""
    owner = scope.owner
    assert owner is not None
    assert owner.inside is not None
    owner.inside.scopes.append(scope)
    scope.open = len(scope.tasks)
    scope.run.open += scope.open
    for around in scope.outward():
        if around.owner is not None and around.owner.inside is not None:
            around.owner.inside.open += scope.open


def _learned(node: TaskNode, task: PlannedTask) -> int | None:
    """Return the memory that earlier runs have taught a new task run of the body to ask for."""
    if not task.memory_auto:
        return None
    names = [] if not node.planned.is_group else [task.name]
    around: TaskNode | None = node
    while around is not None:
        if around.planned.is_group or around is node:
            names.append(around.planned.name)
        around = around.scope.owner
    return node.run.learned.get(".".join(reversed(names)))


def start_scopes(changes: Changes, node: TaskNode) -> None:
    """Start indices, the first ones first, as long as there is a place under ``max_parallel``."""
    inside, map_ = node.inside, node.planned.map
    assert inside is not None
    most = len(inside.scopes) if map_ is None or map_.max_parallel is None else map_.max_parallel
    begun: list[TaskNode] = []
    while inside.live < most and inside.next < len(inside.scopes):
        scope = inside.scopes[inside.next]
        inside.next += 1
        if not scope.is_started and scope.open:
            begin(changes, scope)
            begun += scope.tasks
    changes.kernel.unsettled.extend(reversed(begun))


def supersede(changes: Changes, node: TaskNode) -> None:
    """Say of what an earlier expansion has left over that it counts no more."""
    assert node.inside is not None
    for scope in node.inside.former.values():
        for task in scope.tasks:
            if not task.superseded:
                task.superseded, task.reason = True, SUPERSEDED
                message = f"{node.name} was expanded anew without it."
                columns = {"superseded": True, "reason": SUPERSEDED, "message": message}
                changes.emit(Annotate(Entity.TASK_RUN, task.id, task.state, columns))


def count_ended(changes: Changes, scopes: Iterable[Scope]) -> None:
    """Count the indices and rounds all of whose tasks are over; their containers are looked at next."""
    for scope in scopes:
        owner = scope.owner
        if owner is None or owner.inside is None or scope.open or scope.result is not None or scope.is_superseded():
            continue
        owner.inside.count(scope.end())
        owner.inside.live -= scope.is_started
        for around in scope.outward():
            if around.owner is not None and around.owner.inside is not None:
                around.owner.inside.left = None
        changes.kernel.advancing[owner.id] = owner


def tell_progress(changes: Changes, node: TaskNode, message: str) -> None:
    """Say how far it is."""
    changes.emit(Annotate(Entity.TASK_RUN, node.id, node.state, {"message": message}))


def first_broken(node: TaskNode) -> str:
    """Name the first task run in a container that has failed, with its reason, for people."""
    for scope in [] if node.inside is None else node.inside.scopes:
        if scope.result is TaskState.FAILED:
            for task in scope.tasks:
                if task.state is TaskState.FAILED:
                    return f"{task.name} failed ({task.reason or 'failed'})"
            return f"{scope.prefix} did not succeed"
    return ""
