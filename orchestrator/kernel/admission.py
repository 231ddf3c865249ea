"""Runs that may not start yet: their pipeline, or a key of it, has as many active runs as it may have.

They stay queued in the rows. Those that were looked at are remembered, so that they are not read again and again and
never stand in the way of runs behind them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.effects import Annotate
from orchestrator.errors import TemplateError
from orchestrator.events import RunSubmitted
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.gates import CONCURRENCY, run_slots
from orchestrator.kernel.guarded import INTERNAL_ERROR, Unforeseen
from orchestrator.kernel.held_runs import HeldRun
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.nodes import TEMPLATE, RunNode
from orchestrator.kernel.stopping import Stop, stop_run
from orchestrator.kernel.working_out import tell_fault
from orchestrator.limits import Slot, sentence
from orchestrator.records import RunRecord
from orchestrator.states import Entity, RunState, TaskState

GAVE_WAY = "superseded"
"""Reason of a run whose place under a key a newer one has taken."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a run is not started: it is held back (``ends`` is ``None``), or ends without having run."""

    reason: str
    message: str
    ends: RunState | None = None


def look(changes: Changes, event: RunSubmitted) -> Refusal | None:
    """Return why the run does not start, or nothing where it may.

    Limits are looked at in their order, that of the pipeline's own number last. One that is full holds the run back
    (``queue``), ends it (``cancel_new``, ``fail``), or stops the oldest run that holds a slot and holds it back until
    that has ended (``cancel_running``; of several that come, the newest wins).
    """
    kernel, record = changes.kernel, event.run
    try:
        slots = run_slots(record, event.plan)
    except (TemplateError, Unforeseen) as error:
        return _without_a_key(changes, record, error)
    around = _runs_around(kernel, record.parent_task_run_id) if record.is_inside else set()
    for slot in slots:
        holders = [run_id for run_id in kernel.passed.runs.of(slot.key) if run_id not in around]
        if len(holders) < slot.limit:
            continue
        message = sentence(slot, (f"run {run_id}" for run_id in holders))
        if slot.on_limit == "cancel_new":
            return Refusal(CONCURRENCY, message, RunState.CANCELLED)
        if slot.on_limit == "fail":
            return Refusal(CONCURRENCY, message, RunState.FAILED)
        if slot.on_limit == "cancel_running" and not _stop_the_oldest(changes, slot, holders, record):
            return Refusal(GAVE_WAY, f"Newer runs have its place. {message}", RunState.CANCELLED)
        rank = (-record.priority, record.order)
        kernel.held_runs.hold(HeldRun(record.id, slot, rank, record.pipeline_id, frozenset(around)))
        return Refusal(CONCURRENCY, message)
    kernel.held_runs.forget(record.id)
    return None


def _without_a_key(changes: Changes, record: RunRecord, error: TemplateError | Unforeseen) -> Refusal:
    reason = TEMPLATE
    if isinstance(error, Unforeseen):
        reason = INTERNAL_ERROR
        tell_fault(changes, error.trace, record.id)
    return Refusal(reason, f"The key of a concurrency limit can't be worked out. {error}", RunState.FAILED)


def hold_back(changes: Changes, event: RunSubmitted, refusal: Refusal) -> None:
    """Say at the run what it waits for, if that is not said already; nothing else of it is kept."""
    if event.run.reason != refusal.reason:
        columns = {"reason": refusal.reason, "message": refusal.message}
        changes.emit(Annotate(Entity.RUN, event.run.id, event.run.state, columns))


def end_unstarted(changes: Changes, run: RunNode, refusal: Refusal, actor: str = "scheduler") -> None:
    """End a queued run of which nothing has run in this generation."""
    assert refusal.ends is not None
    # Of a task run inside of a container ``superseded`` says that it counts no more.
    reason = "run_cancelled" if refusal.reason == GAVE_WAY else refusal.reason
    for node in run.tasks:
        if node.state is TaskState.PENDING:
            changes.task(node, TaskState.CANCELLED, "admission", reason=reason, actor=actor, durable=True)
    changes.run(run, refusal.ends, "admission", reason=refusal.reason, message=refusal.message)


def _runs_around(kernel: Kernel, parent_task_run_id: str | None) -> set[str]:
    """Return the runs that a run is inside of: they hold their slots until it has ended, so it does not wait for
    them."""
    found = set[str]()
    while parent_task_run_id is not None and (node := kernel.tasks.get(parent_task_run_id)) is not None:
        found.add(node.run.id)
        parent_task_run_id = node.run.parent_task_run_id
    return found


def _stop_the_oldest(changes: Changes, slot: Slot, holders: Iterable[str], record: RunRecord) -> bool:
    """Stop as many of the oldest holders as the new run needs gone, those that are being stopped already counted; says
    whether there are so many that are older than it."""
    runs = [changes.kernel.runs[holder] for holder in holders if holder in changes.kernel.runs]
    staying = [run for run in runs if not run.is_cancelling]
    older = sorted((run for run in staying if run.order < record.order), key=lambda run: run.order)
    excess = max(0, len(staying) - slot.limit + 1)
    if excess > len(older):
        return False
    for run in older[:excess]:
        message = f"Run {record.id} takes its place: {slot.named} allows {slot.limit} at once."
        stop_run(changes, run, Stop(GAVE_WAY, message, cause="admission"))
    return True
