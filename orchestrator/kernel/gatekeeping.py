"""Whether a gate is open for the task at the head of its line, and what becomes of one that can't wait before it."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.kernel.changes import Changes
from orchestrator.kernel.gates import CONCURRENCY, RATE_LIMIT, SERVICE_OPEN, Gate
from orchestrator.kernel.guarded import INTERNAL_ERROR
from orchestrator.kernel.nodes import TEMPLATE, TaskNode
from orchestrator.kernel.stopping import Stop, stop_task
from orchestrator.kernel.timers import GATE
from orchestrator.kernel.working_out import tell_fault
from orchestrator.limits import Slot, sentence
from orchestrator.placement import Wait
from orchestrator.states import TaskState

DISPLACED = "displaced"
"""Reason of a task run that was stopped, or did not start, because another has its slot. Not ``superseded``, which says
of a task run inside of a container that it counts no more."""


def shut(changes: Changes, gate: Gate) -> Wait | None:
    """Return what the gate waits for, or nothing where it is open. Changes nothing but the time to look again."""
    if full := next(_full(changes, gate), None):
        return Wait(CONCURRENCY, full[1])
    return _closed_service(changes, gate) or _too_soon(changes, gate)


def is_ended_by_its_gate(changes: Changes, node: TaskNode, gate: Gate) -> bool:
    """End a task that its gate lets neither through nor wait; where it says so make place for it.

    Its key can't be worked out, or a slot is taken and its limit says ``cancel_new`` or ``fail``. With
    ``cancel_running`` the oldest attempts that hold the slot are stopped, and it waits for their end.
    """
    if gate.broken:
        message = f"A key of its limits can't be worked out. {gate.broken}"
        reason = INTERNAL_ERROR if gate.trace else TEMPLATE
        if gate.trace:
            tell_fault(changes, gate.trace, node.run.id, node.name)
        return changes.task(node, TaskState.FAILED, "admission", reason=reason, message=message, durable=True)
    for slot, message in _full(changes, gate):
        if slot.on_limit in ("cancel_new", "fail"):
            after = TaskState.CANCELLED if slot.on_limit == "cancel_new" else TaskState.FAILED
            return changes.task(node, after, "admission", reason=CONCURRENCY, message=message, durable=True)
        if slot.on_limit == "cancel_running" and not _stop_the_oldest(changes, slot, node):
            why = f"A newer run has its place. {message}"
            return changes.task(node, TaskState.CANCELLED, "admission", reason=DISPLACED, message=why, durable=True)
    return False


def _full(changes: Changes, gate: Gate) -> Iterator[tuple[Slot, str]]:
    """Yield the limits of which no slot is free, each with a sentence."""
    kernel = changes.kernel
    for slot in gate.slots:
        holders = kernel.passed.attempts.of(slot.key)
        if len(holders) >= slot.limit:
            nodes = (kernel.tasks[kernel.attempts[holder].task_run_id] for holder in holders)
            yield slot, sentence(slot, [f"{node.name} of run {node.run.id}" for node in nodes])


def _stop_the_oldest(changes: Changes, slot: Slot, newcomer: TaskNode) -> bool:
    """Stop as many of the oldest holders as the new one needs gone, those that are being stopped already counted; says
    whether there are so many of no newer run."""
    kernel = changes.kernel
    holders = [kernel.attempts[holder] for holder in kernel.passed.attempts.of(slot.key)]
    staying = [kernel.tasks[attempt.task_run_id] for attempt in holders if not attempt.cancel]
    older = [node for node in staying if node.run.order <= newcomer.run.order]
    excess = max(0, len(staying) - slot.limit + 1)
    if excess > len(older):
        return False
    message = (
        f"Task {newcomer.name} of run {newcomer.run.id} takes its place: {slot.named} allows {slot.limit} at once."
    )
    for node in older[:excess]:
        stop_task(changes, node, Stop(DISPLACED, message, cause="admission"))
    return True


def _closed_service(changes: Changes, gate: Gate) -> Wait | None:
    kernel, now = changes.kernel, changes.now
    if not kernel.settings.breaker:
        return None
    for service in gate.services:
        circuit = kernel.passed.circuit(service)
        if circuit.lets_through(now):
            continue
        if circuit.probe:
            what = "one task is finding out whether it is back"
        else:
            what = f"the next try is in {circuit.open_until - now:.0f} s"
        message = f"{circuit.failures} tasks in a row found the service {service!r} {circuit.reason}; {what}."
        return Wait(SERVICE_OPEN, message)
    return None


def _too_soon(changes: Changes, gate: Gate) -> Wait | None:
    rate, kernel = gate.rate, changes.kernel
    if rate is None or (due := kernel.passed.dispatches.next_at(rate, changes.now)) <= changes.now:
        return None
    # Several limits may use one key, and each has its own next turn.
    kernel.timers.set(GATE, f"{'/'.join(rate.key)}/{rate.units}/{rate.per:g}", due)
    dispatches = "1 dispatch" if rate.units == 1 else f"{rate.units} dispatches"
    message = (
        f"Key {rate.key[2]!r} allows {dispatches} in {rate.per:g} s; the next one is in {due - changes.now:.3g} s."
    )
    return Wait(RATE_LIMIT, message)
