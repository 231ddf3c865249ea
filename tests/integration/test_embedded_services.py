"""The servers that we bring along: they start, keep what they were given, stop when told and survive a kill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from orchestrator.local.binaries import postgres_install
from orchestrator.local.child import ChildProcess
from orchestrator.local.postgres import EmbeddedPostgres
from orchestrator.local.redis import EmbeddedRedis
from orchestrator.local.servers import start_server

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def folder(postgres_url: str, redis_server_url: str) -> Iterator[Path]:
    """A data folder; the session's servers are asked for first, so that a missing wheel skips these tests."""
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-services-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def started(folder: Path) -> Iterator[Callable[[EmbeddedPostgres | EmbeddedRedis], ChildProcess]]:
    children: list[ChildProcess] = []

    def start(server: EmbeddedPostgres | EmbeddedRedis) -> ChildProcess:
        children.append(start_server(server, folder))
        return children[-1]

    yield start
    for child in children:
        child.stop()


Start = Callable[[EmbeddedPostgres | EmbeddedRedis], ChildProcess]


def query(server: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(server.url().replace("+psycopg2", ""))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    """Say whether the process runs; in a container whose first process reaps nothing, ended ones stay as zombies."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_postgres_stops_at_once_on_sigint_though_a_client_is_connected(folder: Path, started: Start) -> None:
    server = EmbeddedPostgres(folder / "postgres")
    child = started(server)
    client = psycopg2.connect(server.url().replace("+psycopg2", ""))
    before = time.monotonic()
    assert child.stop() == 0, "it was killed: it waited for its client"
    assert time.monotonic() - before < 30
    client.close()


def test_postgres_killed_without_warning_keeps_its_rows_and_its_address(folder: Path, started: Start) -> None:
    server = EmbeddedPostgres(folder / "postgres")
    child = started(server)
    address = server.url()
    query(server, "CREATE TABLE kept (n int)")
    query(server, "INSERT INTO kept VALUES (7)")
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10)
    started(server)
    assert server.url() == address
    assert query(server, "SELECT n FROM kept") == [(7,)]


def test_a_stale_pid_file_that_names_a_living_stranger_does_not_keep_postgres_from_starting(
    folder: Path, started: Start
) -> None:
    server = EmbeddedPostgres(folder / "postgres")
    child = started(server)
    pid_file = server.home() / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    assert child.stop() == 0
    account = "nobody" if os.geteuid() == 0 else None
    with subprocess.Popen(["/bin/sleep", "60"], user=account) as stranger:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        started(server)
        assert query(server, "SELECT 1") == [(1,)]
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give up its rights")
def test_root_runs_postgres_as_nobody_even_below_a_private_folder(folder: Path, started: Start) -> None:
    (folder / "private").mkdir(mode=0o700)
    server = EmbeddedPostgres(folder / "private" / "postgres")
    umask = os.umask(0o077)  # as hardened servers set it
    try:
        child = started(server)
    finally:
        os.umask(umask)
    assert psutil.Process(child.pid).username() == "nobody"
    assert query(server, "SELECT 1") == [(1,)]
    assert child.stop() == 0
    shutil.rmtree(server.home())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give up its rights")
def test_root_runs_postgres_as_nobody_even_from_a_wheel_that_only_root_can_reach(
    folder: Path, started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = postgres_install()
    packages = folder / "private" / "site-packages"
    shutil.copytree(install, packages / install.parent.name / install.name, symlinks=True)
    libraries = install.parent.with_name(f"{install.parent.name}.libs")
    if libraries.exists():  # the wheel's programs find them by a path relative to their own
        shutil.copytree(libraries, packages / libraries.name)
    (folder / "private").chmod(0o700)
    private = packages / install.parent.name / install.name
    monkeypatch.setattr("orchestrator.local.postgres.postgres_install", lambda major: private)
    server = EmbeddedPostgres(folder / "postgres")
    child = started(server)
    assert query(server, "SELECT 1") == [(1,)]
    assert child.stop() == 0


def test_postgres_refuses_a_wrong_password(folder: Path, started: Start) -> None:
    server = EmbeddedPostgres(folder / "postgres")
    started(server)
    password = server.url().partition("://")[2].partition(":")[2].partition("@")[0]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(server.url().replace("+psycopg2", "").replace(password, "wrong"))


@pytest.mark.parametrize("name", ["password", "redis/password", "redis/redis.conf"])
def test_files_with_a_password_are_for_their_owner_only(folder: Path, name: str) -> None:
    EmbeddedRedis(folder / "redis").prepare()
    EmbeddedPostgres(folder).prepare()
    assert (folder / name).stat().st_mode & 0o777 == 0o600


def test_redis_killed_without_warning_keeps_what_is_older_than_a_second(folder: Path, started: Start) -> None:
    server = EmbeddedRedis(folder / "redis")
    child = started(server)
    with redis.Redis.from_url(server.url()) as client:
        client.set("kept", "7")
        client.execute_command("WAITAOF", 1, 0, 5000)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10)
    started(server)
    with redis.Redis.from_url(server.url()) as client:
        assert client.get("kept") == b"7"


def test_a_taken_port_is_replaced_by_a_free_one(folder: Path, started: Start) -> None:
    server = EmbeddedRedis(folder / "redis")
    child = started(server)
    port = int((folder / "redis" / "port").read_text())
    assert child.stop() == 0
    with socket.create_server(("127.0.0.1", port)):
        started(server)
        assert int((folder / "redis" / "port").read_text()) != port


def test_the_servers_end_with_the_process_that_started_them(folder: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from orchestrator.local.postgres import EmbeddedPostgres\n"
        "from orchestrator.local.redis import EmbeddedRedis\n"
        "from orchestrator.local.servers import start_server\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for server in (EmbeddedPostgres(folder / 'postgres'), EmbeddedRedis(folder / 'redis')):\n"
        "    print(start_server(server, folder).pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pids = [int(starter.stdout.readline()) for _ in range(2)]
        starter.kill()
    assert eventually(lambda: not any(map(is_alive, pids)))


def test_a_server_that_outlived_a_killed_supervisor_is_ended_before_the_next_starts(
    folder: Path, started: Start
) -> None:
    server = EmbeddedRedis(folder / "redis")
    first = started(server)
    second = started(EmbeddedRedis(folder / "redis"))
    assert first.wait(5)
    assert not second.has_ended()
