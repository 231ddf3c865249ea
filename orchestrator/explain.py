"""Why something does not run: its blockers, the outermost first, each with what would remove it.

Pure: worked out from what the rows say. What is neither running nor over always has at least one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from orchestrator.states import RUN_TERMINAL, TASK_TERMINAL, RunState, TaskState

MOST_UPSTREAMS = 20
NO_LEADER_SECONDS = 5.0
FORCED = "force_cancelled"
"""Reason of a run whose cancel lets no teardown run."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """One thing that stands in the way."""

    kind: str
    """``no_leader``, ``pipeline_paused``, ``run_place``, ``run_paused``, ``upstream``, ``max_parallel``, ``hint`` …, or
    the reason of the task run itself (``waiting_for_memory``, ``infeasible``, ``concurrency``, ``approval`` …)."""
    since: datetime | None
    needs: str
    """What it needs."""
    would_unblock: str
    """What would bring that about."""
    message: str


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the rows say of a run."""

    id: str
    state: RunState
    reason: str
    message: str
    since: datetime | None
    """Its creation, or the start of what it is in."""
    pipeline: str
    pipeline_paused: bool
    active_runs: int
    """Runs that have a place."""
    most_runs: int
    """Places there are."""
    before_it: int
    """Runs that wait for a place in front of it."""
    is_child: bool
    leader_away: float | None
    """Seconds for which no scheduler has led; ``None``: one does."""


@dataclass(frozen=True, slots=True)
class Upstream:
    name: str
    state: TaskState
    reason: str


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """What the rows say of the attempt of a task that is queued or being stopped."""

    queue: str
    direct: bool
    worker: str
    """Name of the worker that it is planned for, or runs on."""
    hints: int
    hinted_at: datetime | None
    is_granted: bool


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What the rows say of a task run."""

    name: str
    state: TaskState
    reason: str
    message: str
    since: datetime | None
    """When it got into its state, as far as a row says."""
    until: datetime | None
    """When its timer fires."""
    rule: str
    upstreams: Sequence[Upstream] = ()
    """Directly upstream, in its own graph."""
    parallel: int | None = None
    """Of the container around it, how many indices may run at once."""
    attempt: AttemptFacts | None = None
    open_services: Mapping[str, datetime | None] = field(default_factory=dict)
    """Services that its connections lead to and that nobody asks for now, with when one will again."""
    tears_down: bool = False
    """Whether it is a teardown, or inside of one."""
    child_id: str = ""
    """Of a task that is a run: the id of that, as soon as it is known."""
    child: RunFacts | None = None
    """What the rows say of that run; ``None`` when there is none."""


def blockers_of_run(run: RunFacts) -> list[Blocker]:
    """Return what stands in the way of the run itself; nothing while it runs, or when it is over."""
    found: list[Blocker] = []
    if run.state in RUN_TERMINAL:
        return found
    if run.leader_away is not None and run.leader_away > NO_LEADER_SECONDS:
        found.append(
            Blocker(
                "no_leader",
                None,
                "a scheduler that leads",
                "Start a scheduler (python -m scheduler), or see in its log why it stands by.",
                f"No scheduler has led for {run.leader_away:.0f} s, so nothing is started.",
            )
        )
    if run.state is RunState.QUEUED:
        found += _of_queued(run)
    elif run.state is RunState.PAUSED:
        found.append(Blocker("run_paused", run.since, "to be resumed", "Resume the run.", f"Run {run.id} is paused."))
    elif run.state is RunState.SCHEDULED:
        found.append(
            Blocker(
                "scheduled", run.since, "its time to come", "Wait for its time.", "The time of the run has not come."
            )
        )
    elif run.state is RunState.CANCELLING:
        found.append(
            Blocker(
                "run_cancelling",
                run.since,
                "what still runs of it to be stopped",
                "Wait for the grace of its tasks, or cancel it again by force.",
                f"Run {run.id} is being cancelled; nothing of it starts any more but what tears down.",
            )
        )
    return found


def _of_queued(run: RunFacts) -> Iterator[Blocker]:
    if run.pipeline_paused:
        yield Blocker(
            "pipeline_paused",
            None,
            "its pipeline to be resumed",
            f"Resume the pipeline {run.pipeline!r}.",
            f"The pipeline {run.pipeline!r} is paused, so no run of it starts.",
        )
    if run.reason == "concurrency":
        yield Blocker(
            "concurrency",
            run.since,
            "a place under its concurrency limit",
            "Wait for one of those that hold it, cancel one, or raise the limit.",
            run.message or "As many runs as may go on at once do.",
        )
    if run.reason == "put_off":
        yield Blocker(
            "put_off",
            run.since,
            "the scheduler's next try to start it, which comes within the hour",
            "Read the scheduler's log for what failed; cancel the run if its definition asks for too much.",
            run.message or "To start it has failed each time.",
        )
    if not run.is_child and run.active_runs >= run.most_runs:
        ahead = f" {run.before_it} run(s) wait in front of it." if run.before_it else ""
        yield Blocker(
            "run_place",
            run.since,
            "a place under MAX_CONCURRENT_RUNS",
            "Wait for another run to end, cancel one, give this one a higher priority, or raise MAX_CONCURRENT_RUNS.",
            f"{run.active_runs} runs are active and MAX_CONCURRENT_RUNS is {run.most_runs}.{ahead}",
        )
    elif not run.pipeline_paused and run.reason not in ("concurrency", "put_off"):
        yield Blocker(
            "admission",
            run.since,
            "the scheduler's next look at queued runs",
            "Nothing is to be done; it looks every second.",
            f"The run has a place and is taken in next, after {run.before_it} in front of it.",
        )


def blockers_of_task(task: TaskFacts, around: Sequence[TaskFacts], run: RunFacts) -> list[Blocker]:
    """Return what stands in the way of a task run, the outermost first.

    What runs has none, save a task that is a run which waits itself: it has those of that run.

    :param around: the containers it is inside of, the outermost first.
    """
    if task.state is TaskState.RUNNING and task.child_id:
        return list(_of_child(task, run))
    if task.state in TASK_TERMINAL or task.state is TaskState.RUNNING:
        return []
    found = blockers_of_run(run)
    if task.tears_down and run.reason != FORCED:
        # It runs though its run is being cancelled, and because of that.
        found = [blocker for blocker in found if blocker.kind != "run_cancelling"]
    for container in around:
        if container.state is TaskState.PENDING:
            found += _of_pending(container)
    found += _OF_STATE[task.state](task)
    if not found:
        found.append(
            Blocker(
                "decision",
                task.since,
                "the scheduler's next look",
                "Nothing is to be done; it looks several times a second.",
                f"Nothing is in the way of {task.name}: it moves on with the scheduler's next look.",
            )
        )
    return found


def _of_child(task: TaskFacts, run: RunFacts) -> Iterator[Blocker]:
    child = task.child
    if child is None:
        yield from (blocker for blocker in blockers_of_run(run) if blocker.kind == "no_leader")
        yield Blocker(
            "child",
            task.since,
            "its run to be made",
            "Wait: the scheduler makes it in one of its next rounds. Where that has failed it is tried again within "
            "the hour, and the scheduler's log says why.",
            f"Run {task.child_id}, which {task.name} is, has not been made yet.",
        )
        return
    for blocker in blockers_of_run(child):
        which = f"{task.name} is run {child.id} of pipeline {child.pipeline}, which is {child.state}."
        yield replace(blocker, message=f"{which} {blocker.message}")


def _of_pending(task: TaskFacts) -> list[Blocker]:
    is_open = [up for up in task.upstreams if up.state not in TASK_TERMINAL]
    found = [
        Blocker(
            "upstream",
            task.since,
            f"task {up.name} to end",
            _what_to_do(up),
            f"{task.name} ({task.rule}) waits for {up.name}, which is {up.state}{_why(up.reason)}.",
        )
        for up in is_open[:MOST_UPSTREAMS]
    ]
    if len(is_open) > MOST_UPSTREAMS:
        rest = len(is_open) - MOST_UPSTREAMS
        found.append(
            Blocker("upstream", task.since, "others to end", "See the others.", f"{rest} more upstreams are open.")
        )
    if task.reason == "max_parallel":
        found.append(
            Blocker(
                "max_parallel",
                task.since,
                "a place among the indices that run at once",
                "Wait for another index to end, or raise max_parallel.",
                f"{task.name} waits for its turn: {task.parallel or 'so many'} indices run at once.",
            )
        )
    elif task.reason not in ("", "run_paused") and not found:
        # Of a run that is paused the run itself says so.
        found.append(Blocker(task.reason, task.since, "its turn", "Wait for it.", task.message or f"{task.reason}."))
    return found


def _what_to_do(up: Upstream) -> str:
    """Return what brings its end about. Nothing can be marked while an attempt of it may be alive."""
    if up.state is TaskState.CANCELLING:
        return "Wait until it is stopped, or cancel it again by force."
    if up.state in (TaskState.RUNNING, TaskState.QUEUED):
        return f"Wait for it. Or cancel {up.name}, and mark it as success or skipped once it is cancelled."
    return f"See what {up.name} waits for. Or mark {up.name} as success, failed or skipped."


_READY: Mapping[str, tuple[str, str]] = {
    "waiting_for_slot": ("a free slot", "Wait for a task to end, or start a worker with more slots."),
    "waiting_for_cpu": ("free cpu", "Wait for a task to end, ask for less cpu, or add a host."),
    "waiting_for_memory": ("free memory", "Wait for a task to end, ask for less memory, or add a host."),
    "waiting_for_gpu": ("a free GPU", "Wait for a task to end, or add a host with GPUs."),
    "waiting_for_worker": (
        "a worker on its queue",
        "Start a worker for the queue: celery -A workers worker -Q <queue>.",
    ),
    "waiting_for_host": (
        "a worker on the host that holds its inputs",
        "Start one there, or set ARTIFACT_URL to a store that all hosts reach.",
    ),
    "infeasible": ("a host that is large enough", "Ask for less, or add such a host."),
    "waiting_for_redis": ("Redis to answer", "Bring Redis back."),
    "concurrency": (
        "a place under its concurrency limit",
        "Wait for one of those that hold it, cancel one, or raise the limit.",
    ),
    "rate_limit": ("its turn under the rate limit", "Wait, or raise the limit."),
    "cache_flight": ("the equal task that runs already to end", "Wait for it, or cancel it."),
    "service_open": ("the service to answer again", "Bring the service back; it is tried again by itself."),
}
"""By reason of a ready task run: what it needs, and what would bring that about."""


def _of_ready(task: TaskFacts) -> list[Blocker]:
    if task.reason == "run_paused":
        # The run itself says so.
        return []
    needs, would = _READY.get(task.reason, ("the scheduler's next look", "Nothing is to be done; wait a moment."))
    found = [
        Blocker(task.reason or "dispatch", task.since, needs, would, task.message or "It is ready, and sent out next.")
    ]
    if task.reason != "service_open":
        found += [
            Blocker(
                "service_open",
                None,
                f"the service {service} to answer again",
                "Bring the service back; it is tried again by itself.",
                f"Tasks that use {service} failed in a row, so it is left alone{_until(at)}.",
            )
            for service, at in task.open_services.items()
        ]
    return found


def _of_queued_task(task: TaskFacts) -> list[Blocker]:
    attempt = task.attempt
    if attempt is None:
        return [Blocker("hint", task.since, "a worker to take it", "Wait.", "It was sent out.")]
    where = f"worker {attempt.worker}" if attempt.direct else f"queue {attempt.queue}"
    return [
        Blocker(
            "hint",
            attempt.hinted_at or task.since,
            f"a worker to take it from {where}",
            "Wait: it is sent again after 20 s, and elsewhere if its worker is not well. See whether the worker has a "
            "free slot and reaches Redis.",
            f"Its hint was sent {attempt.hints} time(s) to {where}, planned for worker {attempt.worker}, and is not "
            "claimed yet.",
        )
    ]


def _of_retry(task: TaskFacts) -> list[Blocker]:
    return [
        Blocker(
            "retry",
            task.since,
            "its delay to pass",
            "Wait, or mark it.",
            f"Its last attempt failed{_why(task.reason)}; it is tried again{_at(task.until)}. {task.message}".strip(),
        )
    ]


_WAITS: Mapping[str, tuple[str, str]] = {
    "approval": ("a person's decision", "Approve or reject it (POST …/tasks/<task>/approve or /reject)."),
    "event": ("an event from outside", "Report the event by the task's token (POST /api/v1/events/<token>)."),
    "not_yet": ("what it waits for to be there", "Wait: it is looked again by itself."),
}


def _of_waiting(task: TaskFacts) -> list[Blocker]:
    needs, would = _WAITS.get(task.reason, ("its timer", "Wait."))
    limit = f" It is looked again{_at(task.until)}." if task.reason == "not_yet" else ""
    if task.reason in ("approval", "event") and task.until is not None:
        limit = f" Its time is over{_at(task.until)}."
    return [Blocker(task.reason or "waiting", task.since, needs, would, f"{task.message or task.name}{limit}")]


def _of_cancelling(task: TaskFacts) -> list[Blocker]:
    if task.child_id:
        would = "Wait for the grace of its tasks, or cancel it again by force."
        message = f"Run {task.child_id}, which it is, is being stopped."
        return [Blocker("cancelling", task.since, "its run to be over", would, message)]
    where = f" on worker {task.attempt.worker}" if task.attempt is not None else ""
    return [
        Blocker(
            "cancelling",
            task.since,
            "its process tree to be dead",
            "Wait for its grace, or cancel it again by force.",
            f"It is being stopped{where}.",
        )
    ]


_OF_STATE = {
    TaskState.PENDING: _of_pending,
    TaskState.READY: _of_ready,
    TaskState.QUEUED: _of_queued_task,
    TaskState.RETRY_WAIT: _of_retry,
    TaskState.WAITING: _of_waiting,
    TaskState.CANCELLING: _of_cancelling,
}


def _why(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _at(moment: datetime | None) -> str:
    return "" if moment is None else f" at {moment:%Y-%m-%d %H:%M:%S} UTC"


def _until(moment: datetime | None) -> str:
    return "" if moment is None else f" until {moment:%H:%M:%S} UTC"
