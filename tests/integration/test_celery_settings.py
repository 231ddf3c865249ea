"""What ``celeryconfig.py`` promises, shown on a real worker with the threads pool and a real Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Settings
from orchestrator.effects import SendHint
from orchestrator.wire.hints import HintPublisher, celery_app
from orchestrator.wire.keys import Keys
from orchestrator.wire.redis import Client, connect

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
PREFIX = "celerytest"
KEYS = Keys(PREFIX)

# Stands in for workers/: a slot that waits, as ours does, until the test lets it go.
WORKER = """
import os, time
from celery import Celery
import redis

app = Celery("waiting", config_source="celeryconfig")
client = redis.Redis.from_url(os.environ["REDIS_URL"])

@app.task(name="orchestrator.attempt")
def attempt(attempt, seq):
    client.rpush("started", attempt)
    while not client.exists("go:" + attempt):
        time.sleep(0.02)
    client.rpush("ended", attempt)
"""


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def publisher(redis_url: str) -> Iterator[HintPublisher]:
    publisher = HintPublisher(Settings(redis_url=redis_url, redis_task_queue=PREFIX))
    yield publisher
    publisher.close()


class WorkerProcess:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def output(self) -> str:
        return self._log.read_text(errors="replace")


@pytest.fixture
def start_worker(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    started: list[subprocess.Popen[bytes]] = []
    (tmp_path / "waiting_worker.py").write_text(WORKER)
    environment = {
        **{name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}},
        "REDIS_URL": redis_url,
        "REDIS_TASK_QUEUE": PREFIX,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
    }

    def start(queues: str = "cpu", slots: int = 1, **variables: str) -> WorkerProcess:
        log = tmp_path / f"worker-{len(started)}.log"
        command = [sys.executable, "-m", "celery", "-A", "waiting_worker", "worker", "-Q", queues, "-c", str(slots)]
        command += ["-n", f"{uuid.uuid4().hex[:8]}@test", "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**environment, **variables},
                cwd=tmp_path,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return WorkerProcess(process, log)

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


def started(client: Client) -> list[str]:
    found: Any = client.lrange("started", 0, -1)
    return [raw.decode() for raw in found]


def let_go(client: Client, *attempts: str) -> None:
    for attempt in attempts:
        client.set(f"go:{attempt}", 1)


def test_a_busy_slot_leaves_further_hints_in_the_list(
    client: Client, publisher: HintPublisher, start_worker: Callable[..., WorkerProcess]
) -> None:
    start_worker(slots=1)
    publisher.publish([SendHint("first", 1, "cpu")])
    wait_for(lambda: started(client) == ["first"])
    publisher.publish([SendHint(name, 1, "cpu") for name in ("second", "third")])
    # A fetched message would leave the list within one BRPOP, so a second of looking is long enough to see it.
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        assert client.llen(KEYS.queue("cpu")) == 2, "a hint was taken from the list while the only slot was busy"
        time.sleep(0.05)
    let_go(client, "first", "second", "third")
    wait_for(lambda: started(client) == ["first", "second", "third"])
    wait_for(lambda: client.llen("ended") == 3)


def test_every_slot_is_used_and_no_more(
    client: Client, publisher: HintPublisher, start_worker: Callable[..., WorkerProcess]
) -> None:
    start_worker(slots=2)
    publisher.publish([SendHint(name, 1, "cpu") for name in ("a", "b", "c")])
    wait_for(lambda: sorted(started(client)) == ["a", "b"])
    assert client.llen(KEYS.queue("cpu")) == 1
    let_go(client, "a")
    wait_for(lambda: sorted(started(client)) == ["a", "b", "c"])


def test_a_flush_of_redis_does_not_deafen_the_worker(
    client: Client, publisher: HintPublisher, start_worker: Callable[..., WorkerProcess]
) -> None:
    start_worker()
    publisher.publish([SendHint("before", 1, "cpu")])
    wait_for(lambda: started(client) == ["before"])
    client.flushall()
    let_go(client, "before")
    wait_for(lambda: client.llen("ended") == 1)
    publisher.publish([SendHint("after", 1, "cpu")])
    wait_for(lambda: started(client) == ["after"])


@pytest.mark.parametrize(
    "message",
    [
        *(b"", b"\xff\xfe", b"{", b"[]", b"7", b"{}", b'{"body": 1, "properties": 5}', b"[" * 100_000),
        b'{"body": "e30=", "properties": {"delivery_tag": "x", "delivery_info": []}, "headers": {}}',
        b'{"__type__": "decimal", "__value__": "x"}',
    ],
    ids=lambda message: message[:12].decode(errors="replace"),
)
def test_a_message_that_nobody_can_read_is_dropped_and_stops_nothing_that_runs(
    client: Client, publisher: HintPublisher, start_worker: Callable[..., WorkerProcess], message: bytes
) -> None:
    worker = start_worker(slots=2)
    publisher.publish([SendHint("before", 1, "cpu")])
    wait_for(lambda: started(client) == ["before"])
    client.lpush(KEYS.queue("cpu"), message)
    wait_for(lambda: client.llen(KEYS.queue("cpu")) == 0)
    publisher.publish([SendHint("after", 1, "cpu")])
    wait_for(lambda: started(client) == ["before", "after"])
    let_go(client, "before", "after")
    wait_for(lambda: client.llen("ended") == 2)
    assert worker.process.poll() is None


def test_celery_keeps_no_binding_no_unacknowledged_set_and_no_result(
    client: Client, publisher: HintPublisher, start_worker: Callable[..., WorkerProcess]
) -> None:
    start_worker(queues="cpu,highmem", WORKER_REMOTE_CONTROL="false")
    publisher.publish([SendHint("attempt", 1, "highmem")])
    wait_for(lambda: started(client) == ["attempt"])
    assert client.keys("*") == [b"started"]


def test_flower_finds_the_worker_where_remote_control_is_on(
    redis_url: str, client: Client, start_worker: Callable[..., WorkerProcess]
) -> None:
    start_worker()
    app = celery_app(Settings(redis_url=redis_url, redis_task_queue=PREFIX))
    wait_for(lambda: app.control.ping(timeout=0.5))
    app.close()
    # Remote control has bindings of its own; the queues of hints have none.
    assert not [key for key in client.keys("*") if b"binding" in key and b"cpu" in key]


def test_a_mistyped_queue_refuses_to_start(start_worker: Callable[..., WorkerProcess]) -> None:
    worker = start_worker(queues="cup")
    assert worker.process.wait(timeout=60) != 0
    assert "cup" in worker.output()


def test_a_killed_worker_runs_nothing_twice(
    client: Client, publisher: HintPublisher, start_worker: Callable[..., WorkerProcess]
) -> None:
    worker = start_worker()
    publisher.publish([SendHint("attempt", 1, "cpu")])
    wait_for(lambda: started(client) == ["attempt"])
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait(timeout=10)
    start_worker()
    publisher.publish([SendHint("next", 1, "cpu")])
    wait_for(lambda: started(client) == ["attempt", "next"])


def test_the_message_is_of_celerys_second_protocol(client: Client, publisher: HintPublisher) -> None:
    publisher.publish([SendHint("attempt", 2, "cpu")])
    message = json.loads(client.lrange(KEYS.queue("cpu"), 0, -1)[0])
    assert message["content-type"] == "application/json"
    assert {"lang", "task", "id", "retries", "root_id"} <= set(message["headers"])
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "cpu"}
