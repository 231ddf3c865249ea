"""Reconcile: recompute everything that events only make faster, and repair (and count) what they have missed (I4)."""

from __future__ import annotations

from orchestrator.kernel.adoption import give_up
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.children import ask_again, found_ended, let_go
from orchestrator.kernel.nodes import RUN_PAUSED, RunNode, TaskNode
from orchestrator.kernel.scopes import recount
from orchestrator.kernel.services import close_stale
from orchestrator.kernel.settle import verdict_of
from orchestrator.kernel.stopping import (
    OPEN_WITHOUT_ATTEMPT,
    Stop,
    stop_left_inside,
    stop_of_child,
    stop_run,
    stop_task,
)
from orchestrator.kernel.unclaimed import plan_anew
from orchestrator.rules import Verdict
from orchestrator.states import TASK_TERMINAL, WORKER_ENDED, AttemptState, RunState, TaskState

WITH_ATTEMPT = frozenset(TaskState) - TASK_TERMINAL - OPEN_WITHOUT_ATTEMPT


def reconcile(changes: Changes) -> None:
    """Recompute every active run from its task states, and every reservation from the attempts."""
    kernel = changes.kernel
    for run in list(kernel.runs.values()):
        if run.state is RunState.QUEUED:
            # Taken for a command that did not need it; it will come again when there is a place.
            kernel.drop_run(run)
        else:
            _reconcile_run(changes, run)
    for attempt_id, reservation in list(kernel.ledger.reservations.items()):
        if not reservation.zombie and attempt_id not in kernel.attempts and attempt_id not in kernel.left_alone:
            _repaired(changes, f"reservation of attempt {attempt_id}, which is over")
            changes.release(attempt_id)
    for run_id, why in kernel.unreadable.items():
        changes.count("unreadable_plan", f"run {run_id}: {why}")
    close_stale(changes)
    _give_up_ownerless(changes)
    _forget_hosts(changes)
    kernel.waiting_lines.unblock()


def _reconcile_run(changes: Changes, run: RunNode) -> None:
    _reconcile_counts(changes, run)
    _look_at_pending(changes, run)
    for node in list(run.tasks):
        if _escaped_its_cancel(node):
            _repaired(changes, f"task {node.name} of run {run.id} escaped its cancel")
            stop_task(changes, node, Stop("run_cancelled"))
        left = node.inside.open if node.inside is not None else 0
        if stop_left_inside(changes, node):
            what = f"inside of task {node.name} of run {run.id}, which is {node.state}, {left} task runs were open"
            _repaired(changes, what)
        _reconcile_owner(changes, node)
    if run.open == 0:
        changes.kernel.finishing[run.id] = run


def _look_at_pending(changes: Changes, run: RunNode) -> None:
    """Look once more at what waits for its upstreams; what their states let move by now, nobody had told."""
    for node in run.tasks:
        if node.state is TaskState.PENDING:
            changes.kernel.unsettled.append(node)
            if not node.scope.is_started or _is_put_off(changes, node):
                continue
            if (said := verdict_of(node)) is not Verdict.WAIT:
                _repaired(changes, f"task {node.name} of run {run.id} stood still, though its rule says {said}")


def _is_put_off(changes: Changes, node: TaskNode) -> bool:
    """Say whether it waits though its rule lets it start: until others have begun, or for the end of a pause."""
    kernel = changes.kernel
    if kernel.expanding.awaits(node) or kernel.evaluating.awaits(node):
        return True
    return node.reason == RUN_PAUSED and node.run.state is RunState.PAUSED


def _reconcile_counts(changes: Changes, run: RunNode) -> None:
    """Recount the run from the states of its tasks."""
    open_before, home = run.open, run.home
    before = [(node.counts(), node.inside.counts() if node.inside is not None else ()) for node in run.tasks]
    recount(run)
    run.home = home
    if run.open != open_before:
        _repaired(changes, f"open tasks of run {run.id}: {open_before}, should be {run.open}")
    for node, (counts, inside) in zip(run.tasks, before, strict=True):
        if node.counts() != counts:
            _repaired(changes, f"counts of task {node.name} of run {run.id}: {counts}, should be {node.counts()}")
        if node.inside is not None and node.inside.counts() != inside:
            now = node.inside.counts()
            _repaired(changes, f"counts inside of task {node.name} of run {run.id}: {inside}, should be {now}")


def _escaped_its_cancel(node: TaskNode) -> bool:
    if not node.run.is_cancelling or node.state in TASK_TERMINAL or node.state is TaskState.CANCELLING:
        return False
    return node.run.is_forced or not node.tears_down


def _reconcile_owner(changes: Changes, node: TaskNode) -> None:
    """See that a ready task stands in a line, a waiting one has its timer and an admitted one a live attempt."""
    kernel = changes.kernel
    if node.inside is not None and node.state is not TaskState.PENDING:
        kernel.advancing[node.id] = node
    elif node.planned.child is not None:
        _reconcile_child(changes, node)
    elif node.dispatches and node.state is TaskState.READY and node.ask is None and not kernel.flights.waits(node):
        _repaired(changes, f"task {node.name} of run {node.run.id} stood in no line")
        kernel.line_up(node, changes.now)
    elif node.retry_at is None and (node.state is TaskState.RETRY_WAIT or _is_to_be_looked_at(node)):
        _repaired(changes, f"task {node.name} of run {node.run.id} had no timer")
        kernel.set_retry(node, changes.now)
    elif node.state in WITH_ATTEMPT and node.attempt_id not in kernel.attempts and node.planned.has_attempts:
        _repaired(changes, f"task {node.name} of run {node.run.id} is {node.state} without a live attempt")
        after = node.stopped_as(node.reason) if node.state is TaskState.CANCELLING else TaskState.READY
        changes.task(node, after, "reconcile", reason="no_attempt", attempt_id=None)


def _is_to_be_looked_at(node: TaskNode) -> bool:
    """Say whether it waits for what was not there yet; approvals and events may wait for ever."""
    return node.state is TaskState.WAITING and node.planned.has_attempts


def _reconcile_child(changes: Changes, node: TaskNode) -> None:
    """See that the run is there that the task is, that its end ends the task, and that it is stopped if its task is."""
    if node.child_run_id is None or node.state in TASK_TERMINAL:
        return
    kernel = changes.kernel
    child = kernel.runs.get(node.child_run_id)
    if node.child_run_id in kernel.unmade_children:
        ask_again(changes, node)
    elif (ended := kernel.ended_children.pop(node.child_run_id, None)) is not None:
        found_ended(changes, node, ended)
    elif child is not None:
        let_go(changes, node)
    elif node.state is TaskState.CANCELLING:
        kernel.unread_children[node.child_run_id] = node
    if node.state is TaskState.CANCELLING and child is not None and not child.is_cancelling:
        _repaired(changes, f"run {child.id} escaped the cancel of task {node.name} of run {node.run.id}")
        stop_run(changes, child, stop_of_child(node))


def _give_up_ownerless(changes: Changes) -> None:
    """Give up attempts whose worker nobody knows any more, once it has had one lease to speak."""
    kernel = changes.kernel
    if kernel.redis_away or changes.now - kernel.trusted_from <= kernel.settings.lease:
        return
    for attempt in list(kernel.attempts.values()):
        worker = kernel.workers.get(attempt.owner_id)
        if attempt.orphaned_at is not None or (worker is not None and worker.state not in WORKER_ENDED):
            continue
        changes.count("ownerless", f"attempt {attempt.id} belongs to worker {attempt.owner_id}, which is gone")
        if attempt.state is AttemptState.RUNNING:
            give_up(changes, attempt, "reconcile", "worker_lost", f"Worker {attempt.owner_id} is gone.")
        else:
            plan_anew(changes, attempt, "reconcile", "worker_lost")


def _forget_hosts(changes: Changes) -> None:
    """Give back what is held on hosts none of whose workers is known any more, and forget those hosts.

    A host that nobody has heard of for so long will hardly come back to confirm that its trees are dead. Nothing is
    placed there as long as it has no worker; should one return, it shows what still runs, and is told to stop it.
    """
    kernel, ledger = changes.kernel, changes.kernel.ledger
    if kernel.redis_away or changes.now - kernel.trusted_from <= kernel.settings.lease:
        return
    known = {worker.host_id for worker in kernel.workers.values()}
    for attempt_id in list(ledger.zombies):
        if (host_id := ledger.reservations[attempt_id].host_id) not in known:
            changes.count("abandoned", f"attempt {attempt_id} on host {host_id}, which has not returned")
            changes.release(attempt_id)
    busy = {reservation.host_id for reservation in ledger.reservations.values()}
    for host_id in ledger.hosts.keys() - known - busy:
        ledger.forget(host_id)


def _repaired(changes: Changes, what: str) -> None:
    changes.count("repaired", what)
