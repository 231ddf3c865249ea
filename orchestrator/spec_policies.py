"""What the policies of a task may hold: retry rules, cache, limits, and the JSON schemas that users write."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from orchestrator.counted_schema import schema_errors
from orchestrator.documents import escaped, json_bytes, kind_of
from orchestrator.errors import Problem, TooMuchWork
from orchestrator.field_checks import (
    Check,
    field_problems,
    is_flag,
    is_number,
    is_object,
    is_one_of,
    is_text,
    is_texts,
)
from orchestrator.plain_schemas import is_plain_schema

DAY = 86400
YEAR = 366 * DAY
RETRY_ACTIONS = ("retry", "fail", "skip")
CACHE_MODES = ("read_write", "read", "write")
CACHE_SCOPES = ("pipeline", "tenant")
ON_LIMIT = ("queue", "cancel_new", "cancel_running", "fail")
DRAFT = "https://json-schema.org/draft/2020-12/schema"
MAX_RULES = 50
MAX_LIMITS = 20
MAX_UNITS = 10_000
MAX_KEY = 500
FORM_WORDS = frozenset({
    "$schema", "title", "description", "default", "examples", "type", "enum", "const", "properties", "required",
    "additionalProperties", "minProperties", "maxProperties", "items", "prefixItems", "minItems", "maxItems",
    "minLength", "maxLength", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "allOf", "anyOf", "oneOf", "not",
})  # fmt: skip
"""What the schema of an approval's input or an event's payload may use. Those are checked where the requests of all
are served, so no patterns and no references; what the rest takes is counted (:mod:`orchestrator.counted_schema`)."""
MAX_FORM_PARTS = 200
"""Schemas inside each other that such a schema may have: as many faults may be told of each value."""
MAX_SCHEMA_PARTS = 2000
"""Objects, lists, trues and falses that any schema may have: reading each takes up to 0.15 ms."""
MAX_SCHEMA_BYTES = 64 * 1024
_MOST_TYPES = 7
_STEPS = 20_000
"""Of the check that finds references which lead in a circle."""
_REMEMBERED = 2000


# ── retry ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_RETRY: Mapping[str, Check] = {
    "on": lambda value: None if isinstance(value, list) else f"must be a list of rules, not {kind_of(value)}",
    "jitter": is_number(0, 1),
    "infrastructure": is_number(0, 100, whole=True),
}
_RULE: Mapping[str, Check] = {
    "match": is_object,
    "action": is_one_of(*RETRY_ACTIONS),
    "delay_seconds": is_number(0, YEAR),
    "resources": is_object,
}


def _one_or_more(check: Check) -> Check:
    """Let a value or a list of such values through."""

    def checked(value: Any) -> str | None:
        values = value if isinstance(value, list) else [value]
        if not 1 <= len(values) <= 50:
            return "must be a value or a list of 1 to 50 of them"
        return next((f"{fault}, or a list of such" for item in values if (fault := check(item))), None)

    return checked


def is_filled_text(longest: int) -> Check:
    text = is_text(longest)
    return lambda value: text(value) or (None if value else "is empty")


_MATCH: Mapping[str, Check] = {
    "reason": _one_or_more(is_filled_text(100)),
    "exit_code": _one_or_more(is_number(-255, 255, whole=True)),
    "exception": _one_or_more(is_filled_text(200)),
    "message": _one_or_more(is_filled_text(500)),
}


def _is_memory(value: Any) -> str | None:
    wrong = 'must be a number of GiB, or how many times more as in "x1.5" (above 1, at most 100)'
    if isinstance(value, str):
        return None if memory_factor(value) is not None else wrong
    return _is_gib(value)


_is_gib = is_number(0, 100_000, above=True)


_MORE: Mapping[str, Check] = {
    "memory_gb": _is_memory,
    "max_memory_gb": is_number(0, 100_000, above=True),
    "queue": is_filled_text(128),
}


def memory_factor(text: str) -> float | None:
    """Return 1.5 of ``x1.5``; ``None`` where the text says nothing of the kind."""
    number = text[1:]
    if not text.startswith("x") or len(text) > 12 or not number.replace(".", "", 1).isdecimal() or not text.isascii():
        return None
    return factor if 1 < (factor := float(number)) <= 100 else None


def retry_problems(retry: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    """Yield what is wrong with ``retry``."""
    yield from field_problems(retry, _RETRY, pointer, ())
    rules = retry.get("on", [])
    if not isinstance(rules, list):
        return
    if len(rules) > MAX_RULES:
        yield Problem(f"{pointer}/on", f"There are {len(rules)} rules; at most {MAX_RULES} are allowed.")
        return
    for at, rule in enumerate(rules):
        yield from _rule_problems(rule, f"{pointer}/on/{at}")


def _rule_problems(rule: object, pointer: str) -> Iterator[Problem]:
    if not isinstance(rule, Mapping):
        yield Problem(pointer, f"A rule is an object, not {kind_of(rule)}.")
        return
    yield from field_problems(rule, _RULE, pointer, ("match", "action"))
    match = rule.get("match")
    if isinstance(match, Mapping):
        yield from field_problems(match, _MATCH, f"{pointer}/match", ())
        if not match:
            yield Problem(f"{pointer}/match", f"The rule matches nothing; name at least one of {', '.join(_MATCH)}.")
    more = rule.get("resources")
    if isinstance(more, Mapping):
        yield from field_problems(more, _MORE, f"{pointer}/resources", ())
        if "max_memory_gb" in more and "memory_gb" not in more:
            message = "A limit is set and nothing that grows towards it; add 'memory_gb' as in \"x1.5\"."
            yield Problem(f"{pointer}/resources/max_memory_gb", message)
    if rule.get("action") in ("fail", "skip"):
        for name in ("delay_seconds", "resources"):
            if name in rule:
                message = f"{name!r} is for the next try, and the action {rule['action']!r} makes none; leave it out."
                yield Problem(f"{pointer}/{name}", message)


# ── cache ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def is_cache(value: Any) -> str | None:
    return None if isinstance(value, (bool, Mapping)) else f"must be true or an object, not {kind_of(value)}"


def is_cache_key(value: Any) -> str | None:
    if isinstance(value, list):
        return is_texts(20, MAX_KEY)(value) or (None if value else "is empty")
    return is_filled_text(MAX_KEY)(value)


_CACHE: Mapping[str, Check] = {
    "mode": is_one_of(*CACHE_MODES),
    "key": is_cache_key,
    "ttl_seconds": is_number(0, 100 * YEAR, above=True),
    "scope": is_one_of(*CACHE_SCOPES),
    "single_flight": is_flag,
}


def cache_problems(cache: Any, pointer: str) -> Iterator[Problem]:
    """Yield what is wrong with ``cache``."""
    if isinstance(cache, Mapping):
        yield from field_problems(cache, _CACHE, pointer, ())


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_LIMIT: Mapping[str, Check] = {
    "key": is_filled_text(MAX_KEY),
    "limit": is_number(1, 100_000, whole=True),
    "on_limit": is_one_of(*ON_LIMIT),
}
_RATE: Mapping[str, Check] = {
    "key": is_filled_text(MAX_KEY),
    # What was sent out is kept, and read by each new leader, for as long and as often as it counts.
    "units": is_number(1, MAX_UNITS, whole=True),
    "per_seconds": is_number(0, DAY, above=True),
}


def is_limits(value: Any) -> str | None:
    if not isinstance(value, list):
        return f"must be a list of limits, not {kind_of(value)}"
    return f"has {len(value)} entries; at most {MAX_LIMITS} are allowed" if len(value) > MAX_LIMITS else None


def concurrency_problems(limits: list[Any], pointer: str) -> Iterator[Problem]:
    """Yield what is wrong with the entries of ``concurrency``."""
    for at, limit in enumerate(limits):
        here = f"{pointer}/{at}"
        if isinstance(limit, Mapping):
            yield from field_problems(limit, _LIMIT, here, ("key", "limit"))
        else:
            yield Problem(here, f"A limit is an object with key and limit, not {kind_of(limit)}.")


def rate_problems(rate: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    """Yield what is wrong with ``rate_limit``."""
    yield from field_problems(rate, _RATE, pointer, ("key", "units", "per_seconds"))


# ── schemas of users ─────────────────────────────────────────────────────────────────────────────────────────────────


def outputs_problems(schema: Mapping[str, Any], pointer: str) -> list[Problem]:
    """Return what is wrong with the schema of a task's outputs, which its own worker checks."""
    if (size := json_bytes(schema)) > MAX_SCHEMA_BYTES:
        return [Problem(pointer, f"The schema has {size} bytes as JSON; at most {MAX_SCHEMA_BYTES} are allowed.")]
    if (parts := _parts(schema)) > MAX_SCHEMA_PARTS:
        return [Problem(pointer, f"The schema has {parts} objects and lists; at most {MAX_SCHEMA_PARTS} are allowed.")]
    if found := _remote(schema, pointer) + _many_types(schema, pointer):
        return found
    if is_plain_schema(schema):
        return []
    text = json.dumps(schema, sort_keys=True)
    faults = _known_faults(text) if len(text) <= _REMEMBERED else _schema_faults(text)
    return [Problem(pointer + inner, message) for inner, message in faults]


def form_problems(schema: Mapping[str, Any], pointer: str) -> list[Problem]:
    """Return what is wrong with the schema of what people or outside systems send us."""
    parts = list(islice(_subschemas(schema, pointer), MAX_FORM_PARTS + 1))
    if len(parts) > MAX_FORM_PARTS:
        message = f"More than {MAX_FORM_PARTS} schemas are inside of it; ask for less at a time."
        return [Problem(pointer, message)]
    found = [
        Problem(
            f"{here}/{escaped(word)}",
            f"{word!r} is not for what is sent to us; a schema may use {', '.join(sorted(FORM_WORDS))}.",
        )
        for here, inner in parts
        for word in inner
        if word not in FORM_WORDS
    ]
    return found or outputs_problems(schema, pointer)


def _parts(schema: Any) -> int:
    """Return how many values a schema has that may be schemas or hold some."""
    inner = schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else None
    return int(isinstance(schema, bool)) if inner is None else 1 + sum(map(_parts, inner))


def _remote(schema: Any, pointer: str) -> list[Problem]:
    """Return the references that lead out of the schema, and what would change where they lead."""
    found: list[Problem] = []
    for here, inner in _objects(schema, pointer):
        for word in ("$ref", "$dynamicRef"):
            if isinstance(inner.get(word), str) and not inner[word].startswith("#"):
                message = f"{inner[word][:200]!r} lies outside of this schema; a reference begins with # here."
                found.append(Problem(f"{here}/{word}", message))
        if isinstance(inner.get("$id"), str):
            found.append(Problem(f"{here}/$id", "A schema has no '$id' here; leave it out."))
        if isinstance(inner.get("$schema"), str) and (inner["$schema"].rstrip("#") != DRAFT or here != pointer):
            found.append(Problem(f"{here}/$schema", f"Schemas are read as {DRAFT}; leave '$schema' out."))
    return found


def _many_types(schema: Any, pointer: str) -> list[Problem]:
    """Return the lists of types that are too long for one: the library compares each entry with each."""
    return [
        Problem(f"{here}/type", f"This has {len(types)} types; there are only {_MOST_TYPES}.")
        for here, inner in _objects(schema, pointer)
        if isinstance(types := inner.get("type"), list) and len(types) > _MOST_TYPES
    ]


def _objects(value: Any, pointer: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield pointer, value
        for name, item in value.items():
            yield from _objects(item, f"{pointer}/{escaped(name)}")
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from _objects(item, f"{pointer}/{at}")


def _subschemas(schema: Any, pointer: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the schema and those inside it, by the words that hold schemas."""
    if not isinstance(schema, Mapping):
        return
    yield pointer, schema
    single = ("items", "additionalProperties", "not")
    inside: list[tuple[str, Any]] = [(name, schema[name]) for name in single if name in schema]
    if isinstance(schema.get("properties"), Mapping):
        inside += [(f"properties/{escaped(name)}", item) for name, item in schema["properties"].items()]
    for word in ("prefixItems", "allOf", "anyOf", "oneOf"):
        if isinstance(schema.get(word), list):
            inside += [(f"{word}/{at}", item) for at, item in enumerate(schema[word])]
    for name, item in inside:
        yield from _subschemas(item, f"{pointer}/{name}")


def _schema_faults(text: str) -> tuple[tuple[str, str], ...]:
    """Return ``(pointer, sentence)`` of what makes it no schema."""
    schema = json.loads(text)
    try:
        Draft202012Validator.check_schema(schema)
        # References in a circle would be followed without end, and those that fork at each step for hours.
        schema_errors(schema, {}, _STEPS)
    except SchemaError as error:
        place = "".join(f"/{escaped(part)}" for part in error.absolute_path)
        message = error.message if len(error.message) <= 300 else f"{error.message[:300]} …"
        return ((place, f"This is no JSON schema: {message.rstrip('.')}."),)
    except RecursionError:
        return (("", "The schema refers to itself without end."),)
    except TooMuchWork:
        return (("", f"Its references fork so often that not even {{}} is checked by it in {_STEPS} steps."),)
    except Exception as error:  # noqa: BLE001 - a reference to nothing, a pattern that is none: the library's own errors
        return (("", f"This is no usable JSON schema: {str(error).rstrip('.')[:300]}."),)
    return ()


_known_faults = functools.lru_cache(maxsize=1024)(_schema_faults)
"""Of short schemas, which many definitions have in common; long ones would fill the memory."""


Inside = Callable[[Any, str], Iterable[Problem]]
"""Says what is wrong inside a field whose own kind is right, each fault with its pointer."""
