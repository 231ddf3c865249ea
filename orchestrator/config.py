"""Every setting, read once from the environment into one frozen object."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import ConfigurationError

GIB = 2**30

DEFAULT_RESOURCES: Mapping[str, Mapping[str, float]] = {
    "data_ingestion": {"cpu": 0.5, "memory_gb": 0.5},
    "data_validation": {"cpu": 0.5, "memory_gb": 0.5},
    "model_training": {"cpu": 1.0, "memory_gb": 1.0},
    "model_registration": {"cpu": 0.25, "memory_gb": 0.25},
    "custom_script": {"cpu": 0.5, "memory_gb": 0.5},
}


# --- How the text of a variable becomes a value. Each raises ValueError with what was expected. ---


def integer(text: str) -> int:
    """Parse a whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """Parse a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    return value


def boolean(text: str) -> bool:
    """Parse true or false, in the words people use for them."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def folder(text: str) -> Path:
    """Parse a path, relative to the working directory."""
    return Path(text).absolute()


def folders(text: str) -> tuple[Path, ...]:
    """Parse paths separated by ``:``."""
    return tuple(folder(part) for part in text.split(":") if part)


def words(text: str) -> tuple[str, ...]:
    """Parse words separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def pairs(text: str) -> Mapping[str, str]:
    """Parse ``name=value,name=value``."""
    found: dict[str, str] = {}
    for part in words(text):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not (name and separator and value):
            raise ValueError(f"{part!r} is not name=value")
        if name in found:
            raise ValueError(f"{name!r} is given twice")
        found[name] = value
    return found


def named_folders(text: str) -> Mapping[str, Path]:
    """Parse ``name=/folder,name=/folder``."""
    return {name: folder(value) for name, value in pairs(text).items()}


def json_objects(text: str) -> Mapping[str, Mapping[str, Any]]:
    """Parse a JSON object whose values are objects."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
        raise ValueError("expected a JSON object of objects")
    return value


def resources(text: str) -> Mapping[str, Mapping[str, float]]:
    """Parse a JSON object of operator → resource → amount."""
    value = json_objects(text)
    for operator, amounts in value.items():
        for name, amount in amounts.items():
            if isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount < 0:
                raise ValueError(f"{name} of {operator} is {amount!r}, not an amount")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not an amount")


def normalise_database_url(url: str) -> str:
    """Return the URL with the psycopg2 driver named: SQLAlchemy 2.1 alone would take psycopg 3 (DESIGN §9).

    :raises ValueError: not a PostgreSQL URL.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"postgres", "postgresql", "postgresql+psycopg2"}:
        raise ValueError("expected postgresql://user:password@host:port/database")
    return f"postgresql+psycopg2://{rest}"


def setting(env: str, default: Any, help: str, parse: Callable[[str], Any] = str, *, secret: bool = False) -> Any:
    """Declare one setting: its variable, its default, the sentence for the generated reference, and its parser."""
    metadata = {"env": env, "help": help, "secret": secret, "parse": parse}
    if isinstance(default, Mapping):
        return field(default_factory=lambda: default, repr=not secret, metadata=metadata)
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of all processes; each process uses its part. Durations in seconds, memory in GiB."""

    host: str = setting("HOST", "127.0.0.1", "Address the API listens on.")
    port: int = setting("PORT", 8001, "Port the API listens on.", integer)
    flower_port: int = setting("FLOWER_PORT", 5555, "Port Flower listens on in the one-host command.", integer)
    trusted_proxies: int = setting(
        "TRUSTED_PROXIES",
        0,
        "Reverse proxies in a row before the API, each of which sets X-Forwarded-For, -Proto and -Host. Too few: all "
        "callers share the proxy's address and its limit of guesses. Too many: a caller chooses its own address.",
        integer,
    )
    debug: bool = setting("DEBUG", False, "Log at DEBUG. Never enables a debugger.", boolean)
    log_level: str = setting("LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR.")

    database_url: str = setting(
        "DATABASE_URL",
        "",
        "PostgreSQL ≥ 12; `postgresql://` means psycopg2. Empty: start our own.",
        normalise_database_url,
        secret=True,
    )
    database_pool_size: int = setting("DATABASE_POOL_SIZE", 20, "Connections each API process keeps at most.", integer)
    redis_url: str = setting("REDIS_URL", "", "Redis ≥ 6.2 or Valkey. Empty: start our own.", secret=True)
    redis_task_queue: str = setting("REDIS_TASK_QUEUE", "mlops_tasks", "Prefix of our keys and queues in Redis.")

    secret_key: str = setting("SECRET_KEY", "", "Signs cursors and sessions of the API.", secret=True)
    admin_key: str = setting("ADMIN_KEY", "", "API key of the first administrator.", secret=True)
    worker_key: str = setting("WORKER_KEY", "", "Enrols workers; grants and reports are sealed with it.", secret=True)
    flower_password: str = setting("FLOWER_PASSWORD", "", "Password of Flower's user `admin`.", secret=True)

    data_dir: Path = setting("DATA_DIR", Path(".data"), "The one folder everything is kept in on a host.", folder)
    artifact_url: str = setting(
        "ARTIFACT_URL",
        "",
        "Where outputs and logs live: file:///shared/folder or s3://bucket/prefix. "
        "Empty: a folder of this host, which pins consumers to it.",
    )
    artifact_retention_days: float | None = setting(
        "ARTIFACT_RETENTION_DAYS",
        None,
        "Days after which what tasks left in the artifact store is removed, save for registered models and what the "
        "cache or a run that is not over still needs. Cached results go that nobody has taken for so long. A task may "
        "give an artifact a time of its own. Empty: never.",
        number,
    )
    data_roots: Mapping[str, Path] = setting(
        "DATA_ROOTS",
        {},
        "Named folders that user paths resolve in: `name=/folder,name=/folder`. Default: `data` inside DATA_DIR.",
        named_folders,
    )
    scripts_root: Path | None = setting("SCRIPTS_ROOT", None, "Folder that `script_path` resolves in.", folder)
    operators_path: tuple[Path, ...] = setting(
        "OPERATORS_PATH", (), "Folders with operator files, separated by `:`.", folders
    )
    connections: Mapping[str, Mapping[str, Any]] = setting(
        "CONNECTIONS",
        {},
        'Named connections as JSON: `{"warehouse": {"url": "postgresql://…"}}`.',
        json_objects,
        secret=True,
    )
    allowed_private_hosts: tuple[str, ...] = setting(
        "ALLOWED_PRIVATE_HOSTS", (), "Hosts (host or host:port) on private addresses that tasks may call.", words
    )
    s3_buckets: tuple[str, ...] = setting(
        "S3_BUCKETS",
        (),
        "Buckets that `s3://` paths without a connection may name. Empty: all that the site's keys open, save for the "
        "artifact store.",
        words,
    )

    queues: tuple[str, ...] = setting("QUEUES", ("cpu", "gpu", "highmem"), "All queues of the site.", words)
    highmem_threshold_gb: float = setting(
        "HIGHMEM_THRESHOLD_GB", 32.0, "Above this memory a task goes to `highmem`.", number
    )
    max_concurrent_runs: int = setting("MAX_CONCURRENT_RUNS", 10, "Runs that may be running at once.", integer)
    max_queued_runs: int = setting(
        "MAX_QUEUED_RUNS",
        10_000,
        "Accepted runs of a tenant that have not ended; more are refused with 429 until some have.",
        integer,
    )
    max_workers: int = setting("MAX_WORKERS", 5, "Slots of the worker that the one-host command starts.", integer)
    max_cpu_cores: float | None = setting("MAX_CPU_CORES", None, "Ceiling on the measured cores of a host.", number)
    max_memory_gb: float | None = setting("MAX_MEMORY_GB", None, "Ceiling on the measured memory of a host.", number)
    max_gpu_count: int | None = setting("MAX_GPU_COUNT", None, "Ceiling on the measured GPUs of a host.", integer)
    worker_labels: Mapping[str, str] = setting(
        "WORKER_LABELS", {}, "Labels of this host: `name=value,name=value`.", pairs
    )
    worker_remote_control: bool = setting(
        "WORKER_REMOTE_CONTROL", True, "Let Flower see the worker: Celery's remote control and task events.", boolean
    )
    host_id: str = setting("HOST_ID", "", "Identity of this host. Empty: made once and kept in DATA_DIR.")

    default_task_resources: Mapping[str, Mapping[str, float]] = setting(
        "DEFAULT_TASK_RESOURCES",
        DEFAULT_RESOURCES,
        "JSON: operator → cpu, memory_gb for tasks that name none. A gpu in it is ignored: GPUs are asked for.",
        resources,
    )
    default_retry_count: int = setting("DEFAULT_RETRY_COUNT", 3, "Retries of a task that says nothing.", integer)
    default_retry_delay_seconds: float = setting(
        "DEFAULT_RETRY_DELAY_SECONDS", 60.0, "First delay before a retry.", number
    )
    default_retry_max_delay_seconds: float = setting(
        "DEFAULT_RETRY_MAX_DELAY_SECONDS", 600.0, "Cap of the back-off.", number
    )

    heartbeat_interval_seconds: float = setting(
        "HEARTBEAT_INTERVAL_SECONDS", 5.0, "Between a worker's heartbeats.", number
    )
    worker_lease_seconds: float = setting(
        "WORKER_LEASE_SECONDS", 0.0, "Silence after which a worker is lost. 0: max(30, 6 × heartbeat).", number
    )
    leader_lease_seconds: float = setting(
        "LEADER_LEASE_SECONDS", 10.0, "Life of the leader's lease; renewed at 0.3.", number
    )
    redispatch_seconds: float = setting(
        "REDISPATCH_SECONDS", 20.0, "An unclaimed hint is sent again after this.", number
    )
    reconcile_seconds: float = setting("RECONCILE_SECONDS", 30.0, "Between recomputations from the rows.", number)
    cancel_grace_seconds: float = setting(
        "CANCEL_GRACE_SECONDS", 10.0, "Between TERM and KILL to a task's tree.", number
    )
    drain_seconds: float = setting(
        "DRAIN_SECONDS", 3600.0, "How long a worker that leaves waits for its tasks; then it preempts them.", number
    )
    adopt_seconds: float = setting(
        "ADOPT_SECONDS", 600.0, "How long an `adopt` task waits for its host's next worker; then it is lost.", number
    )
    max_task_processes: int = setting(
        "MAX_TASK_PROCESSES", 4096, "Processes one task may have at once; with more it is stopped.", integer
    )
    max_infrastructure_losses: int = setting(
        "MAX_INFRASTRUCTURE_LOSSES", 3, "Tries lost to infrastructure, then poison.", integer
    )

    model_registry_url: str = setting("MODEL_REGISTRY_URL", "", "External model registry. Empty: the built-in one.")
    feature_store_url: str = setting("FEATURE_STORE_URL", "", "External feature store, handed to scripts.")
    minio_endpoint: str = setting("MINIO_ENDPOINT", "", "host:port of an S3-compatible store.")
    minio_access_key: str = setting("MINIO_ACCESS_KEY", "", "Its access key.", secret=True)
    minio_secret_key: str = setting("MINIO_SECRET_KEY", "", "Its secret key.", secret=True)

    enable_circuit_breaker: bool = setting(
        "ENABLE_CIRCUIT_BREAKER",
        True,
        "Hold mass expiry of workers for one lease, and the tasks of a connection that does not answer.",
        boolean,
    )
    enable_metrics: bool = setting("ENABLE_METRICS", True, "Serve /monitoring/metrics.", boolean)
    enable_tracing: bool = setting(
        "ENABLE_TRACING", False, "Reserved: tracing is not built yet, so `true` is refused.", boolean
    )
    max_body_bytes: int = setting(
        "MAX_BODY_BYTES", 8 * 2**20, "Largest request body, a definition of 10,000 tasks say; larger is 413.", integer
    )
    rate_limit_per_second: float = setting(
        "RATE_LIMIT_PER_SECOND",
        200.0,
        "Requests per API key; more is 429. A tenth of it: requests without a valid key, per address.",
        number,
    )

    @property
    def worker_lease(self) -> float:
        """Seconds of silence after which a worker incarnation is lost (DESIGN §4)."""
        return self.worker_lease_seconds or max(30.0, 6 * self.heartbeat_interval_seconds)

    @property
    def effective_data_roots(self) -> Mapping[str, Path]:
        """The named data roots, absolute; ``data`` inside the data folder when none is set."""
        return self.data_roots or {"data": (self.data_dir / "data").absolute()}

    @property
    def effective_artifact_url(self) -> str:
        """The artifact store's URL; a folder of this host when none is set."""
        return self.artifact_url or (self.data_dir / "artifacts").absolute().as_uri()

    def require(self, *names: str) -> None:
        """Refuse to go on without these settings.

        :raises ConfigurationError: names every one that is empty, and how to set it.
        """
        variables = {f.name: f.metadata["env"] for f in fields(self)}
        missing = [variables[name] for name in names if not getattr(self, name)]
        if missing:
            raise ConfigurationError(
                f"{', '.join(missing)} must be set for this process. The one-host command (`make up`) makes them and "
                "keeps them in DATA_DIR; elsewhere set them in the environment."
            )


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the process's environment, or from ``environment`` alone when given.

    A variable that is empty or blank counts as not set.

    :raises ConfigurationError: names every variable that can't be used, with what was expected.
    """
    source = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    problems: list[str] = []
    for spec in fields(Settings):
        variable = spec.metadata["env"]
        text = source.get(variable, "").strip()
        if not text:
            continue
        try:
            values[spec.name] = spec.metadata["parse"](text)
        except ValueError as error:
            problems.append(f"{variable}: {error}")
    settings = Settings(**values)
    problems += _contradictions(settings)
    if problems:
        raise ConfigurationError("These settings can't be used: " + "; ".join(problems) + ".")
    return settings


_PORTS = ("port", "flower_port")
_ABOVE_ZERO = (
    "database_pool_size",
    "heartbeat_interval_seconds",
    "leader_lease_seconds",
    "max_body_bytes",
    "max_concurrent_runs",
    "max_infrastructure_losses",
    "max_task_processes",
    "max_queued_runs",
    "max_workers",
    "rate_limit_per_second",
    "reconcile_seconds",
    "redispatch_seconds",
)
_NOT_NEGATIVE = (
    "adopt_seconds",
    "artifact_retention_days",
    "cancel_grace_seconds",
    "default_retry_count",
    "default_retry_delay_seconds",
    "default_retry_max_delay_seconds",
    "drain_seconds",
    "highmem_threshold_gb",
    "max_cpu_cores",
    "max_gpu_count",
    "max_memory_gb",
    "trusted_proxies",
    "worker_lease_seconds",
)


RESERVED_QUEUE_NAMES = frozenset({"ev", "logs", "live", "gen"})
"""Queues are lists under the prefix of our keys in Redis, so these names are taken (``orchestrator/wire/keys.py``)."""


def _contradictions(settings: Settings) -> list[str]:
    missing = {"cpu", "gpu", "highmem"} - set(settings.queues)
    taken = [name for name in settings.queues if name in RESERVED_QUEUE_NAMES or ":" in name or name.startswith("w.")]
    checks = {
        f"LOG_LEVEL: {settings.log_level!r} is none of DEBUG, INFO, WARNING, ERROR": settings.log_level.upper()
        in {"DEBUG", "INFO", "WARNING", "ERROR"},
        "REDIS_URL: expected redis://, rediss:// or unix://": not settings.redis_url
        or urlsplit(settings.redis_url).scheme in {"redis", "rediss", "unix"},
        "ARTIFACT_URL: expected file:///folder or s3://bucket/prefix": not settings.artifact_url
        or urlsplit(settings.artifact_url).scheme in {"file", "s3"},
        f"QUEUES: {', '.join(sorted(missing))} can't be left out; tasks are routed there": not missing,
        f"QUEUES: {', '.join(taken)} would collide with our own keys in Redis; choose other names": not taken,
        "ENABLE_TRACING: tracing is not built yet; leave it out or set it to false": not settings.enable_tracing,
        "WORKER_LEASE_SECONDS: one lost heartbeat would lose the worker; use more than two of them": not (
            0 < settings.worker_lease_seconds <= 2 * settings.heartbeat_interval_seconds
        ),
    }
    return [sentence for sentence, holds in checks.items() if not holds] + _out_of_range(settings)


def _out_of_range(settings: Settings) -> list[str]:
    values = {spec.name: getattr(settings, spec.name) for spec in fields(settings)}
    return [
        *(f"{name.upper()}: {values[name]} is not a port" for name in _PORTS if not 0 < values[name] < 65536),
        *(f"{name.upper()}: must be above 0" for name in _ABOVE_ZERO if values[name] <= 0),
        *(f"{name.upper()}: can't be negative" for name in _NOT_NEGATIVE if (values[name] or 0) < 0),
    ]
