"""What one attempt leaves on its host's disk while it lives: who runs it, its log, its result, its usage.

Files, not messages, carry these between the processes: a file outlives whoever wrote it, and nobody waits on it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

LONGEST_SCRATCH = 107 - len("/pymp-12345678/listener-12345678")
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def is_safe_id(attempt_id: object) -> bool:
    """Say whether this can be an attempt's id: hints are not authenticated, and the id names a folder here."""
    return isinstance(attempt_id, str) and _SAFE_ID.fullmatch(attempt_id) is not None


class AttemptFolder:
    """The folder ``attempts/<attempt>`` of a host."""

    def __init__(self, attempts: Path, attempt_id: str) -> None:
        if not is_safe_id(attempt_id):
            raise ValueError(f"{attempt_id!r} can't name an attempt's folder.")
        self.attempt_id = attempt_id
        self.path = attempts / attempt_id

    @property
    def work(self) -> Path:
        """The task's working directory; removed as soon as the tree is dead."""
        return self.path / "work"

    @property
    def scratch(self) -> Path:
        """The task's folder for temporary files (``TMPDIR``), which goes with its working directory."""
        return self.work / "tmp"

    @property
    def log(self) -> Path:
        """The task's stdout and stderr, capped (see ``log_pump``)."""
        return self.path / "log"

    @property
    def result(self) -> Path:
        """How the operator ended, written by the process that ran it."""
        return self.path / "result.json"

    def create(self) -> None:
        """Make the folder and the working directory, for this account alone."""
        self.work.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Replace ``<name>.json`` in one step."""
        temporary = self.path / f".{name}.{os.getpid()}"
        temporary.write_text(json.dumps(document, allow_nan=False))
        temporary.rename(self.path / f"{name}.json")

    def read(self, name: str) -> dict[str, Any]:
        """Return what ``<name>.json`` holds; empty when it is not there (yet)."""
        try:
            document = json.loads((self.path / f"{name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def signs(self) -> tuple[object, ...]:
        """Return what changes whenever the task reports progress or saves a checkpoint."""
        return tuple(self._version(name) for name in ("progress", "checkpoint"))

    def _version(self, name: str) -> tuple[int, int] | None:
        try:
            found = (self.path / f"{name}.json").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def make_scratch(self) -> Path:
        """Make the folder for temporary files; return a path of it that serves as long as the calling process lives.

        ``multiprocessing`` binds sockets below ``TMPDIR``, and the kernel takes 107 bytes; ``DATA_DIR`` may lie deep.
        Our descriptor then names the folder, and leaves nothing to be cleared up, as a link in ``/tmp`` would.
        """
        self.scratch.mkdir(exist_ok=True, mode=0o700)
        if len(os.fsencode(self.scratch)) <= LONGEST_SCRATCH:
            return self.scratch
        kept = os.open(self.scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return Path(f"/proc/{os.getpid()}/fd/{kept}")

    def remove_work(self) -> None:
        """Remove the working directory."""
        import shutil  # brings the compression libraries, which the fork server does without

        shutil.rmtree(self.work, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything."""
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)
