"""The kernel's settings, what it is rebuilt from, and what it wants a worker to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.events import EndedRun
from orchestrator.limits import Rate
from orchestrator.records import (
    GRANT_LIFETIME,
    SETUP_SECONDS,
    AttemptRecord,
    HostRecord,
    Plan,
    PlannedTask,
    Reservation,
    RunRecord,
    TaskRunRecord,
    WorkerRecord,
)

if TYPE_CHECKING:
    # Not at run time: reading the environment is no business of the rules.
    from orchestrator.config import Settings

DEADLINE_SLACK = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """Durations in seconds of the leader's monotonic clock."""

    new_id: Callable[[], str]
    """Makes ids and tokens: random in production, counted in the simulation."""
    lease: float = 30.0
    """Silence after which a worker incarnation is lost; suspect at half of it."""
    redispatch: float = 20.0
    max_runs: int = 10
    max_losses: int = 3
    breaker: bool = True
    """Whether mass expiry is held for one lease (I11)."""
    grant_life: float = GRANT_LIFETIME
    deadline_slack: float = DEADLINE_SLACK
    """On top of timeout and grace, before the scheduler itself gives an attempt up: the longest set-up is part of it,
    for the timeout counts from the operator's start."""
    adopt_seconds: float = 600.0
    """How long an orphaned attempt waits for another worker of its host to show it."""
    highmem_above: int = 32 * 2**30
    """Bytes; a task of queue ``cpu`` that comes to ask for more goes to ``highmem``."""
    hold_after: float = 30.0
    """A task that has waited so long for capacity gets room held for it."""

    def allowed(self, planned: PlannedTask) -> float | None:
        """Return for how long an attempt of the task may run before the scheduler itself gives it up."""
        return None if planned.timeout is None else planned.timeout + planned.grace + self.deadline_slack

    @classmethod
    def of(cls, settings: Settings, new_id: Callable[[], str]) -> KernelSettings:
        """Take the kernel's part of the process's settings."""
        return cls(
            new_id=new_id,
            lease=settings.worker_lease,
            redispatch=settings.redispatch_seconds,
            max_runs=settings.max_concurrent_runs,
            max_losses=settings.max_infrastructure_losses,
            deadline_slack=SETUP_SECONDS + DEADLINE_SLACK,
            breaker=settings.enable_circuit_breaker,
            adopt_seconds=settings.adopt_seconds,
            highmem_above=round(settings.highmem_threshold_gb * 2**30),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The rows of everything that is not over, with times on the new leader's monotonic clock."""

    runs: tuple[RunRecord, ...] = ()
    """Running, paused or cancelling."""
    plans: Mapping[str, Plan] = field(default_factory=dict)
    """By run id; runs of one version share one object."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Runs under way whose plan this release can't read, and why. They are left alone, for a scheduler of the release
    that made them: neither they nor their task runs and attempts are among the others."""
    left_alone: frozenset[str] = frozenset()
    """The live attempts of those runs; what they hold is among the reservations."""
    task_runs: tuple[TaskRunRecord, ...] = ()
    """All task runs of these runs, terminal ones too."""
    attempts: tuple[AttemptRecord, ...] = ()
    """Dispatched or running."""
    reservations: tuple[Reservation, ...] = ()
    """All there are, zombies too."""
    hosts: tuple[HostRecord, ...] = ()
    dispatches: tuple[tuple[Rate, float], ...] = ()
    """Those that still count against a rate limit, and when they were made, the earliest first; most of their attempts
    are over, and their runs too."""
    circuits: tuple[str, ...] = ()
    """Services whose circuit an earlier leader has left open in the rows."""
    unmade_children: frozenset[str] = frozenset()
    """Ids of runs that are tasks of these runs, and were asked for but never made."""
    ended_children: Mapping[str, EndedRun] = field(default_factory=dict)
    """By id, runs that are over though the tasks that they are do not know of it: their run was left alone."""
    workers: tuple[WorkerRecord, ...] = ()
    """Those not ended, and those that ended lately or still hold something: their last heartbeat may still be read, and
    must not bring them back."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What a worker is to bring about, told again with every heartbeat until it is so."""

    cancel: tuple[tuple[str, float], ...] = ()
    """Attempt and grace in seconds: stop its tree and report ``cancelled``."""
    fence: tuple[str, ...] = ()
    """Attempts it shows that are not (or no longer) its own: stop their trees; their outcomes count no more."""
    confirm: tuple[tuple[str, str], ...] = ()
    """Attempt and ended incarnation: say in ``Heartbeat.dead`` once that incarnation and every tree of the attempt on
    this host are dead (also when the attempt never started there)."""
    drain: bool = False
    """Take no new work until told otherwise; what runs goes on until ``drain_until``."""
    drain_until: float | None = None
    """When what still runs is to be preempted, on the leader's monotonic clock; ``None``: by the worker's setting."""
