"""Limits, caches, deadlines and retry rules in the simulation: their plans, what answers them, and their judge."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from orchestrator import effects as fx
from orchestrator.events import CacheAnswered, Event
from orchestrator.kernel import Kernel
from orchestrator.kernel.held_runs import HeldBack
from orchestrator.records import (
    AttemptRecord,
    CachePlan,
    ChildPlan,
    ConcurrencyLimit,
    MapPlan,
    Outcome,
    Plan,
    PlannedTask,
    RateLimit,
    Resources,
    RetryPolicy,
    RetryRule,
    RunRecord,
    TaskRunRecord,
    Usage,
)
from orchestrator.states import ATTEMPT_TERMINAL, AttemptState, RunState, TaskState
from tests.unit.simulated_judge import LIVE_RUNS, Violation
from tests.unit.simulated_site import GIB
from tests.unit.simulated_store import ModelStore
from tests.unit.simulated_world import World

UNREACHABLE = Outcome(AttemptState.FAILED, "unreachable")
OOM = Outcome(AttemptState.FAILED, "oom", usage=Usage(peak_memory=GIB))
RETRY = RetryPolicy(retries=2, delay=5, factor=2, max_delay=20, jitter=0.1)
RULES = (
    RetryRule("fail", reasons=("bad_data",)),
    RetryRule("skip", reasons=("exception",)),
    RetryRule("retry", reasons=("oom",), memory_factor=2.0, delay=0.0),
    RetryRule("retry", reasons=("worker_lost",), delay=3.0),
)


def task(name: str, *upstream: str, retry: RetryPolicy = RETRY, **fields: Any) -> PlannedTask:
    return PlannedTask(name, "custom_script", upstream, resources=Resources(1000, GIB), retry=retry, **fields)


def slot(limit: int, on_limit: str = "queue", key: str = "k") -> dict[str, Any]:
    return {"concurrency": (ConcurrencyLimit(key, limit, on_limit),)}


def group(name: str, *body: PlannedTask, **fields: Any) -> PlannedTask:
    map_ = MapPlan(["x", "y", "x"], max_parallel=2, success="any")
    return task(name, map=map_, body=Plan(body), is_group=True, **fields)


def child(name: str, *upstream: str, **fields: Any) -> PlannedTask:
    return task(name, *upstream, child=ChildPlan("limited"), **fields)


ITEM = "{{ map.item }}"
RULED = replace(RETRY, rules=RULES)

PLANS = (
    Plan((*(task(f"t{n}", **slot(2)) for n in range(4)), task("end", *(f"t{n}" for n in range(4))))),
    Plan((task("a", **slot(1, "cancel_running", "own")), task("b", "a", trigger_rule="all_done")), max_active_runs=2),
    Plan((task("only"), task("next", "only")), concurrency=(ConcurrencyLimit("one", 1, "cancel_running"),)),
    Plan((task("a", **slot(1, "cancel_new")), task("b", **slot(1, "fail"))), max_active_runs=1),
    Plan((*(task(f"r{n}", rate_limit=RateLimit("api", 2, 20.0)) for n in range(4)), task("free"))),
    Plan((task("c", cache=CachePlan()), task("d", "c", cache=CachePlan(scope="tenant")))),
    Plan((task("c", cache=CachePlan(scope="tenant"), **slot(1, key="c")), task("side", cache=CachePlan(mode="write")))),
    Plan((task("m", retry=RULED, memory_auto=True), task("n", "m", retry=RULED))),
    Plan((task("slow", deadline=25.0), task("queued", max_queued=15.0), task("end", "slow", trigger_rule="all_done"))),
    Plan((task("a"), task("b", "a", max_queued=10.0), task("c", "a", deadline=15.0)), deadline=45.0),
    Plan((*(task(f"s{n}", connections=("lake",), retry=replace(RETRY, retries=1)) for n in range(4)),)),
    Plan((task("up"), task("work", "up"), task("down", "work", teardown=True, setups=("up",))), deadline=60.0),
    Plan((group("m", task("c", cache=CachePlan(scope="tenant"), **slot(1, key=f"item {ITEM}"))), task("end", "m"))),
    Plan((group("m", task("c"), task("d", "c", **slot(2, "cancel_running", "d")), deadline=30.0), task("end", "m"))),
    Plan((group("m", child("sub"), task("oom", retry=RULED)), child("one"), task("end", "m", "one")), deadline=90.0),
    Plan((task("up"), child("sub", "up"), child("down", "up", teardown=True, setups=("up",))), max_active_runs=2),
)

PIPELINES = {"limited": Plan((task("a", max_queued=20.0), task("b", "a", teardown=True)), max_active_runs=2)}
"""By name, for runs that are tasks."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A dispatch that counts against a rate limit."""

    at: float
    key: str
    attempt_id: str
    clock_ahead: float
    """Of the database then."""


class PolicyWorld(World):
    """A world whose queued runs are read as the scheduler reads them, and whose cache answers."""

    def __init__(self, *, breaker: bool = True) -> None:
        self.cached: dict[tuple[str, str], str] = {}
        """What has the same key is the task of the same name; in the scope of a tenant, of all plans."""
        self.sent: list[Sent] = []
        """Dispatches under a rate limit, of all leaders."""
        self.judged: Kernel | None = None
        self.paused: set[str] = set()
        """Names of pipelines none of whose runs is started."""
        super().__init__(breaker=breaker)
        self.store.pipelines.update(PIPELINES)

    def submit(self, plan: Plan, priority: int) -> None:
        super().submit(plan, priority)
        run = next(reversed(self.store.runs.values()))
        name = f"p{PLANS.index(plan)}" if plan in PLANS else "other"
        self.store.runs[run.id] = replace(run, pipeline=name, pipeline_id=name)

    def _gather(self, taken: list[Event], reconcile: bool) -> Iterator[Event]:
        every = self.store.queued_runs
        kernel = self.kernel

        def those_that_may_be_read() -> list[RunRecord]:
            left_out = kernel.held_back(self.paused)
            return [run for run in every() if _may_be_read(run, left_out, self.paused)]

        self.store.queued_runs = those_that_may_be_read  # type: ignore[method-assign]
        try:
            yield from super()._gather(taken, reconcile)
        finally:
            self.store.queued_runs = every  # type: ignore[method-assign]

    def step(self, taken: list[Event], *, reconcile: bool = False) -> None:
        unread = set(self._to_be_stopped())
        super().step(taken, reconcile=reconcile)
        if still := unread & set(self._to_be_stopped()):
            raise Violation(f"I4: {still} are not read, though their tasks wait for their end")

    def _to_be_stopped(self) -> Iterator[str]:
        """Yield the queued runs whose tasks are being cancelled."""
        for task_run in self.store.task_runs.values():
            run = self.store.runs.get(task_run.child_run_id or "")
            if task_run.state is TaskState.CANCELLING and run is not None and run.state is RunState.QUEUED:
                yield run.id

    def _answer(self, effect: fx.StartChild) -> Event | None:
        return None if effect.child.pipeline in self.paused else super()._answer(effect)

    def heal(self, rounds: int = 150) -> None:
        # Under a rate limit many runs take their time, each try of theirs.
        super().heal(rounds + 30 * len(self.store.runs))

    def _repair_everything(self) -> None:
        self.paused.clear()
        super()._repair_everything()

    def _decided(self, kernel: Kernel, event: Event) -> Iterator[fx.Effect]:
        for effect in super()._decided(kernel, event):
            yield effect
            if isinstance(effect, fx.LookUp):
                yield from self._decided(kernel, self._looked_up(kernel, effect.task_run_id))

    def _looked_up(self, kernel: Kernel, task_run_id: str) -> CacheAnswered:
        """Answer from what succeeded before, or just now in the same transaction."""
        asking = kernel.tasks[task_run_id]
        scope, key = _scope_in(asking.planned, asking.run.pipeline), f"key of {asking.name}"
        found = (
            node.id
            for node in kernel.tasks.values()
            if node.state is TaskState.SUCCESS and node.cache_key == key
            if _scope_in(node.planned, node.run.pipeline) == scope
        )
        return CacheAnswered(task_run_id, key, self.cached.get((scope, key)) or next(found, None), outputs={})

    def _scope_of(self, task_run_id: str) -> str:
        row = self.store.task_runs[task_run_id]
        return _scope_in(self.store.graph(row.run_id).planned(row), self.store.runs[row.run_id].pipeline)

    def remember(self) -> None:
        """Keep what succeeded for the cache, as the store does in the same transaction."""
        for row in self.store.task_runs.values():
            if row.cache_key and row.state is TaskState.SUCCESS:
                self.cached.setdefault((self._scope_of(row.id), row.cache_key), row.id)

    def _transact(self, kernel: Kernel, epoch: int, events: Iterator[Event]) -> None:
        super()._transact(kernel, epoch, events)
        self.remember()
        if kernel is self.kernel:
            check_limits(self)

    def _check_places(self, effects: list[fx.Effect]) -> None:
        super()._check_places(effects)
        if self.judged is not self.kernel:
            self.judged = self.kernel
            self.sent = [sent for sent in self.sent if self._is_known_to_rows(sent)]
        for effect in effects:
            if isinstance(effect, fx.Count) and effect.what == "repaired":
                raise AssertionError(effect.detail)
            if isinstance(effect, fx.CreateAttempt):
                row = self.store.task_runs[effect.attempt.task_run_id]
                rate = self.store.graph(row.run_id).planned(row).rate_limit
                if rate is not None:
                    self.sent.append(Sent(self.now, rate.key, effect.attempt.id, self.store.clock_ahead))
                    within = sum(sent.key == rate.key and sent.at > self.now - rate.per for sent in self.sent)
                    if within > rate.units:
                        raise Violation(f"rate: {within} of {rate.units} dispatches of {rate.key} in {rate.per:g} s")

    def _is_known_to_rows(self, sent: Sent) -> bool:
        """Say whether a new memory has to know of the dispatch: not if a crash of the database has lost its row, nor if
        the clock of the database has gone ahead since, by which its time may be over."""
        return sent.attempt_id in self.store.attempts and self.store.clock_ahead <= sent.clock_ahead


def _scope_in(planned: PlannedTask, pipeline: str) -> str:
    return "" if planned.cache is not None and planned.cache.scope == "tenant" else pipeline


def _may_be_read(run: RunRecord, left_out: HeldBack, paused: Collection[str]) -> bool:
    if run.id in left_out.wanted:
        return True
    if run.pipeline in paused:
        return False
    return run.id not in left_out.runs


def check_limits(world: PolicyWorld) -> None:
    """Hold the rows against every limit: no more attempts, no more runs, and no two equal tasks of one flight."""
    _check_slots(world.store)
    _check_flights(world)
    _check_runs(world.store)


def _check_slots(store: ModelStore) -> None:
    used: dict[tuple[str, int], list[str]] = {}
    for attempt, row, planned in _live(store):
        for limit in planned.concurrency:
            used.setdefault((limit.key.replace(ITEM, str(row.item)), limit.limit), []).append(attempt.id)
    for (key, most), attempts in used.items():
        if len(attempts) > most:
            raise Violation(f"concurrency: {attempts} hold the {most} slots of {key}")


def _check_flights(world: PolicyWorld) -> None:
    flights: dict[tuple[str, str], list[str]] = {}
    for attempt, row, planned in _live(world.store):
        cache = planned.cache
        # One that only reads leaves nothing for others, one that only writes takes nothing from them.
        if row.cache_key and cache is not None and cache.single_flight and cache.mode == "read_write":
            flights.setdefault((world._scope_of(row.id), row.cache_key), []).append(attempt.id)
    for (_, key), attempts in flights.items():
        if len(attempts) > 1:
            raise Violation(f"single flight: {attempts} work on {key}")


def _live(store: ModelStore) -> Iterator[tuple[AttemptRecord, TaskRunRecord, PlannedTask]]:
    """Yield the attempts that are not over, each with its task run and the task that it is of."""
    for attempt in store.attempts.values():
        if attempt.state not in ATTEMPT_TERMINAL:
            row = store.task_runs[attempt.task_run_id]
            yield attempt, row, store.graph(row.run_id).planned(row)


def _check_runs(store: ModelStore) -> None:
    active: dict[str, list[RunRecord]] = {}
    for run in store.runs.values():
        if run.state in LIVE_RUNS:
            active.setdefault(run.pipeline, []).append(run)
        if run.state is RunState.FAILED and run.reason == "run_deadline" and run.deadline_at is None:
            raise Violation(f"deadline: {run.id} had none")
    for name, runs in active.items():
        plan = store.plans[runs[0].id]
        limits = [plan.max_active_runs or len(runs), *(limit.limit for limit in plan.concurrency)]
        if len(runs) > min(limits):
            raise Violation(f"concurrency: {[run.id for run in runs]} of {name} are active, {min(limits)} may be")
