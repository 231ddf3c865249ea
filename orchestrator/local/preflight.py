"""What would keep a one-host system from starting, found before anything starts; one sentence each."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from orchestrator.config import GIB, Settings
from orchestrator.errors import ConfigurationError
from orchestrator.local.binaries import postgres_install, redis_binary
from orchestrator.local.ports import is_free

OLDEST_PYTHON = (3, 11)
LEAST_FREE_BYTES = GIB // 2


def problems(settings: Settings) -> list[str]:
    """Return every reason why the system can't start here, each with what to do."""
    return [*_python(), *_folder(settings.data_dir.absolute()), *_wheels(settings), *_ports(settings)]


def _python() -> Iterator[str]:
    if sys.version_info < OLDEST_PYTHON:
        yield f"Python {platform.python_version()} is too old; run it with Python 3.11 or newer."


def _folder(data_dir: Path) -> Iterator[str]:
    existing = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    if not existing.is_dir():
        yield f"{existing} is a file; set DATA_DIR to a folder."
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"The folder {existing} can't be written to; set DATA_DIR to one that can."
    elif shutil.disk_usage(existing).free < LEAST_FREE_BYTES:
        yield f"Less than 0.5 GiB is free at {existing}; free some space or set DATA_DIR to another disk."


def _wheels(settings: Settings) -> Iterator[str]:
    if not settings.database_url:
        try:
            postgres_install()
        except ConfigurationError as error:
            yield str(error)
    if not settings.redis_url:
        try:
            redis_binary()
        except ConfigurationError as error:
            yield str(error)


def _ports(settings: Settings) -> Iterator[str]:
    for variable, port in (("PORT", settings.port), ("FLOWER_PORT", settings.flower_port)):
        if not is_free(port, settings.host):
            yield (
                f"Port {port} of {settings.host} is in use; stop what listens there or set {variable} to another port."
            )
