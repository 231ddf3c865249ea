"""A pipeline definition as records: what it says, as it was written, before anything follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = ("operator", "tasks", "pipeline", "approval", "event")
"""Fields of which a task has exactly one: it says what the task is."""
ON_DRAIN = ("wait", "checkpoint", "kill")
ON_WORKER_LOSS = ("kill", "adopt")


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task as written; ``None`` where the site's default holds, or where the task has nothing of the kind."""

    name: str
    operator: str = ""
    tasks: tuple[TaskSpec, ...] = ()
    """Of a group."""
    pipeline: Mapping[str, Any] | None = None
    approval: Mapping[str, Any] | None = None
    event: Mapping[str, Any] | None = None
    upstream_tasks: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cpu: float | None = None
    memory_gb: float | str | None = None
    """Or ``auto``."""
    gpu: int = 0
    gpu_memory_gb: float = 0.0
    trigger_rule: str = "all_success"
    queue: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    retries: int | None = None
    retry_delay_seconds: float | None = None
    retry_backoff_factor: float | None = None
    retry_max_delay_seconds: float | None = None
    timeout_seconds: float | None = None
    grace_seconds: float | None = None
    exclusive: bool = False
    on_drain: str = "wait"
    on_worker_loss: str = "kill"
    critical: bool = True
    description: str = ""
    when: str = ""
    teardown: bool | tuple[str, ...] = False
    map: Mapping[str, Any] | None = None
    repeat: Mapping[str, Any] | None = None
    retry: Mapping[str, Any] | None = None
    max_queued_seconds: float | None = None
    progress_timeout_seconds: float | None = None
    deadline_seconds: float | None = None
    outputs: Mapping[str, Any] | None = None
    cache: bool | Mapping[str, Any] | None = None
    concurrency: tuple[Mapping[str, Any], ...] = ()
    rate_limit: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """Which of :data:`KINDS` it is."""
        if self.tasks:
            return "tasks"
        if self.pipeline is not None:
            return "pipeline"
        if self.approval is not None:
            return "approval"
        return "operator" if self.event is None else "event"


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A definition as written."""

    name: str
    tasks: tuple[TaskSpec, ...]
    description: str = ""
    owner: str = ""
    tags: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the run's parameters."""
    priority: int = 0
    deadline_seconds: float | None = None
    max_active_runs: int | None = None
    concurrency: tuple[Mapping[str, Any], ...] = ()
