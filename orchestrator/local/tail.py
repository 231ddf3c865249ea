"""Follows the log files of the children: prints their new lines with a prefix, and keeps the files bounded.

The children write to files, not to pipes of ours: a terminal that stands still can't stop them, and what they said
last is there when we are killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta")
LARGEST_BYTES = 20 * 2**20


class Tail:
    """One log file, followed from its present end."""

    def __init__(self, name: str, file: Path, emit: Callable[[str, str], None]) -> None:
        self._name = name
        self._file = file
        self._emit = emit
        self._offset = file.stat().st_size if file.exists() else 0
        self._rest = b""

    def poll(self) -> None:
        """Emit the complete lines written since the last call, then shorten the file if it has grown too large."""
        try:
            with open(self._file, "rb") as file:
                file.seek(self._offset)
                written = file.read()
        except FileNotFoundError:
            return
        self._offset += len(written)
        *lines, self._rest = (self._rest + written).split(b"\n")
        for line in lines:
            self._emit(self._name, line.decode(errors="replace").rstrip("\r"))
        if self._offset > LARGEST_BYTES:
            self._rotate()

    def _rotate(self) -> None:
        """Copy the file aside and truncate it; children append, so they go on at its new start."""
        shutil.copyfile(self._file, self._file.with_suffix(".log.1"))
        with open(self._file, "r+b") as file:
            file.truncate(0)
        self._offset = 0
