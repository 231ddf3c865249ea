"""What is left of a task in which faults were found: its sound parts, so that the rest of it is checked all the same.

Without this a definition's problems would come in layers: those of names only once all fields were mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.errors import Problem

_DEPTH = {
    "map": 2, "repeat": 2, "pipeline": 2, "approval": 2, "event": 2, "cache": 2, "rate_limit": 2, "concurrency": 3,
    "retry": 5,
}  # fmt: skip
"""How deep a part may lie that is taken out by itself; of other fields the whole field is."""
_KEPT_EMPTY = frozenset({"map", "repeat", "pipeline", "approval", "event"})
"""What the task is hangs on these being there, whatever they hold."""


def sound_parts(
    task: Mapping[str, Any], problems: Iterable[Problem], pointer: str
) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the task without what is faulty, and the names of the fields from which something was taken.

    :param pointer: where the task stands in the document.
    """
    left = dict(task)
    faulty: set[str] = set()
    for problem in problems:
        parts = [_plain(part) for part in problem.pointer.removeprefix(pointer).split("/")[1:]]
        if not parts:
            continue
        name = parts[0]
        faulty.add(name)
        if name not in left or _can_stay(left[name], parts):
            continue
        if len(parts) > 1 and name in _DEPTH:
            left[name] = _without(left[name], parts[1 : _DEPTH[name]])
        elif name in _KEPT_EMPTY and not isinstance(left[name], Mapping):
            left[name] = {}
        else:
            del left[name]
    return left, frozenset(faulty)


def _can_stay(value: Any, parts: list[str]) -> bool:
    """Say whether what is wrong there keeps nobody from reading on: of what a map goes over, the names are known."""
    return (
        parts[:2] == ["map", "over"] and isinstance(value, Mapping) and isinstance(value.get("over"), (str, list, dict))
    )


def _without(value: Any, parts: list[str]) -> Any:
    """Return the value without what lies there; the entries of a list keep their places."""
    head, rest = parts[0], parts[1:]
    if isinstance(value, Mapping):
        if rest and head in value:
            return {**value, head: _without(value[head], rest)}
        return {name: item for name, item in value.items() if name != head}
    if isinstance(value, list) and head.isdecimal() and int(head) < len(value):
        at = int(head)
        item = _without(value[at], rest) if rest and isinstance(value[at], Mapping) else {}
        return [*value[:at], item, *value[at + 1 :]]
    return value


def _plain(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
