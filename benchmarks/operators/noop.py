"""An operator that does nothing, so that only the orchestrator's own cost is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.operator import Json, Operator, TaskContext


class Noop(Operator):
    """Returns at once."""

    name = "noop"
    summary = "Does nothing, for benchmarks."
    parameters_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    }
    outputs_schema: ClassVar[Mapping[str, Any]] = {"type": "object", "additionalProperties": False, "properties": {}}

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        return {}
