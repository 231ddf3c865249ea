"""What a field of a definition may hold, as small checks that say how a value is wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from orchestrator.documents import MAX_PARAMETERS_BYTES, did_you_mean, escaped, json_bytes, kind_of
from orchestrator.errors import Problem
from orchestrator.rules import RULES

MAX_UPSTREAMS = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Check = Callable[[Any], str | None]
"""Says what is wrong with a value, as the end of a sentence, or nothing."""


def field_problems(
    document: Mapping[str, Any], checks: Mapping[str, Check], pointer: str, required: Collection[str]
) -> list[Problem]:
    """Return the faults of an object's fields: missing, unknown, or refused by their check."""
    found = [Problem(f"{pointer}/{name}", f"{name!r} is missing.") for name in required if name not in document]
    for name, value in document.items():
        check = checks.get(name)
        if check is None:
            message = f"There is no field {name[:100]!r} here.{did_you_mean(name, checks)}"
            found.append(Problem(f"{pointer}/{escaped(name)}", message))
        elif fault := check(value):
            message = f"{name!r} {fault.rstrip('.?')}{'?' if fault.endswith('?') else '.'}"
            found.append(Problem(f"{pointer}/{escaped(name)}", message))
    return found


def is_text(longest: int) -> Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"must be a text, not {kind_of(value)}"
        return f"has {len(value)} characters; at most {longest} are allowed" if len(value) > longest else None

    return check


def is_name(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"must be a text, not {kind_of(value)}"
    if NAME.fullmatch(value):
        return None
    return "must be 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit"


def is_number(low: float, high: float, *, above: bool = False, whole: bool = False) -> Check:
    word = "a whole number" if whole else "a number"
    span = f"{word} {'above' if above else 'from'} {_digits(low)} {'and at most' if above else 'to'} {_digits(high)}"

    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"must be {span}, not {kind_of(value)}"
        if whole and value != int(value):
            return f"must be {span}, not {_digits(value)}"
        return (
            None
            if (low < value if above else low <= value) and value <= high
            else f"must be {span}, not {_digits(value)}"
        )

    return check


def _digits(number: float) -> str:
    """Write a number as people do: a year's seconds with all their digits."""
    return f"{number:.12g}"


def is_memory(value: Any) -> str | None:
    if isinstance(value, str):
        return None if value == "auto" else 'is none of a number of GiB and "auto"'
    return _is_gib(value)


_is_gib = is_number(0, 100_000, above=True)


def is_flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"must be true or false, not {kind_of(value)}"


def is_object(value: Any) -> str | None:
    # A dict, as nearly all are, is told at once; whether something else is a mapping takes a search.
    return None if isinstance(value, (dict, Mapping)) else f"must be an object, not {kind_of(value)}"


def is_texts(most: int, longest: int) -> Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, list):
            return f"must be a list of texts, not {kind_of(value)}"
        if len(value) > most:
            return f"has {len(value)} entries; at most {most} are allowed"
        if any(not isinstance(item, str) or not 0 < len(item) <= longest for item in value):
            return f"must be a list of texts of 1 to {longest} characters"
        return None

    return check


def is_upstreams(value: Any) -> str | None:
    if fault := _are_upstreams(value):
        return fault
    if len(set(value)) == len(value):
        return None
    twice = sorted(name for name, count in Counter(value).items() if count > 1)
    return f"names {', '.join(map(repr, twice))} more than once"


_are_upstreams = is_texts(MAX_UPSTREAMS, 128)


def is_labels(value: Any) -> str | None:
    if fault := is_object(value):
        return fault
    if len(value) > 50:
        return f"has {len(value)} labels; at most 50 are allowed"
    good = all(isinstance(item, str) and len(item) <= 128 for item in value.values())
    good = good and all(map(NAME.fullmatch, value))
    return None if good else "must be an object of names to texts of at most 128 characters"


def is_rule(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"must be a text, not {kind_of(value)}"
    return None if value in RULES else f"is none of {', '.join(RULES)}.{did_you_mean(value, RULES)}"


def is_one_of(*words: str) -> Check:
    def check(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"must be a text, not {kind_of(value)}"
        return None if value in words else f"is none of {', '.join(words)}.{did_you_mean(value, words)}"

    return check


def is_parameters(value: Any) -> str | None:
    if fault := is_object(value):
        return fault
    size = json_bytes(value)
    fits = size <= MAX_PARAMETERS_BYTES
    return None if fits else f"has {size} bytes as JSON; at most {MAX_PARAMETERS_BYTES} are allowed"


def is_tasks(value: Any) -> str | None:
    if not isinstance(value, list):
        return f"must be a list of tasks, not {kind_of(value)}"
    return None if value else "is empty; a pipeline has at least one task"


def is_body(value: Any) -> str | None:
    return is_tasks(value) if value != [] else "is empty; a group has at least one task"
