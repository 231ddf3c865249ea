"""Maps: one index for each item; decided as soon as no index that is still open could change the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.errors import OrchestratorError, SweepError
from orchestrator.expressions import lookup_in
from orchestrator.expressions.templates import resolve
from orchestrator.expressions.texts import Texts
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.containers import (
    first_broken,
    place,
    renew_item,
    run_container,
    start_scopes,
    supersede,
    tell_progress,
)
from orchestrator.kernel.expanding import BUILT, TOO_LARGE, TOO_MANY, Room, has_room, is_put_off, put_off, too_many
from orchestrator.kernel.following import goes_by_index
from orchestrator.kernel.inside import Inside
from orchestrator.kernel.nodes import TEMPLATE, Scope, TaskNode
from orchestrator.kernel.stopping import Stop, stop_inside, stop_left_inside
from orchestrator.kernel.values import values_in
from orchestrator.kernel.working_out import work_out
from orchestrator.records import MapPlan
from orchestrator.rules import map_result
from orchestrator.states import RunState, TaskState
from orchestrator.sweep import items

UNMAPPABLE, SAME_KEY, EMPTY = "map", "map_key", "empty"
SHOWN = 100
"""Characters of a key that a sentence shows."""
INDEX_FAILED, FAIL_FAST, ALL_SKIPPED = "index_failed", "fail_fast", "all_skipped"


def expand(changes: Changes, node: TaskNode) -> None:
    """Work out what the map goes over and make an index for each item; before any is made it is known that there are
    not too many, and that their keys differ. When much else was expanded in this round, that is done in the next."""
    map_ = node.planned.map
    assert map_ is not None
    assert node.body is not None
    if is_put_off(changes, node):
        return
    texts = changes.kernel.expanding.texts
    worked_out = work_out(changes, node, lambda: _items_with_keys(node, map_, texts), _reason_of)
    if worked_out is None:
        return
    found, keys, characters = worked_out
    if (twice := _first_twice(keys)) is not None:
        _refuse(changes, node, SAME_KEY, _same_key(twice))
    elif not found:
        changes.task(node, TaskState.SKIPPED, "upstream", reason=EMPTY, message="There is nothing to go over.")
    elif not has_room(changes, len(found) * len(node.body.plan.tasks), characters):
        put_off(changes, node)
    else:
        run_container(changes, node, f"0 of {len(found)} done")
        place(changes, node, list(zip(keys, found, strict=True)), at_once=map_.max_parallel)
        supersede(changes, node)
        start_scopes(changes, node)


def is_up_to_date(changes: Changes, node: TaskNode) -> bool:
    """Let the indices of a map that run again, of one that goes on with what is inside of it, have the items that stand
    in their places now; those that do not run again keep theirs. ``False``: it can't go on, or not yet.

    Only where it goes over what other maps have left, one index for each of theirs, can these be others than before.
    """
    map_, inside = node.planned.map, node.inside
    assert inside is not None
    if map_ is None or not goes_by_index(node.planned):
        return True
    anew = [scope for scope in inside.scopes if all(task.state is TaskState.PENDING for task in scope.tasks)]
    if not anew:
        return True
    if is_put_off(changes, node):
        return False
    texts = changes.kernel.expanding.texts
    worked_out = work_out(changes, node, lambda: _items_with_keys(node, map_, texts), _reason_of)
    is_done = worked_out is not None and _take_items(changes, node, anew, *worked_out)
    # What it was to go on with is stopped, if that has failed it.
    stop_left_inside(changes, node)
    return is_done


def _take_items(
    changes: Changes, node: TaskNode, anew: Sequence[Scope], found: list[Any], keys: list[str], characters: int
) -> bool:
    """Give these indices of a map their items; says whether it may go on."""
    assert node.inside is not None
    taken = [scope.key for scope in node.inside.scopes]
    if len(found) != len(taken):
        # Nothing is known of which of them belongs where.
        return True
    for scope in anew:
        taken[scope.index] = keys[scope.index]
    if (twice := _first_twice(taken)) is not None:
        _refuse(changes, node, SAME_KEY, _same_key(twice))
        return False
    if not has_room(changes, sum(len(scope.tasks) for scope in anew), characters):
        put_off(changes, node)
        return False
    for scope in anew:
        renew_item(changes, scope, keys[scope.index], found[scope.index])
    return True


def _items_with_keys(node: TaskNode, map_: MapPlan, texts: Texts) -> tuple[list[Any], list[str], int]:
    """Return what the map goes over, the key of each item, and how many characters they come to in the task runs.

    :param texts: is charged for all that is read and built.

    :raises TemplateError, SweepError: it can't be worked out, or is too much.
    """
    found = items(resolve(map_.over, lookup_in(values_in(node.scope)), "/map/over", texts=texts), map_.max_size)
    texts.read += BUILT * len(found)
    if why := too_many(node, len(found)):
        raise SweepError(why, too_many=True)
    room = Room(node, texts)
    return found, _keys(node, map_, found, room), room.taken


def _reason_of(error: OrchestratorError) -> str:
    if isinstance(error, SweepError):
        return TOO_MANY if error.too_many else UNMAPPABLE
    return TEMPLATE


def _keys(node: TaskNode, map_: MapPlan, found: list[Any], room: Room) -> list[str]:
    """Return the key of each item.

    :raises SweepError: keys and items are too large for as many rows.
    """
    values = values_in(node.scope)
    keys: list[str] = []
    for index, item in enumerate(found):
        key: str | None = str(index)
        if map_.key:
            values["map"] = {"item": item, "index": index, "key": key}
            key = room.key_of(resolve(map_.key, lookup_in(values), "/map/key", texts=room.texts))
        if key is None or not room.take(key, item):
            raise SweepError(TOO_LARGE, too_many=True)
        keys.append(key)
    return keys


def _first_twice(keys: list[str]) -> str | None:
    if len(set(keys)) == len(keys):
        return None
    seen = set[str]()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _same_key(key: str) -> str:
    return f"Two items of the map have the key {_short(key)}; keys have to differ."


def _short(key: str) -> str:
    return repr(key if len(key) <= SHOWN else f"{key[:SHOWN]}…")


def _refuse(changes: Changes, node: TaskNode, reason: str, message: str) -> None:
    changes.task(node, TaskState.FAILED, "upstream", reason=reason, message=message, durable=True)


def advance_map(changes: Changes, node: TaskNode) -> None:
    """Look at a map in which an index has ended: it may be decided, and the next ones may start.

    The indices that are left when it is decided run on, unless it shall fail fast; they decide nothing any more.
    """
    map_, inside = node.planned.map, node.inside
    assert map_ is not None
    assert inside is not None
    if node.state is TaskState.RUNNING:
        total = len(inside.scopes)
        result = map_result(map_.success, map_.least, inside.good, inside.bad, inside.skipped, total)
        if result is None:
            tell_progress(changes, node, f"{inside.ended} of {total} done")
        else:
            _end(changes, node, inside, result)
            if map_.fail_fast:
                message = f"{node.name} is decided, and fails fast."
                stop_inside(changes, node, Stop(FAIL_FAST, message, cause=FAIL_FAST))
    if node.run.state is not RunState.CANCELLING or node.is_teardown:
        start_scopes(changes, node)


def _end(changes: Changes, node: TaskNode, inside: Inside, result: TaskState) -> None:
    total = len(inside.scopes)
    told = f"{inside.good} of {total} indices succeeded, {inside.bad} failed, {inside.skipped} were skipped"
    if left := total - inside.ended:
        told = f"{told}; the {left} that are left change nothing"
    reason = {TaskState.FAILED: INDEX_FAILED, TaskState.SKIPPED: ALL_SKIPPED}.get(result, "")
    if result is TaskState.FAILED and (broken := first_broken(node)):
        told = f"{told}; first {broken}"
    changes.task(node, result, "indices", reason=reason, message=f"{told}.", durable=True)
