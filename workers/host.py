"""What a worker process stands on: its settings, keys, folders and lock, and how it starts a fork server."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from orchestrator.artifacts import open_artifacts
from orchestrator.config import Settings
from orchestrator.wire.keys import Keys
from orchestrator.wire.seal import Seal
from workers import environment, identity
from workers.beat import Me
from workers.fork_client import ForkClient, Listener
from workers.gpus import Gpus, is_task_process, load_nvml
from workers.orders import Site


def orphan_grace(settings: Settings) -> float:
    """Return how long a tree that nobody has adopted may take to end.

    The leader gives it up ``ADOPT_SECONDS`` and a lease after the last heartbeat that it has read. That one may be
    older than the worker's death by an interval, and reaping the tree takes a moment.
    """
    return settings.worker_lease - 2 * settings.heartbeat_interval_seconds


class Host:
    """One incarnation on its host.

    :raises ConfigurationError: a setting is missing or ``DATA_DIR`` can't be used.
    """

    def __init__(self, settings: Settings) -> None:
        settings.require("redis_url", "worker_key")
        self.settings = settings
        self.keys = Keys(settings.redis_task_queue)
        self.seal = Seal(settings.worker_key)
        self.folders = identity.open_folders(settings)
        self.host_id = identity.read_host_id(settings, self.folders)
        self.boot_id = identity.read_boot_id()
        self.incarnation = str(uuid.uuid4())
        self.store_scope = open_artifacts(settings, host_id=self.host_id).scope
        self._lock = identity.IncarnationLock(self.folders, self.incarnation)

    def me(self, name: str, slots: int, queues: tuple[str, ...]) -> Me:
        """Return who we are, for the heartbeat."""
        return Me(
            incarnation=self.incarnation,
            host_id=self.host_id,
            boot_id=self.boot_id,
            hostname=socket.gethostname(),
            name=name,
            slots=slots,
            queues=queues,
            store_scope=self.store_scope,
            labels=self.settings.worker_labels,
        )

    def open_gpus(self) -> Gpus:
        """Return the GPUs that the worker's own mask shows."""
        attempts = Path(self.folders.attempts)
        return Gpus(load_nvml(), os.environ.get("CUDA_VISIBLE_DEVICES"), lambda pid: is_task_process(pid, attempts))

    def open_fork_server(self, listener: Listener) -> ForkClient:
        """Start a fork server. May be called from a threaded process: it is started by ``exec``."""
        site = Site(
            incarnation=self.incarnation,
            boot_id=self.boot_id,
            attempts=str(self.folders.attempts),
            spool=str(self.folders.spool),
            local_to=self.host_id if self.store_scope != "shared" else None,
            settings=environment.settings_for_tasks(os.environ, self.settings, self.host_id),
            environment=environment.task_base(os.environ),
            max_processes=self.settings.max_task_processes,
            doors=str(self.folders.locks),
            orphan_seconds=self.settings.adopt_seconds,
            orphan_grace=orphan_grace(self.settings),
        )
        variables = environment.fork_server_environment(os.environ, self.incarnation)
        return ForkClient(site, variables, self._lock.fd, listener)

    def is_settled(self, incarnation: str) -> bool:
        """Say whether nothing of that incarnation lives here: it never did, or somebody has cleared up after it."""
        return incarnation not in identity.incarnations(self.folders)

    def has_ended(self, incarnation: str) -> bool:
        """Say whether no process of that incarnation lives on this host."""
        return identity.has_ended(self.folders, incarnation)
