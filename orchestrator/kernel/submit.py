"""A run enters: it is indexed, started, and its first tasks become ready."""

from __future__ import annotations

from orchestrator.events import RunSubmitted
from orchestrator.kernel.admission import end_unstarted, hold_back, look
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.children import let_go, parent_of
from orchestrator.kernel.nodes import RunNode
from orchestrator.kernel.pausing import pause_with_parent
from orchestrator.kernel.stopping import stop_of_child, stop_run
from orchestrator.states import TASK_TERMINAL, RunState, TaskState

UNREADABLE = "plan_unreadable"


def submit(changes: Changes, event: RunSubmitted) -> None:
    """Take a queued run in.

    - One known already is not taken twice, unless it was only held: then it starts. Neither is one that was ended
      since its row was read.
    - Beyond ``MAX_CONCURRENT_RUNS`` it stays queued in the rows, unless it is there as a task of another run. Where
      that task is being cancelled it is cancelled at once.
    - With ``hold`` it is indexed for the command that follows, and not started.
    - One that a limit holds back stays queued too, and says what for; or the limit ends it (``admission``).
    - One whose plan can't be read fails at once: it must not stand in the line before others.
    """
    kernel = changes.kernel
    run = kernel.runs.get(event.run.id)
    if not _is_to_be_taken(changes, event, run):
        return
    parent = parent_of(changes, event.run.id, event.run.parent_task_run_id) if event.run.is_inside else None
    is_unwanted = parent is not None and parent.state is TaskState.CANCELLING
    if parent is not None:
        let_go(changes, parent)
    refusal = None if event.hold or event.unreadable or is_unwanted else look(changes, event)
    if refusal is not None and refusal.ends is None:
        hold_back(changes, event, refusal)
        return
    if run is None:
        run = kernel.adopt_run(event.run, event.tasks, event.plan, changes.now)
    if parent is not None and is_unwanted:
        stop_run(changes, run, stop_of_child(parent))
    elif event.hold:
        return
    elif event.unreadable:
        _end_unreadable(changes, run, event.unreadable)
    elif refusal is not None:
        end_unstarted(changes, run, refusal)
    else:
        _start(changes, run, event.plan.deadline)
        if parent is not None:
            pause_with_parent(changes, run, parent)


def _is_to_be_taken(changes: Changes, event: RunSubmitted, known: RunNode | None) -> bool:
    kernel = changes.kernel
    if known is not None and (known.state is not RunState.QUEUED or event.hold):
        return False
    if kernel.closed.get(event.run.id, 0) >= event.run.generation:
        return False
    if event.run.state is not RunState.QUEUED:
        changes.count("refused_run", f"run {event.run.id} is {event.run.state}, not queued")
        return False
    needs_place = not event.run.is_inside and not event.hold and not event.unreadable
    if needs_place and kernel.run_slots_free() == 0:
        changes.count("no_run_slot", f"run {event.run.id}")
        return False
    return True


def _end_unreadable(changes: Changes, run: RunNode, why: str) -> None:
    for node in run.tasks:
        if node.state not in TASK_TERMINAL:
            changes.task(node, TaskState.CANCELLED, "admission", reason=UNREADABLE, durable=True)
    changes.run(run, RunState.FAILED, "admission", reason=UNREADABLE, message=why)


def _start(changes: Changes, run: RunNode, deadline: float | None) -> None:
    run.deadline_at = None if deadline is None else changes.now + deadline
    columns = {} if deadline is None else {"deadline_at": ("in", deadline)}
    changes.run(run, RunState.RUNNING, "admission", columns=columns)
    changes.kernel.start_run(run)
    changes.kernel.unsettled.extend(reversed(run.root.tasks))
    if run.open == 0:
        changes.kernel.finishing[run.id] = run
