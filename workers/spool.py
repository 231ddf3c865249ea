"""Outcomes on disk: written and fsynced before anybody is told, kept until the scheduler has answered (DESIGN §4).

One file per attempt, ``<attempt>.json``, holds an outcome that waits for its answer, byte for byte as it goes on the
wire. ``committed`` removes it; ``fenced`` and ``unknown`` rename it to ``<attempt>.json.<verdict>``, which is kept 24 h
for inspection. Several processes of the host share the folder: the first outcome of an attempt stands, later ones
are dropped.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import UnreadableMessage
from orchestrator.records import Outcome
from orchestrator.wire.messages import outcome_body, outcome_report

KEPT_SECONDS = 24 * 3600.0
KEPT_VERDICTS = ("fenced", "unknown")


@dataclass(frozen=True, slots=True)
class Spooled:
    """One outcome that waits for its answer."""

    attempt_id: str
    token: str
    worker_id: str
    """The incarnation that *ran* it, which may not be the one that reports it."""
    outcome: Outcome
    body: bytes = field(repr=False)


class Spool:
    """The outcomes of one host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, attempt_id: str, token: str, worker_id: str, outcome: Outcome) -> bool:
        """Write an outcome durably; returns ``False`` when the attempt already has one, which then stands.

        :raises TooLarge: the outcome is larger than the wire takes.
        :raises UnreadableMessage: the outcome is no JSON.
        """
        body = outcome_body(attempt_id, token, worker_id, outcome)
        if any(self._answered(attempt_id, verdict).exists() for verdict in KEPT_VERDICTS):
            return False
        target = self._file(attempt_id)
        # Several threads may report the same attempt at once: that it never started, and that it could not.
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with open(temporary, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, target)  # fails when the name is taken, unlike a rename
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        self._sync_folder()
        return True

    def read(self, attempt_id: str) -> Spooled | None:
        """Return the waiting outcome of the attempt, if there is one."""
        try:
            body = self._file(attempt_id).read_bytes()
            found, token, worker_id, outcome = outcome_report(body)
        except FileNotFoundError:
            return None
        except UnreadableMessage:
            # A disk that lied about fsync. The scheduler will find the attempt lost; keep the file to look at.
            self._rename(attempt_id, "unknown")
            return None
        return Spooled(found, token, worker_id, outcome, body)

    def has(self, attempt_id: str) -> bool:
        """Say whether an outcome of the attempt waits here."""
        return self._file(attempt_id).exists()

    def waiting(self) -> Iterator[Spooled]:
        """Yield all outcomes that wait, of every incarnation of this host."""
        for file in sorted(self.folder.glob("*.json")):
            if not file.name.startswith(".") and (found := self.read(file.stem)) is not None:
                yield found

    def answer(self, attempt_id: str, verdict: str) -> None:
        """Note the scheduler's answer: ``committed``, ``fenced`` or ``unknown``."""
        if verdict in KEPT_VERDICTS:
            self._rename(attempt_id, verdict)
        else:
            self._file(attempt_id).unlink(missing_ok=True)

    def forget_old(self, now: float | None = None) -> None:
        """Remove what was answered more than 24 h ago, and temporary files of processes that were killed."""
        limit = (time.time() if now is None else now) - KEPT_SECONDS
        for file in self.folder.iterdir():
            if file.name.startswith(".") or file.suffix.lstrip(".") in KEPT_VERDICTS:
                try:
                    if file.stat().st_mtime < limit:
                        file.unlink()
                except FileNotFoundError:
                    pass

    def _rename(self, attempt_id: str, verdict: str) -> None:
        try:
            source = self._file(attempt_id)
            os.utime(source)
            source.rename(self._answered(attempt_id, verdict))
        except FileNotFoundError:
            pass

    def _file(self, attempt_id: str) -> Path:
        return self.folder / f"{attempt_id}.json"

    def _answered(self, attempt_id: str, verdict: str) -> Path:
        return self.folder / f"{attempt_id}.json.{verdict}"

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
