"""The Python environment of this worker as one digest: equal tasks are equal only where they would run alike."""

from __future__ import annotations

import hashlib
import platform
import sys
from functools import cache
from importlib.metadata import distributions

OUR_OWN = "pipeline-orchestrator"
"""A release of ours changes nothing that a task does: operators have versions of their own."""


@cache
def environment_digest() -> str:
    """Return a digest of the interpreter and of the packages that can be imported, with their versions."""
    found = {
        (_normal(str(name)), str(package.version))
        for package in distributions()
        if (name := package.metadata["Name"]) and _normal(str(name)) != OUR_OWN
    }
    lines = [f"{sys.implementation.name} {platform.python_version()} {platform.machine()}"]
    lines += [f"{name}=={version}" for name, version in sorted(found)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
