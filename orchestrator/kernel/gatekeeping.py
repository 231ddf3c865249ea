"""Whether a gate is open for the task at the head of its line, and what becomes of one that can't wait before it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

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

DISPLACES = "cancel_running"
"""What a limit does that lets the newest win."""


def shut(changes: Changes, gate: Gate) -> Wait | None:
    """Return what the gate waits for, or nothing where it is open. Changes nothing but the time to look again."""
    return _shut_without(changes, gate, frozenset())


def _shut_without(changes: Changes, gate: Gate, leaving: Collection[str]) -> Wait | None:
    """Return what the gate would wait for if these attempts had ended."""
    if full := next(_full(changes, gate, leaving), None):
        return Wait(CONCURRENCY, full[1])
    return _closed_service(changes, gate) or _too_soon(changes, gate)


def older_in_the_way(changes: Changes, node: TaskNode, gate: Gate) -> dict[TaskNode, Slot]:
    """Return the task runs that are to give way to this one and are not being stopped yet, and the slot of each."""
    found: dict[TaskNode, Slot] = {}
    for slot, _ in _full(changes, gate):
        if slot.on_limit == DISPLACES:
            found |= dict.fromkeys(_to_give_way(changes, slot, node) or (), slot)
    return found


def shut_anyhow(changes: Changes, gate: Gate, older: Iterable[TaskNode]) -> Wait | None:
    """Return what the gate would wait for even if these had given way."""
    return _shut_without(changes, gate, frozenset(filter(None, (node.attempt_id for node in older))))


def displace(changes: Changes, newcomer: TaskNode, older: Mapping[TaskNode, Slot]) -> None:
    """Stop those that are to give way to the newcomer, which waits for their end."""
    for node, slot in older.items():
        new = f"Task {newcomer.name} of run {newcomer.run.id}"
        message = f"{new} takes its place: {slot.named} allows {slot.limit} at once."
        stop_task(changes, node, Stop(DISPLACED, message, cause="admission"))


def is_ended_by_its_gate(changes: Changes, node: TaskNode, gate: Gate) -> bool:
    """End a task that its gate lets neither through nor wait.

    Its key can't be worked out, or a slot is taken and its limit says ``cancel_new`` or ``fail``, or
    ``cancel_running`` while those of newer runs hold all.
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
        if slot.on_limit == DISPLACES and _to_give_way(changes, slot, node) is None:
            why = f"A newer run has its place. {message}"
            return changes.task(node, TaskState.CANCELLED, "admission", reason=DISPLACED, message=why, durable=True)
    return False


def _full(changes: Changes, gate: Gate, leaving: Collection[str] = frozenset()) -> Iterator[tuple[Slot, str]]:
    """Yield the limits of which no slot is free, or will be when these attempts have ended; each with a sentence."""
    kernel = changes.kernel
    for slot in gate.slots:
        holders = kernel.passed.attempts.of(slot.key)
        if len(holders) - sum(holder in holders for holder in leaving) >= slot.limit:
            nodes = (kernel.tasks[kernel.attempts[holder].task_run_id] for holder in holders)
            yield slot, sentence(slot, [f"{node.name} of run {node.run.id}" for node in nodes])


def _to_give_way(changes: Changes, slot: Slot, newcomer: TaskNode) -> list[TaskNode] | None:
    """Return as many of the oldest holders as the new one needs gone, besides those that are being stopped already;
    ``None``: there are not so many of no newer run."""
    kernel = changes.kernel
    holders = [kernel.attempts[holder] for holder in kernel.passed.attempts.of(slot.key)]
    staying = [kernel.tasks[attempt.task_run_id] for attempt in holders if not attempt.cancel]
    older = [node for node in staying if node.run.order <= newcomer.run.order]
    excess = max(0, len(staying) - slot.limit + 1)
    return None if excess > len(older) else older[:excess]


def _closed_service(changes: Changes, gate: Gate) -> Wait | None:
    kernel, now = changes.kernel, changes.now
    if not kernel.settings.breaker:
        return None
    for service in gate.services:
        circuit = kernel.passed.circuit(service)
        if circuit.lets_through(now):
            continue
        if circuit.probes:
            what = "one task is finding out whether it is back, and another goes if it takes long"
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
