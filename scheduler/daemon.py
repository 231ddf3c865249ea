"""The process: stands by, leads while it holds the lease, steps down when told to stop."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.exc import ProgrammingError

from orchestrator.artifacts import open_artifacts
from orchestrator.config import Settings, load_settings
from orchestrator.errors import ConfigurationError, LostLeadership, StoreUnavailable
from orchestrator.lasting import collect_rarely
from orchestrator.logs import configure_logs, get_logger
from orchestrator.paths import DataRoots
from orchestrator.store.engine import LEASE_LIMITS, SCHEDULER_LIMITS, check_version, create_store_engine
from orchestrator.store.lease import Lease
from orchestrator.watchdog import LIMIT, Pulse, Watchdog
from orchestrator.wire.generation import GenerationWatch
from orchestrator.wire.keys import Keys
from orchestrator.wire.redis import LEADER_TIMEOUT, Client, connect, require_supported
from orchestrator.wire.seal import Seal
from scheduler.artifact_collector import ArtifactCollector
from scheduler.file_looks import FileLooks
from scheduler.log_collector import LogCollector
from scheduler.term import Term

log = get_logger(__name__)

LONGEST_STANDBY_WAIT = 0.5
DEAF_SECONDS = 10.0
"""After so long without a word of the leader in Redis, which answers us, a standby takes over (and after a lease, if
that is longer)."""


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = load_settings()
        configure_logs("DEBUG" if settings.debug else settings.log_level, process="scheduler")
        collect_rarely()
        Daemon(settings).run(stop)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


class Daemon:
    """One scheduler process; any number of them may run.

    :param watchdog_limit: seconds after which a main loop that stands still ends the process.
    :raises ConfigurationError: a setting is missing, or a server is too old.
    """

    def __init__(self, settings: Settings, *, watchdog_limit: float = LIMIT) -> None:
        settings.require("database_url", "redis_url", "worker_key")
        self._settings = settings
        self._pulse = Pulse()
        self._watchdog_limit = watchdog_limit
        holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._engine = create_store_engine(
            settings.database_url, pool_size=2, application="orchestrator-scheduler", limits=SCHEDULER_LIMITS
        )
        # The lease has a connection of its own: a slow round must not keep a renewal waiting.
        self._lease_engine = create_store_engine(
            settings.database_url, pool_size=1, application="orchestrator-lease", limits=LEASE_LIMITS
        )
        self._collector_engine = create_store_engine(
            settings.database_url, pool_size=1, application="orchestrator-collector", limits=SCHEDULER_LIMITS
        )
        self._redis = connect(settings.redis_url, timeout=LEADER_TIMEOUT, retries=0)
        # What a share holds is held in the next term too.
        self._files = FileLooks(partial(DataRoots.from_settings, settings))
        self._lease = Lease(self._lease_engine, holder, settings.leader_lease_seconds)

    def run(self, stop: threading.Event) -> None:
        """Stand by and lead, in turns, until told to stop; then let a standby in at once."""
        watchdog = Watchdog(self._pulse, limit=self._watchdog_limit)
        watchdog.start()
        try:
            self._check_servers()
            while not stop.is_set():
                if self._stand_by(stop):
                    self._lead(stop)
        finally:
            watchdog.stop()
            self._redis.close()
            self._engine.dispose()
            self._lease_engine.dispose()
            self._collector_engine.dispose()

    def _check_servers(self) -> None:
        """Refuse servers that are too old; those that are away are checked by their first use."""
        _unless_away(lambda: _check_postgres(self._engine))
        _unless_away(lambda: require_supported(self._redis))

    def _stand_by(self, stop: threading.Event) -> bool:
        """Try for the lease until it is ours (True) or the process is to stop (False)."""
        wait = min(LONGEST_STANDBY_WAIT, self._lease.ttl * 0.1)
        keys = Keys(self._settings.redis_task_queue)
        watch = GenerationWatch(self._redis, keys, max(DEAF_SECONDS, self._lease.ttl))
        said = ""
        while not stop.is_set():
            self._pulse.beat()
            try:
                seen = self._lease.seen_epoch
                is_deaf = watch.is_leader_deaf(seen)
                if self._lease.acquire(deaf_epoch=seen if is_deaf else None):
                    if is_deaf:
                        log.warning("deaf_leader_replaced", epoch=self._lease.epoch)
                    return True
                trouble = ""
            except StoreUnavailable as error:
                trouble = str(error)
            except ProgrammingError as error:
                trouble = (
                    "The database has no schema, or an older one: run `python -m orchestrator.store.migrate` "
                    f"({error.orig})."
                )
            if trouble and trouble != said:
                log.warning("standing_by", why=trouble)
            said = trouble
            stop.wait(wait)
        return False

    def _lead(self, stop: threading.Event) -> None:
        collector_redis = connect(self._settings.redis_url, connections=2, timeout=LEADER_TIMEOUT, retries=0)
        collector = self._log_collector(collector_redis)
        collector.start()
        garbage = self._artifact_collector()
        garbage.start()
        try:
            term = Term(
                self._settings,
                self._engine,
                self._redis,
                self._lease,
                pulse=self._pulse,
                stop=stop,
                files=self._files,
                take_counts=lambda: [*collector.take_counts(), *garbage.take_counts()],
            )
            term.run()
        except LostLeadership as error:
            log.warning("leadership_lost", epoch=self._lease.epoch, why=str(error))
        finally:
            _unless_away(self._lease.step_down)
            collector.stop()
            garbage.stop()
            collector_redis.close()

    def _log_collector(self, client: Client) -> LogCollector:
        keys, seal = Keys(self._settings.redis_task_queue), Seal(self._settings.worker_key)
        return LogCollector(client, keys, seal, open_artifacts(self._settings), self._lease.holder)

    def _artifact_collector(self) -> ArtifactCollector:
        store, days = open_artifacts(self._settings), self._settings.artifact_retention_days
        return ArtifactCollector(self._collector_engine, self._lease.epoch, store, days)


def _check_postgres(engine: Engine) -> None:
    with engine.connect() as connection:
        check_version(connection)


def _unless_away(action: Callable[[], object]) -> None:
    """Do it; a server that does not answer is no reason to fail here."""
    try:
        action()
    except StoreUnavailable as error:
        log.warning("server_away", why=str(error))
