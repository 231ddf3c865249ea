"""What a person or another system gives to a task: checked against the task's own JSON schema, with pointers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry

from orchestrator.documents import escaped, json_bytes, unstorable
from orchestrator.errors import InvalidDefinition, Problem
from orchestrator.store.command_requests import MOST_OUTPUT_BYTES

_MOST_FAULTS = 50
_LONGEST = 500


def require_fit(schema: Mapping[str, Any] | None, given: Any, pointer: str) -> None:
    """Refuse what does not fit.

    :param schema: ``None``: the task says nothing of it, and any JSON will do.
    :param pointer: where it stands in the request.
    :raises InvalidDefinition: each fault with its pointer.
    """
    problems = list(unstorable(given, pointer))
    if not problems and json_bytes(given) > MOST_OUTPUT_BYTES:
        problems.append(Problem(pointer, f"This has more than {MOST_OUTPUT_BYTES} bytes as JSON; pass a URI instead."))
    if not problems and schema is not None and given is None and not _takes_null(schema):
        problems = [Problem(pointer, "Nothing was given; the task asks for something that fits its schema.")]
    elif not problems and schema is not None:
        problems = _faults(schema, given, pointer)
    if problems:
        raise InvalidDefinition(problems)


def _takes_null(schema: Mapping[str, Any]) -> bool:
    return bool(Draft202012Validator(dict(schema), registry=Registry()).is_valid(None))


def _faults(schema: Mapping[str, Any], given: Any, pointer: str) -> list[Problem]:
    # The registry is empty: nothing that a schema refers to is fetched.
    validator = Draft202012Validator(dict(schema), registry=Registry())
    found: list[Problem] = []
    for error in validator.iter_errors(given):
        place = "".join(f"/{escaped(part)}" for part in error.absolute_path)
        found.append(Problem(f"{pointer}{place}", f"{error.message[:_LONGEST].rstrip('.')}."))
        if len(found) == _MOST_FAULTS:
            break
    return found
