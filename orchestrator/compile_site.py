"""What the site decides for tasks that don't say, and the words of faults that have to do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.spec_reading import MAX_TASKS

if TYPE_CHECKING:
    from orchestrator.config import Settings


@dataclass(frozen=True, slots=True)
class Site:
    """What the site decides for tasks that don't say."""

    queues: tuple[str, ...] = ("cpu", "gpu", "highmem")
    highmem_threshold: float = 32.0
    """GiB; a task that asks for more goes to ``highmem``."""
    default_task_resources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    retries: int = 3
    retry_delay: float = 60.0
    retry_max_delay: float = 600.0
    grace: float = 10.0
    connections: frozenset[str] = frozenset()
    """Names of the site's connections."""
    max_tasks: int = MAX_TASKS

    @classmethod
    def of(cls, settings: Settings) -> Site:
        return cls(
            queues=settings.queues,
            highmem_threshold=settings.highmem_threshold_gb,
            default_task_resources=settings.default_task_resources,
            retries=settings.default_retry_count,
            retry_delay=settings.default_retry_delay_seconds,
            retry_max_delay=settings.default_retry_max_delay_seconds,
            grace=settings.cancel_grace_seconds,
            connections=frozenset(settings.connections),
        )
