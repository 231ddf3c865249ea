"""Removes artifacts past their time, on a thread and connection of its own; the row says which rule it was.

The row is marked first, in a transaction at the leader's epoch, so that nobody takes an object for there that goes.
Only then the object is deleted, outside of it: a slow store must not hold the lease row. Deleting twice does no harm.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from sqlalchemy import Connection, Engine

from orchestrator.artifacts import ArtifactStore
from orchestrator.effects import Count
from orchestrator.errors import ForbiddenPath, LostLeadership, OrchestratorError
from orchestrator.logs import get_logger
from orchestrator.store.artifact_retention import (
    PastArtifact,
    mark_removed,
    past_artifacts,
    removed_lately,
    still_needed,
)
from orchestrator.store.engine import unanswered_is_unavailable
from orchestrator.store.lease import lock_epoch

log = get_logger(__name__)

BATCH = 50
PAUSE = 60.0
"""Seconds between two walks over all that is past its time."""


class ArtifactCollector(threading.Thread):
    """Runs beside the leader.

    :param days: after which artifacts go that have no time of their own; ``None``: never.
    """

    def __init__(self, engine: Engine, epoch: int, artifacts: ArtifactStore, days: float | None) -> None:
        super().__init__(name="artifact-collector", daemon=True)
        self._engine = engine
        self._epoch = epoch
        self._artifacts = artifacts
        self._days = days
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._counts: list[Count] = []
        self._undeleted: dict[str, None] = {}
        """Marked as removed, but the store did not answer."""
        self._has_begun = False

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                self.collect()
            except LostLeadership:
                return
            except OrchestratorError as error:
                log.warning("artifacts_not_collected", why=str(error))
            except Exception:
                log.exception("artifact_collector_failed")
            self._ended.wait(PAUSE)

    def collect(self) -> int:
        """Remove all that is past its time and not needed; return how many objects that were.

        :raises LostLeadership: another scheduler leads.
        :raises StoreUnavailable: PostgreSQL or the artifact store does not answer; the rest is for the next time.
        """
        if not self._has_begun:
            with unanswered_is_unavailable(), self._engine.begin() as connection:
                self._undeleted.update(dict.fromkeys(removed_lately(connection)))
            self._has_begun = True
        self._remove(self._undeleted)
        removed, last = 0, None
        while not self._ended.is_set():
            with unanswered_is_unavailable(), self._engine.begin() as connection:
                lock_epoch(connection, self._epoch)
                found = past_artifacts(connection, self._days, last, BATCH)
                uris = self._mark(connection, found) if found else []
            self._undeleted.update(dict.fromkeys(uris))
            self._remove(uris)
            removed += len(uris)
            if len(found) < BATCH:
                break
            last = found[-1]
        if removed:
            log.info("artifacts_removed", count=removed)
        return removed

    def take_counts(self) -> list[Count]:
        """Return what was removed since the last call, for the counters in the rows."""
        with self._lock:
            counts, self._counts = self._counts, []
        return counts

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _mark(self, connection: Connection, found: list[PastArtifact]) -> list[str]:
        is_shared = self._artifacts.scope == "shared"
        # Of stores that other hosts can't read each host has its own; what lies elsewhere stays.
        here = [one for one in found if is_shared or self._is_here(one.uri)]
        needed = still_needed(connection, here)
        return mark_removed(connection, [one for one in here if (one.tenant_id, one.uri) not in needed])

    def _is_here(self, uri: str) -> bool:
        try:
            return self._artifacts.exists(uri)
        except ForbiddenPath:
            return False

    def _remove(self, uris: Iterable[str]) -> None:
        for uri in list(uris):
            try:
                self._artifacts.delete(uri)
            except ForbiddenPath as error:  # it names no object, so there is none
                log.warning("artifact_not_deleted", uri=uri, why=str(error))
            self._undeleted.pop(uri, None)
            with self._lock:
                self._counts.append(Count("artifact_removed", uri))
