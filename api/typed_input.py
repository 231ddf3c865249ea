"""What a person or another system gives to a task: checked against the task's own JSON schema, with pointers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.counted_schema import schema_errors
from orchestrator.documents import escaped, json_bytes, unstorable
from orchestrator.errors import InvalidDefinition, Problem, TooMuchWork
from orchestrator.store.command_requests import MOST_OUTPUT_BYTES

_MOST_FAULTS = 50
_LONGEST = 500
_STEPS = 100_000
"""A fifth of a second, in which this process serves nobody else."""


def require_fit(schema: Mapping[str, Any] | None, given: Any, pointer: str) -> None:
    """Refuse what does not fit. No transaction is to be open meanwhile: this may take a while.

    :param schema: ``None``: the task says nothing of it, and any JSON will do.
    :param pointer: where it stands in the request.
    :raises InvalidDefinition: each fault with its pointer.
    """
    problems = list(unstorable(given, pointer))
    if not problems and json_bytes(given) > MOST_OUTPUT_BYTES:
        problems.append(Problem(pointer, f"This has more than {MOST_OUTPUT_BYTES} bytes as JSON; pass a URI instead."))
    if not problems and schema is not None:
        problems = _faults(schema, given, pointer)
    if problems:
        raise InvalidDefinition(problems)


def _faults(schema: Mapping[str, Any], given: Any, pointer: str) -> list[Problem]:
    try:
        errors = schema_errors(schema, given, _STEPS, _MOST_FAULTS)
    except TooMuchWork:
        message = f"This can't be checked by the task's schema within {_STEPS:,} steps; give less, or pass a URI."
        return [Problem(pointer, message)]
    if errors and given is None:
        return [Problem(pointer, "Nothing was given; the task asks for something that fits its schema.")]
    found = []
    for error in errors:
        place = "".join(f"/{escaped(part)}" for part in error.absolute_path)
        found.append(Problem(f"{pointer}{place}", f"{error.message[:_LONGEST].rstrip('.')}."))
    return found
