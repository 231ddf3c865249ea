"""Artifacts in a folder: of this host, or shared by all hosts (NFS and the like)."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from orchestrator.artifacts.port import Artifact, Stored, check_key, check_prefix, is_artifact, key_of, uri_of
from orchestrator.errors import ForbiddenPath, NotFound, StoreUnavailable, TooLarge

_CHUNK = 1 << 20
_PART = ".part-"
"""Prefix of a file being written. No key has a segment that starts with a dot, so it is never listed."""


class LocalArtifacts:
    """The :class:`~orchestrator.artifacts.port.ArtifactStore` port on a folder.

    Content is written beside its final place, synced, and renamed over it; files are read-only afterwards.
    """

    def __init__(self, root: Path, *, scope: str) -> None:
        self._root = root.absolute()
        self._scope = scope

    @property
    def scope(self) -> str:
        """``shared`` or ``local:<host id>``, as the site said."""
        return self._scope

    def put_file(self, key: str, path: Path, *, consume: bool = False) -> Artifact:
        """Copy the file in; with ``consume`` move it, when it lies on the same file system."""
        target = self._target(key)
        part = target.with_name(f"{_PART}{secrets.token_hex(8)}")
        try:
            if consume and _moved(path, part):
                size, digest = _measure(part)
            else:
                with path.open("rb") as source, part.open("xb") as sink:
                    size, digest = _copy(source, sink)
                if consume:
                    path.unlink()
            _publish(part, target)
        except OSError as error:
            raise _translated(error, f"storing artifact {key}") from error
        finally:
            with suppress(OSError):
                part.unlink()
        return Artifact(uri_of(key), size, digest)

    def put_bytes(self, key: str, data: bytes) -> Artifact:
        """Write the bytes beside the target, then rename."""
        target = self._target(key)
        part = target.with_name(f"{_PART}{secrets.token_hex(8)}")
        try:
            with part.open("xb") as sink:
                sink.write(data)
            _publish(part, target)
        except OSError as error:
            raise _translated(error, f"storing artifact {key}") from error
        finally:
            with suppress(OSError):
                part.unlink()
        return Artifact(uri_of(key), len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")

    def get_bytes(self, uri: str, limit: int) -> bytes:
        """Read at most ``limit`` bytes; more is :class:`TooLarge`."""
        try:
            with self._inside(key_of(uri)).open("rb") as source:
                content = source.read(limit + 1)
        except OSError as error:
            raise _translated(error, uri) from error
        if len(content) > limit:
            raise TooLarge(f"{uri} has more than the {limit:,} bytes that may be read at once.")
        return content

    def local_path(self, uri: str, into: Path) -> Path:
        """Return the stored file itself."""
        path = self._inside(key_of(uri))
        if not path.is_file():
            raise NotFound(f"{uri} is not in the artifact store ({self._scope}).")
        return path

    def exists(self, uri: str) -> bool:
        """Say whether a file is there."""
        return self._inside(key_of(uri)).is_file()

    def stat(self, uri: str) -> Stored:
        """Ask the file system."""
        try:
            found = self._inside(key_of(uri)).stat()
        except OSError as error:
            raise _translated(error, uri) from error
        if not stat.S_ISREG(found.st_mode):
            raise NotFound(f"{uri} is not in the artifact store ({self._scope}).")
        return Stored(found.st_size, found.st_mtime)

    def holds(self, bucket: str, key: str) -> bool:
        """A folder is no bucket."""
        return False

    def list(self, prefix: str = "") -> Iterator[str]:
        """Walk the folder; the order is that of the whole key, as an object store would give it."""
        folder = check_prefix(prefix)
        yield from _walk(self._inside(folder) if folder else self._root, f"{folder}/" if folder else "")

    def delete(self, prefix: str) -> None:
        """Unlink the file or the folder; a folder that gains a file meanwhile is tried again."""
        if is_artifact(prefix):
            self._unlink(prefix)
            return
        folder = check_prefix(prefix)
        path = self._inside(folder) if folder else self._root
        for last in (False, False, True):
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                return
            except FileNotFoundError:
                continue
            except OSError as error:
                if last or error.errno != errno.ENOTEMPTY:
                    raise _translated(error, f"deleting artifacts under {prefix}") from error

    def _unlink(self, uri: str) -> None:
        try:
            self._inside(key_of(uri)).unlink()
        except OSError as error:
            # A folder is no object; unlinking one is refused with one of two words.
            if not isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)):
                raise _translated(error, f"deleting {uri}") from error
            if isinstance(error, PermissionError) and self.exists(uri):
                raise _translated(error, f"deleting {uri}") from error

    def _inside(self, key: str) -> Path:
        """Return the file of a key; a link inside the folder that leads out of it is refused."""
        path = self._root / key
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(self._root)):
            raise ForbiddenPath(f"Artifact {key} leads out of the artifact folder; remove the link.")
        return path

    def _target(self, key: str) -> Path:
        target = self._inside(check_key(key))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _translated(error, f"storing artifact {key}") from error
        return target


def _moved(path: Path, part: Path) -> bool:
    try:
        path.rename(part)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    return True


def _measure(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, f"sha256:{digest.hexdigest()}"


def _copy(source: IO[bytes], sink: IO[bytes]) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        sink.write(chunk)
    return size, f"sha256:{digest.hexdigest()}"


def _publish(part: Path, target: Path) -> None:
    """Make the content durable before its name: a pointer to it is committed right afterwards."""
    with part.open("rb") as written:
        os.fchmod(written.fileno(), 0o444)
        os.fsync(written.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            found = [(e.name + ("/" if e.is_dir(follow_symlinks=False) else ""), e) for e in entries]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _translated(error, f"listing artifacts under {prefix}") from error
    for name, entry in sorted(found, key=lambda pair: pair[0]):
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from _walk(Path(entry.path), prefix + name)
        elif entry.is_file(follow_symlinks=False):
            yield prefix + name


def _translated(error: OSError, subject: str) -> Exception:
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return NotFound(f"{subject}: {error.strerror} ({error.filename}).")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreUnavailable(f"{subject}: the artifact folder is full; free space or set ARTIFACT_URL elsewhere.")
    return StoreUnavailable(f"{subject}: the artifact folder can't be used ({error.strerror}: {error.filename}).")
