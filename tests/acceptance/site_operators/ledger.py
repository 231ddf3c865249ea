"""A site's operator for the tests: notes its start and its end in a file, so that every execution can be counted."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.operator import Json, Operator, TaskContext


class Ledger(Operator):
    """Appends a line when it starts and one when it ends, and waits in between."""

    name = "ledger"
    summary = "Notes its start and end in a file of a data root."
    parameters_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["path"],
        "properties": {
            "path": {"type": "string", "description": "File to append to, in a data root."},
            "seconds": {"type": "number", "minimum": 0, "default": 0.1, "description": "How long the task takes."},
        },
    }
    outputs_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"fence": {"type": "string", "description": "The token of the attempt that succeeded."}},
    }

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        path = context.roots.resolve(parameters["path"], for_writing=True)

        def note(what: str) -> None:
            line = {
                "what": what,
                "task": context.task,
                "attempt": context.attempt_id,
                "fence": context.fence,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "at": time.time(),
            }
            with open(path, "a") as file:  # one short write in append mode is atomic on a local file system
                file.write(json.dumps(line) + "\n")

        note("start")
        time.sleep(float(parameters.get("seconds", 0.1)))
        note("end")
        return {"fence": context.fence}
