"""Artifacts in an object store (S3, MinIO and what speaks like them), through obstore."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts.port import Artifact, Stored, check_key, check_prefix, is_artifact, key_of, uri_of
from orchestrator.errors import NotFound, StoreUnavailable, TooLarge

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_CHUNK = 8 << 20
_RETRY: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
"""obstore's own default goes on for three minutes, longer than a lease."""


class ObjectArtifacts:
    """The :class:`~orchestrator.artifacts.port.ArtifactStore` port on an obstore store."""

    def __init__(self, store: ObjectStore, *, place: str) -> None:
        """Use ``store`` as it is.

        :param place: ``s3://bucket/prefix``, or what else messages should call it; never with credentials.
        """
        self._store = store
        self._place = place

    @classmethod
    def s3(cls, bucket: str, prefix: str, options: Mapping[str, str]) -> ObjectArtifacts:
        """Open a bucket with the options of :func:`orchestrator.artifacts.s3_options`."""
        from obstore.store import S3Store

        config: Any = dict(options)
        store = S3Store(bucket, prefix=prefix or None, config=config, retry_config=_RETRY)
        return cls(store, place=f"s3://{bucket}/{prefix}".rstrip("/"))

    @property
    def scope(self) -> str:
        """Every host reaches the same bucket."""
        return "shared"

    def put_file(self, key: str, path: Path, *, consume: bool = False) -> Artifact:
        """Upload the file in parts, hashing it on the way; the parts become visible together."""
        import obstore

        check_key(key)
        digest = hashlib.sha256()
        with path.open("rb") as source, self._errors(f"storing artifact {key}"):
            size = os.fstat(source.fileno()).st_size
            if size <= _CHUNK:
                content = source.read()
                digest.update(content)
                size = len(content)
                obstore.put(self._store, key, content)
            else:
                sent = _Hashed(iter(lambda: source.read(_CHUNK), b""), digest)
                obstore.put(self._store, key, sent, max_concurrency=4)
                size = sent.bytes
        if consume:
            path.unlink()
        return Artifact(uri_of(key), size, f"sha256:{digest.hexdigest()}")

    def put_bytes(self, key: str, data: bytes) -> Artifact:
        """Upload in one request."""
        import obstore

        with self._errors(f"storing artifact {key}"):
            obstore.put(self._store, check_key(key), data, use_multipart=False)
        return Artifact(uri_of(key), len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")

    def get_bytes(self, uri: str, limit: int) -> bytes:
        """Ask for the object's size first; more than ``limit`` is :class:`TooLarge` and not downloaded."""
        import obstore

        with self._errors(uri):
            found = obstore.get(self._store, key_of(uri))
            if found.meta["size"] > limit:
                raise TooLarge(f"{uri} has more than the {limit:,} bytes that may be read at once.")
            return bytes(found.bytes())

    def local_path(self, uri: str, into: Path) -> Path:
        """Download into ``into``, under a name made from the whole key, once."""
        import obstore

        key = key_of(uri)
        target = into / hashlib.sha256(key.encode()).hexdigest()[:16] / key.rpartition("/")[2]
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".part-{secrets.token_hex(8)}")
        try:
            with self._errors(uri), part.open("xb") as sink:
                for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK):
                    sink.write(chunk)
            part.replace(target)
        finally:
            with suppress(OSError):
                part.unlink()
        return target

    def exists(self, uri: str) -> bool:
        """Ask for the object's head."""
        import obstore

        try:
            with self._errors(uri):
                obstore.head(self._store, key_of(uri))
        except NotFound:
            return False
        return True

    def stat(self, uri: str) -> Stored:
        """Ask for the object's head."""
        import obstore

        with self._errors(uri):
            found = obstore.head(self._store, key_of(uri))
        return Stored(int(found["size"]), found["last_modified"].timestamp())

    def holds(self, bucket: str, key: str) -> bool:
        """Compare with our own bucket and prefix; names of buckets count without regard to case."""
        own, _, prefix = self._place.removeprefix("s3://").partition("/")
        return bucket.lower() == own.lower() and f"{key}/".startswith(f"{prefix}/" if prefix else "")

    def list(self, prefix: str = "") -> Iterator[str]:
        """List all pages, then sort: not every store keeps the order."""
        import obstore

        folder = check_prefix(prefix)
        with self._errors(f"listing artifacts under {prefix or '/'}"):
            found = [item["path"] for page in obstore.list(self._store, folder or None) for item in page]
        yield from sorted(found)

    def delete(self, prefix: str) -> None:
        """Delete page by page."""
        import obstore

        if is_artifact(prefix):
            with self._errors(f"deleting {prefix}"), suppress(FileNotFoundError):
                obstore.delete(self._store, [key_of(prefix)])
            return
        folder = check_prefix(prefix)
        with self._errors(f"deleting artifacts under {prefix or '/'}"):
            for page in obstore.list(self._store, folder or None, chunk_size=500):
                obstore.delete(self._store, [item["path"] for item in page])
            if folder:
                # Some stores answer 404 to the deletion of what is not there; to the caller that is success.
                with suppress(FileNotFoundError):
                    obstore.delete(self._store, [folder])

    @contextmanager
    def _errors(self, subject: str) -> Iterator[None]:
        """Say what failed in our words. obstore's own text repeats the request and its debug form."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"{subject}: not in the artifact store {self._place}.") from error
        except BaseError as error:
            first = str(error).splitlines()[0][:300]
            raise StoreUnavailable(
                f"{subject}: the artifact store {self._place} refused or did not answer: {first}"
            ) from (error)


class _Hashed:
    """Passes chunks on and keeps their digest and number of bytes."""

    def __init__(self, chunks: Iterator[bytes], digest: hashlib._Hash) -> None:
        self._chunks = chunks
        self._digest = digest
        self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._digest.update(chunk)
            self.bytes += len(chunk)
            yield chunk
