"""A script's checkpoint folder: brought back before it starts, kept when it ends without success."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.checkpoints import SAVE_MARK
from orchestrator.errors import StoreUnavailable
from orchestrator.operator import OperatorFailure, TaskContext


def open_folder(context: TaskContext) -> Path:
    """Return the folder, with what an earlier attempt of this task left in it.

    :raises OperatorFailure: ``store_unavailable``: to begin anew because of that would waste what was saved.
    """
    try:
        return context.checkpoint_folder()
    except StoreUnavailable as error:
        raise OperatorFailure("store_unavailable", str(error), retryable=True) from error


def keep(context: TaskContext) -> None:
    """Save what is in the folder for the next attempt; how the script ended does not hang on it."""
    try:
        context.checkpoint_keep()
    except (StoreUnavailable, OSError) as error:
        context.log(f"The checkpoint could not be saved: {error}.")


def save_if_asked(context: TaskContext, folder: Path) -> None:
    """Save the folder while the script runs, when it asks for it; the file by which it asks is gone afterwards."""
    mark = folder / SAVE_MARK
    if not mark.exists():
        return
    try:
        context.checkpoint_save()
    except (StoreUnavailable, OSError) as error:  # the mark stays, so that it is tried again
        context.log(f"The checkpoint could not be saved: {error}.")
        return
    mark.unlink(missing_ok=True)


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
