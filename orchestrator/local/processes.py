"""What processes a one-host system consists of: their commands, and which settings each is given."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator.config import Settings
from orchestrator.local.child import ProcessSpec

STORES, SCHEDULER, FRONT, WORKERS = range(4)
"""Ranks of stopping, highest first: workers hand in what they have while the scheduler is there; stores end last."""

WORKER_STOP_SECONDS = 600.0
"""A task may ask for more grace than is usual, and a killed worker costs it a try; Ctrl-C again ends the wait."""

SECRETS = frozenset(
    {"DATABASE_URL", "REDIS_URL", "SECRET_KEY", "ADMIN_KEY", "WORKER_KEY", "FLOWER_PASSWORD", "CONNECTIONS"}
)
NEEDS: Mapping[str, frozenset[str]] = {
    "api": frozenset({"DATABASE_URL", "REDIS_URL", "SECRET_KEY", "ADMIN_KEY"}),
    "scheduler": frozenset({"DATABASE_URL", "REDIS_URL", "WORKER_KEY", "CONNECTIONS"}),
    "worker": frozenset({"REDIS_URL", "WORKER_KEY"}),
    "flower": frozenset({"REDIS_URL"}),
}
"""Which secrets each kind of process sees. Workers have no database, and so no key to it."""

API_THREADS = 64
"""An open event stream holds a thread: with 8 threads, 12 streams delayed a plain request by 1.5 s."""


def process_specs(settings: Settings, environment: Mapping[str, str], *, gpu: bool) -> list[tuple[ProcessSpec, int]]:
    """Return the processes beside the stores, each with its rank.

    :param environment: all variables, secrets included; each process gets its part.
    :param gpu: whether a device was found that a worker on ``gpu`` could use.
    """
    slots = str(settings.max_workers)
    specs = [
        (_python("scheduler", "scheduler", ("-m", "scheduler"), environment), SCHEDULER),
        (_python("api", "api", _gunicorn(settings), environment), FRONT),
        (_python("worker", "worker", _celery_worker("cpu", "cpu,highmem", slots), environment), WORKERS),
    ]
    if gpu:
        specs.append((_python("worker-gpu", "worker", _celery_worker("gpu", "gpu", slots), environment), WORKERS))
    flower = dict(environment)
    # Flower reads its options from FLOWER_*; on its command line everybody on the host could read the password.
    flower["FLOWER_BASIC_AUTH"] = f"admin:{environment['FLOWER_PASSWORD']}"
    flower["FLOWER_ADDRESS"] = settings.host
    flower["FLOWER_PORT"] = str(settings.flower_port)
    specs.append((_python("flower", "flower", ("-m", "celery", "-A", "workers", "flower"), flower), FRONT))
    return specs


def _gunicorn(settings: Settings) -> tuple[str, ...]:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return (
        *("-m", "gunicorn", "api.wsgi:app", "--bind", f"{host}:{settings.port}"),
        # One process keeps the counters of /monitoring/metrics and the rate limits whole.
        *("--worker-class", "api.server.Threads", "--workers", "1", "--threads", str(API_THREADS)),
        # The control socket of gunicorn 27 has one path for all instances of a user.
        # With the default of 2 s a client that asks every few seconds often meets a connection that is just closing.
        *("--no-control-socket", "--graceful-timeout", "3", "--keep-alive", "75"),
    )


def _celery_worker(name: str, queues: str, slots: str) -> tuple[str, ...]:
    return ("-m", "celery", "-A", "workers", "worker", "-Q", queues, "-c", slots, "-n", f"{name}@%h")


def _python(name: str, kind: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> ProcessSpec:
    hidden = SECRETS - NEEDS[kind]
    return ProcessSpec(
        name=name,
        command=(sys.executable, *arguments),
        folder=Path.cwd(),
        environment={variable: value for variable, value in environment.items() if variable not in hidden},
        # TERM would let tasks run to their end, hours perhaps. With QUIT they are stopped and go on at the next start,
        # as new attempts that cost no retry.
        stop_signal=signal.SIGQUIT if kind == "worker" else signal.SIGTERM,
        stop_seconds=WORKER_STOP_SECONDS if kind == "worker" else 10.0,
    )


def one_host_environment(
    settings: Settings, keys: Mapping[str, str], database_url: str, redis_url: str, repository: Path | None
) -> dict[str, str]:
    """Return the environment of all processes: ours, and what one host fills in where the user said nothing.

    :param repository: the checkout whose examples are offered as a data root and as operators; None when installed.
    """
    data_dir = settings.data_dir.absolute()
    roots = {"data": data_dir / "data"}
    filled = {
        "HOST": settings.host,
        "PORT": str(settings.port),
        "DATA_DIR": str(data_dir),
        "ARTIFACT_URL": (data_dir / "artifacts").as_uri(),
        "PYTHONUNBUFFERED": "1",
    }
    if repository is not None:
        roots["examples"] = repository / "examples" / "data"
        if (repository / "examples" / "operators").is_dir():
            filled["OPERATORS_PATH"] = str(repository / "examples" / "operators")
        if (repository / "examples" / "scripts").is_dir():
            filled["SCRIPTS_ROOT"] = str(repository / "examples" / "scripts")
    filled["DATA_ROOTS"] = ",".join(f"{name}={path}" for name, path in roots.items())
    given = {name: value for name, value in os.environ.items() if value.strip()}
    return {**filled, **given, **keys, "DATA_DIR": str(data_dir), "DATABASE_URL": database_url, "REDIS_URL": redis_url}


def gpu_is_there() -> bool:
    """Say whether NVML finds a device."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    try:
        return bool(pynvml.nvmlDeviceGetCount() > 0)
    except pynvml.NVMLError:
        return False
    finally:
        pynvml.nvmlShutdown()
