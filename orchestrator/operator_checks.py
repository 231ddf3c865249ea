"""Checks a task's parameters against its operator: the JSON Schema first, then the operator's own rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from orchestrator.documents import did_you_mean, escaped
from orchestrator.errors import Problem
from orchestrator.operator import Operator

_LONGEST = 300


@lru_cache(maxsize=512)
def _validator(operator: type[Operator]) -> Draft202012Validator:
    return Draft202012Validator(dict(operator.parameters_schema))


def parameter_faults(operator: type[Operator], parameters: Mapping[str, Any], pointer: str) -> list[Problem]:
    """Return all that is wrong with the parameters.

    :param pointer: where they stand in the document.
    """
    errors = _validator(operator).iter_errors(dict(parameters))
    if found := [problem for error in errors for problem in _problems(error, pointer)]:
        return found
    try:
        return [Problem(f"{pointer}{inner}", sentence) for inner, sentence in operator.problems(parameters)]
    except Exception as error:  # noqa: BLE001 - a site's own operator may break its promise; that is no fault of ours
        return [Problem(pointer, f"The operator {operator.name!r} failed to check these parameters: {error!r}.")]


def _problems(error: ValidationError, pointer: str) -> Iterator[Problem]:
    here = pointer + "".join(f"/{escaped(part)}" for part in error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {}) if isinstance(error.schema, Mapping) else {}
        for name in error.instance:
            if name not in known:
                message = f"There is no parameter {str(name)[:100]!r} here.{did_you_mean(str(name), known)}"
                yield Problem(f"{here}/{escaped(name)}", message)
    elif error.validator == "required" and isinstance(error.instance, Mapping):
        # One error comes for each missing name, and names it only in its message.
        required: Any = error.validator_value
        for name in required:
            if name not in error.instance and error.message.startswith(repr(name)):
                yield Problem(f"{here}/{escaped(name)}", f"{name!r} is missing.")
    elif error.context:
        # Of several alternatives, the one that got furthest into the value is what was meant.
        furthest = max(error.context, key=lambda inner: len(inner.absolute_path))
        if len(furthest.absolute_path) > len(error.absolute_path):
            yield from _problems(furthest, pointer)
        else:
            ways = list(dict.fromkeys(inner.message for inner in error.context))
            yield Problem(here, _sentence("None of the alternatives fits: " + "; ".join(ways[:4])))
    else:
        yield Problem(here, _sentence(error.message))


def _sentence(message: str) -> str:
    short = message if len(message) <= _LONGEST else f"{message[:_LONGEST]} …"
    return short if short.endswith((".", "…")) else f"{short}."
