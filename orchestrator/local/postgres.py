"""PostgreSQL from the wheel's binaries: makes the data once, listens on loopback with a password, stops by SIGINT."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import psutil
import psycopg2
from psycopg2 import sql

from orchestrator.errors import ConfigurationError
from orchestrator.local.binaries import postgres_install
from orchestrator.local.child import ProcessSpec
from orchestrator.local.ports import LOOPBACK, remembered_port
from orchestrator.local.secret_file import kept_secret

SUPERUSER = "orchestrator"
UNPRIVILEGED = "nobody"
"""PostgreSQL refuses to run as root, so root runs it as this account, which every Unix has."""
SYSTEM_FOLDER = Path("/var/lib/pipeline-orchestrator")
"""Where root's PostgreSQL lives when `nobody` can't reach the data folder, as under a private ``/root``."""


class EmbeddedPostgres:
    """One PostgreSQL server on one folder.

    :param folder: holds the data, the port and the password; survives restarts.
    :param durable: False trades crash safety for speed, for tests only.
    """

    name = "postgres"

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder = folder.absolute()
        self._durable = durable
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        self._port = 0
        self._password = ""

    def prepare(self) -> ProcessSpec:
        """Make the data on the first call, choose the port, and return how to run the server.

        :raises ConfigurationError: no binaries, or the data can't be made.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711 if self._user else 0o700)
        self._password = kept_secret(self._folder / "password")
        home = self.home()
        _make_passable(home)
        version_file = home / "data" / "PG_VERSION"
        install = self._reachable(postgres_install(_text(version_file)), home)
        if not version_file.exists():
            self._initialise(install, home)
        _remove_stale_pid_file(home / "data")
        self._port = remembered_port(self._folder / "port")
        return ProcessSpec(
            name=self.name,
            command=(
                *(str(install / "bin" / "postgres"), "-D", str(home / "data")),
                *("-h", LOOPBACK, "-p", str(self._port)),
                *(word for name, value in self._parameters().items() for word in ("-c", f"{name}={value}")),
            ),
            folder=home,
            environment=_environment(),
            user=self._user,
            # SIGTERM is the "smart" stop, which waits for clients for ever; SIGINT is the fast one.
            stop_signal=signal.SIGINT,
            orphan_signal=signal.SIGINT,
            stop_seconds=30.0,
        )

    def home(self) -> Path:
        """Return the folder with the server's files: our own, unless its account can't reach that."""
        if self._user is None or _others_can_reach(self._folder):
            return self._folder
        return SYSTEM_FOLDER / hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:12]

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database on this server, password included."""
        return f"postgresql+psycopg2://{SUPERUSER}:{self._password}@{LOOPBACK}:{self._port}/{database}"

    def is_ready(self) -> bool:
        """Say whether the server answers a query."""
        try:
            connection = psycopg2.connect(self._dsn("postgres"), connect_timeout=2)
        except psycopg2.OperationalError:
            return False
        connection.close()
        return True

    def create_database(self, name: str) -> None:
        """Create a database unless it exists."""
        connection = psycopg2.connect(self._dsn("postgres"), connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        finally:
            connection.close()

    def _dsn(self, database: str) -> str:
        return f"host={LOOPBACK} port={self._port} user={SUPERUSER} password={self._password} dbname={database}"

    def _parameters(self) -> dict[str, str]:
        parameters = {
            # TCP with a password only: socket paths have a limit of 107 bytes, which deep folders break.
            "unix_socket_directories": "",
            "max_connections": "200",
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not self._durable:
            parameters |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return parameters

    def _reachable(self, install: Path, home: Path) -> Path:
        """Return the installation, or a copy of it beside the data if the server's account can't reach it."""
        if self._user is None or _others_can_reach(install):
            return install
        package = install.parent
        copy = home / "binaries" / package.name / install.name
        if not copy.exists():
            # The wheel's programs look for their libraries in a folder beside their package, so that comes along.
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                _copy_for_all(libraries, home / "binaries" / libraries.name)
            _copy_for_all(install, copy)
        return copy

    def _initialise(self, install: Path, home: Path) -> None:
        """Run initdb in a draft folder and rename it, so that an interrupted start leaves nothing half made."""
        draft, password_file = home / "data.new", home / "initdb.password"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        password_file.unlink(missing_ok=True)
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if self._user:
            shutil.chown(draft, self._user)
            shutil.chown(password_file, self._user)
        try:
            result = subprocess.run(
                [
                    *(str(install / "bin" / "initdb"), "-D", str(draft), "-U", SUPERUSER),
                    *("-A", "scram-sha-256", "--pwfile", str(password_file), "-E", "UTF8", "--locale=C.UTF-8"),
                    *([] if self._durable else ["--no-sync"]),
                ],
                cwd=home,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                user=self._user,
                group=_group_of(self._user) if self._user else None,
                extra_groups=[] if self._user else None,
            )
        finally:
            password_file.unlink()
        if result.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise ConfigurationError(
                f"initdb could not make the database in {home}: {result.stderr.strip() or result.returncode}. "
                "Check the free space and the permissions of that folder."
            )
        draft.replace(home / "data")


def _remove_stale_pid_file(data: Path) -> None:
    """Remove the pid file of a server that was killed, if the process of that number is now another program.

    PostgreSQL itself refuses to start when any process of its account has that number, as after a container's restart.
    """
    file = data / "postmaster.pid"
    try:
        process = psutil.Process(int(file.read_text().split("\n", 1)[0]))
        # In a container root may not look at the folder of a process of `nobody`, but at its command.
        program, *arguments = process.cmdline() or [""]
        is_ours = str(data) in arguments
        if not is_ours and (Path(program).name != "postgres" or process.cwd() != str(data.resolve())):
            file.unlink()
    except (FileNotFoundError, ValueError):
        return
    except psutil.NoSuchProcess:
        file.unlink(missing_ok=True)
    except psutil.AccessDenied:
        return  # a stranger's process; PostgreSQL sees that itself


def _make_passable(folder: Path) -> None:
    """Make a folder, and parents that are missing, for any account to pass through, whatever our umask."""
    for part in reversed((folder, *folder.parents)):
        if not part.exists():
            part.mkdir()
        elif not part.is_relative_to(SYSTEM_FOLDER):
            continue  # somebody else's
        part.chmod(0o711)


def _copy_for_all(source: Path, target: Path) -> None:
    """Copy a folder so that any account can read it; it is there whole or not at all."""
    draft = target.with_name(f"{target.name}.new")
    for remains in (draft, target):
        shutil.rmtree(remains, ignore_errors=True)
    _make_passable(draft.parent)
    shutil.copytree(source, draft, symlinks=True)
    for folder, folders, files in os.walk(draft):
        for entry in (Path(folder, name) for name in (*folders, *files)):
            if not entry.is_symlink():
                entry.chmod(0o755 if entry.is_dir() or entry.stat().st_mode & stat.S_IXUSR else 0o644)
    draft.chmod(0o755)
    draft.replace(target)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _text(file: Path) -> str | None:
    return file.read_text().strip() if file.exists() else None


def _group_of(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def _others_can_reach(folder: Path) -> bool:
    """Say whether any account may enter the folder, by the permission bits of it and of its parents."""
    resolved = folder.resolve()
    return all(part.stat().st_mode & stat.S_IXOTH for part in (resolved, *resolved.parents))
