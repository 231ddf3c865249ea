"""What the one-host command prints: log lines with a coloured prefix, and its own sentences."""

from __future__ import annotations

import os
import sys
from typing import TextIO

COLOURS = (36, 35, 32, 33, 34, 96, 95, 92)
WIDTH = 10


class Terminal:
    """Prints lines to standard output; colours only where a person looks and has not set ``NO_COLOR``.

    :param quiet: leave out the children's log lines, which are in the log files anyway.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._colourful = self._stream.isatty() and not os.environ.get("NO_COLOR")
        self._seen: dict[str, int] = {}

    def log_line(self, name: str, line: str) -> None:
        """Print one line that a child has logged."""
        if not self._quiet:
            colour = self._seen.setdefault(name, COLOURS[len(self._seen) % len(COLOURS)])
            prefix = f"{name:<{WIDTH}} |"
            self._print(f"\x1b[{colour}m{prefix}\x1b[0m {line}" if self._colourful else f"{prefix} {line}")

    def say(self, sentence: str) -> None:
        """Print a sentence of our own."""
        self._print(f"\x1b[1m{sentence}\x1b[0m" if self._colourful else sentence)

    def _print(self, text: str) -> None:
        try:
            print(text, file=self._stream, flush=True)
        except (BrokenPipeError, OSError):  # the terminal is gone; the system is not
            self._quiet = True
