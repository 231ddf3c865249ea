"""One running system per data folder: a lock that the kernel lets go of when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import Conflict


@contextmanager
def folder_lock(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for the length of the block.

    :raises Conflict: another system runs on it; names its process.
    """
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    with open(descriptor, "r+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"The system in {data_dir} already runs (process {file.read().strip() or 'unknown'}): stop it with "
                "Ctrl-C in its terminal, or set DATA_DIR, PORT and FLOWER_PORT to start another."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
