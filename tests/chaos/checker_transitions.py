"""I1 and I9: every transition is an allowed one from the state that was; ends are final; rows equal the audit."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.checker_specification import ATTEMPT_ENDED, FIRST_STATES, is_allowed
from tests.chaos.checker_world import Violation, World
from tests.chaos.history import Event


def check_transition(event: Event, world: World) -> Iterator[Violation]:
    """Judge one event on the world before it."""
    subject = f"{event.entity} {event.entity_id}"
    told = f"event {event.id} ({event.cause}) says {event.before} → {event.after}"
    known = world.state_of(event)
    if event.before != known:
        yield Violation("I1", subject, f"It was {known}, but {told}.")
    if event.entity == "attempt" and known in ATTEMPT_ENDED:
        yield Violation("I1", subject, f"It had ended as {known}, and an end is final, but {told}.")
    elif not is_allowed(event):
        yield Violation("I1", subject, f"The architecture allows no such transition: {told}.")
    if event.entity == "attempt" and event.entity_id in world.attempts:
        token = world.attempts[event.entity_id].token
        if event.token != token:
            yield Violation("I1", subject, f"Its token is {token}, but event {event.id} bears {event.token}.")


def check_success(event: Event, world: World) -> Iterator[Violation]:
    """A task run ends with a success by exactly one committed attempt of its generation."""
    if event.entity != "task_run" or (event.before, event.after) != ("running", "success"):
        return
    found = _successes(world, event.entity_id)
    if len(found) != 1:
        yield Violation(
            "I1", f"task run {event.entity_id}", f"It became success by {len(found)} committed attempts, not by one."
        )


def _successes(world: World, task_run_id: str) -> list[str]:
    generation = world.generation_of(task_run_id)
    lives = world.attempts_of.get(task_run_id, [])
    return [life.id for life in lives if life.generation == generation and life.state == "succeeded"]


def check_epochs(world: World) -> Iterator[Violation]:
    """The leaders' epochs never go down along the audit (0 is the API's), nor beyond that of the lease."""
    highest = 0
    for event in world.history.events:
        if 0 < event.epoch < highest:
            yield Violation(
                "I9", f"event {event.id}", f"It is of epoch {event.epoch}, after one of epoch {highest} was written."
            )
        highest = max(highest, event.epoch)
    if world.history.epoch is not None and highest > world.history.epoch:
        yield Violation("I9", "lease", f"It is at epoch {world.history.epoch}; the audit has epoch {highest}.")


def check_rows(world: World) -> Iterator[Violation]:
    """Every row is in the state that the audit tells, and in its generation."""
    history = world.history
    for run in history.runs.values():
        said = world.runs.get(run.id, run.state if run.state in FIRST_STATES["run"] else "nothing")
        yield from _compare(f"run {run.id}", run.state, said)
        yield from _compare_generation(f"run {run.id}", run.generation, world.generation_of(run.id))
    for task in history.tasks.values():
        subject = f"task run {task.id}"
        yield from _compare(subject, task.state, world.tasks.get(task.id, "pending"))
        yield from _compare_generation(subject, task.generation, world.generation_of(task.id))
        if len(found := _successes(world, task.id)) > 1:
            yield Violation("I1", subject, f"Several attempts of one generation succeeded: {', '.join(found)}.")
    for attempt in history.attempts.values():
        life = world.attempts.get(attempt.id)
        yield from _compare(f"attempt {attempt.id}", attempt.state, life.state if life else "nothing")
        if life is not None and life.token != attempt.token:
            yield Violation("I1", f"attempt {attempt.id}", f"Its row bears {attempt.token}, its audit {life.token}.")
    for worker in history.workers.values():
        yield from _compare(f"worker {worker.id}", worker.state, world.workers.get(worker.id, "nothing"))
    yield from _missing_rows(world)


def _missing_rows(world: World) -> Iterator[Violation]:
    history = world.history
    for kind, told, rows in (
        ("run", world.runs, history.runs),
        ("task run", world.tasks, history.tasks),
        ("attempt", world.attempts, history.attempts),
    ):
        for id_ in told.keys() - rows.keys():
            yield Violation("I1", f"{kind} {id_}", "The audit tells of it, but it has no row.")


def _compare(subject: str, row: str, audit: str) -> Iterator[Violation]:
    if row != audit:
        yield Violation("I1", subject, f"Its row says {row}, the audit says {audit}.")


def _compare_generation(subject: str, row: int, audit: int) -> Iterator[Violation]:
    if row != audit:
        yield Violation("I1", subject, f"Its row is of generation {row}; the audit has opened it {audit} times.")
