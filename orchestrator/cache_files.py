"""What the key of the cache says of files: the script that a task runs, and the inputs it names, as the scheduler sees
them.

Two steps: which files those are is worked out from values (:func:`wanted_files`); to look at them may take for ever on
a share that hangs, so that is for a thread (``scheduler.file_looks``). What can't be seen from here is never taken for
unchanged: such a task is not cached without a key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.artifacts.port import is_artifact
from orchestrator.documents import all_texts
from orchestrator.errors import ForbiddenPath
from orchestrator.paths import DataRoots
from orchestrator.records import PlannedTask

WHOLE = 2**20
"""Bytes. A file that is no larger is known by its content; of a larger one the times and the ends are compared."""
_END = 2**16
MOST_TEXTS = 2_000
"""Texts of one task that may be paths: for each, every data root is asked."""
MOST_READ = 100
"""Texts of one task whose files are read: where there are more that may be paths, all their files count as large."""
_LARGEST_SCRIPT = 10 * 2**20
_LONGEST_NAME = 200

_INPUTS: Mapping[str, tuple[str, ...]] = {
    "best_of": (),
    "data_ingestion": ("source_path", "input_path"),
    "data_validation": ("input_path",),
    "model_registration": ("model_uri",),
    "model_training": ("training_data_path",),
}
"""Parameters in which operators of ours name what they read. What is not here may read whatever it is told of."""
_NO_INPUTS = frozenset({"script_path", "script_content"})


@dataclass(frozen=True, slots=True)
class WantedFiles:
    """The files of one task that its key hangs on, by how they are named."""

    inputs: tuple[str, ...] = ()
    """Those that certainly are read."""
    perhaps: tuple[str, ...] = ()
    """Texts that may name files."""
    whole: int = WHOLE
    """Up to so many bytes of those, their content counts."""
    script: str = ""
    """The one that the task runs."""

    @property
    def are_none(self) -> bool:
        """Whether there is nothing to look at."""
        return not (self.inputs or self.perhaps or self.script)


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """What was seen of them."""

    digests: Mapping[str, str] = field(default_factory=dict)
    """By how the file is named."""
    script: str = ""
    """Digest of the script; empty: the task runs none."""


def wanted_files(
    task: PlannedTask, parameters: Mapping[str, Any], told: Iterable[Any], contents: Mapping[str, str]
) -> WantedFiles:
    """Return the files that the task may read. Looks at no file.

    :param told: what else the task is told: parameters of the run, and what its ancestors have left.
    :param contents: texts whose content is known already.
    :raises ForbiddenPath: an input lies where nobody here can look at it.
    """
    path = parameters.get("script_path")
    script = path if isinstance(path, str) else ""
    known = _INPUTS.get(task.operator)
    names = {*(known or ()), *(link.parameter for link in task.links), *(one.parameter for one in task.run_inputs)}
    if task.operator == "data_ingestion":
        _refuse_connections(parameters)
    required = _texts(value for name, value in parameters.items() if name in names)
    inputs = tuple(text for text in required if not (text in contents or is_artifact(text)))
    if known is not None:
        _refuse_addresses(inputs)
        return WantedFiles(inputs, script=script)
    own = _texts(value for name, value in parameters.items() if name not in names and name not in _NO_INPUTS)
    _refuse_addresses([*inputs, *(text for text in own if text not in contents)])
    perhaps = dict.fromkeys([*own, *(text for text in _texts(told) if any(sign in text for sign in "/.:"))])
    left_out = {*contents, *inputs}
    perhaps = {text: None for text in perhaps if "://" not in text and text not in left_out}
    if len(perhaps) > MOST_TEXTS:
        raise ForbiddenPath(
            f"it is told of {len(perhaps)} texts that may name files, and at most {MOST_TEXTS} are looked at; "
            "give the cache a key."
        )
    return WantedFiles(inputs, tuple(perhaps), WHOLE if len(perhaps) <= MOST_READ else 0, script)


Seen = dict[tuple[str, int], str | ForbiddenPath]
"""Digests of files, or why there is none, by name and by how much counts whole."""


class SeenFiles:
    """Files in the data roots, each looked at once however many tasks of one look name it.

    :param roots: none: nothing can be looked at.
    :param seen: shared by the threads of one look.
    """

    def __init__(self, roots: DataRoots | None, seen: Seen | None = None) -> None:
        self._roots = roots
        self._seen: Seen = {} if seen is None else seen

    def look(self, wanted: WantedFiles, before: Callable[[str], None] | None = None) -> FoundFiles:
        """Return what is to be seen of these files, and look for as long as that takes.

        :param before: called before each file is looked at; what it raises ends the look.
        :raises ForbiddenPath: one can't be looked at from here.
        :raises OSError: the script can't be read.
        """
        tell = before or (lambda _: None)
        found = {text: self._input(text, tell) for text in wanted.inputs}
        for text in wanted.perhaps:
            if digest := self._file_if_any(text, wanted.whole, tell):
                found[text] = digest
        script = ""
        if wanted.script:
            tell(wanted.script)
            script = self._script(wanted.script)
        return FoundFiles(found, script)

    def _script(self, path: str) -> str:
        """Return the digest of a script.

        :raises ForbiddenPath: there is no such script here.
        """
        if self._roots is None:
            raise ForbiddenPath("the scheduler has no scripts root to look the script up in; give the cache a key.")
        with self._roots.script(path).open("rb") as content:
            read = content.read(_LARGEST_SCRIPT + 1)
        if len(read) > _LARGEST_SCRIPT:
            raise ForbiddenPath(f"the script {path!r} is too large to be compared; give the cache a key.")
        return hashlib.sha256(read).hexdigest()

    def _input(self, text: str, before: Callable[[str], None]) -> str:
        """Return the digest of what certainly is an input.

        :raises ForbiddenPath: it is no file that can be seen from here.
        """
        if not (digest := self._file_if_any(text, WHOLE, before)):
            raise not_seen(text, "is no file in the data roots of the scheduler's host")
        return digest

    def _file_if_any(self, text: str, whole: int, before: Callable[[str], None]) -> str:
        """Return the digest of the file of this name; empty: there is none.

        :raises ForbiddenPath: it is a folder, or can't be read.
        """
        if (text, whole) not in self._seen:
            before(text)
            try:
                self._seen[text, whole] = self._looked_at(text, whole)
            except ForbiddenPath as error:
                self._seen[text, whole] = error
        seen = self._seen[text, whole]
        if isinstance(seen, ForbiddenPath):
            raise seen
        return seen

    def _looked_at(self, text: str, whole: int) -> str:
        if self._roots is None or not self._roots.names:
            return ""
        try:
            path = self._roots.resolve(text)
        except (ForbiddenPath, OSError, ValueError):
            # What no worker's operator may read; to a script it is a text like any other.
            return ""
        try:
            if path.is_file():
                return digest_of_file(path, whole)
            if path.is_dir() and any(sign in text for sign in "/:"):
                raise not_seen(text, "is a folder, and what lies in it is not compared")
        except OSError as error:
            raise not_seen(text, f"can't be read by the scheduler ({error.strerror or error})") from error
        return ""


def digest_of_file(path: Path, whole: int = WHOLE) -> str:
    """Return a digest by which a change of the file is seen.

    - Up to ``whole`` bytes: of its content.
    - A larger one: of its size, its times of change, its inode and, unless ``whole`` is 0, both of its ends. It may
      differ though the content is the same, but is not the same after the content has changed.
    """
    with path.open("rb") as content:
        about = os.fstat(content.fileno())
        if about.st_size <= whole:
            return hashlib.sha256(content.read(whole)).hexdigest()
        parts = hashlib.sha256(f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino} ".encode())
        if whole:
            parts.update(content.read(_END))
            content.seek(-_END, os.SEEK_END)
            parts.update(content.read(_END))
        return f"large:{parts.hexdigest()}"


def not_seen(what: str, why: str) -> ForbiddenPath:
    """Return the error that says that nothing is known of this input."""
    shown = what if len(what) <= _LONGEST_NAME else f"{what[:_LONGEST_NAME]}…"
    return ForbiddenPath(f"{shown} {why}, so a change of it would not be noticed; give the cache a key.")


def component_of(text: str) -> str:
    """Return the name under which a file stands among the components of a key."""
    if len(text) > _LONGEST_NAME:
        text = f"{text[:_LONGEST_NAME]}…{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    return f"files.{text}"


def _refuse_connections(parameters: Mapping[str, Any]) -> None:
    kind = parameters.get("source_type")
    if source := parameters.get("source"):
        raise not_seen(f"the connection {source}", "lies where the scheduler does not look")
    if kind not in (None, "local"):
        raise not_seen(f"a source of type {kind}", "lies where the scheduler does not look")


def _refuse_addresses(texts: Iterable[str]) -> None:
    if (foreign := next(filter(_is_foreign, texts), None)) is not None:
        raise not_seen(foreign, "lies where the scheduler does not look")


def _texts(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(text for value in values for text in all_texts(value)))


def _is_foreign(text: str) -> bool:
    """Say whether the whole text is an address of something that is neither a file nor an artifact."""
    scheme, separator, rest = text.partition("://")
    is_address = bool(separator and rest) and scheme.replace("+", "").isalnum() and not any(map(str.isspace, text))
    return is_address and not is_artifact(text)
