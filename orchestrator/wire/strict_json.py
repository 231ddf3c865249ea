"""JSON as the wire allows it: bounded, finite, UTF-8, and read field by field with a sentence for each fault."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from orchestrator.errors import TooLarge, UnreadableMessage


def encode(value: object, limit: int, what: str) -> bytes:
    """Return compact JSON.

    :raises UnreadableMessage: the value is no JSON, or holds NaN or an infinity.
    :raises TooLarge: more than ``limit`` bytes.
    """
    try:
        body = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UnreadableMessage(f"The {what} is no JSON and was not sent: {error}.") from error
    if len(body) > limit:
        raise TooLarge(f"The {what} has {len(body)} bytes; at most {limit} are sent. Leave data in the artifact store.")
    return body


def decode(body: bytes, limit: int, what: str) -> Fields:
    """Read a JSON object.

    :raises UnreadableMessage: too large, no JSON, no object, or a number that is not finite.
    """
    if len(body) > limit:
        raise UnreadableMessage(f"The {what} has {len(body)} bytes; at most {limit} are read.")
    try:
        value = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UnreadableMessage(f"The {what} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UnreadableMessage(f"The {what} is no JSON object.")
    return Fields(value, what)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


class Fields:
    """A decoded object, its fields taken out by kind. Unknown fields are left alone: a newer side may send them."""

    __slots__ = ("_values", "_what")

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self._values = values
        self._what = what

    def _wrong(self, name: str, expected: str) -> UnreadableMessage:
        state = "is missing" if name not in self._values else "has another type"
        return UnreadableMessage(f"Field {name!r} of the {self._what} {state}; expected {expected}.")

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def text_or_none(self, name: str) -> str | None:
        return None if self._values.get(name) is None else self.text(name)

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._values.get(name, default)
        # Resources and counters end in 64-bit columns.
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
            raise self._wrong(name, "a whole number of 64 bits")
        return value

    def integer_or_none(self, name: str) -> int | None:
        return None if self._values.get(name) is None else self.integer(name)

    def number(self, name: str, default: float | None = None) -> float:
        value = self._values.get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e300:
            raise self._wrong(name, "a number")
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        return None if self._values.get(name) is None else self.number(name)

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of texts")
        return tuple(value)

    def text_map(self, name: str) -> dict[str, str]:
        value = self.mapping(name)
        if not all(isinstance(item, str) for item in value.values()):
            raise self._wrong(name, "an object of texts")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._values.get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def mapping_or_none(self, name: str) -> dict[str, Any] | None:
        return None if self._values.get(name) is None else self.mapping(name)

    def mappings(self, name: str) -> tuple[dict[str, Any], ...]:
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._wrong(name, "a list of objects")
        return tuple(value)

    def pairs(self, name: str) -> tuple[tuple[str, float], ...]:
        """Take a list of ``[text, number]``."""
        value = self._values.get(name, [])
        if not isinstance(value, list):
            raise self._wrong(name, "a list of [text, number]")
        found: list[tuple[str, float]] = []
        for item in value:
            if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)):
                raise self._wrong(name, "a list of [text, number]")
            found.append((item[0], Fields({name: item[1]}, self._what).number(name)))
        return tuple(found)

    def text_pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        """Take a list of ``[text, text]``."""
        value = self._values.get(name, [])
        if not isinstance(value, list):
            raise self._wrong(name, "a list of [text, text]")
        found: list[tuple[str, str]] = []
        for item in value:
            if not (isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item)):
                raise self._wrong(name, "a list of [text, text]")
            found.append((item[0], item[1]))
        return tuple(found)

    def inner(self, name: str) -> Fields:
        return Fields(self.mapping(name), f"{self._what}'s {name}")

    def inners(self, name: str) -> tuple[Fields, ...]:
        return tuple(Fields(item, f"{self._what}'s {name}") for item in self.mappings(name))
