"""What the tasks themselves noted of what really ran, and what users were promised: the judges of the audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a task's ledger; ``at`` is of the machine's monotonic clock."""

    what: str
    """``start``, ``end``, ``term`` (TERM came), ``saved`` (its checkpoint) or ``beat`` (it still lives)."""
    run: str
    task: str
    attempt: str
    fence: str
    host: str
    pid: int
    at: float
    wall: float = 0.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A run that the API said 2xx to."""

    run_id: str
    idempotency_key: str
    at: float
    """Of the monotonic clock."""


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """A cancel that the API said 2xx to."""

    run_id: str
    at: float
    """Of the monotonic clock."""
    grace: float
    """Seconds between TERM and KILL of its tasks."""
    is_repeat: bool = False
    """The answer named no command, for the run was being cancelled already."""


def read_ledger(*paths: Path) -> tuple[Line, ...]:
    """Return the lines of these files in the order of time; a file that is not there holds none.

    :raises ValueError: a line in the middle is no line of a ledger. Only the last may be torn, by a machine that died.
    """
    lines = [line for path in paths if path.exists() for line in _lines(path)]
    return tuple(sorted(lines, key=lambda line: line.at))


def _lines(path: Path) -> Iterator[Line]:
    texts = path.read_text(errors="replace").splitlines(keepends=True)
    for number, text in enumerate(texts, start=1):
        try:
            yield Line(**json.loads(text))
        except (ValueError, TypeError) as error:
            if number == len(texts) and not text.endswith("\n"):
                return
            raise ValueError(f"Line {number} of {path} is no line of a ledger: {text[:200]!r}") from error
