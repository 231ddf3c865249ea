"""Which part of a task's outputs the rules keep: what their expressions name, and of one run no more than so much.

What else a task has left is in its row alone, and is read from there when another task is granted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Union

from orchestrator.expressions import Path

if TYPE_CHECKING:
    from orchestrator.kernel.nodes import TaskNode

Kept = Union[Mapping[Union[str, int], "Kept"], None]  # noqa: UP007 - a name that stands for itself
"""By field what of a value is kept; ``None``: all of it. Below a number stands what is kept of each entry of a list."""
MOST_KEPT = 8 * 2**20
"""Characters of JSON that the rules keep of the outputs of one run: the leader holds them as long as it goes on."""
TOO_LARGE = "too_large"
"""Reason of a task whose outputs the rules would have to keep beside too many others."""


def kept_by_task(paths: Iterable[Path]) -> dict[str, Kept]:
    """Return what these paths name of the outputs of tasks, by their names; a task as a whole counts as all of it."""
    found: dict[str, Kept] = {}
    for path in paths:
        if len(path) >= 2 and path[0] == "tasks" and path[2:3] != ("state",):
            merge(found, {str(path[1]): _along(path[3:] if path[2:3] == ("outputs",) else ())})
    return found


def merge(into: dict[str, Kept], more: Mapping[str, Kept]) -> None:
    """Add what is to be kept besides."""
    for name, kept in more.items():
        into[name] = both(into[name], kept) if name in into else kept


def both(one: Kept, other: Kept) -> Kept:
    """Return what holds all that either of the two keeps."""
    if one is None or other is None:
        return None
    return {
        part: both(one[part], other[part]) if part in one and part in other else one.get(part, other.get(part))
        for part in (*one, *other)
    }


def of_entries(kept: Kept) -> Kept:
    """Return what is kept of the entries of a list."""
    if kept is None:
        return None
    found: Kept = {}
    for part, below in kept.items():
        if isinstance(part, int):
            found = both(found, below)
    return found


def by_name(kept: Kept, names: Iterable[str]) -> dict[str, Kept]:
    """Return what is kept of an object's fields, of which these are all."""
    if kept is None:
        return dict.fromkeys(names)
    return {name: kept[name] for name in names if name in kept}


def kept_of(value: Any, kept: Kept) -> Any:
    """Return the value without the fields that nothing names. What is named leads to the same in it, or nowhere too."""
    if kept is None or not isinstance(value, Mapping):
        return value
    return {part: kept_of(value[part], below) for part, below in kept.items() if part in value}


def size_of(value: Any) -> int:
    """Return how many characters of JSON a value comes to."""
    try:
        return 0 if value is None else len(json.dumps(value, ensure_ascii=False, default=dict))
    except RecursionError:
        # An older release let it in.
        return MOST_KEPT


def too_large(node: TaskNode) -> str:
    """Return why the outputs of this task can't be kept, as a sentence."""
    return (
        f"What the rules of run {node.run.id} read of outputs (conditions, maps, approvals, sub-pipelines) comes to "
        f"more than {MOST_KEPT >> 20} Mi characters of JSON with what task {node.name} leaves. Name fields of outputs "
        "rather than all of them, or let them hold the URIs of files."
    )


def _along(path: Path) -> Kept:
    kept: Kept = None
    for part in reversed(path):
        kept = {part: kept}
    return kept
