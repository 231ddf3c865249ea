"""The one-host system: brings up stores, schema and processes in order, and says when all of it works."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.client import ApiError, Client
from orchestrator.config import Settings, load_settings
from orchestrator.errors import ConfigurationError, StoreUnavailable
from orchestrator.local.address import keep_address
from orchestrator.local.folder_lock import folder_lock
from orchestrator.local.keys import keep_keys
from orchestrator.local.ports import is_open
from orchestrator.local.postgres import EmbeddedPostgres
from orchestrator.local.preflight import problems
from orchestrator.local.processes import STORES, gpu_is_there, one_host_environment, process_specs
from orchestrator.local.redis import EmbeddedRedis
from orchestrator.local.servers import start_server
from orchestrator.local.supervisor import Supervisor
from orchestrator.wire.redis import connect, require_supported

DATABASE = "orchestrator"
READY_SECONDS = 90.0
MARK = ".made-by-pipeline-orchestrator"
"""Lies in a data folder that we made: only such a one is ever removed."""


class StopRequested(Exception):
    """The user asked to stop while the system was still starting."""


class OneHostSystem:
    """All processes on one host, for as long as the block of :meth:`running` lasts.

    :param supervisor: runs them; its thread is the caller's.
    :param stopping: whether the user has asked to stop, and how often.
    """

    def __init__(self, settings: Settings, supervisor: Supervisor, stopping: Callable[[], int]) -> None:
        self.settings = settings
        self._supervisor = supervisor
        self._stopping = stopping
        self.environment: Mapping[str, str] = {}
        self._began = 0.0

    @property
    def url(self) -> str:
        """Where the API is reached from this host."""
        return _url(self.settings.host, self.settings.port)

    @property
    def flower_url(self) -> str:
        """Where Flower is reached from this host."""
        return _url(self.settings.host, self.settings.flower_port)

    def client(self) -> Client:
        """Return a client with the administrator's key."""
        return Client(self.url, self.environment["ADMIN_KEY"])

    def seconds_up(self) -> float:
        """Return the seconds since the start of the first process, that of the stores included."""
        return time.monotonic() - self._began

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start everything, wait until it works, and stop it at the end of the block, in order.

        :raises OrchestratorError: it can't start; the message says what to do.
        :raises StopRequested: the user changed their mind.
        """
        with folder_lock(self.settings.data_dir):
            if found := problems(self.settings):
                raise ConfigurationError("\n".join(found))
            try:
                self._start()
                yield
            finally:
                self._supervisor.stop(impatient=lambda: self._stopping() > 1)

    def _start(self) -> None:
        data_dir = self.settings.data_dir
        keys = keep_keys(data_dir, os.environ)
        self._began = time.monotonic()
        for name in ("data", "artifacts", "logs", "run"):
            (data_dir / name).mkdir(mode=0o700, exist_ok=True)
        database_url, redis_url = self._stores(keys["ADMIN_KEY"])
        self.environment = one_host_environment(self.settings, keys, database_url, redis_url, repository_folder())
        for spec, rank in process_specs(self.settings, self.environment, gpu=gpu_is_there()):
            self._supervisor.start(spec, rank=rank)
        self._wait_until_ready()
        self._supervisor.all_started()
        keep_address(data_dir, self.url)

    def _stores(self, admin_key: str) -> tuple[str, str]:
        """Return the addresses of PostgreSQL, migrated, and Redis; ours are started where none is given."""
        from orchestrator.store.bootstrap import ensure_first_rows
        from orchestrator.store.migrate import upgrade

        data_dir, database_url, redis_url = self.settings.data_dir, self.settings.database_url, self.settings.redis_url
        if not redis_url:
            redis_server = EmbeddedRedis(data_dir / "redis")
            self._supervisor.adopt(start_server(redis_server, data_dir), rank=STORES)
            redis_url = redis_server.url()
        with connect(redis_url) as client:
            require_supported(client)
        if not database_url:
            postgres = EmbeddedPostgres(data_dir / "postgres")
            self._supervisor.adopt(start_server(postgres, data_dir), rank=STORES)
            postgres.create_database(DATABASE)
            database_url = postgres.url(DATABASE)
        upgrade(database_url)
        ensure_first_rows(database_url, admin_key)
        return database_url, redis_url

    def _wait_until_ready(self) -> None:
        """Wait until the API answers, a scheduler leads, a worker is online and Flower listens."""
        deadline = time.monotonic() + READY_SECONDS
        missing = ["everything"]
        with Client(self.url, self.environment["ADMIN_KEY"], patience=0.0, timeout=5.0) as client:

            def is_ready() -> bool:
                nonlocal missing
                if self._stopping():
                    raise StopRequested
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"The system is not ready after {READY_SECONDS:.0f} s: it waits for {', '.join(missing)}. "
                        f"The logs are in {self.settings.data_dir / 'logs'}."
                    )
                missing = self._missing(client)
                return not missing

            self._supervisor.run_until(is_ready, pause=0.05)

    def _missing(self, client: Client) -> list[str]:
        missing = [] if is_open(self.settings.flower_port, _reachable(self.settings.host)) else ["flower"]
        if not is_open(self.settings.port, _reachable(self.settings.host)):
            return [*missing, "api"]
        try:
            components = client.health()["components"]
        except ApiError as error:
            return [*missing, f"api ({error})"]
        parts = {"leader": "scheduler", "workers": "worker"}
        return missing + [name for part, name in parts.items() if components.get(part, {}).get("status") != "healthy"]


def one_host_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings, with the data folder absolute and made.

    :raises ConfigurationError: a setting is wrong, or the folder can't be made.
    """
    settings = load_settings(environment)
    data_dir = settings.data_dir.absolute()
    try:
        if not data_dir.exists():
            data_dir.mkdir(parents=True)
            (data_dir / MARK).touch()
        # Root's PostgreSQL runs as another account, which has to pass through.
        data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {data_dir} can't be made ({error.strerror}); set DATA_DIR to a folder that can be written to."
        ) from error
    return replace(settings, data_dir=data_dir)


def repository_folder() -> Path | None:
    """Return the checkout that this package lies in, if it lies in one."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "examples").is_dir() else None


def _url(host: str, port: int) -> str:
    name = _reachable(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _reachable(host: str) -> str:
    """Return an address that reaches a server which listens on ``host``; the wildcards are not addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound here
