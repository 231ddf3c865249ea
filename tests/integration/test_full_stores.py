"""Stores without room: PostgreSQL on a full disk, Redis at its ``maxmemory``. Said so, nothing lost, and on it goes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.effects import SendHint
from orchestrator.errors import StoreUnavailable
from orchestrator.local.postgres import EmbeddedPostgres
from orchestrator.local.redis import EmbeddedRedis
from orchestrator.local.servers import start_server
from orchestrator.store.engine import create_store_engine
from orchestrator.store.migrate import upgrade
from orchestrator.wire.hints import HintPublisher
from orchestrator.wire.redis import connect
from tests.integration.api_site import ApiSite, open_site

pytestmark = pytest.mark.timeout(150)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system with little room."""
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=0711", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        folder.rmdir()
        pytest.skip("Only root may mount a small file system here.")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def fill(folder: Path) -> Path:
    """Take all room but 64 KiB; remove the file to give it back."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        for size in (1 << 20, 1 << 12):
            while shutil.disk_usage(folder).free > size + (1 << 16):
                file.write(b"x" * size)
                file.flush()
    return filler


def test_a_full_disk_is_503_with_a_sentence_until_there_is_room(
    small_disk: Path, redis_url: str, tmp_path: Path
) -> None:
    server = EmbeddedPostgres(small_disk / "postgres", durable=False)
    child = start_server(server, tmp_path)
    site: ApiSite | None = None
    try:
        upgrade(server.url())
        site = open_site(server.url(), redis_url, tmp_path)
        site.saved()
        accepted = {site.started()["id"]}
        filler = fill(small_disk)
        refused = None
        for _ in range(400):
            answer = site.call("POST", "/api/v1/runs", {"pipeline_name": "two-scripts"})
            if answer.status_code == 503:
                refused = answer
                break
            assert answer.json is not None
            accepted.add(answer.json["id"])
        assert refused is not None, "The disk is not full."
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json is not None
        assert "disk is full" in refused.json["message"]
        assert str(small_disk) not in refused.text
        assert site.call("GET", "/api/v1/runs").status_code == 200
        filler.unlink()
        deadline = time.monotonic() + 30
        while site.call("POST", "/api/v1/runs", {"pipeline_name": "two-scripts"}).status_code != 201:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with site.engine.connect() as connection:
            kept = {str(row.id) for row in connection.execute(text("SELECT id FROM runs"))}
        assert accepted <= kept
    finally:
        if site is not None:
            site.services.close()
        child.stop()


def test_a_full_redis_is_said_by_health_and_runs_are_still_accepted(database_url: str, tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", durable=False)
    child = start_server(server, tmp_path)
    site = open_site(database_url, server.url(), tmp_path)
    publisher = HintPublisher(site.settings)
    try:
        with connect(server.url()) as client:
            site.saved()
            publisher.publish([SendHint("before", 1, "cpu")])
            client.config_set("maxmemory", 1)
            site.started()
            health = site.call("GET", "/monitoring/health/detailed").json
            assert health is not None
            assert health["status"] == "degraded"
            assert health["components"]["redis"]["status"] == "degraded"
            assert "Redis is full" in health["components"]["redis"]["message"]
            with pytest.raises(StoreUnavailable):
                publisher.publish([SendHint("while full", 1, "cpu")])
            client.config_set("maxmemory", 0)
            health = site.call("GET", "/monitoring/health/detailed").json
            assert health is not None
            assert health["components"]["redis"]["status"] == "healthy"
            publisher.publish([SendHint("afterwards", 1, "cpu")])
            assert client.llen(f"{site.settings.redis_task_queue}:cpu") == 2
    finally:
        publisher.close()
        site.services.close()
        child.stop()


def test_the_servers_reasons_reach_our_error(database_url: str) -> None:
    engine = create_store_engine(database_url)
    try:
        with engine.connect() as connection:
            connection.execute(text("SET TRANSACTION READ ONLY"))
            with pytest.raises(StoreUnavailable) as refused:
                connection.execute(text("DELETE FROM commands"))
        assert "only reads" in refused.value.explanation
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM commands"))
    finally:
        engine.dispose()
