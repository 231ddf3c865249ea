"""Takes memory in its own process and holds it for a while."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.operator import Json, Operator, TaskContext

STEP = 16 * 2**20


class Allocate(Operator):
    """Takes memory step by step, as a growing data set would."""

    name = "allocate"
    summary = "Takes memory and holds it."
    parameters_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["gb"],
        "properties": {
            "gb": {"type": "number", "minimum": 0, "description": "How much it takes, in GiB."},
            "seconds": {"type": "number", "minimum": 0, "default": 0, "description": "How long it keeps it."},
        },
    }

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        pieces = [b"\1" * STEP for _ in range(int(parameters["gb"] * 2**30 / STEP))]
        time.sleep(float(parameters.get("seconds", 0)))
        return {"bytes": sum(map(len, pieces))}
