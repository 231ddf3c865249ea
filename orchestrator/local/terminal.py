"""What the one-host command prints: the processes' log lines that matter, with a prefix, and its own sentences."""

from __future__ import annotations

import logging
import os
import sys
from typing import ClassVar, TextIO

from orchestrator.local.log_lines import for_people, level_of

COLOURS = (36, 35, 32, 33, 34, 96, 95, 92)
WIDTH = 10


class Terminal:
    """Prints lines to standard output; colours only where a person looks and has not set ``NO_COLOR``.

    :param least: the level from which on the processes' log lines are shown; all of them are in the log files.
    """

    ALL: ClassVar[int] = logging.NOTSET
    NONE: ClassVar[int] = logging.CRITICAL + 1

    def __init__(self, *, least: int = logging.WARNING, stream: TextIO | None = None) -> None:
        self.least = least
        self._stream = stream or sys.stdout
        self._colourful = self._stream.isatty() and not os.environ.get("NO_COLOR")
        self._colours: dict[str, int] = {}
        self._levels: dict[str, int] = {}

    def log_line(self, name: str, line: str) -> None:
        """Print one line that a process has logged, if it is grave enough."""
        # A line without a level belongs to the one before it, as those of a traceback do.
        self._levels[name] = level = level_of(line) or self._levels.get(name, logging.INFO)
        if level < self.least:
            return
        text = line if self.least == self.ALL else for_people(line)
        colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
        prefix = f"{name:<{WIDTH}} |"
        self._print(f"\x1b[{colour}m{prefix}\x1b[0m {text}" if self._colourful else f"{prefix} {text}")

    def say(self, sentence: str) -> None:
        """Print a sentence of our own."""
        self._print(f"\x1b[1m{sentence}\x1b[0m" if self._colourful else sentence)

    def _print(self, text: str) -> None:
        try:
            print(text, file=self._stream, flush=True)
        except (BrokenPipeError, OSError):  # the terminal is gone; the system is not
            self.least = self.NONE
