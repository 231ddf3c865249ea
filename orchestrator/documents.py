"""JSON documents that users send: what can be stored at all, and the words and pointers in which faults are told."""

from __future__ import annotations

import bisect
import difflib
import functools
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import orjson

from orchestrator.errors import Problem

MAX_PARAMETERS_BYTES = 64 * 1024
MAX_NESTING = 32
_MANY = 100
_NEIGHBOURS = 6
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair."""
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


_PLAIN = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS


def parameter_problems(parameters: object, pointer: str = "") -> list[Problem]:
    """Return what makes this object unfit as the parameters of a run, whatever the pipeline."""
    if not isinstance(parameters, Mapping):
        return [Problem(pointer, f"Parameters are a JSON object, not {kind_of(parameters)}.")]
    if found := list(unstorable(parameters, pointer)):
        return found
    size = json_bytes(parameters)
    if size > MAX_PARAMETERS_BYTES:
        message = f"The parameters have {size} bytes as JSON; at most {MAX_PARAMETERS_BYTES} are allowed."
        return [Problem(pointer, f"{message} Put large values into a file and pass its path.")]
    return []


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return `` Did you mean …?`` for the nearest known name, or nothing."""
    name = name[:200]
    if len(known) > _MANY:
        # Comparing letter by letter takes milliseconds for a hundred names, and there may be a fault in every task.
        known = _alike(name, known if isinstance(known, frozenset) else frozenset(known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _alike(name: str, known: frozenset[str]) -> list[str]:
    """Return the names that share the longest beginning or end with this one."""
    found: dict[str, None] = {}
    for order, key in zip(_both_ways(known), (name, name[::-1]), strict=True):
        at = bisect.bisect(order, (key,))
        found.update((full, None) for _, full in order[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS])
    return list(found)


@functools.lru_cache(maxsize=4)
def _both_ways(known: frozenset[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return sorted((name, name) for name in known), sorted((name[::-1], name) for name in known)


def escaped(part: object) -> str:
    """Return one part of a JSON pointer."""
    return str(part).replace("~", "~0").replace("/", "~1")


def unstorable(value: object, pointer: str = "", nesting: int = 0) -> Iterator[Problem]:
    """Yield what neither PostgreSQL's JSON nor the wire can hold: NaN, infinities, NUL, half characters, an abyss."""
    if not nesting and _holds_storable([value], 0):
        return
    if isinstance(value, str):
        if fault := _text_fault(value):
            yield Problem(pointer, fault)
    elif isinstance(value, (int, float)):
        if fault := _number_fault(value):
            yield Problem(pointer, fault)
    elif isinstance(value, (Mapping, list, tuple)):
        yield from _unstorable_inside(value, pointer, nesting)
    elif value is not None:
        yield Problem(pointer, f"{kind_of(value)} is no JSON value.")


def is_nested_too_deep(value: object, most: int = MAX_NESTING) -> bool:
    """Say whether more lists and objects lie inside of each other than may.

    Without recursion, for it is asked of what may be an abyss; of JSON as it was read, in which nothing stands twice.
    """
    level = [value] if isinstance(value, (dict, list, tuple)) else []
    for _ in range(most):
        if not level:
            return False
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, (dict, list, tuple))
        ]
    return bool(level)


def _holds_storable(value: dict[Any, Any] | list[Any], nesting: int) -> bool:
    """Say whether there is nothing to tell of what it holds, without making a pointer for every value.

    Loops and exact types: this looks at every value of ten thousand tasks. What else there is, is told elsewhere.
    """
    items: Iterable[Any] = value
    if type(value) is dict:
        items = value.values()
        if not _are_names_storable(value):
            return False
    for item in items:
        kind = type(item)
        if kind is str:
            if (not item.isascii() or "\0" in item) and _text_fault(item):
                return False
        elif kind is dict or kind is list:
            if nesting >= MAX_NESTING or not _holds_storable(item, nesting + 1):
                return False
        elif (kind is int or kind is float) and _number_fault(item) is None:
            continue
        elif item is not None and kind is not bool:
            return False
    return True


def _are_names_storable(names: dict[Any, Any]) -> bool:
    for name in names:
        if type(name) is not str or ((not name.isascii() or "\0" in name) and _text_fault(name)):
            return False
    return True


def _unstorable_inside(
    value: Mapping[Any, Any] | list[Any] | tuple[Any, ...], pointer: str, nesting: int
) -> Iterator[Problem]:
    if nesting >= MAX_NESTING:
        yield Problem(pointer, f"This is nested more than {MAX_NESTING} deep; flatten it.")
        return
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        if isinstance(value, Mapping) and not isinstance(key, str):
            yield Problem(pointer, _no_name(key))
        elif isinstance(key, str) and (fault := _text_fault(key)):
            yield Problem(pointer, f"A field's name can't be stored: {fault}")
        else:
            yield from unstorable(item, f"{pointer}/{escaped(key)}", nesting + 1)


def _no_name(key: object) -> str:
    """Say what is wrong with a field's name that JSON can't have, and how YAML comes by one."""
    if isinstance(key, bool):
        words = '"on" or "yes"' if key else '"off" or "no"'
        return f"A field's name is {str(key).lower()} and no text: YAML 1.1 reads {words} so. Put it in quotes."
    return f"A field's name is {kind_of(key)} and no text; put it in quotes."


def _number_fault(number: float) -> str | None:
    if isinstance(number, int):
        return "This whole number needs more than 64 bits; write it as a text." if number.bit_length() > 64 else None
    return None if math.isfinite(number) else f"{number} is no JSON number; leave it out or write a finite number."


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "The text holds a NUL character, which can't be stored; remove it."
    if not text.isascii() and _HALF.search(text):
        return "The text holds half of a surrogate pair, which is no character; remove it."
    return None


def kind_of(value: object) -> str:
    """Return what a value is, in the words of JSON."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
    )
    if value is None:
        return "null"
    return next((word for kind, word in kinds if isinstance(value, kind)), type(value).__name__)


def is_same_json(one: object, other: object) -> bool:
    """Compare two values as JSON does, at any depth: true is not 1, and 1 is 1.0."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_same_json(item, other[name]) for name, item in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(is_same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def canonical_json(value: object) -> bytes:
    """Return the JSON text of a storable value in UTF-8, the same for equal values: compact, with the fields in order.

    :raises TypeError: it holds what is no JSON value.
    """
    try:
        return orjson.dumps(value, option=_PLAIN | orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        # Whole numbers of more than 64 bits, what is deeper than any definition may be, and types of one's own.
        return _CANONICAL(value).encode()


def json_bytes(value: object) -> int:
    """Return the size of a value as JSON."""
    try:
        return len(orjson.dumps(value, option=_PLAIN))
    except orjson.JSONEncodeError:
        return len(canonical_json(value))


def fingerprint(value: object) -> object:
    """Return what only values have in common that are the same JSON, in the same order: to look them up by."""
    try:
        return orjson.dumps(value, option=_PLAIN)
    except orjson.JSONEncodeError:
        return repr(value)


def all_texts(value: object) -> Iterator[str]:
    """Yield every text in a value, fields' names apart."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from all_texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from all_texts(item)
