"""Builds what one attempt may touch, inside the process that will run it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.artifacts import RecordedArtifacts, open_artifacts, s3_options
from orchestrator.config import Settings
from orchestrator.operator import Connection, TaskContext
from orchestrator.outbound import OutboundClient
from orchestrator.paths import DataRoots
from orchestrator.wire.messages import GrantSpec
from workers.attempt_folder import AttemptFolder

PROGRESS_INTERVAL = 0.3


class Terminated(BaseException):
    """SIGTERM came to an operator that has a checkpoint folder, which is to be saved now."""


@dataclass(slots=True)
class RunnerContext(TaskContext):
    """A task context whose progress and checkpoints are seen by the worker through files."""

    folder: AttemptFolder | None = None
    reported_at: float = 0.0

    def progress(self, fraction: float, message: str = "") -> None:
        """Report how far the attempt is (0 to 1); more than three reports a second are thinned, the end is not."""
        now = time.monotonic()
        if self.folder is not None and (fraction >= 1 or now - self.reported_at >= PROGRESS_INTERVAL):
            self.reported_at = now
            self.folder.write("progress", {"fraction": min(max(float(fraction), 0.0), 1.0), "message": message[:500]})

    def note_checkpoint(self) -> None:
        """Leave a sign of life for the supervisor."""
        if self.folder is not None:
            with suppress(OSError):  # the disk is full, but the checkpoint is saved
                self.folder.write("checkpoint", {"at": time.monotonic()})

    def checkpoint_folder(self) -> Path:
        """Return the folder; from now on SIGTERM ends the operator by an exception, so that it can be saved."""
        folder = super(RunnerContext, self).checkpoint_folder()
        # Whoever handles the signal itself has its own way to end.
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
        return folder


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def build_context(
    settings: Settings, spec: GrantSpec, folder: AttemptFolder, store_variables: Mapping[str, str]
) -> TaskContext:
    """Return the context of this attempt.

    :param store_variables: the variables of the object store; they are not in the task's environment.
    """
    # The store reads AWS_* from the environment when it is opened, and never again.
    added = {name: value for name, value in store_variables.items() if name not in os.environ}
    os.environ.update(added)
    records: list[Mapping[str, Any]] = []
    try:
        artifacts = RecordedArtifacts(open_artifacts(settings), records, spec.tenant_id)
    finally:
        for name in added:
            del os.environ[name]
    return RunnerContext(
        tenant_id=spec.tenant_id,
        run_id=spec.run_id,
        pipeline=spec.pipeline,
        task=spec.task,
        attempt_id=spec.attempt_id,
        attempt_number=spec.number,
        fence=spec.token,
        workdir=Path(folder.work),
        artifacts=artifacts,
        records=records,
        http=OutboundClient.from_settings(settings),
        roots=DataRoots.from_settings(settings),
        generation=spec.generation,
        run_parameters=spec.run_parameters,
        upstream_outputs=spec.upstream_outputs,
        cpu=max(spec.resources.cpu, 1) / 1000,
        memory_bytes=spec.resources.memory,
        gpu_devices=spec.devices,
        connections={name: _connection(name, values) for name, values in spec.connections.items()},
        s3_options=s3_options(settings, store_variables),
        s3_buckets=settings.s3_buckets,
        registry_url=spec.registry_url or settings.model_registry_url or None,
        scripts_root=settings.scripts_root,
        folder=folder,
    )


def _connection(name: str, values: Mapping[str, Any]) -> Connection:
    options = {key: value for key, value in values.items() if key != "url"}
    return Connection(name=name, url=str(values.get("url", "")), options=options)
