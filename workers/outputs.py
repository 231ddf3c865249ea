"""What an operator returns, as it may go into the outcome: JSON, small enough, and as the schemas promise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.artifacts.recorded import ARTIFACT, MISSING
from orchestrator.documents import MAX_NESTING, escaped, is_nested_too_deep
from orchestrator.errors import TooMuchWork
from orchestrator.operator import OperatorFailure
from workers.verdict import MAX_OUTPUT_BYTES, MAX_RECORDS_BYTES

_MOST_STEPS = 5_000_000
"""Of checking the outputs by a schema, some ten seconds: references that fork again and again would take days."""


def check_keeps(schema: Mapping[str, Any], outputs: Mapping[str, Any], what: str) -> None:
    """Check the outputs against a JSON Schema; one that refers to elsewhere is not fetched.

    :raises OperatorFailure: ``bad_outputs``, naming the pointer.
    """
    from orchestrator.counted_schema import schema_errors

    try:
        error = next(iter(schema_errors(schema, outputs, _MOST_STEPS)), None)
    except TooMuchWork as fault:
        message = f"The {what} can't be checked by the schema within {_MOST_STEPS:,} steps; leave less, or a file."
        raise OperatorFailure("bad_outputs", message) from fault
    except Exception as fault:  # a pattern that is none, a reference to elsewhere: the schema's, whatever it is
        raise OperatorFailure("bad_outputs", f"The schema of the {what} can't be applied: {fault}.") from fault
    if error is not None:
        pointer = "".join(f"/{escaped(part)}" for part in error.absolute_path)
        raise OperatorFailure("bad_outputs", f"The {what} break the schema at {pointer or '/'}: {error.message[:500]}")


def read_outputs(outputs: Mapping[str, Any]) -> Any:
    """Return the outputs as JSON values.

    :raises OperatorFailure: ``bad_outputs`` or ``outputs_too_large``.
    """
    advice = (
        "Keep what is larger by context.save_artifact (or context.artifacts; a script: a file in "
        "ORCHESTRATOR_OUTPUT_DIR), and put its uri into the outputs."
    )
    return _as_json(outputs, "outputs", MAX_OUTPUT_BYTES, advice)


def read_records(records: Sequence[Mapping[str, Any]]) -> Any:
    """Return what the attempt leaves to be written by ingest, as JSON values.

    :raises OperatorFailure: ``bad_outputs`` or ``outputs_too_large``.
    """
    return _as_json(list(records), "records", MAX_RECORDS_BYTES, "Register less, or keep fewer and larger artifacts.")


def artifact_records(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what a failed attempt left in the artifact store or missed there, as far as it can be told."""
    room = MAX_RECORDS_BYTES
    return [
        record
        for record in records
        if record.get("kind") in (ARTIFACT, MISSING) and (room := room - len(json.dumps(record)) - 2) > 0
    ]


def _as_json(value: Any, what: str, limit: int, advice: str) -> Any:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OperatorFailure("bad_outputs", f"The {what} are no JSON: {error}.") from error
    if len(text) > limit:
        raise OperatorFailure(
            "outputs_too_large", f"The {what} have {len(text):,} bytes as JSON; at most {limit:,} are kept. {advice}"
        )
    try:
        read = json.loads(text)
    except RecursionError as error:
        raise _too_deep(what) from error
    if is_nested_too_deep(read):
        raise _too_deep(what)
    return read


def _too_deep(what: str) -> OperatorFailure:
    return OperatorFailure(
        "bad_outputs",
        f"The {what} are nested more than {MAX_NESTING} deep; flatten them, or keep them as a file and put its uri "
        "into the outputs.",
    )
