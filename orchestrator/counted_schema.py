"""JSON Schema with a bound on the work that one check may take: schemas of users meet values of users.

The work is up to the product of the two, and references multiply it once more. So steps are counted, whatever the
clock says: the same schema and value are always decided alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry

from orchestrator.errors import TooMuchWork

_Check = Callable[[Any, Any, Any, Mapping[str, Any]], Iterator[ValidationError] | None]
_WALKS_VALUE = frozenset({
    "items", "additionalProperties", "patternProperties", "propertyNames", "contains", "unevaluatedItems",
    "unevaluatedProperties",
})  # fmt: skip
"""Words for which each item or field of the value is looked at, even where nothing is asked of it."""
_CHARACTERS_A_STEP = 100
"""Of what is said of a fault: it holds the value, and often the schema too."""


def schema_errors(schema: Mapping[str, Any], value: Any, steps: int, most: int = 1) -> list[ValidationError]:
    """Return the first ``most`` faults of a value. Nothing that a schema refers to is fetched: the registry is empty.

    :param schema: one that is known to be a schema.
    :param steps: what the check may take; a step takes a few microseconds.
    :raises TooMuchWork: it would take more.
    """
    # Told to be of a draft, a schema would be handed over to the library's own validator, which counts nothing.
    plain = {word: said for word, said in schema.items() if word != "$schema"}
    before = _WORK.set(_Work(steps))
    try:
        return list(islice(_Counting(plain, registry=Registry()).iter_errors(value), most))
    finally:
        _WORK.reset(before)


@dataclass(slots=True)
class _Work:
    """What one check may still take."""

    left: int
    sizes: dict[int, int] = field(default_factory=dict)
    """Of lists in the schema that values are compared with, by their identity."""

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooMuchWork("Checking this value by its schema takes too many steps.")

    def size(self, value: Any) -> int:
        if (known := self.sizes.get(id(value))) is None:
            known = self.sizes[id(value)] = count_values(value)
        return known


_WORK: ContextVar[_Work] = ContextVar("work of a schema's check")


def count_values(value: Any) -> int:
    """Return how many values there are in a value, itself included."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return 1 + sum(map(count_values, inner))


def _cost(word: str, said: Any, value: Any, work: _Work) -> int:
    if word in ("enum", "const"):
        return work.size(said)
    if word == "uniqueItems":
        return _cost_of_unique(value)
    asked = len(said) if isinstance(said, (list, Mapping)) else 0
    if word not in _WALKS_VALUE or not isinstance(value, (list, Mapping)):
        return 1 + asked
    return 1 + len(value) * (asked if word == "patternProperties" else 1)


def _cost_of_unique(value: Any) -> int:
    """Return what comparing all items takes: texts or numbers are sorted, of all else each is compared with each."""
    if not isinstance(value, list):
        return 1
    is_plain = all(isinstance(item, str) for item in value) or all(type(item) in (int, float) for item in value)
    return 1 + (len(value) if is_plain else len(value) ** 2 // 4)


def _counting(word: str, check: _Check) -> _Check:
    def counted(validator: Any, said: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
        work = _WORK.get()
        work.spend(_cost(word, said, value, work))
        for error in check(validator, said, value, schema) or ():
            work.spend(len(error.message) // _CHARACTERS_A_STEP)
            yield error

    return counted


_Counting: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {word: _counting(word, check) for word, check in Draft202012Validator.VALIDATORS.items()},
)
