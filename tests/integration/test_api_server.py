"""The API under its real server: large bodies, streams and the entry point, over a socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.integration.api_site import DEFINITION, ApiSite

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    headers: dict[str, str]


@pytest.fixture
def server(api: ApiSite, tmp_path: Path) -> Iterator[Server]:
    """The API under gunicorn, as the one-host command starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = api.settings
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "LOG_LEVEL": "WARNING",
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "DATA_DIR": str(tmp_path),
        "SECRET_KEY": settings.secret_key,
        "ADMIN_KEY": settings.admin_key,
        "WORKER_KEY": settings.worker_key,
    }
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--bind",
        f"127.0.0.1:{port}",
        "--threads",
        "16",
        "--no-control-socket",
        "--keep-alive",
        "75",
        "api.wsgi:app",
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_alive(url, process)
        yield Server(url, {"Authorization": f"Bearer {api.keys['admin']}"})
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_alive(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/healthz", timeout=1).status_code == 200:
                return
        except requests.RequestException:
            time.sleep(0.1)
    pytest.fail("The API did not come up.")


def test_the_api_works_over_a_socket(server: Server) -> None:
    answer = requests.post(f"{server.url}/api/v1/pipelines", json=DEFINITION, headers=server.headers, timeout=10)
    assert answer.status_code == 201
    # The refusal has to reach a client that is still sending, and the connection has to stay usable.
    with requests.Session() as session:
        large = session.post(
            f"{server.url}/api/v1/pipelines",
            data=b" " * 10_000_000,
            timeout=30,
            headers={**server.headers, "Content-Type": "application/json"},
        )
        assert large.status_code == 413
        assert large.json()["code"] == 413
        chunked = session.post(
            f"{server.url}/api/v1/pipelines",
            data=iter([b" " * 100_000] * 100),
            timeout=30,
            headers={**server.headers, "Content-Type": "application/json"},
        )
        assert chunked.status_code == 413
        anonymous = session.post(f"{server.url}/api/v1/pipelines", data=b" " * 10_000_000, timeout=30)
        assert anonymous.status_code == 401
        listed = session.get(f"{server.url}/api/v1/pipelines", headers=server.headers, timeout=10).json()
        assert [pipeline["name"] for pipeline in listed["items"]] == ["two-scripts"]


def test_a_stream_arrives_while_it_is_still_open(server: Server, api: ApiSite) -> None:
    api.saved()
    run = api.started()
    with requests.get(
        f"{server.url}/api/v1/runs/{run['id']}/events",
        timeout=20,
        stream=True,
        headers={**server.headers, "Accept": "text/event-stream"},
    ) as response:
        lines = response.iter_lines(decode_unicode=True)
        assert next(line for line in lines if line.startswith("event:")) == "event: transition"
        api.sql("UPDATE runs SET state = 'cancelled', ended_at = now()")
        assert next(line for line in lines if line.startswith("event:")) == "event: end"
