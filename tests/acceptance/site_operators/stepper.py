"""A site's operator for the tests: fails, hangs, then succeeds, and tells what its earlier tries have saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.operator import Json, Operator, OperatorFailure, TaskContext


class Stepper(Operator):
    """Each try adds a line to its checkpoint and one to its count."""

    name = "stepper"
    summary = "Counts its tries by what it finds saved."
    parameters_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "hangs": {"type": "boolean", "default": False, "description": "Whether the second try runs until TERM."}
        },
    }
    outputs_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "tries": {"type": "integer", "description": "By its state."},
            "lines": {"type": "array", "items": {"type": "string"}, "description": "Of its checkpoint."},
        },
    }

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        tries = context.state_get("tries", 0) + 1
        context.state_set("tries", tries)
        file = context.checkpoint_folder() / "lines"
        with file.open("a") as lines:
            lines.write(f"try {tries}\n")
        if tries == 1:
            raise OperatorFailure("first_try", "It fails at its first try.", retryable=True)
        if tries == 2 and parameters.get("hangs"):
            context.log("hanging")
            time.sleep(60.0)
        return {"tries": tries, "lines": file.read_text().splitlines()}
