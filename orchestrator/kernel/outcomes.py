"""Outcomes: how an attempt ended is committed once, and everybody who reports it is told what became of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.documents import MAX_NESTING, is_nested_too_deep
from orchestrator.effects import SaveOutcome, SendAnswer
from orchestrator.events import OutcomeReceived
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.claims import grant
from orchestrator.kernel.drain import note_preemption
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.keeping import TOO_LARGE, too_large
from orchestrator.kernel.memory import learn, learn_from_success
from orchestrator.kernel.nodes import TaskNode
from orchestrator.kernel.waits import look_again
from orchestrator.records import AttemptRecord, EndedAttempt, Outcome
from orchestrator.retry import NextTry, after_failure
from orchestrator.retry_rules import Asked
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

BAD_OUTPUTS = "bad_outputs"
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
    kernel, event = changes.kernel, _as_it_counts(event)
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
    _commit(changes, attempt, _as_it_fits(kernel.tasks[attempt.task_run_id], event.outcome))
    _answer(changes, event, "committed")


def _as_it_counts(event: OutcomeReceived) -> OutcomeReceived:
    """Return the report with a success whose outputs are nested too deep as the failure that it is.

    Our own workers let none through; another's must not leave what whoever reads it later stumbles over. Sent again it
    is the same failure again.
    """
    outcome = event.outcome
    if not is_nested_too_deep(outcome.outputs):
        return event
    if outcome.state is not AttemptState.SUCCEEDED:
        return replace(event, outcome=replace(outcome, outputs={}))
    message = f"The outputs are nested more than {MAX_NESTING} deep; flatten them, or keep them as a file."
    failed = replace(
        outcome,
        state=AttemptState.FAILED,
        reason=BAD_OUTPUTS,
        message=message,
        skipped=False,
        retryable=False,
        outputs={},
    )
    return replace(event, outcome=failed)


def _as_it_fits(node: TaskNode, outcome: Outcome) -> Outcome:
    """Return a success whose outputs the rules would have to keep beside too many others as the failure that it is."""
    is_counted = outcome.state is AttemptState.SUCCEEDED and not outcome.skipped
    if not is_counted or node.state is TaskState.CANCELLING or node.has_room_for(outcome.outputs):
        return outcome
    return replace(
        outcome,
        state=AttemptState.FAILED,
        reason=TOO_LARGE,
        message=too_large(node),
        retryable=False,
        outputs={},
    )


def would_publish(kernel: Kernel, event: OutcomeReceived) -> bool:
    """Say whether this report, taken in now, would end its task run with a success: what is to be decided about its
    outputs and records beforehand is decided for such reports alone."""
    attempt = kernel.attempts.get(event.attempt_id)
    return (
        attempt is not None
        and event.outcome.state is AttemptState.SUCCEEDED
        and _is_accepted(attempt, event)
        and kernel.tasks[attempt.task_run_id].state is not TaskState.CANCELLING
        and not is_nested_too_deep(event.outcome.outputs)
        and _as_it_fits(kernel.tasks[attempt.task_run_id], event.outcome) is event.outcome
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
    return ended.reason in (REGISTRY_CONFLICT, TOO_LARGE) and outcome.state is AttemptState.SUCCEEDED


def _answer(changes: Changes, event: OutcomeReceived, verdict: str) -> None:
    if verdict != "committed":
        changes.count(verdict, f"outcome of attempt {event.attempt_id}")
    changes.emit(SendAnswer(event.reply_to or event.worker_id, event.attempt_id, event.token, verdict))


def _commit(changes: Changes, attempt: AttemptRecord, outcome: Outcome) -> None:
    """End the attempt and decide what becomes of its task run."""
    kernel = changes.kernel
    node = kernel.at_work = kernel.tasks[attempt.task_run_id]
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
        after = node.stopped_as(node.reason)
        changes.task(node, after, "outcome", reason=node.reason, durable=True, attempt_id=None)
    elif succeeded:
        learn_from_success(changes, node, attempt, outcome.usage.peak_memory)
        _succeed(changes, node, outcome)
    elif outcome.again:
        look_again(changes, node, outcome)
    else:
        follow(changes, node, "outcome", next_try(changes, node, outcome, attempt), attempt, outcome.usage.peak_memory)


def _succeed(changes: Changes, node: TaskNode, outcome: Outcome) -> None:
    after = TaskState.SKIPPED if outcome.skipped else TaskState.SUCCESS
    if outcome.local_to and not node.run.home:
        node.run.home = outcome.local_to
    if after is TaskState.SUCCESS:
        node.keep(outcome.outputs)
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


def next_try(changes: Changes, node: TaskNode, outcome: Outcome, attempt: AttemptRecord | None) -> NextTry:
    """Decide by the task's policy what follows a try that did not succeed; without an attempt it was never sent out."""
    kernel, planned = changes.kernel, node.planned
    resources = kernel.ask_of(node).resources if attempt is None else attempt.resources
    largest = max(kernel.ledger.hosts.values(), key=lambda host: (host.capacity.memory, host.id), default=None)
    return after_failure(
        planned.retry,
        node.failures,
        node.losses,
        outcome,
        f"{node.id}/{node.failures}" if attempt is None else attempt.id,
        kernel.settings.max_losses,
        spared=node.spared,
        asked=Asked(
            resources.memory,
            planned.memory_auto,
            0 if largest is None else largest.capacity.memory,
            "" if largest is None else largest.id,
        ),
    )


def follow(
    changes: Changes, node: TaskNode, cause: str, then: NextTry, attempt: AttemptRecord | None, peak: int = 0
) -> None:
    """Bring the task run to what follows a try that did not succeed: ready, waiting for a retry, failed or skipped.

    :param peak: bytes that it was seen to use.
    """
    if attempt is not None and then.failures == node.failures:
        node.avoid = attempt.owner_id
    if not then.charged:
        node.spared += 1
        changes.count("uncharged", f"attempt {attempt.id if attempt else node.id}: {then.reason}")
    wants: dict[str, Any] = {}
    # The next try waits for its own time, however soon it comes.
    node.ready_since = None
    if then.memory is not None:
        wants["memory"] = then.memory
        learn(changes, node, then.memory, peak)
    if then.queue:
        wants["queue"] = then.queue
    if not then.again:
        after, retry_in = (TaskState.SKIPPED if then.skip else TaskState.FAILED), None
    elif then.delay > 0 or node.state is TaskState.READY:
        # One that was never sent out is ready already: it is counted anew as soon as the next round begins.
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
        **wants,
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
        after = node.stopped_as(node.reason)
        changes.task(node, after, cause, reason=node.reason, durable=True, attempt_id=None)
    else:
        outcome = Outcome(AttemptState.LOST, reason, message, infrastructure=True)
        follow(changes, node, cause, next_try(changes, node, outcome, attempt), attempt)
