"""Removes artifacts past their time, on a thread and connection of its own; the row says which rule it was.

What is needed is looked up first, in transactions that hold nothing; then entries of the cache go that nobody takes.
The row is marked before the object goes, in a transaction at the leader's epoch, so that nobody takes it for there.
Only then the object is deleted, outside of it: a slow store must not hold the lease row. Until that is done a task may
have made it again, as equal content is, so the row is read and the object looked at right before. Deleting twice does
no harm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from sqlalchemy import Connection, Engine

from orchestrator.artifacts import ArtifactStore
from orchestrator.effects import Count
from orchestrator.errors import ForbiddenPath, LostLeadership, NotFound, OrchestratorError
from orchestrator.logs import get_logger
from orchestrator.store.artifact_retention import (
    SPARED,
    SPARED_FOR_OTHERS,
    NamedByRuns,
    PastArtifact,
    RemovedArtifact,
    delete_entries_over,
    delete_entries_unused,
    find_mark,
    mark_removed,
    may_be_anothers,
    named_in_runs,
    past_artifacts,
    removed_lately,
    spare,
    still_needed,
    unfinished_runs,
)
from orchestrator.store.engine import unanswered_is_unavailable
from orchestrator.store.lease import lock_epoch

log = get_logger(__name__)

BATCH = 100
RUNS_AT_ONCE = 100
TASKS_AT_ONCE = 100
"""Task runs whose outputs are read in one statement, of up to 256 KiB each."""
ENTRIES_AT_ONCE = 500
PAUSE = 60.0
"""Seconds between two walks over all that is past its time."""
UNUSED_EVERY = 3_600.0
"""Seconds between two looks for entries of the cache that nobody takes: each reads all of them."""
_RUNS_ANEW = 60.0
"""Seconds after which what runs name is read anew: all that has ended since is read with each batch."""


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
        self._undeleted: dict[RemovedArtifact, None] = {}
        """Marked as removed, but the store did not answer."""
        self._has_begun = False
        self._unused_due = 0.0

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
        self._delete_old_entries()
        removed, last = 0, None
        by_runs, runs_due = NamedByRuns(), 0.0
        while not self._ended.is_set():
            with unanswered_is_unavailable(), self._engine.begin() as connection:
                lock_epoch(connection, self._epoch)
                found = past_artifacts(connection, self._days, last, BATCH)
            if found and time.monotonic() >= runs_due:
                by_runs = self._named_by_runs()
                runs_due = time.monotonic() + _RUNS_ANEW
            marked = self._mark(found, by_runs)
            self._undeleted.update(dict.fromkeys(marked))
            removed += self._remove(marked)
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

    def _delete_old_entries(self) -> None:
        """Delete the entries of the cache that are of no use; what only they needed goes next. Artifacts go though this
        fails."""
        days, now = self._days, time.monotonic()
        try:
            self._delete_entries(delete_entries_over)
            if days is not None and now >= self._unused_due:
                self._unused_due = now + UNUSED_EVERY
                self._delete_entries(lambda connection, limit: delete_entries_unused(connection, days, limit))
        except LostLeadership:
            raise
        except Exception:
            log.exception("cache_entries_not_deleted")

    def _delete_entries(self, delete: Callable[[Connection, int], int]) -> None:
        deleted = ENTRIES_AT_ONCE
        while deleted == ENTRIES_AT_ONCE and not self._ended.is_set():
            with unanswered_is_unavailable(), self._engine.begin() as connection:
                lock_epoch(connection, self._epoch)
                deleted = delete(connection, ENTRIES_AT_ONCE)

    def _named_by_runs(self) -> NamedByRuns:
        """Return what the runs name that are not over, however much they have left."""
        with unanswered_is_unavailable(), self._engine.begin() as connection:
            lock_epoch(connection, self._epoch)
            runs, last_event = unfinished_runs(connection)
        named: set[tuple[str, str]] = set()
        for start in range(0, len(runs), RUNS_AT_ONCE):
            after: tuple[str, str] | None = None
            while not self._ended.is_set():
                with unanswered_is_unavailable(), self._engine.begin() as connection:
                    found, after = named_in_runs(connection, runs[start : start + RUNS_AT_ONCE], after, TASKS_AT_ONCE)
                named |= found
                if after is None:
                    break
        return NamedByRuns(frozenset(runs), frozenset(named), last_event)

    def _mark(self, found: list[PastArtifact], by_runs: NamedByRuns) -> list[RemovedArtifact]:
        is_shared = self._artifacts.scope == "shared"
        # Of stores that other hosts can't read each host has its own; what lies elsewhere stays.
        here = [one for one in found if is_shared or self._is_here(one.uri)]
        if not here or self._ended.is_set():
            return []
        with unanswered_is_unavailable(), self._engine.begin() as connection:
            lock_epoch(connection, self._epoch)
            needed = still_needed(connection, here, by_runs)
            return mark_removed(connection, [one for one in here if (one.tenant_id, one.uri) not in needed])

    def _is_here(self, uri: str) -> bool:
        try:
            return self._artifacts.exists(uri)
        except ForbiddenPath:
            return False

    def _remove(self, marked: Iterable[RemovedArtifact]) -> int:
        """Delete the objects that are still to go, and return how many that were. When the collector is to end, the
        rest is left to the next leader."""
        removed = 0
        for one in list(marked):
            if self._ended.is_set():
                break
            try:
                if self._may_go(one):
                    self._artifacts.delete(one.uri)
                    removed += 1
                    with self._lock:
                        self._counts.append(Count("artifact_removed", one.uri))
            except ForbiddenPath as error:  # it names no object, so there is none
                log.warning("artifact_not_deleted", uri=one.uri, why=str(error))
            self._undeleted.pop(one, None)
        return removed

    def _may_go(self, one: RemovedArtifact) -> bool:
        """Say whether the object is the one that was marked, and still is; one that was written again is spared."""
        with unanswered_is_unavailable(), self._engine.begin() as connection:
            mark = find_mark(connection, one)
        if mark is None:
            return False
        try:
            modified = self._artifacts.stat(one.uri).modified
        except NotFound:
            return True
        seconds = SPARED
        if not mark.is_made_again(modified):
            if modified <= mark.marked - SPARED:
                return True
            with unanswered_is_unavailable(), self._engine.begin() as connection:
                if not may_be_anothers(connection, one, modified):
                    return True
            seconds = SPARED_FOR_OTHERS
        log.info("artifact_made_again", uri=one.uri)
        with unanswered_is_unavailable(), self._engine.begin() as connection:
            lock_epoch(connection, self._epoch)
            spare(connection, one, seconds)
        return False
