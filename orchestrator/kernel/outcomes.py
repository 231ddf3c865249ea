"""Outcomes: how an attempt ended is committed once, and everybody who reports it is told what became of it."""

from __future__ import annotations

from orchestrator.effects import SaveOutcome, SendAnswer
from orchestrator.events import OutcomeReceived
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.claims import grant
from orchestrator.kernel.drain import note_preemption
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.nodes import TaskNode
from orchestrator.records import AttemptRecord, EndedAttempt, Outcome
from orchestrator.retry import NextTry, after_failure, after_loss
from orchestrator.states import AttemptState, TaskState

REPORTED = frozenset(
    {
        AttemptState.SUCCEEDED,
        AttemptState.FAILED,
        AttemptState.TIMED_OUT,
        AttemptState.CANCELLED,
        AttemptState.PREEMPTED,
        AttemptState.LOST,
    }
)

REGISTRY_CONFLICT = "registry_conflict"
"""A success that is committed as a failure: it would register a version that is another model's already."""


def ingest(changes: Changes, event: OutcomeReceived) -> None:
    """Commit an outcome, or say why not.

    - ``committed``: the attempt is running under this token at the incarnation that ran it; or just this outcome of
      it was committed before.
    - ``committed`` too when the rows have lost the grant (the attempt is still dispatched under this token).
    - ``fenced``: another token or grant counts, or the attempt was given up before.
    - ``unknown``: nobody knows the attempt.
    - No answer while its run is left alone: it is reported again until a scheduler leads that can read the plan.
    """
    kernel = changes.kernel
    if event.attempt_id in kernel.left_alone:
        return
    attempt = kernel.attempts.get(event.attempt_id)
    if attempt is None:
        _answer(changes, event, _verdict_on_ended(changes, event))
        return
    if not _is_accepted(attempt, event):
        _answer(changes, event, "fenced")
        return
    if attempt.state is AttemptState.DISPATCHED:
        granted = grant(changes, attempt, event.worker_id, "", "readopted")
        if granted is None:
            _answer(changes, event, "fenced")
            return
        attempt = granted
    _commit(changes, attempt, event.outcome)
    _answer(changes, event, "committed")


def would_publish(kernel: Kernel, event: OutcomeReceived) -> bool:
    """Say whether this report, taken in now, would end its task run with a success: what is to be decided about its
    outputs and records beforehand is decided for such reports alone."""
    attempt = kernel.attempts.get(event.attempt_id)
    return (
        attempt is not None
        and event.outcome.state is AttemptState.SUCCEEDED
        and _is_accepted(attempt, event)
        and kernel.tasks[attempt.task_run_id].state is not TaskState.CANCELLING
    )


def _is_accepted(attempt: AttemptRecord, event: OutcomeReceived) -> bool:
    """Say whether the report counts: the attempt's own token, from the incarnation that was granted it (or whose grant
    the rows have lost)."""
    if not holds_token(attempt, event.token) or event.outcome.state not in REPORTED:
        return False
    return attempt.state is AttemptState.DISPATCHED or _has_run_it(attempt, event)


def _has_run_it(attempt: AttemptRecord | EndedAttempt, event: OutcomeReceived) -> bool:
    """Say whether the report is of the incarnation that has run the attempt, as far as the rows know.

    Where they have lost a grant they name the worker that it was planned for. Who showed it then is its keeper, and has
    run it, or has found who did.
    """
    if attempt.worker_id == event.worker_id:
        return True
    return bool(attempt.keeper_id) and attempt.keeper_id in {event.worker_id, event.reply_to}


def holds_token(attempt: AttemptRecord, token: str) -> bool:
    """Say whether the report is under the attempt's own token: the fence (I2)."""
    return attempt.token == token


def _verdict_on_ended(changes: Changes, event: OutcomeReceived) -> str:
    """Answer for an attempt that is over: its tree has ended too, so what it still holds as a zombie is given back."""
    ended: EndedAttempt | None = changes.kernel.ended.get(event.attempt_id) or event.ended
    if ended is None:
        return "unknown"
    if ended.token != event.token or not _has_run_it(ended, event):
        return "fenced"
    changes.release(event.attempt_id)
    return "committed" if _is_same_end(ended, event.outcome) else "fenced"


def _is_same_end(ended: EndedAttempt, outcome: Outcome) -> bool:
    """Say whether the attempt was ended by just this report, which is now sent again."""
    if ended.state is outcome.state:
        return ended.state is not AttemptState.LOST
    # The worker knows only what it reported itself.
    return ended.reason == REGISTRY_CONFLICT and outcome.state is AttemptState.SUCCEEDED


def _answer(changes: Changes, event: OutcomeReceived, verdict: str) -> None:
    if verdict != "committed":
        changes.count(verdict, f"outcome of attempt {event.attempt_id}")
    changes.emit(SendAnswer(event.reply_to or event.worker_id, event.attempt_id, event.token, verdict))


def _commit(changes: Changes, attempt: AttemptRecord, outcome: Outcome) -> None:
    """End the attempt and decide what becomes of its task run."""
    kernel = changes.kernel
    node = kernel.tasks[attempt.task_run_id]
    is_cancelled = node.state is TaskState.CANCELLING
    ended = changes.attempt(
        attempt,
        outcome.state,
        "outcome",
        reason=outcome.reason,
        message=outcome.message,
        durable=True,
        columns={"exit_code": outcome.exit_code},
    )
    if ended is None:
        return
    succeeded = outcome.state is AttemptState.SUCCEEDED
    publish = succeeded and not is_cancelled
    changes.emit(SaveOutcome(attempt.id, node.id, outcome, publish))
    changes.release(attempt.id)
    if outcome.state is AttemptState.PREEMPTED:
        note_preemption(changes, attempt)
    if is_cancelled:
        changes.task(node, TaskState.CANCELLED, "outcome", reason=node.reason, durable=True, attempt_id=None)
    elif succeeded:
        _succeed(changes, node, outcome)
    else:
        then = after_failure(
            node.planned.retry,
            node.failures,
            node.losses,
            outcome,
            attempt.id,
            kernel.settings.max_losses,
            spared=node.spared,
        )
        follow(changes, node, "outcome", then, attempt)


def _succeed(changes: Changes, node: TaskNode, outcome: Outcome) -> None:
    after = TaskState.SKIPPED if outcome.skipped else TaskState.SUCCESS
    if outcome.local_to and not node.run.home:
        node.run.home = outcome.local_to
    changes.task(
        node,
        after,
        "outcome",
        reason=outcome.reason,
        message=outcome.message,
        durable=True,
        attempt_id=None,
        local_to=outcome.local_to,
    )


def follow(changes: Changes, node: TaskNode, cause: str, then: NextTry, attempt: AttemptRecord) -> None:
    """Bring the task run to what follows a try that did not succeed: ready, waiting for a retry, or failed."""
    if then.failures == node.failures:
        node.avoid = attempt.owner_id
    if not then.charged:
        node.spared += 1
        changes.count("uncharged", f"attempt {attempt.id}: {then.reason}")
    if not then.again:
        after, retry_in = TaskState.FAILED, None
    elif then.delay > 0:
        after, retry_in = TaskState.RETRY_WAIT, then.delay
    else:
        after, retry_in = TaskState.READY, None
    changes.task(
        node,
        after,
        cause,
        reason=then.reason,
        message=then.message,
        durable=True,
        retry_in=retry_in,
        attempt_id=None,
        failures=then.failures,
        losses=then.losses,
    )


def lose(
    changes: Changes, attempt: AttemptRecord, cause: str, reason: str, message: str, *, is_dead: bool = False
) -> None:
    """Give a running attempt up. Unless its tree is known dead, what it holds stays charged to the host."""
    node = changes.kernel.tasks[attempt.task_run_id]
    lost = changes.attempt(attempt, AttemptState.LOST, cause, reason=reason, message=message, durable=True)
    if lost is None:
        return
    changes.count("lost", f"attempt {attempt.id}: {reason}")
    if is_dead:
        changes.release(attempt.id)
    else:
        changes.bury(attempt)
    if node.state is TaskState.CANCELLING:
        changes.task(node, TaskState.CANCELLED, cause, reason=node.reason, durable=True, attempt_id=None)
    else:
        max_losses = changes.kernel.settings.max_losses
        then = after_loss(node.failures, node.losses, max_losses, reason, message, spared=node.spared)
        follow(changes, node, cause, then, attempt)
