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
from orchestrator.expressions.templates import holds_template, whole_path
from orchestrator.lasting import maker_of
from orchestrator.operator import Input, Operator
from orchestrator.quick_checks import FitsBeside, quick_check

_LONGEST = 300
_NONE: frozenset[str] = frozenset()
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an operator says of a task with these parameters."""

    produces: frozenset[str] = frozenset()
    inputs: tuple[Input, ...] = ()
    connections: tuple[str, ...] = ()


_declaration = maker_of(Declaration)


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
    problems += [
        Problem(pointer, f"The connection {name!r} comes from a template, and what a task connects to is known before.")
        for name in connections
        if holds_template(name)
    ]
    return _declaration(frozenset(produces), tuple(inputs), tuple(sorted(set(connections)))), problems


@lru_cache(maxsize=512)
def _validator(operator: type[Operator]) -> Draft202012Validator:
    return Draft202012Validator(dict(operator.parameters_schema))


@lru_cache(maxsize=512)
def _quick(operator: type[Operator]) -> FitsBeside | None:
    return quick_check(operator.parameters_schema)


def verbatim_parameters(operator: type[Operator]) -> frozenset[str]:
    """Return the parameters in which ``{{`` means nothing; an operator that answers nonsense has none."""
    try:
        return frozenset(name for name in operator.verbatim if isinstance(name, str))
    except Exception:  # noqa: BLE001 - see above
        return frozenset()


def inputs_named(operator: type[Operator]) -> frozenset[str]:
    """Return the parameters under which a run may bring what the operator takes, in whatever way it is used."""
    try:
        return frozenset(wanted.parameter for wanted in operator.inputs)
    except Exception:  # noqa: BLE001 - see above
        return frozenset()


def parameter_faults(
    operator: type[Operator], parameters: Mapping[str, Any], pointer: str, *, filled: bool = False
) -> list[Problem]:
    """Return all that is wrong with the parameters, as far as it can be known before templates are filled in.

    What a template stands for is checked by the worker, once it is known. What an operator says beyond its schema is
    not asked where a template is a whole parameter: the operator would take it for the value.

    :param pointer: where they stand in the document.
    :param filled: the templates are filled in; what still looks like one is a text like any other.
    """
    open_ = frozenset() if filled else _templated(operator, parameters)
    try:
        fits = _quick(operator)
        # Whatever is wrong with a text that is one template is open.
        if fits is None or not fits(parameters, [name for name in open_ if whole_path(parameters[name]) is not None]):
            errors = _validator(operator).iter_errors(dict(parameters))
            kept = (error for error in errors if not (open_ and _is_undecided(error, open_)))
            if found := [problem for error in kept for problem in _problems(error, pointer)]:
                return found
        if any(isinstance(parameters[name], str) for name in open_):
            return []
        return [
            Problem(f"{pointer}{inner}", str(sentence))
            for inner, sentence in operator.problems(parameters)
            if inner.split("/")[1:2] not in [[escaped(name)] for name in open_]
        ]
    except Exception as error:  # noqa: BLE001 - see above
        # A template where it expects a number may well be the cause; then the worker asks again.
        return [] if open_ else [_failed(operator, "to check", pointer, error)]


def _templated(operator: type[Operator], parameters: Mapping[str, Any]) -> frozenset[str]:
    found = [name for name, value in parameters.items() if holds_template(value)]
    return frozenset(found).difference(verbatim_parameters(operator)) if found else _NONE


_DECIDED = frozenset({"required", "additionalProperties", "minProperties", "maxProperties", "minItems", "maxItems"})
"""What can be said of an object or a list whatever its templates become."""


def _is_undecided(error: ValidationError, open_: frozenset[str]) -> bool:
    """Say whether the error may be gone when the templates are filled in.

    :param open_: the parameters that hold templates.
    """
    if not error.absolute_path:
        return error.validator not in _DECIDED and error.validator != "type"
    if error.absolute_path[0] not in open_ or not holds_template(error.instance):
        return False
    if isinstance(error.instance, str):
        # Inside a longer text a template becomes text, so that it is a text is known.
        return whole_path(error.instance) is not None or error.validator != "type"
    return error.validator not in _DECIDED and error.validator != "type"


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
