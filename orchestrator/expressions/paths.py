"""Paths into what a task may read: ``params.x``, ``tasks['train-model'].outputs.folds[0]``, ``map.item.lr``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import ExpressionError

Path = tuple[str | int, ...]
"""``("tasks", "ingest", "outputs", "rows", 0)``; never empty, its first part is a name."""

MAX_PARTS = 40
_FIRST = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*")
"""As nearly all are written."""
_PART = re.compile(
    r"""\.(?P<name>[A-Za-z_][A-Za-z0-9_-]*)
      | \[\s*(?P<index>-?[0-9]{1,9})\s*\]
      | \[\s*'(?P<single>[^'\\]*)'\s*\]
      | \[\s*"(?P<double>[^"\\]*)"\s*\]""",
    re.VERBOSE | re.ASCII,
)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SHOWN = 60


class Missing(LookupError):
    """A path leads nowhere; the message says how far it led."""


Lookup = Callable[[Path], Any]
"""Returns the value at a path.

:raises Missing: there is none.
"""


def parse_path(text: str) -> Path:
    """Read a path.

    :raises ExpressionError: it is none; says where it ends to be one.
    """
    if _DOTTED.fullmatch(text) and text.count(".") < MAX_PARTS:
        return tuple(text.split("."))
    found = _FIRST.match(text)
    if found is None:
        raise ExpressionError(f"{_short(text)} is no path; write a name as in params.x or tasks.load.outputs.rows.")
    parts: list[str | int] = [found.group()]
    at = found.end()
    while at < len(text):
        found = _PART.match(text, at)
        if found is None:
            raise ExpressionError(
                f"{_short(text)} is no path from {_short(text[at:])} on; a path goes on with .name, [0] or ['a name']."
            )
        if (index := found["index"]) is not None:
            parts.append(int(index))
        else:
            parts.append(next(part for part in (found["name"], found["single"], found["double"]) if part is not None))
        at = found.end()
    if len(parts) > MAX_PARTS:
        raise ExpressionError(f"The path {_short(text)} has {len(parts)} parts; at most {MAX_PARTS} are allowed.")
    return tuple(parts)


def path_text(path: Path) -> str:
    """Write a path as people do; :func:`parse_path` reads it again."""
    words = [str(path[0])]
    for part in path[1:]:
        if isinstance(part, int):
            words.append(f"[{part}]")
        elif _PLAIN.fullmatch(part):
            words.append(f".{part}")
        else:
            quote = '"' if "'" in part else "'"
            words.append(f"[{quote}{part}{quote}]")
    return "".join(words)


def value_at(values: Mapping[str, Any], path: Path) -> Any:
    """Return what stands at the path.

    What lies below ``repeat.previous`` is null in the first round, which has none before it.

    :raises Missing: nothing does.
    """
    found: Any = values
    for at, part in enumerate(path):
        if found is None and path[:2] == ("repeat", "previous") and at >= 2:
            return None
        try:
            found = _step(found, part)
        except LookupError:
            raise Missing(_explained(found, path, at)) from None
    return found


def lookup_in(values: Mapping[str, Any]) -> Lookup:
    """Return the lookup of a tree of values: ``{"params": …, "tasks": {name: {"state": …, "outputs": …}}, …}``."""
    return lambda path: value_at(values, path)


def _step(found: Any, part: str | int) -> Any:
    if isinstance(found, Mapping) and isinstance(part, str):
        return found[part]
    if isinstance(found, (list, tuple)) and isinstance(part, int):
        return found[part]
    raise LookupError


def _explained(found: Any, path: Path, at: int) -> str:
    part = path[at]
    here = path_text(path[:at]) if at else ""
    if not at:
        return f"There is no {part!r} here"
    if isinstance(found, (list, tuple)) and isinstance(part, int):
        return f"{here} has {len(found)} entries and no [{part}]"
    if isinstance(found, Mapping) and isinstance(part, str):
        return f"{here} has no {part!r}"
    kind = "null" if found is None else "a list" if isinstance(found, (list, tuple)) else "no object"
    kind = "an object" if isinstance(found, Mapping) else kind
    return f"{here} is {kind}, which has no {f'[{part}]' if isinstance(part, int) else repr(part)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
