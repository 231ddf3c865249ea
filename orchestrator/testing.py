"""What a site needs to test its own operators: a context on a temporary folder, and runs checked by the schemas."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from orchestrator.artifacts import LocalArtifacts
from orchestrator.operator import Json, Operator, TaskContext
from orchestrator.outbound import OutboundClient
from orchestrator.paths import DataRoots

MAX_OUTPUT_BYTES = 256 * 1024


def make_context(tmp_path: Path, **overrides: Any) -> TaskContext:
    """Return a context as the runner would build it, on folders inside ``tmp_path``.

    The data root ``data``, the scripts root and the work directory are ``tmp_path/data``, ``tmp_path/scripts`` and
    ``tmp_path/work``. ``overrides`` are fields of :class:`~orchestrator.operator.TaskContext`.
    """
    folders = {name: tmp_path / name for name in ("data", "scripts", "work", "artifacts")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {
        "tenant_id": "tenant",
        "run_id": "run",
        "pipeline": "pipeline",
        "task": "task",
        "attempt_id": secrets.token_hex(8),
        "attempt_number": 1,
        "fence": "fence",
        "workdir": folders["work"],
        "artifacts": LocalArtifacts(folders["artifacts"], scope="local:test"),
        "http": OutboundClient(),
        "roots": DataRoots({"data": folders["data"]}, folders["scripts"]),
        "run_parameters": {},
        "upstream_outputs": {},
        "scripts_root": folders["scripts"],
        "memory_bytes": 2**30,
    }
    unknown = set(overrides) - {field.name for field in dataclass_fields(TaskContext) if field.init}
    if unknown:
        raise TypeError(f"A task context has no {', '.join(sorted(unknown))}.")
    return TaskContext(**{**fields, **overrides})


def check_parameters(operator: type[Operator], parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
    """Return all that is wrong with the parameters, as ``(pointer, sentence)``; what ``validate`` would say."""
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(dict(operator.parameters_schema)).iter_errors(dict(parameters))
    found = [("".join(f"/{part}" for part in error.absolute_path), error.message) for error in errors]
    return found or operator.problems(parameters)


def run_operator(operator: type[Operator], context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
    """Run the operator as a worker would: parameters checked before, outputs after.

    :raises AssertionError: the parameters or the outputs break the operator's own schemas, or the outputs are too
        large or no JSON.
    """
    from jsonschema import Draft202012Validator

    problems = check_parameters(operator, parameters)
    assert not problems, f"{operator.name} refuses these parameters: {problems}"
    outputs = operator().run(context, parameters)
    text = json.dumps(outputs, allow_nan=False)
    assert len(text) <= MAX_OUTPUT_BYTES, f"{operator.name} returned {len(text)} bytes of outputs"
    Draft202012Validator(dict(operator.outputs_schema)).validate(json.loads(text))
    missing = [kind for kind in operator.produces(parameters) if "uri" not in outputs.get(kind, {})]
    assert not missing, f"{operator.name} promises {missing} and did not return them"
    context.checkpoint_delete()
    return outputs
