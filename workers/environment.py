"""What of the worker's environment its tasks may see: an allow-list, so that no new secret leaks by default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.config import Settings

_ALLOWED = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH",
        "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "FEATURE_STORE_URL",
    }
)  # fmt: skip
_ALLOWED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_")

_SETTINGS = frozenset(
    {
        "ARTIFACT_URL", "ALLOWED_PRIVATE_HOSTS", "S3_BUCKETS", "MODEL_REGISTRY_URL", "FEATURE_STORE_URL",
        "MINIO_ENDPOINT", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY",
    }
)  # fmt: skip


def task_base(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that every task inherits."""
    return {
        name: value for name, value in environment.items() if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }


def settings_for_tasks(environment: Mapping[str, str], settings: Settings, host_id: str) -> dict[str, str]:
    """Return the variables our own code needs beside a task; handed over in memory, not in its environment."""
    chosen = {name: value for name, value in environment.items() if name in _SETTINGS or name.startswith("AWS_")}
    # Paths may be relative to the worker's folder, and a task runs in another one.
    return {
        **chosen,
        "DATA_DIR": str(settings.data_dir.absolute()),
        "DATA_ROOTS": ",".join(f"{name}={folder}" for name, folder in settings.effective_data_roots.items()),
        "SCRIPTS_ROOT": str(settings.scripts_root or ""),
        "OPERATORS_PATH": ":".join(map(str, settings.operators_path)),
        "HOST_ID": host_id,
    }


def fork_server_environment(environment: Mapping[str, str], incarnation: str) -> dict[str, str]:
    """Return the environment of the fork server, which the kernel shows for every process forked from it."""
    package_root = str(Path(__file__).resolve().parent.parent)
    path = [package_root, *filter(None, [environment.get("PYTHONPATH", "")])]
    return {
        **task_base(environment),
        "PYTHONPATH": ":".join(path),
        "ORCHESTRATOR_INCARNATION": incarnation,
    }
