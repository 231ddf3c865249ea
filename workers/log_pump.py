"""Moves a task's output from its pipe into a file that can't grow without end: a head, and the last of the rest."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

HEAD_BYTES = 8 * 2**20
TAIL_BYTES = 8 * 2**20
_READ_BYTES = 64 * 1024


class LogPump:
    """Writes the first 8 MiB as they come; of what follows, the last 8 MiB when the attempt has ended.

    :param source: the pipe's reading end; made non-blocking here.
    """

    def __init__(self, source: int, log: Path, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> None:
        os.set_blocking(source, False)
        self.source = source
        self._file = open(log, "ab", buffering=0)  # noqa: SIM115 (lives as long as the attempt)
        self._head_left = head
        self._tail_limit = tail
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._dropped = 0
        self.moved = 0
        """Bytes that have come from the task: what we note ourselves is none of its doing."""

    def pump(self, rounds: int = 16) -> bool:
        """Move what is there, at most ``rounds`` × 64 KiB; returns whether the pipe has ended."""
        for _ in range(rounds):
            try:
                piece = os.read(self.source, _READ_BYTES)
            except BlockingIOError:
                return False
            if not piece:
                return True
            self.moved += len(piece)
            self._take(piece)
        return False

    def note(self, sentence: str) -> None:
        """Add a line of our own."""
        self._take(f"[orchestrator] {sentence}\n".encode())

    def close(self) -> None:
        """Write the tail, with a line that says what was left out, and close both ends."""
        self.pump(rounds=4096)
        if self._dropped:
            self._write(f"\n[orchestrator] {self._dropped} bytes of output were left out here.\n".encode())
        for piece in self._tail:
            self._write(piece)
        self._file.close()
        os.close(self.source)

    def _take(self, piece: bytes) -> None:
        head, rest = piece[: self._head_left], piece[self._head_left :]
        if head:
            self._head_left -= len(head)
            self._write(head)
        if rest:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
            while self._tail_bytes > self._tail_limit:
                oldest = self._tail.popleft()
                self._tail_bytes -= len(oldest)
                self._dropped += len(oldest)

    def _write(self, piece: bytes) -> None:
        try:
            written = self._file.write(piece) or 0
        except OSError:  # the disk is full: the task's fate must not hang on its log
            written = 0
        self._dropped += len(piece) - written
