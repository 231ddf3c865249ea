"""Sets the wall clock of single processes wrong while they run (libfaketime); the monotonic clock is left alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.local.child import ProcessSpec

LIBRARIES = (
    "/usr/lib/*/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/*MT*",
)


def clock_variables(folder: Path, name: str) -> Mapping[str, str]:
    """Return the environment variables that put the clock of a process into our hands; it is right at first.

    Where the library is missing the test is skipped; in CI it fails, for a skipped suite proves nothing.

    :param folder: takes the file that says how wrong the clock is.
    """
    file = _file(folder, name)
    file.write_text("+0\n")
    file.chmod(0o644)  # PostgreSQL reads it too, under another account
    return {
        "LD_PRELOAD": str(_library()),
        # Timers, leases and waits are to go on as they would: only what the time of day is, is wrong.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
    }


def shift_clock(folder: Path, name: str, seconds: float) -> None:
    """Have the clock of a running process be wrong by so many seconds from now on; 0 sets it right."""
    file = _file(folder, name)
    draft = file.with_suffix(".new")
    draft.write_text(f"{seconds:+.0f}\n")
    draft.chmod(0o644)
    draft.replace(file)


def with_clock(spec: ProcessSpec, variables: Mapping[str, str]) -> ProcessSpec:
    """Return how a process is run with these variables.

    They are set by the last program before the process's own: the library makes a semaphore at its first start in a
    process, which another account (PostgreSQL's, under root) could not open.
    """
    words = (f"{name}={value}" for name, value in variables.items())
    return replace(spec, command=("/usr/bin/env", *words, *spec.command)) if variables else spec


def forget_clocks(pids: Iterable[int]) -> None:
    """Remove what the library leaves behind for processes that were killed."""
    for pid in pids:
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            Path("/dev/shm", name).unlink(missing_ok=True)


def _file(folder: Path, name: str) -> Path:
    return folder / f"clock-{name}"


def _library() -> Path:
    for pattern in LIBRARIES:
        if found := sorted(Path("/").glob(pattern.lstrip("/"))):
            return found[0]
    message = "libfaketime is not installed; on Debian and Ubuntu: apt install faketime"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
