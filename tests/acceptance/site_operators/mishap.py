"""A site's operator for the tests: raises what it is told, kills what runs it, or takes long to be set up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.operator import Json, Operator, TaskContext


class ShopClosed(Exception):
    """An error of the site's own."""


_RAISED: Mapping[str, type[Exception]] = {"ShopClosed": ShopClosed, "ValueError": ValueError}


class Mishap(Operator):
    """Fails as its parameters say; with none it succeeds at once."""

    name = "mishap"
    summary = "Fails in the way its parameters say."
    parameters_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "raises": {"enum": [*_RAISED], "description": "Class of the exception that every attempt raises."},
            "message": {"type": "string", "default": "", "description": "Of the exception."},
            "kills_its_supervisor": {"type": "boolean", "default": False, "description": "Every attempt does."},
            "setup_seconds": {"type": "number", "default": 0, "description": "How long the check of these takes."},
        },
    }
    outputs_schema: ClassVar[Mapping[str, Any]] = {"type": "object", "additionalProperties": False}

    @classmethod
    def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
        if "ORCHESTRATOR_ATTEMPT" in os.environ:  # a worker checks them again, as part of the set-up of an attempt
            time.sleep(float(parameters.get("setup_seconds", 0)))
        return []

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        if parameters.get("kills_its_supervisor"):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        if kind := parameters.get("raises"):
            raise _RAISED[kind](parameters.get("message", ""))
        return {}
