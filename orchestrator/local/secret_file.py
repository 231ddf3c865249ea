"""Files that only their owner can read, written so that they are never there half or readable."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_secret(file: Path, text: str) -> None:
    """Write ``text`` to ``file`` with mode 0600, atomically."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)


def kept_secret(file: Path) -> str:
    """Return the secret in ``file``, made on the first call: 32 random bytes in URL-safe characters."""
    if not file.exists():
        write_secret(file, secrets.token_urlsafe(32) + "\n")
    return file.read_text(encoding="utf-8").strip()
