"""What a task asks of placement, and the two answers: a place, or what it waits for."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.records import Resources


@dataclass(frozen=True, slots=True)
class Ask:
    """Everything placement looks at; tasks with equal asks wait in one line."""

    queue: str
    resources: Resources
    labels: tuple[tuple[str, str], ...] = ()
    hosts: tuple[str, ...] = ()
    """Hosts that hold its inputs and share them with no other: none: any host; two or more: none can serve it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A worker that can take the task now, with the devices it would get."""

    worker_id: str
    host_id: str
    devices: tuple[str, ...]
    direct: bool
    """Some other free listener of the queue could not take it, so the hint must not go to all of them."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Why no worker can take the task now: ``reason`` is a word, ``message`` a sentence with numbers."""

    reason: str
    message: str

    @property
    def for_capacity(self) -> bool:
        """Whether it ends by itself when other tasks end."""
        return self.reason in CAPACITY_REASONS

    @property
    def for_its_kind(self) -> bool:
        """Whether it says nothing of tasks that ask for something else or stand before another gate, and is no matter
        of waiting for one's turn: no worker could take the task, or its gate is shut."""
        return self.reason in NOBODYS_REASONS or self.reason in GATE_REASONS or self.reason == "service_open"

    @property
    def is_passing(self) -> bool:
        """Whether it comes and goes as the tasks of its line do."""
        return self.reason in CAPACITY_REASONS or self.reason in GATE_REASONS


GATE_REASONS = frozenset({"concurrency", "rate_limit"})
NOBODYS_REASONS = frozenset({"infeasible", "waiting_for_worker", "waiting_for_host"})
CAPACITY_REASONS = frozenset({"waiting_for_slot", "waiting_for_cpu", "waiting_for_memory", "waiting_for_gpu"})
