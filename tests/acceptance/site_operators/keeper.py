"""A site's operator for the tests: keeps a text as an artifact, for as long as its definition says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.operator import Json, Operator, TaskContext


class Keeper(Operator):
    """Saves a text under its content and tells where it lies."""

    name = "keeper"
    summary = "Keeps a text in the artifact store."
    parameters_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["text"],
        "properties": {
            "text": {"type": "string", "description": "What is kept."},
            "retention_days": {"type": "number", "description": "How long; by the site's rule when left out."},
        },
    }
    outputs_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"kept": {"type": "object", "description": "The artifact."}},
    }

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        kept = context.save_artifact(
            parameters["text"].encode(), kind="report", retention_days=parameters.get("retention_days")
        )
        return {"kept": kept}
