"""Whether, and after how long, a task is tried again: the user's retries and the infrastructure's, counted apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from orchestrator.records import Outcome, RetryPolicy, RetryRule
from orchestrator.retry_rules import Asked, next_memory, reason_of, rule_for, too_much
from orchestrator.states import AttemptState

UNCHARGED = frozenset({"never_started", "gpu_busy", "fork_failed", "preempted", "worker_left"})
"""Reasons of infrastructure ends that neither the task nor its runner can be blamed for: nothing was killed by them,
so they count as no loss and no failure. The one list of them: workers and rules agree by these words. A worker that
says goodbye runs nothing any more, so what it was granted and has not reported (``worker_left``) never started."""

NOTHING_ASKED = Asked()

LONGEST_UNCHARGED_DELAY = 60.0
"""Seconds; what ends uncharged again and again is tried about once a minute."""

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds that the other side may ask us to wait: a header with a wrong date must not put a task off for a year."""


@dataclass(frozen=True, slots=True)
class NextTry:
    """What follows a try that did not succeed; the counts are the task run's new ones."""

    again: bool
    delay: float
    """Seconds until the next try may start; 0 is at once."""
    failures: int
    losses: int
    reason: str
    message: str
    charged: bool = True
    """Whether the try counts as a failure or a loss."""
    skip: bool = False
    """A rule wants the task settled as skipped; ``again`` is false then."""
    memory: int | None = None
    """Bytes that the tries from now on ask for; ``None``: as before."""
    queue: str = ""
    """Where the tries from now on go; empty: as before."""


def back_off(policy: RetryPolicy, failures: int, attempt_id: str, retry_after: float | None = None) -> float:
    """Return the seconds to wait after the ``failures``-th failure.

    - Grows by ``factor`` and never exceeds ``max_delay``, jitter included.
    - The jitter is a hash of the attempt's id, so a new leader computes the same delay.
    - What the other side asked for in ``retry_after`` is waited at least, up to :data:`LONGEST_RETRY_AFTER`: to ask
      again before that would be refused again, and cost a try.
    """
    try:
        grown = policy.delay * policy.factor ** max(0, failures - 1)
    except OverflowError:
        grown = policy.max_delay
    grown = min(policy.max_delay, max(0.0, grown))
    top = min(policy.max_delay, grown * (1.0 + policy.jitter))
    share = int.from_bytes(hashlib.blake2b(attempt_id.encode(), digest_size=4).digest()) / 2**32
    delay = max(0.0, top - grown * policy.jitter * (1.0 - share))
    return max(delay, _asked_for(retry_after))


def _asked_for(retry_after: float | None) -> float:
    return min(LONGEST_RETRY_AFTER, retry_after or 0.0)


def is_infrastructure(outcome: Outcome) -> bool:
    """Say whether a try ended for a cause of ours or the host's. Out of memory is the task's own: it asked for less
    than it took, so it is charged to the user's retries, with reason ``oom``."""
    if outcome.reason == "oom":
        return False
    return outcome.infrastructure or outcome.state in {AttemptState.LOST, AttemptState.CANCELLED}


def after_loss(failures: int, losses: int, max_losses: int, reason: str, message: str, *, spared: int = 0) -> NextTry:
    """Decide after a try lost to infrastructure: again at once, until ``max_losses`` of them make it ``poison``.

    One that is :data:`UNCHARGED` counts as no loss; it is tried again after a moment.

    :param spared: tries before this one that nobody was charged for.
    """
    if reason in UNCHARGED:
        return _uncharged(failures, losses, reason, message, spared)
    losses += 1
    if losses < max_losses:
        return NextTry(True, 0.0, failures, losses, reason, message)
    sentence = (
        f"{losses} tries were lost to infrastructure, the last one because of {reason or 'an unknown cause'}. The task "
        "probably kills its worker; look at its memory and its logs before running it again."
    )
    return NextTry(False, 0.0, failures, losses, "poison", sentence)


def _uncharged(failures: int, losses: int, reason: str, message: str, spared: int) -> NextTry:
    """Return the next try after 1, 2, 4 … seconds, the longer the more tries nobody was charged for: such ends may
    repeat for ever, and must not do so in a hot loop. A dispatch that expired unclaimed is no such try."""
    delay = min(LONGEST_UNCHARGED_DELAY, 2.0 ** min(spared, 10))
    sentence = f"{message} It is charged to nobody; the next try follows in {delay:g} s.".lstrip()
    return NextTry(True, delay, failures, losses, reason, sentence, charged=False)


def after_failure(
    policy: RetryPolicy,
    failures: int,
    losses: int,
    outcome: Outcome,
    attempt_id: str,
    max_losses: int,
    *,
    spared: int = 0,
    asked: Asked = NOTHING_ASKED,
) -> NextTry:
    """Decide after a try that did not succeed.

    - A rule that fits (:func:`rule_for`) may end the task (``fail``, ``skip``) whatever the try ended for.
    - Preempted: again after a moment, charged to nobody.
    - Infrastructure (see :func:`is_infrastructure`): :func:`after_loss`, by the task's own number of losses if it has
      one.
    - Else charged to the user's retries: again after :func:`back_off` if the outcome is retryable, or a rule says
      ``retry``, and some are left.
    - A rule that lets it be tried again may say when, where and with how much memory. What no host has is not waited
      for: the task fails as ``oom``, with the numbers.

    :param max_losses: the site's number of losses to infrastructure.
    """
    rule = rule_for(policy, outcome, asked)
    limit = max_losses if policy.infrastructure is None else policy.infrastructure
    then = _by_budget(policy, rule, failures, losses, outcome, attempt_id, limit, spared)
    if rule is None:
        return then
    if rule.action == "retry":
        return _on_terms_of(rule, then, outcome, asked)
    if rule.action == "skip":
        sentence = f"A retry rule skips it: it ended as {then.reason}. {outcome.message}".rstrip()
        return replace(then, again=False, delay=0.0, reason="rule", message=sentence, skip=True)
    return replace(then, again=False, delay=0.0, reason=reason_of(outcome), message=outcome.message)


def _by_budget(
    policy: RetryPolicy,
    rule: RetryRule | None,
    failures: int,
    losses: int,
    outcome: Outcome,
    attempt_id: str,
    max_losses: int,
    spared: int,
) -> NextTry:
    """Charge the try to whom it belongs, and say whether its budget leaves another."""
    reason = reason_of(outcome)
    if outcome.state is AttemptState.PREEMPTED:
        return _uncharged(failures, losses, reason, outcome.message, spared)
    if is_infrastructure(outcome):
        return after_loss(failures, losses, max_losses, reason, outcome.message, spared=spared)
    failures += 1
    is_retryable = outcome.retryable or (rule is not None and rule.action == "retry")
    if is_retryable and failures <= policy.retries:
        delay = back_off(policy, failures, attempt_id, outcome.retry_after)
        return NextTry(True, delay, failures, losses, reason, outcome.message)
    return NextTry(False, 0.0, failures, losses, reason, outcome.message)


def _on_terms_of(rule: RetryRule, then: NextTry, outcome: Outcome, asked: Asked) -> NextTry:
    """Let the next try, if there is one, be as the rule wants it."""
    memory = next_memory(rule, asked)
    # A task whose request is learned hands it on to the next run, though this run has no try left.
    then = replace(then, memory=memory, queue=rule.queue)
    if not then.again:
        return then
    if memory is not None and (why := too_much(memory, asked)):
        sentence = f"{outcome.message} {why}".lstrip()
        return replace(then, again=False, delay=0.0, reason="oom", message=sentence, memory=None)
    if rule.delay is not None:
        then = replace(then, delay=max(rule.delay, _asked_for(outcome.retry_after)))
    return then
