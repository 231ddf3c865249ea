"""Says quickly of plain schemas that they are schemas; of all others nothing, so that JSON Schema's own is asked.

Of a schema of five fields the library takes half a millisecond, and each of 10,000 tasks may have one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})


def is_plain_schema(schema: Any) -> bool:
    """Say whether this surely is a schema, and one without references; False decides nothing."""
    if isinstance(schema, bool):
        return True
    return isinstance(schema, dict) and all(
        (check := _WORDS.get(word)) is not None and check(said) for word, said in schema.items()
    )


def _is_type(said: Any) -> bool:
    if isinstance(said, str):
        return said in _TYPES
    return isinstance(said, list) and 0 < len(said) == len(set(map(str, said))) and all(map(_is_type_name, said))


def _is_type_name(said: Any) -> bool:
    return isinstance(said, str) and said in _TYPES


def _are_names(said: Any) -> bool:
    return isinstance(said, list) and all(isinstance(name, str) for name in said) and len(set(said)) == len(said)


def _are_schemas(said: Any) -> bool:
    return isinstance(said, list) and len(said) > 0 and all(map(is_plain_schema, said))


def _are_fields(said: Any) -> bool:
    return isinstance(said, Mapping) and all(map(is_plain_schema, said.values()))


def _is_count(said: Any) -> bool:
    return type(said) is int and said >= 0


def _is_number(said: Any) -> bool:
    return type(said) in (int, float)


def _is_text(said: Any) -> bool:
    return isinstance(said, str)


def _is_list(said: Any) -> bool:
    return isinstance(said, list)


_WORDS: Mapping[str, Callable[[Any], bool]] = {
    "type": _is_type,
    "properties": _are_fields,
    "required": _are_names,
    **dict.fromkeys(("items", "additionalProperties", "not"), is_plain_schema),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _are_schemas),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _is_count),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    **dict.fromkeys(("title", "description"), _is_text),
    **dict.fromkeys(("enum", "examples"), _is_list),
    **dict.fromkeys(("const", "default"), lambda _: True),
}
