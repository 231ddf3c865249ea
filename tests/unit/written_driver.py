"""A driver whose kernel's effects are written to model rows, so that another kernel can take over from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from orchestrator.effects import CloseCommand, Count, Effect, StartChild
from orchestrator.events import (
    ChildRefused,
    ClaimReceived,
    Command,
    EndedRun,
    Event,
    OutcomeReceived,
    ReconcileDue,
    RunSubmitted,
    Tick,
)
from orchestrator.kernel import Kernel, decide
from orchestrator.records import (
    AttemptRecord,
    MapPlan,
    Outcome,
    Plan,
    PlannedTask,
    RepeatPlan,
    RunRecord,
    TaskRunRecord,
)
from orchestrator.states import RUN_TERMINAL, AttemptState, RunState, TaskState
from tests.unit.kernel_driver import NO_JITTER, Driver, task
from tests.unit.simulated_store import MOST_CHILDREN, ModelStore

BAD = Outcome(AttemptState.FAILED, "bad_data", retryable=False)
SKIP = Outcome(AttemptState.SUCCEEDED, "nothing_to_do", skipped=True)


def gave(**outputs: Any) -> Outcome:
    return Outcome(AttemptState.SUCCEEDED, outputs=outputs)


def mapped(name: str, *upstream: str, over: Any, body: Iterable[PlannedTask] = (), **fields: Any) -> PlannedTask:
    """Build a map of one task, or of the group of tasks in ``body``; fields of a map are its own, others the task's."""
    names = ("max_parallel", "max_size", "success", "least", "fail_fast", "key")
    own = {key: fields.pop(key) for key in names if key in fields}
    return container(name, upstream, MapPlan(over, **own), None, tuple(body), fields)


def repeated(
    name: str, *upstream: str, until: str, most: int, body: Iterable[PlannedTask] = (), **fields: Any
) -> PlannedTask:
    own = {key: fields.pop(key) for key in ("delay", "on_max") if key in fields}
    return container(name, upstream, None, RepeatPlan(until, most, **own), tuple(body), fields)


def container(
    name: str,
    upstream: tuple[str, ...],
    map_: MapPlan | None,
    repeat: RepeatPlan | None,
    body: tuple[PlannedTask, ...],
    fields: dict[str, Any],
) -> PlannedTask:
    inner = {key: fields.pop(key) for key in ("cpu", "memory", "parameters") if key in fields}
    rule = fields.pop("rule", "all_success")
    plan = Plan(body or (task(name, **inner),))
    return PlannedTask(
        name,
        "group" if body else "custom_script",
        upstream,
        rule,
        retry=NO_JITTER,
        map=map_,
        repeat=repeat,
        body=plan,
        is_group=bool(body),
        **fields,
    )


class Written(Driver):
    """Names task runs as people do (``train[3]``); every event is one transaction."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.store = ModelStore()
        self.store.epoch = 1
        self.settings = self.kernel.settings
        self.answers_children = True
        """Whether runs that are tasks are submitted as soon as they are made."""
        self.makes_children = True
        """Whether they are made at all; else they are asked for, and left for the next transaction."""
        self.asked: list[StartChild] = []
        """Runs that are tasks and are still to be made."""

    def feed(self, *events: Event) -> list[Effect]:
        self.effects = []
        for event in events:
            self._commit(self._decided(event), event)
            while self.asked and self.makes_children:
                self._commit(self._made(), Tick())
        self.history += self.effects
        return self.effects

    def _commit(self, decided: Iterator[Effect], event: Event) -> None:
        effects = list(decided)
        self.store.commit(1, effects, [event], self.now)
        self.store.asked = [*(effect.child_run_id for effect in self.asked), *self.kernel.unmade_children]
        if isinstance(event, Tick):
            self.store.check_owners()
        assert not [e for e in effects if isinstance(e, Count) and e.what in ("refused_transition", "repaired")]
        self.effects += effects

    def _decided(self, event: Event) -> Iterator[Effect]:
        for effect in decide(self.kernel, event, self.now):
            if isinstance(effect, StartChild):
                self.asked.append(effect)
            else:
                yield effect

    def _made(self) -> Iterator[Effect]:
        """Yield the making of as many runs as one transaction may, and what follows."""
        making, self.asked = self.asked[:MOST_CHILDREN], self.asked[MOST_CHILDREN:]
        for effect in making:
            node = self.kernel.tasks.get(effect.task_run_id)
            if node is None or node.state is not TaskState.RUNNING:
                yield from self._decided(ChildRefused(effect.task_run_id, "It is not wanted any more."))
                continue
            yield effect
            if self.answers_children:
                yield from self._decided(self._answer(effect))
        yield from self._decided(Tick())

    def _answer(self, effect: StartChild) -> Event:
        made = self.store.child_of(effect)
        if made is None:
            return ChildRefused(effect.task_run_id, f"There is no pipeline {effect.child.pipeline!r}.")
        record, plan = made
        rows = tuple(TaskRunRecord(f"{record.id}/t{n}", record.id, t.name) for n, t in enumerate(plan.tasks))
        return RunSubmitted(record, rows, plan)

    def run(self, *tasks: PlannedTask, run_id: str = "r1", **fields: Any) -> list[Effect]:
        own = {name: fields.pop(name) for name in ("concurrency", "max_active_runs", "deadline") if name in fields}
        plan = Plan(tuple(tasks), **own)
        record = RunRecord(run_id, "tenant", RunState.QUEUED, pipeline_id="p", pipeline="p", **fields)
        self.store.insert_run(record, plan)
        return self.feed(self.submission(run_id), Tick())

    def submission(self, run_id: str = "r1", *, hold: bool = False) -> RunSubmitted:
        rows = tuple(self.store.task_runs[id_] for id_ in self.store.tasks_of[run_id])
        return RunSubmitted(self.store.runs[run_id], rows, self.store.plans[run_id], hold)

    def take_over(self) -> None:
        """Another leader makes its memory from the rows; it must find nothing to repair."""
        self.kernel, self.asked, self.store.left_alone = Kernel(self.settings, self.now), [], ()
        self.kernel.load(self.store.snapshot(self.now), self.now)
        self.feed(ReconcileDue(), Tick())

    def tick(self, *, after: float = 0.0, claims_waiting: bool = False) -> list[Effect]:
        """Let time pass in which the worker goes on speaking."""
        until = self.now + after
        while self.now < until:
            self.now = min(until, self.now + 10.0)
            self._speak()
            self.feed(Tick(claims_waiting))
        return self.feed(Tick(claims_waiting)) if not after else self.effects

    def _speak(self) -> None:
        running = [a for a in self.kernel.attempts.values() if a.state is AttemptState.RUNNING]
        self.beat("w1", running={a.id: a.token for a in running})

    def finish(self, *names: str, outcome: Outcome | None = None, run_id: str = "r1") -> None:
        """Let a worker run these tasks."""
        for name in names:
            attempt = self.attempt(name, run_id)
            self.feed(ClaimReceived("w1", attempt.id, 1, "n1"))
            self._speak()
            self.feed(OutcomeReceived("w1", attempt.id, attempt.token, outcome or gave()), Tick())

    def start_of(self, name: str, run_id: str) -> None:
        self.feed(ClaimReceived("w1", self.attempt(name, run_id).id, 1, "n1"))
        self._speak()

    def end_of(self, name: str, run_id: str, outcome: Outcome) -> None:
        attempt = self.attempt(name, run_id)
        self.feed(OutcomeReceived("w1", attempt.id, attempt.token, outcome), Tick())

    def ask(self, kind: str, *, run_id: str = "r1", **fields: Any) -> str:
        """Let a person command something; returns the sentence that answers."""
        ended = None
        if kind == "rerun":
            fields.setdefault("generation", self.store.runs[run_id].generation)
        if kind in ("rerun", "mark") and not self.kernel.knows_run(run_id) and run_id in self.store.runs:
            rows = self.submission(run_id)
            if rows.run.state in RUN_TERMINAL:
                ended = EndedRun(rows.run, rows.tasks, rows.plan)
        task_, payload = fields.pop("task", None), fields
        command = Command(next(self.ids), kind, "ann", run_id, task_, payload=payload, ended=ended)
        self.feed(command, Tick())
        return self.of(CloseCommand)[0].result

    def again(self, chosen: Any = "failed", run_id: str = "r1") -> str:
        """Run it again, and start it."""
        told = self.ask("rerun", run_id=run_id, **{"from": chosen})
        if self.store.runs[run_id].state is RunState.QUEUED:
            self.feed(self.submission(run_id), Tick())
        return told

    # Questions

    def row(self, name: str, run_id: str = "r1") -> TaskRunRecord:
        return next(row for row in self.rows_of(run_id) if row.name == name)

    def rows_of(self, run_id: str = "r1") -> list[TaskRunRecord]:
        return [self.store.task_runs[id_] for id_ in self.store.tasks_of[run_id]]

    def states(self, run_id: str = "r1") -> dict[str, TaskState]:
        return {row.name: row.state for row in self.rows_of(run_id)}

    def state(self, name: str, run_id: str = "r1") -> TaskState:
        return self.row(name, run_id).state

    def told(self, name: str, run_id: str = "r1") -> tuple[TaskState, str]:
        row = self.row(name, run_id)
        return row.state, row.reason

    def attempt(self, name: str, run_id: str = "r1") -> AttemptRecord:
        row = self.row(name, run_id)
        assert row.attempt_id is not None, f"{name} is {row.state} ({row.reason}) and has no attempt"
        return self.kernel.attempts[row.attempt_id]

    def queued(self, run_id: str = "r1") -> list[str]:
        """Return the names of what is sent out and not claimed, by the alphabet."""
        return sorted(row.name for row in self.rows_of(run_id) if row.state is TaskState.QUEUED)

    def run_state(self, run_id: str = "r1") -> RunState:
        return self.store.runs[run_id].state
