"""The world as the audit tells it: every row of it applied, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.checker_specification import ATTEMPT_ENDED, RUN_ENDED, TASK_ENDED
from tests.chaos.history import Event, History

LIVE = frozenset({"dispatched", "running"})


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    invariant: str
    """``I1`` … ``I13``."""
    subject: str
    """Whose: ``attempt <id>``, ``run <id>`` …"""
    sentence: str

    def __str__(self) -> str:
        return f"{self.invariant}, {self.subject}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Charge:
    """What is held where for one attempt."""

    host: str
    worker: str
    cpu: int
    memory: int
    gpus: int
    devices: tuple[str, ...]


@dataclass(slots=True)
class AttemptLife:
    """One attempt, as far as the replay has come."""

    id: str
    run_id: str
    task_run_id: str
    token: str | None
    generation: int
    """Of its task run when it was dispatched."""
    state: str
    dispatched_by: int
    """Id of the event."""
    granted_at: float | None = None
    ended_at: float | None = None
    charge: Charge | None = None
    is_held: bool = False
    """It has ended, but what it holds stays charged: its tree may live."""
    was_held: bool = False
    released_at: float | None = None

    @property
    def was_granted(self) -> bool:
        return self.granted_at is not None


@dataclass(slots=True)
class Capacity:
    cpu: int
    memory: int
    gpus: frozenset[str]


@dataclass(slots=True)
class World:
    """What is true after the events so far."""

    history: History
    runs: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    attempts: dict[str, AttemptLife] = field(default_factory=dict)
    attempts_of: dict[str, list[AttemptLife]] = field(default_factory=dict)
    """Task run → its attempts."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Token → the attempt that had it first."""
    generations: dict[str, int] = field(default_factory=dict)
    """Run or task run → how often it was opened."""
    capacities: dict[str, Capacity] = field(default_factory=dict)
    task_ids: dict[tuple[str, str], str] = field(default_factory=dict)
    """Run and name → task run."""

    def __post_init__(self) -> None:
        self.task_ids = {(task.run_id, task.name): task.id for task in self.history.tasks.values()}

    def state_of(self, event: Event) -> str | None:
        """Return the state that the event's entity is in now; ``None`` when nothing of it was told yet."""
        match event.entity:
            case "run":
                # A run whose first row is not the API's starts as whatever it left.
                known = event.before if event.before in ("queued", "scheduled") else None
                return self.runs.get(event.entity_id, known)
            case "task_run":
                return self.tasks.get(event.entity_id, "pending")
            case "attempt":
                life = self.attempts.get(event.entity_id)
                return life.state if life else None
            case "worker":
                # An incarnation joins anew when a leader that had not heard of it hears it.
                return self.workers.get(event.entity_id) if event.before is not None else None
            case "reservation":
                life = self.attempts.get(event.entity_id)
                return "held" if life and life.is_held else "released"
        return None

    def task_state(self, run_id: str, name: str) -> str:
        return self.tasks.get(self.task_ids.get((run_id, name), ""), "pending")

    def generation_of(self, id_: str) -> int:
        return self.generations.get(id_, 1)

    def charged(self) -> Iterable[AttemptLife]:
        """Return the attempts for which something is held."""
        return [life for life in self.attempts.values() if life.charge is not None]

    def apply(self, event: Event) -> None:
        """Make true what the event says, right or wrong."""
        match event.entity:
            case "run":
                self._reopen(event, RUN_ENDED)
                self.runs[event.entity_id] = event.after
            case "task_run":
                self._reopen(event, TASK_ENDED)
                self.tasks[event.entity_id] = event.after
            case "attempt":
                self._apply_to_attempt(event)
            case "worker" | "host":
                if event.entity == "worker":
                    self.workers[event.entity_id] = event.after
                if "cpu" in event.detail:
                    self.capacities[event.detail["host"]] = Capacity(
                        event.detail["cpu"], event.detail["memory"], frozenset(event.detail["gpus"])
                    )
            case "reservation":
                life = self.attempts.get(event.entity_id)
                if life is not None:
                    life.charge, life.is_held, life.released_at = None, False, event.at

    def _reopen(self, event: Event, terminal: frozenset[str]) -> None:
        if event.before in terminal and event.after not in terminal:
            self.generations[event.entity_id] = self.generation_of(event.entity_id) + 1

    def _apply_to_attempt(self, event: Event) -> None:
        life = self.attempts.get(event.entity_id)
        if life is None:
            row = self.history.attempts.get(event.entity_id)
            task_run_id = row.task_run_id if row else self.task_ids.get((event.run_id or "", event.task or ""), "")
            life = self.attempts[event.entity_id] = AttemptLife(
                id=event.entity_id,
                run_id=event.run_id or "",
                task_run_id=task_run_id,
                token=event.token,
                generation=self.generation_of(task_run_id),
                state=event.after,
                dispatched_by=event.id,
            )
            self.attempts_of.setdefault(task_run_id, []).append(life)
            self.tokens.setdefault(event.token or "", life.id)
        life.state = event.after
        if "host" in event.detail:
            life.charge = charge_of(event.detail)
        if event.after == "running":
            life.granted_at = event.at
        elif event.after in ATTEMPT_ENDED:
            life.ended_at = event.at
            life.is_held = life.was_held = bool(event.detail.get("held"))
            if not life.is_held:
                life.charge = None


def charge_of(detail: Any) -> Charge:
    return Charge(
        detail["host"],
        detail["worker"],
        detail["cpu"],
        detail["memory"],
        detail["gpus"],
        tuple(detail["devices"]),
    )
