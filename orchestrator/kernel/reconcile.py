"""Reconcile: recompute everything that events only make faster, and repair (and count) what they have missed (I4)."""

from __future__ import annotations

from orchestrator.events import Command
from orchestrator.kernel.adoption import give_up
from orchestrator.kernel.cancel import OPEN_WITHOUT_ATTEMPT, cancel_task
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.nodes import RunNode, TaskNode
from orchestrator.kernel.scopes import scopes_of
from orchestrator.kernel.unclaimed import plan_anew
from orchestrator.states import TASK_TERMINAL, WORKER_ENDED, AttemptState, RunState, TaskState

CANCEL = Command(id=0, kind="cancel", actor="scheduler")
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
    _give_up_ownerless(changes)
    _forget_hosts(changes)
    kernel.waiting_lines.unblock()


def _reconcile_run(changes: Changes, run: RunNode) -> None:
    open_tasks = sum(node.state not in TASK_TERMINAL for node in run.tasks)
    if open_tasks != run.open:
        _repaired(changes, f"open tasks of run {run.id}: {run.open}, should be {open_tasks}")
        run.open = open_tasks
    for scope in scopes_of(run):
        scope.open = sum(node.state not in TASK_TERMINAL for node in scope.tasks)
    for node in run.tasks:
        before = node.counts()
        node.clear_counts()
        for up in node.scope.shape.upstream[node.position]:
            node.count(node.scope.tasks[up].state)
        if node.counts() != before:
            _repaired(changes, f"counts of task {node.name} of run {run.id}: {before}, should be {node.counts()}")
        if node.state is TaskState.PENDING:
            changes.kernel.unsettled.append(node)
        if run.is_cancelling and node.state not in TASK_TERMINAL and node.state is not TaskState.CANCELLING:
            _repaired(changes, f"task {node.name} of run {run.id} escaped its cancel")
            cancel_task(changes, node, CANCEL, "run_cancelled")
        _reconcile_owner(changes, node)
    if run.open == 0:
        changes.kernel.finishing[run.id] = run


def _reconcile_owner(changes: Changes, node: TaskNode) -> None:
    """See that a ready task stands in a line, a waiting one has its timer and an admitted one a live attempt."""
    kernel = changes.kernel
    if node.state is TaskState.READY and node.ask is None:
        _repaired(changes, f"task {node.name} of run {node.run.id} stood in no line")
        kernel.line_up(node, changes.now)
    elif node.state is TaskState.RETRY_WAIT and node.retry_at is None:
        _repaired(changes, f"task {node.name} of run {node.run.id} had no timer")
        kernel.set_retry(node, changes.now)
    elif node.state in WITH_ATTEMPT and node.attempt_id not in kernel.attempts:
        _repaired(changes, f"task {node.name} of run {node.run.id} is {node.state} without a live attempt")
        after = TaskState.CANCELLED if node.state is TaskState.CANCELLING else TaskState.READY
        changes.task(node, after, "reconcile", reason="no_attempt", attempt_id=None)


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
