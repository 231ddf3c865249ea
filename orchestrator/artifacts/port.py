"""The artifact port: what a store of outputs and logs promises, and how artifacts are named."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.errors import ForbiddenPath

SCHEME = "artifact://"

_LONGEST_SEGMENT = 200
_SEGMENT = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.=@+:-]{{0,{_LONGEST_SEGMENT - 1}}}")
_MAX_KEY = 900
"""S3 allows 1,024 bytes; the rest is left to the prefix of the site."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One stored object."""

    uri: str
    """``artifact://<key>``: never a machine's path, so it means the same on every host."""
    bytes: int
    fingerprint: str
    """``sha256:<hex>`` of the content."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store knows of an object without reading it."""

    bytes: int
    modified: float
    """When it was written last, in seconds since the epoch, on the store's clock."""


class ArtifactStore(Protocol):
    """Holds immutable objects under keys like ``<tenant>/<run>/<task>/<attempt>/<name>``.

    - A key is 1 or more segments of ``A-Z a-z 0-9 _ . = @ + : -`` joined by ``/``; a segment starts with a letter,
      a digit or ``_``. Anything else raises :class:`~orchestrator.errors.ForbiddenPath`.
    - A write is all or nothing: readers see the old content, none, or the new content, never a part.
    - Writing a key again replaces it; attempts write under keys of their own, so they never do.
    - A missing object raises :class:`~orchestrator.errors.NotFound`; a store that does not answer raises
      :class:`~orchestrator.errors.StoreUnavailable`.
    """

    @property
    def scope(self) -> str:
        """``shared`` when every host can read it, else ``local:<host id>``."""
        ...

    def put_file(self, key: str, path: Path, *, consume: bool = False) -> Artifact:
        """Store the content of a file, without holding it in memory.

        :param consume: the caller gives the file up, so the store may move it instead of copying.
        """
        ...

    def put_bytes(self, key: str, data: bytes) -> Artifact:
        """Store these bytes."""
        ...

    def get_bytes(self, uri: str, limit: int) -> bytes:
        """Return the content.

        :raises TooLarge: the object has more than ``limit`` bytes; nothing is returned then.
        """
        ...

    def local_path(self, uri: str, into: Path) -> Path:
        """Return a file with the content: the stored one where it is on this host, else a download in ``into``.

        The file is for reading only: it may be the stored object itself.
        """
        ...

    def exists(self, uri: str) -> bool:
        """Say whether the object is there."""
        ...

    def stat(self, uri: str) -> Stored:
        """Return size and age of an object."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys inside the folder ``prefix``, sorted; all keys when it is empty.

        The prefix counts by whole segments: ``logs/a`` holds ``logs/a/0`` but neither ``logs/ab/0`` nor itself.
        """
        ...

    def holds(self, bucket: str, key: str) -> bool:
        """Say whether this object of S3 lies in the store: users' ``s3://`` URIs may not lead there."""
        ...

    def delete(self, prefix: str) -> None:
        """Delete the object ``prefix`` and every object inside the folder of that name; none there is no error.

        :param prefix: a key; or a URI, which names one object: nothing else is deleted then.
        """
        ...


def check_key(key: str) -> str:
    """Return the key when it is one.

    :raises ForbiddenPath: says which characters are allowed.
    """
    if len(key) <= _MAX_KEY and all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        return key
    raise ForbiddenPath(
        f"{key[:200]!r} can't name an artifact: use segments of letters, digits and _.=@+:- joined by '/', each "
        f"starting with a letter, a digit or '_', at most {_MAX_KEY} characters in all."
    )


def check_prefix(prefix: str) -> str:
    """Return the prefix without slashes at its ends; empty means everything.

    :raises ForbiddenPath: it is no key.
    """
    trimmed = prefix.strip("/")
    return check_key(trimmed) if trimmed else ""


def is_artifact(uri: str) -> bool:
    """Say whether this is the URI of an artifact (and not a path or another scheme)."""
    return uri.startswith(SCHEME)


def uri_of(key: str) -> str:
    """Return ``artifact://<key>``.

    :raises ForbiddenPath: it is no key.
    """
    return SCHEME + check_key(key)


def key_of(uri: str) -> str:
    """Return the key inside an ``artifact://`` URI.

    :raises ForbiddenPath: another scheme, or the rest is no key.
    """
    if not is_artifact(uri):
        raise ForbiddenPath(f"{uri[:200]!r} is no artifact: its URI starts with {SCHEME}.")
    return check_key(uri.removeprefix(SCHEME))


def task_segment(task: str) -> str:
    """Return a task run's name as a segment of a key: ``folds[2].train`` becomes ``folds@2.train``.

    No task's own name holds an ``@``. What is too long for a segment ends in its digest.
    """
    segment = task.replace("[", "@").replace("]", "")
    if len(segment) <= _LONGEST_SEGMENT:
        return segment
    digest = hashlib.sha256(segment.encode()).hexdigest()[:16]
    return f"{segment[: _LONGEST_SEGMENT - 17]}@{digest}"
