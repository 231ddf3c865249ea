"""Gates: what a ready task needs besides room: slots of its keys, its turn under a rate limit, services that answer.

Tasks with equal asks and equal gates wait in one line, so that a shut gate costs one look and not one per task.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.breaker import Circuit
from orchestrator.errors import TemplateError
from orchestrator.expressions.paths import lookup_in
from orchestrator.expressions.templates import holds_template
from orchestrator.expressions.texts import Texts
from orchestrator.kernel.guarded import Unforeseen, guarded
from orchestrator.kernel.nodes import RunNode, TaskNode
from orchestrator.kernel.values import values_in
from orchestrator.limits import ATTEMPTS, PIPELINE, RUNS, Dispatches, Holders, Rate, Slot, rate_of, slots_of
from orchestrator.records import AttemptRecord, Plan, RunRecord

CONCURRENCY, RATE_LIMIT, SERVICE_OPEN = "concurrency", "rate_limit", "service_open"


@dataclass(frozen=True, slots=True)
class Gate:
    """What stands before a task, its keys worked out; the empty one is open to everybody."""

    slots: tuple[Slot, ...] = ()
    rate: Rate | None = None
    services: tuple[str, ...] = ()
    broken: str = ""
    """Why a key can't be worked out: the task can't run at all."""
    trace: str = ""
    """Where that happened, if it is a fault of ours."""

    @property
    def only_waits(self) -> bool:
        """Whether nothing happens at it but that tasks wait."""
        return not self.broken and all(slot.on_limit == "queue" for slot in self.slots)


OPEN = Gate()


class Passed:
    """What has passed the gates, and what passes next: the part of the kernel's index that gates look at."""

    __slots__ = ("attempts", "circuits", "dispatches", "runs", "stale_circuits")

    def __init__(self) -> None:
        self.attempts = Holders()
        """Live attempts by the keys of their tasks."""
        self.runs = Holders()
        """Runs that were started and are not over, by the keys of their plans."""
        self.dispatches = Dispatches()
        self.circuits: dict[str, Circuit] = {}
        """Those that are not as new."""
        self.stale_circuits: tuple[str, ...] = ()
        """Services whose rows still say what an earlier leader knew; to be written closed."""

    def take_run(self, run: RunNode) -> None:
        """Let a run have its slots; one of which a key can't be worked out was never started by us."""
        try:
            self.runs.take(run.id, run_slots(run, run.shape.plan))
        except (TemplateError, Unforeseen):
            return

    def take_attempt(self, node: TaskNode, attempt: AttemptRecord) -> None:
        """Let a live attempt have its slots."""
        self.attempts.take(attempt.id, gate_of(node).slots)

    def note_dispatch(self, node: TaskNode, now: float) -> Rate | None:
        """Count a dispatch against the task's rate limit; returns what a new leader has to know of it."""
        rate = gate_of(node).rate
        return None if rate is None else self.dispatches.note(rate, now)

    def circuit(self, service: str) -> Circuit:
        return self.circuits.get(service) or Circuit(service)


def gate_of(node: TaskNode, texts: Texts | None = None) -> Gate:
    """Return what stands before the task; it is worked out once.

    :param texts: is charged for what is read.
    """
    if node.gate is None:
        node.gate = _worked_out(node, texts)
    return node.gate


def has_keys_to_read(node: TaskNode) -> bool:
    """Say whether templates are to be read to know what stands before the task."""
    limits = (*node.planned.concurrency, *([node.planned.rate_limit] if node.planned.rate_limit else ()))
    return node.gate is None and any(holds_template(limit.key) for limit in limits)


def _worked_out(node: TaskNode, texts: Texts | None) -> Gate:
    planned = node.planned
    if not (planned.concurrency or planned.rate_limit or planned.connections):
        return OPEN
    services = tuple(dict.fromkeys(planned.connections))
    if not (planned.concurrency or planned.rate_limit):
        return Gate(services=services)
    tenant_id, lookup = node.run.tenant_id, lookup_in(values_in(node.scope))
    try:
        slots = guarded(lambda: slots_of(planned.concurrency, tenant_id, ATTEMPTS, lookup, texts))
        return Gate(slots, guarded(lambda: rate_of(planned.rate_limit, tenant_id, lookup, texts)), services)
    except TemplateError as error:
        return Gate(broken=str(error))
    except Unforeseen as error:
        return Gate(broken=str(error), trace=error.trace)


def run_slots(run: RunRecord | RunNode, plan: Plan) -> tuple[Slot, ...]:
    """Work out which slots a run takes while it is not over: of its plan's keys, and of its pipeline.

    :raises TemplateError: a path in a key leads nowhere.
    :raises Unforeseen: the values met a fault of ours.
    """
    if not plan.concurrency and plan.max_active_runs is None:
        return ()
    lookup = lookup_in({"params": run.parameters, "run": {"id": run.id, "pipeline": run.pipeline}})
    slots = guarded(lambda: slots_of(plan.concurrency, run.tenant_id, RUNS, lookup))
    if plan.max_active_runs is None:
        return slots
    return (*slots, Slot((run.tenant_id, PIPELINE, run.pipeline or run.pipeline_id), plan.max_active_runs))
