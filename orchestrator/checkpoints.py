"""What a task keeps from attempt to attempt: a file or a folder it goes on from, and small values.

Every attempt writes under a number of its own, and reads the latest of those up to its own. So an older attempt that
was given up but still runs, on a host that is cut off, never overwrites what the one that replaced it has saved.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts.port import task_segment, uri_of
from orchestrator.errors import NotFound, StoreUnavailable, TooLarge

if TYPE_CHECKING:
    from orchestrator.artifacts import ArtifactStore

MAX_STATE_BYTES = 64 * 1024
SAVE_MARK = ".save"
"""A file of this name in a checkpoint folder asks for it to be saved now; it is not part of what is saved."""

_NAME = re.compile(r"(\d+)(?:\.(\d+))?(\.state)?")


class Checkpoints:
    """What the attempts of one task run have saved, as one of them sees it.

    Kept under ``checkpoints/<tenant>/<run>/<task>/<generation>.<attempt>``, the values beside it with ``.state``.
    Earlier releases knew one file ``<generation>`` for all attempts; it counts as attempt 0.
    """

    def __init__(self, store: ArtifactStore, tenant_id: str, run_id: str, task: str, generation: int, number: int):
        self._store = store
        self._folder = f"checkpoints/{tenant_id}/{run_id}/{task_segment(task)}"
        self._generation = generation
        self._number = number
        self._is_there = False
        self._has_tidied = False
        self._state: dict[str, Any] | None = None

    def save(self, source: bytes | Path) -> None:
        """Replace what this attempt has saved, in one step.

        :raises StoreUnavailable: what was saved before stands.
        """
        self._is_there = True
        key = self._key()
        with _told(key):
            if isinstance(source, bytes):
                self._store.put_bytes(key, source)
            else:
                self._store.put_file(key, source)
        self._tidy()

    def load(self, into: Path) -> Path | None:
        """Return a file with what was saved last, for reading, maybe below ``into``; ``None``: nothing.

        :raises StoreUnavailable: the store does not answer.
        """
        found = self._latest(is_state=False)
        if found is None:
            return None
        with _told(found), suppress(NotFound):  # replaced and tidied away since we looked
            return self._store.local_path(uri_of(found), into)
        return None

    def state(self) -> Mapping[str, Any]:
        """Return the values that were set last.

        :raises StoreUnavailable: the store does not answer.
        """
        if self._state is None:
            found = self._latest(is_state=True)
            self._state = {}
            if found is not None:
                with _told(found), suppress(NotFound, TooLarge, ValueError):
                    self._state = dict(json.loads(self._store.get_bytes(uri_of(found), MAX_STATE_BYTES)))
        return self._state

    def set_state(self, values: Mapping[str, Any]) -> None:
        """Replace all values.

        :raises ValueError: they are no JSON, or more than 64 KiB of it; nothing is changed then.
        :raises StoreUnavailable: what was set before stands.
        """
        content = json.dumps(values, allow_nan=False).encode()
        if len(content) > MAX_STATE_BYTES:
            raise ValueError(f"all values together have {len(content)} bytes as JSON, {MAX_STATE_BYTES} are kept")
        self._is_there = True
        key = f"{self._key()}.state"
        with _told(key):
            self._store.put_bytes(key, content)
        self._state = dict(values)

    def forget(self) -> None:
        """Delete all that was saved, in earlier generations too.

        :raises StoreUnavailable: the store does not answer.
        """
        # Of a first attempt that saved nothing there is nothing; the store need not be asked after each small task.
        if self._is_there or self._generation > 1 or self._number > 1:
            with _told(self._folder):
                self._store.delete(self._folder)
            self._is_there = False
            self._state = None

    def _key(self) -> str:
        return f"{self._folder}/{self._generation}.{self._number:06d}"

    def _latest(self, *, is_state: bool) -> str | None:
        """Return the key of what the latest attempt up to this one has saved."""
        saved = {number: key for number, key, state in self._saved() if state is is_state}
        if not saved:
            return None
        self._is_there = True
        return saved[max(saved)]

    def _saved(self) -> Iterator[tuple[int, str, bool]]:
        """Yield number, key and whether it holds values, of what this attempt may go on from."""
        with _told(self._folder):
            keys = list(self._store.list(self._folder))
        for key in keys:
            named = _NAME.fullmatch(key.rpartition("/")[2])
            if named is not None and int(named[1]) == self._generation and int(named[2] or 0) <= self._number:
                yield int(named[2] or 0), key, bool(named[3])

    def _tidy(self) -> None:
        """Remove, once, what earlier attempts have saved: nobody will go on from there."""
        if self._has_tidied or self._number < 2:
            return
        with suppress(StoreUnavailable):
            for number, key, is_state in list(self._saved()):
                if number < self._number and not is_state:
                    self._store.delete(key)
            self._has_tidied = True


def pack(folder: Path, into: Path) -> None:
    """Write what is in a checkpoint folder into one file."""
    with tarfile.open(into, "w") as archive:
        for entry in sorted(folder.iterdir()):
            if entry.name != SAVE_MARK:
                archive.add(entry, entry.name)


def unpack(saved: Path, folder: Path) -> None:
    """Bring back what :func:`pack` wrote.

    :raises tarfile.TarError: it is no archive, or holds what leads out of the folder.
    """
    with tarfile.open(saved) as archive:
        archive.extractall(folder, filter="data")


def look(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what differs whenever the content of a checkpoint folder does."""
    found = []
    for path in sorted(folder.rglob("*")):
        with suppress(OSError):
            if path.name != SAVE_MARK and not path.is_dir():
                told = path.lstat()
                found.append((str(path.relative_to(folder)), told.st_size, told.st_mtime_ns))
    return tuple(found)


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Say in our words that a shared folder's server is ill."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"The checkpoint {key} can't be reached: {error}.") from error
