"""More than the API can take: it answers 429 or 503 in time, and is started again when its threads hang."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests

from api.app import create_app
from api.hangs import ClientsBody, Hangs
from api.services import EXTENSION
from orchestrator.watchdog import EXIT_STATUS
from tests.chaos.burst import Crowd
from tests.integration.api_site import DEFINITION, ApiSite
from tests.integration.test_scheduler import until

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[2]

APPLICATION = """
import threading
import time
from flask import request
from api.app import create_app
from orchestrator.config import load_settings

app = create_app(load_settings(), hang_limit=1.0)
hanging = threading.Event()

@app.before_request
def hang():
    if request.headers.get("X-Hang"):
        hanging.wait()
    if request.headers.get("X-Slow"):
        time.sleep(0.4)
"""

CROWDED = """
import threading
import time
from flask import request
from api.app import create_app
from orchestrator.config import load_settings

app = create_app(load_settings())
together = threading.Lock()

@app.before_request
def share():
    if request.method == "POST":
        with together:
            time.sleep(0.04)
"""
"""Requests share what serves 25 of them in a second, as on a machine that others keep busy."""


@pytest.fixture
def full(api: ApiSite) -> Iterator[ApiSite]:
    """An API that takes two unfinished runs of a tenant."""
    settings = replace(api.settings, max_queued_runs=2)
    site = ApiSite(create_app(settings), settings, api.tenant_id, api.keys)
    yield site
    site.services.close()


def test_a_tenant_with_too_many_unfinished_runs_is_told_to_wait(full: ApiSite) -> None:
    full.saved()
    body = {"pipeline_name": "two-scripts"}
    first = full.call("POST", "/api/v1/runs", body, headers={"Idempotency-Key": "one"})
    assert first.status_code == 201
    assert full.call("POST", "/api/v1/runs", body).status_code == 201
    refused = full.call("POST", "/api/v1/runs", body, headers={"Idempotency-Key": "three"})
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json is not None
    assert "MAX_QUEUED_RUNS" in refused.json["message"]
    assert full.count("SELECT count(*) FROM runs") == 2
    # What was accepted before is still known by its key.
    again = full.call("POST", "/api/v1/runs", body, headers={"Idempotency-Key": "one"})
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")

    full.sql("UPDATE runs SET state = 'success', ended_at = now()")
    full.services.backlog._counts.clear()
    assert full.call("POST", "/api/v1/runs", body, headers={"Idempotency-Key": "three"}).status_code == 201


def test_a_rerun_takes_a_place_like_a_new_run(full: ApiSite) -> None:
    full.saved()
    ended = [full.started()["id"] for _ in range(2)]
    full.sql("UPDATE runs SET state = 'failed', ended_at = now()")
    full.services.backlog._counts.clear()

    def rerun(run_id: str) -> int:
        return full.call("POST", f"/api/v1/runs/{run_id}/rerun", {"from": "all"}).status_code

    assert rerun(ended[0]) == 202
    new = full.started()["id"]
    assert rerun(ended[1]) == 429
    # Nobody leads, and the count is taken anew from the rows.
    full.services.backlog._counts.clear()
    assert rerun(ended[1]) == 429
    assert full.count("SELECT count(*) FROM commands WHERE kind = 'rerun'") == 1
    full.sql("UPDATE runs SET state = 'success', ended_at = now() WHERE id = :id", id=new)
    full.services.backlog._counts.clear()
    assert rerun(ended[1]) == 202


def test_the_limit_of_one_tenant_is_not_that_of_another(full: ApiSite) -> None:
    for role in ("admin", "foreign"):
        saved = full.call("POST", "/api/v1/pipelines", DEFINITION, role=role)
        assert saved.status_code == 201
        for expected in (201, 201, 429):
            answer = full.call("POST", "/api/v1/runs", {"pipeline_name": "two-scripts"}, role=role)
            assert answer.status_code == expected


def _environment(site: ApiSite, folder: Path) -> dict[str, str]:
    settings = site.settings
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": f"{ROOT}:{folder}",
        "LOG_LEVEL": "ERROR",
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "DATA_DIR": str(folder),
        "SECRET_KEY": settings.secret_key,
        "ADMIN_KEY": settings.admin_key,
        "RATE_LIMIT_PER_SECOND": "100000",
    }


class Server:
    """The API under gunicorn with as few threads as the test says."""

    def __init__(
        self, site: ApiSite, folder: Path, threads: int, module: str = "api.wsgi:app", options: Sequence[str] = ()
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {"Authorization": f"Bearer {site.keys['admin']}"}
        options = [*options, "--bind", f"127.0.0.1:{port}", "--threads", str(threads), "--no-control-socket", module]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--worker-class", "api.server.Threads", *options],
            cwd=folder,
            env=_environment(site, folder),
        )

    def is_alive(self) -> bool:
        try:
            return requests.get(f"{self.url}/healthz", timeout=1).status_code == 200
        except requests.RequestException:
            return False

    def wait_until_alive(self, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_alive():
            assert time.monotonic() < deadline, "The API does not answer."
            assert self.process.poll() is None, "The API has ended."
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def test_a_server_whose_threads_all_hang_is_started_again(api: ApiSite, tmp_path: Path) -> None:
    (tmp_path / "hanging_app.py").write_text(APPLICATION)
    server = Server(api, tmp_path, threads=2, module="hanging_app:app")
    try:
        server.wait_until_alive()

        def hang() -> None:
            with suppress(requests.RequestException):
                requests.get(f"{server.url}/healthz", headers={"X-Hang": "1"}, timeout=60)

        callers = [threading.Thread(target=hang) for _ in range(2)]
        for caller in callers:
            caller.start()
        # They are cut off when the worker ends, which is what lets these threads end.
        for caller in callers:
            caller.join(timeout=60)
            assert not caller.is_alive()
        server.wait_until_alive()
    finally:
        server.stop()


def test_requests_that_end_and_an_idle_server_are_no_hang() -> None:
    ended: list[int] = []
    watch = Hangs(0.2, ended.append)
    watch.begun()
    watch.ended()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        watch.begun()
        watch.begun()
        watch.ended()
        watch.ended()
        time.sleep(0.02)
    assert ended == []
    watch.begun()
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended == [EXIT_STATUS]


class SlowBody(BytesIO):
    """A body that the client sends one byte of, and the rest after so many seconds."""

    def __init__(self, body: bytes, seconds: float) -> None:
        super().__init__(body)
        self._seconds = seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() == 0:
            return super().read(1)
        time.sleep(self._seconds)
        return super().read(size)

    def readinto(self, buffer: Any, /) -> int:
        read = self.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)


def test_a_client_that_sends_slowly_to_a_quiet_server_is_no_hang(api: ApiSite) -> None:
    ended: list[int] = []
    services = api.services
    api.app.extensions[EXTENSION] = replace(services, hangs=Hangs(0.4, ended.append))
    try:
        body = json.dumps(DEFINITION).encode()
        answer = api.call(
            "POST",
            "/api/v1/pipelines",
            headers={"Content-Type": "application/json", "Content-Length": str(len(body))},
            input_stream=SlowBody(body, 2.0),
        )
    finally:
        api.app.extensions[EXTENSION] = services
    assert answer.status_code == 201, answer.text
    assert ended == []


def test_a_request_that_hangs_after_its_body_came_is_one() -> None:
    ended: list[int] = []
    watch = Hangs(0.2, ended.append)
    watch.begun()
    assert list(ClientsBody(BytesIO(b"a\nb"), watch)) == [b"a\n", b"b"]
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended == [EXIT_STATUS]


def test_two_hundred_callers_at_once_all_get_an_answer_in_time(api: ApiSite, tmp_path: Path) -> None:
    api.saved()
    server = Server(api, tmp_path, threads=32)
    taken: list[tuple[int, float]] = []
    together = threading.Barrier(200)

    def call() -> None:
        with requests.Session() as session:
            together.wait()
            for _ in range(2):
                began = time.monotonic()
                answer = session.post(
                    f"{server.url}/api/v1/runs",
                    json={"pipeline_name": "two-scripts"},
                    headers=server.headers,
                    timeout=30,
                )
                taken.append((answer.status_code, time.monotonic() - began))

    try:
        server.wait_until_alive()
        callers = [threading.Thread(target=call) for _ in range(200)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        server.stop()
    statuses = Counter(status for status, _ in taken)
    slowest = sorted(seconds for _, seconds in taken)
    print(statuses, f"median {slowest[len(slowest) // 2]:.2f} s, slowest {slowest[-1]:.2f} s")
    assert set(statuses) <= {201, 429, 503}
    assert statuses[201] == api.count("SELECT count(*) FROM runs")
    assert len(taken) == 400


def test_requests_that_waited_long_for_a_thread_are_refused_at_once_so_that_all_are_answered_in_time(
    api: ApiSite, tmp_path: Path
) -> None:
    (tmp_path / "hanging_app.py").write_text(APPLICATION)
    server = Server(api, tmp_path, threads=2, module="hanging_app:app")
    answers: list[tuple[requests.Response, float]] = []

    def call() -> None:
        began = time.monotonic()
        answer = requests.get(f"{server.url}/api/v1/runs", headers={**server.headers, "X-Slow": "1"}, timeout=30)
        answers.append((answer, time.monotonic() - began))

    try:
        server.wait_until_alive()
        # One after the other they would take four seconds.
        callers = [threading.Thread(target=call) for _ in range(20)]
        for caller in callers:
            caller.start()
        # Whether the process lives is still said, by whoever waits.
        assert requests.get(f"{server.url}/healthz", timeout=10).status_code == 200
        for caller in callers:
            caller.join()
    finally:
        server.stop()
    taken = [seconds for answer, seconds in answers if answer.status_code == 200]
    refused = [answer for answer, _ in answers if answer.status_code == 503]
    print(f"{len(taken)} of {len(answers)} were taken, the slowest answer took {max(s for _, s in answers):.2f} s")
    assert len(taken) + len(refused) == 20
    assert len(taken) >= 2
    assert len(refused) >= 8
    assert all(answer.json()["request_id"] == answer.headers["X-Request-Id"] for answer in refused)
    assert all(2 <= int(answer.headers["Retry-After"]) <= 6 for answer in refused)
    assert "More requests have come" in refused[0].json()["message"]
    assert max(seconds for _, seconds in answers) < 2.5


def test_a_queue_of_two_hundred_is_answered_within_two_seconds_however_slow_each_makes_the_other(
    api: ApiSite, tmp_path: Path
) -> None:
    api.saved()
    (tmp_path / "crowded_app.py").write_text(CROWDED)
    # As the one-host command starts it: were all of its threads at work, each would be for 2.6 s.
    server = Server(api, tmp_path, threads=64, module="crowded_app:app", options=("--keep-alive", "75"))
    port = int(server.url.rpartition(":")[2])
    crowd = Crowd([port], api.keys["admin"], "two-scripts")
    try:
        server.wait_until_alive()
        crowd.ask([f"key-{number}" for number in range(200)], 200, seconds=80.0)
    finally:
        server.stop()
    print(crowd.statuses, f"half in {crowd.slowest(0.5):.2f} s, 99 % in {crowd.slowest(0.99):.2f} s")
    assert set(crowd.statuses) == {201, 503}
    assert crowd.statuses[201] == 200
    assert api.count("SELECT count(*) FROM runs") == 200
    assert crowd.slowest(1.0) < 2.0


def test_what_waited_before_the_server_took_it_in_has_waited(api: ApiSite, tmp_path: Path) -> None:
    server = Server(api, tmp_path, threads=2)
    try:
        server.wait_until_alive()
        (worker,) = _children(server.process.pid)
        os.kill(worker, signal.SIGSTOP)
        answers: list[requests.Response] = []

        def call() -> None:
            answers.append(requests.get(f"{server.url}/api/v1/runs", headers=server.headers, timeout=30))

        caller = threading.Thread(target=call)
        caller.start()
        _wait_until_data_waits(int(server.url.rpartition(":")[2]))
        time.sleep(1.0)  # the request lies there so long
        os.kill(worker, signal.SIGCONT)
        caller.join()
        call()
    finally:
        server.stop()
    late, prompt = answers
    assert late.status_code == 503
    assert "More requests have come" in late.json()["message"]
    assert prompt.status_code == 200


def test_what_came_while_the_server_was_being_started_is_answered(api: ApiSite, tmp_path: Path) -> None:
    server = Server(api, tmp_path, threads=2)
    try:
        server.wait_until_alive()
        (worker,) = _children(server.process.pid)
        os.kill(worker, signal.SIGKILL)
        until(lambda: _children(server.process.pid) not in ([], [worker]))
        began = time.monotonic()
        answer = requests.get(f"{server.url}/api/v1/runs", headers=server.headers, timeout=60)
        print(f"answered after {time.monotonic() - began:.2f} s")
    finally:
        server.stop()
    assert answer.status_code == 200, answer.text


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_until_data_waits(port: int, seconds: float = 20.0) -> None:
    """Wait until a client of this port has sent what nobody has read."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, queues = line.split()[:5]
            if int(local.rpartition(":")[2], 16) == port and state == "01" and int(queues.partition(":")[2], 16):
                return
        time.sleep(0.02)
    raise AssertionError("No request came.")
