"""I2 and I10: one live attempt per task run, nothing runs that was not granted, and nothing runs on after its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tests.chaos.checker_world import LIVE, AttemptLife, Violation, World
from tests.chaos.history import AttemptRow, Event
from tests.chaos.ledger import CancelAsked, Line

OVER = frozenset({"cancelling", "cancelled"})


def check_live(event: Event, world: World) -> Iterator[Violation]:
    """A task run never has two attempts that may report; nothing is sent out or granted once it is to be cancelled."""
    if event.entity != "attempt" or event.after not in LIVE or event.before == event.after:
        return
    subject = f"attempt {event.entity_id}"
    run, task = world.runs.get(event.run_id or ""), world.task_state(event.run_id or "", event.task or "")
    if event.after == "dispatched":
        task_run_id = world.task_ids.get((event.run_id or "", event.task or ""), "")
        for other in world.attempts_of.get(task_run_id, []):
            if other.state in LIVE:
                yield Violation("I2", subject, f"It was dispatched while attempt {other.id} was {other.state}.")
        if (owner := world.tokens.get(event.token or "")) is not None:
            yield Violation("I2", subject, f"It has the token of attempt {owner}.")
    if run in OVER or task in OVER:
        yield Violation("I10", subject, f"It became {event.after} when its run was {run} and its task run {task}.")
    elif task != "queued" or run not in (("running",) if event.after == "dispatched" else ("running", "paused")):
        yield Violation("I1", subject, f"It became {event.after} when its run was {run} and its task run {task}.")


def check_lines(world: World, lines: Iterable[Line], commits_lost: bool) -> Iterator[Violation]:
    """Whatever started was granted under this token, once, to this host.

    :param commits_lost: the database crashed, and with it grants that were committed asynchronously; who was granted
        such an attempt may have started it. What it reports is fenced, or taken if nobody else was granted it. The
        token of what the rows still know is held all the same, and the host where the audit has a grant before the
        start, for then nobody else had been told.
    """
    hosts = {worker.host_id for worker in world.history.workers.values()}
    starts = [line for line in lines if line.what == "start"]
    started: dict[str, Line] = {}
    for line in starts:
        life, row = world.attempts.get(line.attempt), world.history.attempts.get(line.attempt)
        subject = f"attempt {line.attempt}"
        earlier = started.setdefault(line.attempt, line)
        if life is None or row is None:
            if not commits_lost:
                yield Violation("I2", subject, f"It started on host {line.host}, but there is no such attempt.")
            continue
        if line.fence != life.token:
            yield Violation("I2", subject, f"It started under token {line.fence}; its own is {life.token}.")
        elif not life.was_granted and not commits_lost:
            yield Violation("I2", subject, f"It started on host {line.host}, but was never granted.")
        elif line.host in hosts - {row.host_id} and (
            not commits_lost or _is_of_no_lost_grant(line, life, row, starts, world.history.clock)
        ):
            yield Violation("I2", subject, f"It started on host {line.host}, but was granted to {row.host_id}.")
        if earlier is not line and not commits_lost:
            yield Violation("I2", subject, f"It started twice, as pid {earlier.pid} and as pid {line.pid}.")


def _is_of_no_lost_grant(
    line: Line, life: AttemptLife, row: AttemptRow, starts: Sequence[Line], clock: float | None
) -> bool:
    """Say whether a start on another host than the row's can't be that of an earlier grant which a crash took back.

    Such a start comes before the grant that the audit has; one that was held up for longer is beside that grant's own.
    """
    if clock is None or life.granted_at is None or line.at + clock < life.granted_at:
        return False
    return not any(other.attempt == line.attempt and other.host == row.host_id for other in starts)


def check_published(world: World) -> Iterator[Violation]:
    """Outputs and models are those of attempts whose success was committed: whoever was fenced has changed nothing."""
    history = world.history
    succeeded = {
        (event.run_id, event.task)
        for event in history.events
        if event.entity == "task_run" and (event.before, event.after) == ("running", "success")
    }
    for task in history.tasks.values():
        if task.fence is None:
            continue
        subject = f"task run {task.id}"
        writers = [life for life in world.attempts_of.get(task.id, []) if life.token == task.fence]
        if not writers:
            yield Violation("I2", subject, f"Its outputs bear token {task.fence}, which is of no attempt of it.")
        elif (writer := writers[0]).state != "succeeded" or writer.generation != world.generation_of(task.id):
            yield Violation(
                "I1",
                subject,
                f"Its outputs are of attempt {writer.id}, {writer.state} in generation {writer.generation}.",
            )
        elif task.state != "success":
            yield Violation("I1", subject, f"It is {task.state} and shows outputs.")
    for model in history.models:
        if model.run_id is not None and (model.run_id, model.task) not in succeeded:
            sentence = f"It is of task {model.task} of run {model.run_id}, which never became success."
            yield Violation("I2", f"model {model.name} {model.version}", sentence)


def check_afterlife(world: World, lines: Sequence[Line], tolerance: float) -> Iterator[Violation]:
    """Nothing of an attempt lives on once its end is committed, save where the audit says that it may: then until what
    it held was released. And nothing starts in a run that was cancelled, not even that."""
    clock = world.history.clock
    if clock is None:
        return
    cancelled = _cancelled_at(world)
    for line in lines:
        life, at = world.attempts.get(line.attempt), line.at + clock
        if life is None:
            continue
        subject = f"attempt {life.id}"
        died_at = life.released_at if life.was_held else life.ended_at
        if died_at is not None and at > died_at + tolerance:
            what = "what it held was released" if life.was_held else f"its end ({life.state}) was committed"
            yield Violation(
                "I10", subject, f"Its pid {line.pid} wrote {line.what!r} {at - died_at:.2f} s after {what}."
            )
        elif line.what == "start" and any(
            event.id > life.dispatched_by and at > event.at + tolerance for event in cancelled.get(life.run_id, [])
        ):
            yield Violation("I10", subject, f"It started on host {line.host} after its run was cancelled.")


def check_cancels(
    world: World, lines: Sequence[Line], cancels: Iterable[CancelAsked], stop_seconds: float | None
) -> Iterator[Violation]:
    """After a cancel everything is dead within ``stop_seconds`` and the grace, where the host could be told."""
    clock = world.history.clock
    if clock is None or stop_seconds is None:
        return
    cancelled = _cancelled_at(world)
    of_run: dict[str, list[Line]] = {}
    for line in lines:
        of_run.setdefault(line.run, []).append(line)
    for cancel in cancels:
        end = next((event for event in cancelled.get(cancel.run_id, []) if event.at >= cancel.at + clock), None)
        if end is None:
            continue
        last = max(
            (line.at for line in of_run.get(cancel.run_id, []) if _is_of(world.attempts.get(line.attempt), end)),
            default=cancel.at,
        )
        if (took := last - cancel.at) > cancel.grace + stop_seconds:
            sentence = f"Something of it lived {took:.1f} s after its cancel, with a grace of {cancel.grace:g} s."
            yield Violation("I10", f"run {cancel.run_id}", sentence)


def _is_of(life: AttemptLife | None, cancelled: Event) -> bool:
    return life is not None and not life.was_held and life.dispatched_by < cancelled.id


def _cancelled_at(world: World) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in world.history.events:
        if event.entity == "run" and event.after == "cancelled":
            found.setdefault(event.entity_id, []).append(event)
    return found
