"""Where datasets, models, reports and logs lie: one port, an adapter for folders and one for object stores."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.artifacts.local import LocalArtifacts
from orchestrator.artifacts.objects import ObjectArtifacts
from orchestrator.artifacts.port import (
    SCHEME,
    Artifact,
    ArtifactStore,
    Stored,
    is_artifact,
    key_of,
    task_segment,
    uri_of,
)
from orchestrator.artifacts.recorded import RecordedArtifacts
from orchestrator.config import Settings
from orchestrator.errors import ConfigurationError

__all__ = [
    "SCHEME",
    "Artifact",
    "ArtifactStore",
    "LocalArtifacts",
    "ObjectArtifacts",
    "RecordedArtifacts",
    "Stored",
    "is_artifact",
    "key_of",
    "open_artifacts",
    "s3_options",
    "task_segment",
    "uri_of",
]


def open_artifacts(settings: Settings, *, host_id: str = "") -> ArtifactStore:
    """Open the store that ``ARTIFACT_URL`` names; with none, a folder of this host.

    :param host_id: identity of this host, part of the scope of a store that other hosts can't read; default
        ``settings.host_id``, then the host's name.
    :raises ConfigurationError: the URL is neither ``file:///folder`` nor ``s3://bucket[/prefix]``.
    """
    parts = urlsplit(settings.effective_artifact_url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        owner = host_id or settings.host_id or socket.gethostname()
        return LocalArtifacts(Path(unquote(parts.path)), scope="shared" if settings.artifact_url else f"local:{owner}")
    if parts.scheme == "s3" and parts.netloc:
        return ObjectArtifacts.s3(parts.netloc, parts.path.strip("/"), s3_options(settings))
    raise ConfigurationError(
        f"ARTIFACT_URL is {settings.artifact_url!r}; expected file:///folder (shared by all hosts) or s3://bucket/prefix."
    )


def s3_options(settings: Settings, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return options for S3 from ``MINIO_*``, else from ``AWS_*``; obstore and polars both take them as they are."""
    source = os.environ if environment is None else environment
    region = source.get("AWS_REGION") or source.get("AWS_DEFAULT_REGION") or "us-east-1"
    if settings.minio_endpoint:
        endpoint = settings.minio_endpoint
        endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
        found = {
            "aws_endpoint_url": endpoint,
            "aws_access_key_id": settings.minio_access_key,
            "aws_secret_access_key": settings.minio_secret_key,
        }
    else:
        found = {
            "aws_endpoint_url": source.get("AWS_ENDPOINT_URL_S3") or source.get("AWS_ENDPOINT_URL") or "",
            "aws_access_key_id": source.get("AWS_ACCESS_KEY_ID", ""),
            "aws_secret_access_key": source.get("AWS_SECRET_ACCESS_KEY", ""),
            "aws_session_token": source.get("AWS_SESSION_TOKEN", ""),
        }
    options = {name: value for name, value in found.items() if value}
    options["aws_region"] = region
    if options.get("aws_endpoint_url", "").startswith("http://"):
        options["aws_allow_http"] = "true"
    return options
