"""What requests work with, made once per application: stores, the registry of operators, keys, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from flask import current_app
from sqlalchemy import Engine

from api.attempt_log import LogGaps
from api.backlog import Backlog
from api.cursors import CursorSeal
from api.hangs import Hangs
from api.http_metrics import HttpMetrics
from api.keyring import Keyring
from api.live import LiveWire
from api.sse import StreamSlots
from api.throttle import Throttle
from api.versions import VersionShelf
from orchestrator.artifacts import ArtifactStore
from orchestrator.artifacts.presence import Presence
from orchestrator.compile import Site
from orchestrator.config import Settings
from orchestrator.operator import Operator

EXTENSION = "orchestrator"


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    engine: Engine
    live: LiveWire
    artifacts: ArtifactStore
    presence: Presence
    operators: Mapping[str, type[Operator]]
    site: Site
    keyring: Keyring
    throttle: Throttle
    backlog: Backlog
    hangs: Hangs
    cursors: CursorSeal
    versions: VersionShelf
    metrics: HttpMetrics
    streams: StreamSlots
    log_gaps: LogGaps
    guesses: Throttle
    """Failed authentications, per address."""

    def close(self) -> None:
        """Close connections and end the background thread."""
        self.live.close()
        self.engine.dispose()


def services() -> Services:
    """Return the services of the application that serves this request."""
    return cast("Services", current_app.extensions[EXTENSION])
