"""A kernel under the hand of a test: short words for events, and questions about the effects they had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from orchestrator.effects import (
    Annotate,
    CloseCommand,
    CreateAttempt,
    Effect,
    SendAnswer,
    SendGrant,
    SendHint,
    Transition,
)
from orchestrator.events import (
    ClaimReceived,
    Command,
    EndedRun,
    Event,
    HeartbeatSeen,
    OutcomeReceived,
    RunSubmitted,
    Tick,
)
from orchestrator.kernel import Kernel, KernelSettings, decide
from orchestrator.records import (
    AttemptRecord,
    Capacity,
    GpuDevice,
    Heartbeat,
    Outcome,
    Plan,
    PlannedTask,
    Resources,
    RetryPolicy,
    RunRecord,
    TaskRunRecord,
)
from orchestrator.states import RUN_TERMINAL, AttemptState, RunState, TaskState
from tests.unit.simulated_judge import has_begun

GIB = 2**30
E = TypeVar("E")
R = TypeVar("R", RunRecord, TaskRunRecord)
SUCCESS = Outcome(AttemptState.SUCCEEDED)
NO_JITTER = RetryPolicy(retries=1, delay=10, factor=2, max_delay=60, jitter=0)


def task(name: str, *upstream: str, cpu: int = 1000, memory: int = GIB, gpus: int = 0, **fields: Any) -> PlannedTask:
    """Build a planned task; ``rule`` is its trigger rule."""
    fields["trigger_rule"] = fields.pop("rule", "all_success")
    fields.setdefault("retry", NO_JITTER)
    return PlannedTask(name, "custom_script", upstream, resources=Resources(cpu, memory, gpus), **fields)


class Driver:
    """Feeds events and keeps the effects of the latest call in ``effects`` and of all in ``history``."""

    def __init__(self, **settings: Any) -> None:
        self.ids = count(1)
        self.now = 1000.0
        self.kernel = Kernel(KernelSettings(new_id=lambda: f"id{next(self.ids)}", **settings), self.now)
        self.effects: list[Effect] = []
        self.history: list[Effect] = []
        self.beats: dict[str, Heartbeat] = {}
        self.submitted: dict[str, RunSubmitted] = {}

    def feed(self, *events: Event) -> list[Effect]:
        self.effects = [effect for event in events for effect in decide(self.kernel, event, self.now)]
        self.history += self.effects
        return self.effects

    def of(self, kind: type[E]) -> list[E]:
        """Return the latest effects of one kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def all_of(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.history if isinstance(effect, kind)]

    # Events

    def worker(
        self,
        worker_id: str = "w1",
        *,
        host: str = "a",
        cpu: int = 4000,
        memory: int = 8 * GIB,
        gpus: int = 0,
        slots: int = 4,
        queues: tuple[str, ...] = ("cpu",),
        **fields: Any,
    ) -> None:
        devices = tuple(GpuDevice(f"{host}-gpu{n}", memory=16 * GIB) for n in range(gpus))
        self.beats[worker_id] = Heartbeat(
            worker_id,
            host,
            fields.pop("boot_id", f"{host}-boot"),
            host,
            worker_id,
            0,
            queues,
            slots,
            Capacity(cpu, memory, devices),
            **fields,
        )
        self.beat(worker_id)

    def beat(self, worker_id: str = "w1", **fields: Any) -> list[Effect]:
        """Let the worker say the same as last time, but for ``fields``."""
        last = self.beats[worker_id]
        self.beats[worker_id] = replace(last, seq=last.seq + 1, **fields)
        return self.feed(HeartbeatSeen(self.beats[worker_id]))

    def run(
        self,
        *tasks: PlannedTask,
        run_id: str = "r1",
        priority: int = 0,
        hold: bool = False,
        plan: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> list[Effect]:
        """Submit a run and tick; ``plan`` are further fields of its plan, the others are its record's."""
        rows = tuple(TaskRunRecord(f"{run_id}.{t.name}", run_id, t.name) for t in tasks)
        order = len([e for e in self.history if isinstance(e, Transition) and e.after is RunState.RUNNING])
        fields = {"order": order, "pipeline_id": "p", "pipeline": "p", **fields}
        record = RunRecord(run_id, "tenant", RunState.QUEUED, priority=priority, **fields)
        self.submitted[run_id] = RunSubmitted(record, rows, Plan(tuple(tasks), **(plan or {})), hold)
        return self.feed(self.submitted[run_id], Tick())

    def tick(self, *, after: float = 0.0, claims_waiting: bool = False) -> list[Effect]:
        self.now += after
        return self.feed(Tick(claims_waiting))

    def claim(self, name: str, worker_id: str = "w1", nonce: str = "n1", seq: int = 1) -> list[Effect]:
        return self.feed(ClaimReceived(worker_id, self.attempt(name).id, seq, nonce))

    def start(self, *names: str, worker_id: str = "w1") -> None:
        """Claim the tasks' attempts, and show them in a heartbeat."""
        for name in names:
            self.claim(name, worker_id)
            assert self.of(SendGrant), f"{name} was not granted"
        shown = {
            a.id: a.token
            for a in self.kernel.attempts.values()
            if a.worker_id == worker_id and a.state is AttemptState.RUNNING
        }
        self.beat(worker_id, running=shown)

    def end(
        self, name: str, outcome: Outcome = SUCCESS, worker_id: str = "w1", token: str | None = None, tick: bool = True
    ) -> list[Effect]:
        attempt = self.attempt(name)
        events: list[Event] = [OutcomeReceived(worker_id, attempt.id, token or attempt.token, outcome)]
        return self.feed(*events, *([Tick()] if tick else []))

    def command(self, kind: str, **fields: Any) -> list[Effect]:
        return self.feed(Command(next(self.ids), kind, "ann", **fields), Tick())

    def rows(self, run_id: str = "r1") -> RunSubmitted:
        """Return the run's rows as the effects have left them."""
        begun = self.submitted[run_id]
        return replace(begun, run=self._row(begun.run), tasks=tuple(map(self._row, begun.tasks)), hold=False)

    def _row(self, record: R) -> R:
        names = {field.name for field in fields_of(record)}
        for effect in self.all_of(Transition):
            if effect.id == record.id:
                changes = {name: value for name, value in effect.changes.items() if name in names}
                if isinstance(record, TaskRunRecord):
                    changes["begun"] = has_begun(record, effect)
                record = replace(record, **{"state": effect.after, "reason": effect.reason, **changes})
        return record

    def rerun(self, chosen: Any = "failed", *, run_id: str = "r1", start: bool = True, **payload: Any) -> str:
        """Ask for the run again, its rows read beforehand, and start it; returns the sentence of the command."""
        rows = self.rows(run_id)
        is_over = rows.run.state in RUN_TERMINAL
        ended = EndedRun(rows.run, rows.tasks, rows.plan) if is_over else None
        asked = {"from": chosen, **payload}
        self.feed(Command(next(self.ids), "rerun", "ann", run_id, payload=asked, ended=ended), Tick())
        result = self.of(CloseCommand)[0].result
        if start:
            self.feed(self.rows(run_id), Tick())
        return result

    # Questions

    def attempt(self, name: str, run_id: str = "r1") -> AttemptRecord:
        node = self.kernel.tasks[f"{run_id}.{name}"]
        assert node.attempt_id is not None, f"{name} is {node.state} and has no attempt"
        return self.kernel.attempts[node.attempt_id]

    def state(self, name: str, run_id: str = "r1") -> TaskState:
        """Return the latest state by the effects; pending when none has changed it."""
        changes = [e for e in self.all_of(Transition) if e.id == f"{run_id}.{name}"]
        after = changes[-1].after if changes else TaskState.PENDING
        assert isinstance(after, TaskState)
        return after

    def last(self, entity_id: str) -> Transition:
        return [e for e in self.all_of(Transition) if e.id == entity_id][-1]

    def run_state(self, run_id: str = "r1") -> RunState:
        after = self.last(run_id).after
        assert isinstance(after, RunState)
        return after

    def reason(self, name: str, run_id: str = "r1") -> tuple[str, str]:
        """Return the reason and message it was told last."""
        for effect in reversed(self.history):
            if isinstance(effect, Annotate) and effect.id == f"{run_id}.{name}" and "reason" in effect.changes:
                return effect.changes["reason"], effect.changes["message"]
            if isinstance(effect, Transition) and effect.id == f"{run_id}.{name}":
                return effect.reason, effect.message
        return "", ""

    def verdicts(self) -> list[str]:
        return [answer.verdict for answer in self.of(SendAnswer)]

    def hints(self) -> list[tuple[str, int, str]]:
        return [(hint.attempt_id, hint.seq, hint.queue) for hint in self.of(SendHint)]

    def dispatched(self) -> list[str]:
        """Return the names of the tasks that the latest call has dispatched, in order."""
        return [effect.task for effect in self.of(CreateAttempt)]

    def held(self) -> set[str]:
        return set(self.kernel.ledger.reservations)
