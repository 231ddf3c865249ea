"""Settings: names of the seed, values checked with a sentence, secrets out of sight."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.config import Settings, load_settings
from orchestrator.errors import ConfigurationError

SEED_VARIABLES = [
    "HOST",
    "PORT",
    "DEBUG",
    "LOG_LEVEL",
    "DATABASE_URL",
    "DATABASE_POOL_SIZE",
    "REDIS_URL",
    "REDIS_TASK_QUEUE",
    "MAX_CONCURRENT_RUNS",
    "MAX_WORKERS",
    "MAX_CPU_CORES",
    "MAX_MEMORY_GB",
    "MAX_GPU_COUNT",
    "MODEL_REGISTRY_URL",
    "FEATURE_STORE_URL",
    "MINIO_ENDPOINT",
    "MINIO_ACCESS_KEY",
    "MINIO_SECRET_KEY",
    "DEFAULT_TASK_RESOURCES",
    "DEFAULT_RETRY_COUNT",
    "DEFAULT_RETRY_DELAY_SECONDS",
    "ENABLE_CIRCUIT_BREAKER",
    "ENABLE_METRICS",
    "ENABLE_TRACING",
    "HEARTBEAT_INTERVAL_SECONDS",
]


def test_every_variable_of_the_seed_is_a_setting() -> None:
    assert set(SEED_VARIABLES) <= {spec.metadata["env"] for spec in fields(Settings)}


def test_every_setting_says_what_it_is_for() -> None:
    assert all(spec.metadata["help"].endswith((".", "`.")) for spec in fields(Settings))


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load_settings({}) == Settings()
    assert load_settings({"PORT": "  "}).port == 8001


def test_the_environment_given_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9999")
    assert load_settings({}).port == 8001
    assert load_settings().port == 9999


@pytest.mark.parametrize(
    "variable, text, name, value",
    [
        ("PORT", "9000", "port", 9000),
        ("DEBUG", "Yes", "debug", True),
        ("ENABLE_METRICS", "off", "enable_metrics", False),
        ("MAX_CPU_CORES", "2.5", "max_cpu_cores", 2.5),
        ("MAX_GPU_COUNT", "0", "max_gpu_count", 0),
        ("QUEUES", "cpu, gpu,highmem,fpga", "queues", ("cpu", "gpu", "highmem", "fpga")),
        ("WORKER_LABELS", "zone=a, disk=ssd", "worker_labels", {"zone": "a", "disk": "ssd"}),
        ("DATA_ROOTS", "data=/srv/data", "data_roots", {"data": Path("/srv/data")}),
        ("OPERATORS_PATH", "/a:/b", "operators_path", (Path("/a"), Path("/b"))),
        ("CONNECTIONS", '{"dw": {"url": "u"}}', "connections", {"dw": {"url": "u"}}),
        ("DATABASE_URL", "postgres://u:p@h/d", "database_url", "postgresql+psycopg2://u:p@h/d"),
        ("DATABASE_URL", "postgresql://u:p@h/d", "database_url", "postgresql+psycopg2://u:p@h/d"),
    ],
)
def test_a_variable_is_read_as_its_kind(variable: str, text: str, name: str, value: object) -> None:
    assert getattr(load_settings({variable: text}), name) == value


@pytest.mark.parametrize(
    "variable, text, sentence",
    [
        ("PORT", "eighty", "'eighty' is not a whole number"),
        ("PORT", "70000", "70000 is not a port"),
        ("DEBUG", "maybe", "neither true nor false"),
        ("HEARTBEAT_INTERVAL_SECONDS", "nan", "'nan' is not a number"),
        ("HEARTBEAT_INTERVAL_SECONDS", "0", "must be above 0"),
        ("DEFAULT_RETRY_COUNT", "-1", "can't be negative"),
        ("WORKER_LABELS", "zone", "'zone' is not name=value"),
        ("WORKER_LABELS", "zone=a,zone=b", "given twice"),
        ("CONNECTIONS", "[]", "expected a JSON object of objects"),
        ("CONNECTIONS", "{", "not JSON"),
        ("DEFAULT_TASK_RESOURCES", '{"custom_script": {"cpu": "two"}}', "not an amount"),
        ("DEFAULT_TASK_RESOURCES", '{"custom_script": {"cpu": NaN}}', "not an amount"),
        ("DATABASE_URL", "mysql://h/d", "expected postgresql://"),
        ("REDIS_URL", "http://h", "expected redis://"),
        ("ARTIFACT_URL", "/folder", "expected file:///folder or s3://"),
        ("QUEUES", "cpu", "gpu, highmem can't be left out"),
        ("LOG_LEVEL", "LOUD", "none of DEBUG"),
        ("MAX_MEMORY_GB", "-4", "can't be negative"),
        ("WORKER_LEASE_SECONDS", "6", "more than two of them"),
        ("ENABLE_TRACING", "true", "not built yet"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_what_was_expected(variable: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{variable}: .*{sentence}"):
        load_settings({variable: text})


def test_all_bad_values_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"PORT: .*DEBUG: .*LOG_LEVEL: "):
        load_settings({"PORT": "x", "DEBUG": "x", "LOG_LEVEL": "x"})


def test_secrets_are_not_shown_in_the_representation() -> None:
    secrets = {spec.metadata["env"] for spec in fields(Settings) if spec.metadata["secret"]}
    assert {"SECRET_KEY", "ADMIN_KEY", "WORKER_KEY", "FLOWER_PASSWORD", "DATABASE_URL", "REDIS_URL"} <= secrets
    settings = load_settings({"ADMIN_KEY": "hidden-word", "DATABASE_URL": "postgres://u:hidden-word@h/d"})
    assert "hidden-word" not in repr(settings)


def test_a_process_names_all_settings_it_lacks() -> None:
    with pytest.raises(ConfigurationError, match="SECRET_KEY, WORKER_KEY must be set"):
        load_settings({"ADMIN_KEY": "k"}).require("secret_key", "admin_key", "worker_key")


def test_a_worker_is_lost_after_thirty_seconds_or_six_heartbeats() -> None:
    assert load_settings({}).worker_lease == 30.0
    assert load_settings({"HEARTBEAT_INTERVAL_SECONDS": "30"}).worker_lease == 180.0
    assert load_settings({"WORKER_LEASE_SECONDS": "12"}).worker_lease == 12.0
