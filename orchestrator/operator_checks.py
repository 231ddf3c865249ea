"""Asks an operator about a task: are its parameters right, and what does it then take, make and connect to?

A site's own operator may break its promises. What it raises, or answers in place of what was asked, becomes a problem
of the task: it is no fault of ours, and no reason to fail the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from orchestrator.documents import did_you_mean, escaped
from orchestrator.errors import Problem
from orchestrator.operator import Input, Operator

_LONGEST = 300
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an operator says of a task with these parameters."""

    produces: frozenset[str] = frozenset()
    inputs: tuple[Input, ...] = ()
    connections: tuple[str, ...] = ()


def declaration(
    operator: type[Operator], parameters: Mapping[str, Any], pointer: str
) -> tuple[Declaration, list[Problem]]:
    """Return what the operator says, and a problem for each question that it failed to answer.

    :param pointer: where the parameters stand in the document.
    """
    problems: list[Problem] = []

    def asked(question: str, kind: type[_Item]) -> list[_Item]:
        try:
            answer = getattr(operator, question)(parameters)
            found = list(answer)
        except Exception as error:  # noqa: BLE001 - see above
            problems.append(_failed(operator, f"in {question} with", pointer, error))
            return []
        # A text alone would count as its letters, which nobody means.
        if isinstance(answer, str) or not all(isinstance(item, kind) for item in found):
            message = f"The operator {operator.name!r} answered {question} with {_short(answer)}"
            problems.append(Problem(pointer, f"{message} in place of several {kind.__name__}; mend the operator."))
            return []
        return found

    produces = asked("produces", str)
    inputs = asked("active_inputs", Input)
    connections = asked("connection_names", str)
    return Declaration(frozenset(produces), tuple(inputs), tuple(sorted(set(connections)))), problems


@lru_cache(maxsize=512)
def _validator(operator: type[Operator]) -> Draft202012Validator:
    return Draft202012Validator(dict(operator.parameters_schema))


def parameter_faults(operator: type[Operator], parameters: Mapping[str, Any], pointer: str) -> list[Problem]:
    """Return all that is wrong with the parameters.

    :param pointer: where they stand in the document.
    """
    try:
        errors = _validator(operator).iter_errors(dict(parameters))
        if found := [problem for error in errors for problem in _problems(error, pointer)]:
            return found
        return [Problem(f"{pointer}{inner}", str(sentence)) for inner, sentence in operator.problems(parameters)]
    except Exception as error:  # noqa: BLE001 - see above
        return [_failed(operator, "to check", pointer, error)]


def _failed(operator: type[Operator], what: str, pointer: str, error: Exception) -> Problem:
    return Problem(pointer, f"The operator {operator.name!r} failed {what} these parameters: {_short(error)}.")


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - even this is the operator's own code
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


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
