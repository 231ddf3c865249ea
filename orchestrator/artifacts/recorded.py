"""Notes what a task leaves in the artifact store, so that its outcome tells: who made what, and what may go one day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts.port import Artifact, ArtifactStore, Stored, is_artifact

ARTIFACT = "artifact"
"""Kind of the records."""
MISSING = "missing_artifact"
"""Kind of the records of what a task has looked for in vain."""


class RecordedArtifacts:
    """The :class:`~orchestrator.artifacts.port.ArtifactStore` port on another store.

    :param records: takes a record of each object that is written below ``folder``; what is deleted again leaves it.
    :param folder: the tenant's; checkpoints and logs lie elsewhere and are removed by rules of their own.
    """

    def __init__(self, store: ArtifactStore, records: list[Mapping[str, Any]], folder: str) -> None:
        self._store = store
        self._records = records
        self._prefix = f"{folder}/"

    @property
    def scope(self) -> str:
        return self._store.scope

    def put_file(self, key: str, path: Path, *, consume: bool = False) -> Artifact:
        return self._noted(key, self._store.put_file(key, path, consume=consume))

    def put_bytes(self, key: str, data: bytes) -> Artifact:
        return self._noted(key, self._store.put_bytes(key, data))

    def get_bytes(self, uri: str, limit: int) -> bytes:
        return self._store.get_bytes(uri, limit)

    def local_path(self, uri: str, into: Path) -> Path:
        return self._store.local_path(uri, into)

    def exists(self, uri: str) -> bool:
        return self._store.exists(uri)

    def stat(self, uri: str) -> Stored:
        return self._store.stat(uri)

    def list(self, prefix: str = "") -> Iterator[str]:
        return self._store.list(prefix)

    def holds(self, bucket: str, key: str) -> bool:
        return self._store.holds(bucket, key)

    def delete(self, prefix: str) -> None:
        self._store.delete(prefix)
        if is_artifact(prefix):
            self._records[:] = [record for record in self._records if not _is_of(record, prefix)]

    def _noted(self, key: str, artifact: Artifact) -> Artifact:
        if key.startswith(self._prefix):
            record_artifact(self._records, artifact.uri, artifact.fingerprint, artifact.bytes)
        return artifact


def record_artifact(records: list[Mapping[str, Any]], uri: str, digest: str, size: int, **fields: Any) -> None:
    """Note an object, once; ``fields`` are added to what is noted of it."""
    place = next((place for place, record in enumerate(records) if _is_of(record, uri)), None)
    known = {} if place is None else records.pop(place)
    records.append({**known, "kind": ARTIFACT, "uri": uri, "digest": digest, "size": size, **fields})


def record_missing(records: list[Mapping[str, Any]], uri: str) -> None:
    """Note an object that is named and is not in the store: nobody is to take its producer's outputs for there."""
    if not any(record.get("kind") == MISSING and record.get("uri") == uri for record in records):
        records.append({"kind": MISSING, "uri": uri})


def _is_of(record: Mapping[str, Any], uri: str) -> bool:
    return record.get("kind") == ARTIFACT and record.get("uri") == uri
