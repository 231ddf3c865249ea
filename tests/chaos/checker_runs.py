"""I4 and I5: what was accepted exists, once, and comes to its end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from tests.chaos.checker_specification import RUN_ENDED, TASK_ENDED
from tests.chaos.checker_world import Violation, World
from tests.chaos.history import RunRow, TaskRow
from tests.chaos.ledger import Accepted

GONE = frozenset({"lost", "drained"})


def check_accepted(world: World, accepted: Iterable[Accepted], asked: Collection[str]) -> Iterator[Violation]:
    """Every promise was kept, and no run was made that nobody asked for.

    :param asked: keys that were sent, answered or not: a run that was made and not answered for is no fault.
    """
    history = world.history
    by_key: dict[str, str] = {}
    promised = set()
    for one in accepted:
        promised.add(one.run_id)
        if one.run_id not in history.runs:
            yield Violation("I5", f"run {one.run_id}", "It was accepted and does not exist.")
        if not one.idempotency_key:
            continue
        known = by_key.setdefault(one.idempotency_key, one.run_id)
        if known != one.run_id:
            yield Violation("I5", f"run {one.run_id}", f"Its key {one.idempotency_key} had made run {known} before.")
        bound = history.keys.get(one.idempotency_key)
        if bound != one.run_id:
            yield Violation("I5", f"run {one.run_id}", f"Its key {one.idempotency_key} is bound to run {bound}.")
    made = {history.keys[key] for key in asked if key in history.keys}
    for run_id in history.runs.keys() - promised - made:
        yield Violation("I5", f"run {run_id}", "Nobody has asked for it.")


def check_progress(world: World, quiescent: bool) -> Iterator[Violation]:
    """In the end every run has ended; before, each open task has an owner, a dispatch, a timer or a reason."""
    by_run: dict[str, list[TaskRow]] = {}
    for task in world.history.tasks.values():
        by_run.setdefault(task.run_id, []).append(task)
    for run in world.history.runs.values():
        if run.state in RUN_ENDED:
            yield from _open_in_ended(run, by_run.get(run.id, []))
        elif quiescent:
            open_tasks = [f"{task.name} {task.state}" for task in by_run.get(run.id, []) if _is_open(task)]
            sentence = f"It is still {run.state}; open: {', '.join(open_tasks) or 'no task'}."
            yield Violation("I4", f"run {run.id}", sentence)
        elif run.state in ("running", "paused", "cancelling"):
            yield from _check_owners(run, by_run.get(run.id, []), world)


def _is_open(task: TaskRow) -> bool:
    return task.state not in TASK_ENDED


def _open_in_ended(run: RunRow, tasks: list[TaskRow]) -> Iterator[Violation]:
    for task in filter(_is_open, tasks):
        yield Violation("I4", f"run {run.id}", f"It is {run.state}, but its task {task.name} is {task.state}.")


def _check_owners(run: RunRow, tasks: list[TaskRow], world: World) -> Iterator[Violation]:
    states = {task.name: task for task in tasks}
    if not any(map(_is_open, tasks)):
        yield Violation("I4", f"run {run.id}", f"All its tasks have ended, and it is {run.state}.")
    for task in filter(_is_open, tasks):
        if not _has_owner(run, task, states, world):
            sentence = f"It is {task.state} with no owner, dispatch, timer or reason."
            yield Violation("I4", f"task {task.name} of run {run.id}", sentence)


def _has_owner(run: RunRow, task: TaskRow, tasks: dict[str, TaskRow], world: World) -> bool:
    history = world.history
    match task.state:
        case "pending":
            upstream = history.plans[run.id][task.name].upstream
            return any(_is_open(tasks[up]) for up in upstream)
        case "ready" | "waiting":
            return bool(task.reason) or run.state == "paused"
        case "retry_wait":
            return task.has_timer
    attempt = history.attempts.get(task.attempt_id or "")
    if attempt is None:
        return False
    if task.state == "queued":
        return attempt.state == "dispatched"
    worker = history.workers.get(attempt.keeper_id or attempt.worker_id)
    return attempt.state == "running" and (attempt.is_orphaned or (worker is not None and worker.state not in GONE))
