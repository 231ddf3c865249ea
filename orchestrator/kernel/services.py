"""The breaker at work: how attempts end tells how the services do whose connections their tasks use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.breaker import SERVICE_REASONS, Circuit
from orchestrator.effects import SaveCircuit
from orchestrator.kernel.nodes import TaskNode
from orchestrator.kernel.timers import GATE
from orchestrator.records import AttemptRecord
from orchestrator.states import AttemptState

if TYPE_CHECKING:
    from orchestrator.kernel.changes import Changes


def note_end(changes: Changes, node: TaskNode, attempt: AttemptRecord, reason: str) -> None:
    """Note what the end of an attempt says of each service that its task uses."""
    for service in _services(changes, node):
        circuit = changes.kernel.passed.circuit(service)
        if attempt.state is AttemptState.SUCCEEDED:
            changed = circuit.succeeded(attempt.id)
        elif attempt.state is AttemptState.FAILED and reason in SERVICE_REASONS:
            changed = circuit.failed(attempt.id, reason, changes.now)
        else:
            changed = circuit.told_nothing(attempt.id)
        _keep(changes, circuit, changed)


def note_sent(changes: Changes, node: TaskNode, attempt: AttemptRecord) -> None:
    """Note that an attempt was sent out: it is the one that finds out how a service does that nobody asks else."""
    for service in _services(changes, node):
        circuit = changes.kernel.passed.circuit(service)
        _keep(changes, circuit, circuit.sent(attempt.id, changes.now))


def close_stale(changes: Changes) -> None:
    """Write the circuits closed that an earlier leader has left open: this one knows nothing of them."""
    passed = changes.kernel.passed
    for service in passed.stale_circuits:
        changes.emit(SaveCircuit(service, "closed", 0))
    passed.stale_circuits = ()


def _services(changes: Changes, node: TaskNode) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node.planned.connections)) if changes.kernel.settings.breaker else ()


def _keep(changes: Changes, before: Circuit, after: Circuit) -> None:
    if after == before:
        return
    kernel = changes.kernel
    if after == Circuit(after.service):
        kernel.passed.circuits.pop(after.service, None)
    else:
        kernel.passed.circuits[after.service] = after
    is_said = (before.state, before.open_until) == (after.state, after.open_until)
    if not is_said:
        open_for = max(0.0, after.open_until - changes.now) if after.state == "open" else None
        changes.emit(SaveCircuit(after.service, after.state, after.failures, after.reason, open_for))
    if is_said and before.probed_until == after.probed_until:
        return
    if after.opened:
        kernel.timers.set(GATE, after.service, after.next_at)
    kernel.waiting_lines.unblock()
