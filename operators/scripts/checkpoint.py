"""A script's checkpoint folder: brought back before it starts, kept when it ends without success."""

from __future__ import annotations

import shutil
import signal
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import StoreUnavailable
from orchestrator.operator import OperatorFailure, TaskContext


def open_folder(context: TaskContext) -> Path:
    """Return the folder, with what an earlier attempt of this task left in it.

    :raises OperatorFailure: ``store_unavailable``: to begin anew because of that would waste what was saved.
    """
    folder = context.workdir / "checkpoint"
    folder.mkdir(exist_ok=True)
    try:
        saved = context.checkpoint_load()
    except StoreUnavailable as error:
        raise OperatorFailure("store_unavailable", str(error), retryable=True) from error
    if saved is not None:
        try:
            with tarfile.open(saved) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, OSError) as error:
            context.log(f"The checkpoint can't be read ({error}); starting without it.")
            shutil.rmtree(folder)
            folder.mkdir()
    return folder


def keep(context: TaskContext, folder: Path) -> None:
    """Save what is in the folder for the next attempt; how the script ended does not hang on it."""
    if not any(folder.iterdir()):
        return
    packed = context.workdir / "checkpoint.tar"
    try:
        with tarfile.open(packed, "w") as archive:
            for entry in sorted(folder.iterdir()):
                archive.add(entry, entry.name)
        context.checkpoint_save(packed)
    except (StoreUnavailable, OSError) as error:
        context.log(f"The checkpoint could not be saved: {error}.")


@contextmanager
def outliving_term() -> Iterator[None]:
    """Leave TERM to the script, which gets it as we do: its checkpoint is ours to save when it has ended."""
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers there alone
        yield
        return
    former = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
