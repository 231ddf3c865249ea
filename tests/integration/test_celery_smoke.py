"""One smoke test in containers (pytest-celery): our worker's image and Redis, a hint in, an authentic claim out.

Needs a Docker API; skipped, with the reason, where none answers. The image is that of ``compose/Dockerfile``, so the
first run on a machine builds it.
"""
# mypy: disable-error-code="import-untyped, misc"
# Neither docker nor pytest-celery have annotations.

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from pytest_celery import CeleryBackendCluster, CeleryTestSetup, CeleryWorkerContainer, RedisContainer
from pytest_docker_tools import build, container, fxtr, volume

from orchestrator.config import Settings
from orchestrator.effects import SendHint
from orchestrator.events import ClaimReceived
from orchestrator.wire.hints import HintPublisher, celery_app
from orchestrator.wire.keys import Keys, own_queue
from orchestrator.wire.seal import Seal
from orchestrator.wire.stream import EventStream

ROOT = Path(__file__).resolve().parents[2]
WORKER_KEY = "smoke-worker-key-0123456789abcdef"
KEYS = Keys("smoke")
NAME = "smoke"

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]


def _why_not() -> str:
    """Return why there is no Docker API here; empty when one answers."""
    import docker

    address = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    if address.scheme == "unix" and not Path(address.path).exists():
        return f"no Docker API: there is no {address.path}, and DOCKER_HOST names no other"
    try:
        client = docker.from_env(timeout=5)
    except docker.errors.DockerException as error:
        return f"no Docker API answers: {error}"
    try:
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        return f"the Docker API does not answer: {error}"
    finally:
        client.close()
    return ""


@pytest.fixture(scope="session", autouse=True)
def _docker_answers() -> None:
    if reason := _why_not():
        pytest.skip(reason)


class SmokeRedis(RedisContainer):
    """The Redis that the compose file names."""

    @classmethod
    def image(cls) -> str:
        return "docker.io/library/redis:7-bookworm"

    @property
    def host_url(self) -> str:
        """Where this test reaches it: not on localhost when the test itself runs in a container."""
        self._wait_port("6379/tcp")
        address, port = self.get_addr("6379/tcp")
        return f"{self.prefix()}{address}:{port}/{self.vhost}"


class SmokeWorker(CeleryWorkerContainer):
    """The worker of our image, started as any host starts one."""

    @classmethod
    def worker_name(cls) -> str:
        return NAME

    @classmethod
    def worker_queue(cls) -> str:
        return "cpu"

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        return ["celery", "-A", "workers", "worker", "-Q", cls.worker_queue(), "-c", "2", "-n", f"{NAME}@%h", *args]

    @classmethod
    def initial_env(cls, celery_worker_cluster_config: dict[str, Any], initial: Any = None) -> dict[str, str]:
        broker = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"][0]
        return {"REDIS_URL": broker, "REDIS_TASK_QUEUE": KEYS.namespace, "WORKER_KEY": WORKER_KEY}

    @classmethod
    def ports(cls) -> None:
        return None

    @property
    def ready_prompt(self) -> str:
        return f"{NAME}@"


default_redis_broker = container(
    image="{default_redis_broker_image}",
    ports=fxtr("default_redis_broker_ports"),
    environment=fxtr("default_redis_broker_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=SmokeRedis,
    timeout=60,
    command=fxtr("default_redis_broker_command"),
)

# The build reaches its package index as the machine does, whatever the engine's own network is.
smoke_worker_image = build(
    path=str(ROOT),
    dockerfile="compose/Dockerfile",
    target="worker-cpu",
    tag="pipeline-orchestrator/worker-cpu:smoke",
    network_mode="host",
)

# A volume of ours for the data folder is removed with the container; the image's own would stay behind.
smoke_worker_data = volume()

default_worker_container = container(
    image="{smoke_worker_image.id}",
    volumes={"{smoke_worker_data.name}": {"bind": "/data", "mode": "rw"}},
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=SmokeWorker,
    timeout=60,
    command=fxtr("default_worker_command"),
)


@pytest.fixture
def default_redis_broker_cls() -> type[RedisContainer]:
    return SmokeRedis


@pytest.fixture
def default_worker_container_cls() -> type[CeleryWorkerContainer]:
    return SmokeWorker


@pytest.fixture(params=["celery_redis_broker"])
def celery_broker(request: pytest.FixtureRequest) -> Any:
    """Redis only: it is what we run on."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def celery_backend_cluster() -> CeleryBackendCluster | None:
    """No results: the rows are the truth."""
    return None


@pytest.fixture
def settings(celery_setup: CeleryTestSetup) -> Settings:
    return Settings(redis_url=celery_setup.broker.config()["host_url"], redis_task_queue=KEYS.namespace)


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.redis_url) as client:
        yield client


def wait_for(question: Callable[[], Any], what: str, seconds: float = 40.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return answer


def test_a_worker_in_a_container_enrols_and_claims_what_a_hint_names(settings: Settings, client: redis.Redis) -> None:
    incarnation = wait_for(lambda: client.smembers(KEYS.live), "a heartbeat").pop().decode()
    app = celery_app(settings)
    answers = wait_for(lambda: app.control.inspect(timeout=1).active_queues(), "an answer to Celery's remote control")
    app.close()
    (queues,) = answers.values()
    assert {queue["name"] for queue in queues} == {"cpu", own_queue(incarnation)}

    attempt = str(uuid.uuid4())
    publisher = HintPublisher(settings)
    publisher.publish([SendHint(attempt, 1, "cpu")])
    publisher.close()
    stream = EventStream(client, KEYS, Seal(WORKER_KEY), "smoke")
    stream.ensure_group()
    (entry,) = wait_for(lambda: stream.read(10, 0.5), "a claim on the stream")
    assert isinstance(entry.report, ClaimReceived), entry
    assert (entry.report.attempt_id, entry.report.worker_id) == (attempt, incarnation)
    assert not client.exists(KEYS.queue("cpu")), "the hint was taken"
    assert not [key for key in client.keys("*") if b"celery-task-meta" in key or b"unacked" in key]
