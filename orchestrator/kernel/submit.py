"""A run enters: it is indexed, started, and its first tasks become ready."""

from __future__ import annotations

from orchestrator.events import RunSubmitted
from orchestrator.kernel.changes import Changes
from orchestrator.states import RunState, TaskState

UNREADABLE = "plan_unreadable"


def submit(changes: Changes, event: RunSubmitted) -> None:
    """Take a queued run in.

    - One known already is not taken twice, unless it was only held: then it starts. Neither is one that was ended
      since its row was read.
    - Beyond ``MAX_CONCURRENT_RUNS`` it stays queued in the rows.
    - With ``hold`` it is indexed for the command that follows, and not started.
    - One whose plan can't be read fails at once: it must not stand in the line before others.
    """
    kernel = changes.kernel
    run = kernel.runs.get(event.run.id)
    if run is not None and (run.state is not RunState.QUEUED or event.hold):
        return
    if kernel.closed.get(event.run.id, 0) >= event.run.generation:
        return
    if event.run.state is not RunState.QUEUED:
        changes.count("refused_run", f"run {event.run.id} is {event.run.state}, not queued")
        return
    if not event.hold and not event.unreadable and kernel.run_slots_free() == 0:
        changes.count("no_run_slot", f"run {event.run.id}")
        return
    if run is None:
        run = kernel.adopt_run(event.run, event.tasks, event.plan, changes.now)
    if event.hold:
        return
    if event.unreadable:
        for node in run.tasks:
            changes.task(node, TaskState.CANCELLED, "admission", reason=UNREADABLE, durable=True)
        changes.run(run, RunState.FAILED, "admission", reason=UNREADABLE, message=event.unreadable)
        return
    changes.run(run, RunState.RUNNING, "admission")
    kernel.unsettled.extend(reversed(run.root.tasks))
    if run.open == 0:
        kernel.finishing[run.id] = run
