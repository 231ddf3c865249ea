"""Repeats: the body again and again, one round after the other, until an expression over its outputs is true."""

from __future__ import annotations

from orchestrator.effects import Annotate
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.containers import REPEATING, first_broken, place, run_container, start_scopes, supersede
from orchestrator.kernel.evaluating import CONDITION_ERROR, may_begin
from orchestrator.kernel.expanding import TOO_MANY, has_room, put_off, too_many
from orchestrator.kernel.nodes import Scope, TaskNode
from orchestrator.kernel.values import values_after
from orchestrator.kernel.working_out import work_out
from orchestrator.states import Entity, TaskState

DELAY, ROUND_FAILED, ROUND_SKIPPED, MAX_ROUNDS = "repeat_delay", "round_failed", "round_skipped", "max_rounds"

SHORT_DELAY = 0.1
"""Seconds that the next round waits when much else was expanded at the same time."""


def start_repeat(changes: Changes, node: TaskNode) -> None:
    """Start the first round."""
    if _is_too_long(changes, node, 1):
        return
    if not _has_room(changes, node):
        put_off(changes, node)
        return
    run_container(changes, node, "round 1")
    _add_round(changes, node)
    supersede(changes, node)


def advance_repeat(changes: Changes, node: TaskNode) -> None:
    """Look at a repeat whose round may have ended: it ends too, or goes on with the next one."""
    repeat, inside = node.planned.repeat, node.inside
    assert repeat is not None
    assert inside is not None
    if node.state is not TaskState.RUNNING or node.retry_at is not None:
        return
    start_scopes(changes, node)
    last = inside.scopes[-1]
    if last.result is None:
        return
    if inside.good < len(inside.scopes):
        # That may be an earlier one, which was marked, or in which something runs because of a mark.
        broken = next(scope for scope in inside.scopes if scope.result is not TaskState.SUCCESS)
        if broken.result is not None:
            _break_off(changes, node, broken)
        return
    if not may_begin(changes, node):
        return
    evaluating = changes.kernel.evaluating
    is_met = work_out(
        changes, node, lambda: evaluating.is_met(repeat.until, values_after(last)), CONDITION_ERROR, cause="rounds"
    )
    if is_met is None:
        return
    count = len(inside.scopes)
    if is_met:
        changes.task(node, TaskState.SUCCESS, "rounds", message=f"Ended after round {count}.", durable=True)
    elif count >= repeat.max:
        after = TaskState.SUCCESS if repeat.on_max == "succeed" else TaskState.FAILED
        message = f"After {count} rounds, the most that are allowed, this was not met: {repeat.until}"
        changes.task(node, after, "rounds", reason=MAX_ROUNDS, message=message, durable=True)
    elif repeat.delay > 0:
        _wait(changes, node, count, repeat.delay)
    else:
        next_round(changes, node)


def end_delay(changes: Changes, node: TaskNode) -> None:
    """Let a repeat that waits for its next round look once more at those it has had, one of which was marked: should it
    go on after all, the delay begins anew."""
    if node.state is TaskState.RUNNING and node.planned.repeat is not None and node.retry_at is not None:
        assert node.inside is not None
        node.reason, node.retry_at = REPEATING, None
        columns = {"reason": REPEATING, "message": f"round {len(node.inside.scopes)}", "retry_at": None}
        changes.emit(Annotate(Entity.TASK_RUN, node.id, node.state, columns))


def next_round(changes: Changes, node: TaskNode) -> None:
    """Go on with the next round."""
    inside = node.inside
    assert inside is not None
    if _is_too_long(changes, node, len(inside.scopes) + 1):
        return
    if not _has_room(changes, node):
        _wait(changes, node, len(inside.scopes), SHORT_DELAY)
        return
    columns = {"reason": REPEATING, "message": f"round {len(inside.scopes) + 1}", "retry_at": None}
    node.reason = REPEATING
    changes.emit(Annotate(Entity.TASK_RUN, node.id, node.state, columns))
    _add_round(changes, node)


def _is_too_long(changes: Changes, node: TaskNode, rounds: int) -> bool:
    """Say whether its run has too many task runs for so many rounds; it has failed then."""
    if why := too_many(node, rounds):
        changes.task(node, TaskState.FAILED, "rounds", reason=TOO_MANY, message=why, durable=True)
    return bool(why)


def _has_room(changes: Changes, node: TaskNode) -> bool:
    assert node.body is not None
    return has_room(changes, len(node.body.plan.tasks))


def _add_round(changes: Changes, node: TaskNode) -> None:
    assert node.inside is not None
    place(changes, node, [(str(len(node.inside.scopes)), None)], at_once=None)
    start_scopes(changes, node)


def _wait(changes: Changes, node: TaskNode, count: int, delay: float) -> None:
    node.reason = DELAY
    message = f"Round {count} has ended; the next one follows after {delay:g} s."
    columns = {"reason": DELAY, "message": message, "retry_at": ("in", delay)}
    changes.emit(Annotate(Entity.TASK_RUN, node.id, node.state, columns))
    changes.kernel.set_retry(node, changes.now + delay)


def _break_off(changes: Changes, node: TaskNode, last: Scope) -> None:
    if last.result is TaskState.SKIPPED:
        message = f"Round {last.index + 1} was skipped."
        changes.task(node, TaskState.SKIPPED, "rounds", reason=ROUND_SKIPPED, message=message, durable=True)
    else:
        message = f"Round {last.index + 1} did not succeed: {first_broken(node)}."
        changes.task(node, TaskState.FAILED, "rounds", reason=ROUND_FAILED, message=message, durable=True)
