"""Tells the workers what was committed: hints, grants, denials, answers, desired states. Nothing is sent before."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.effects import Effect, RetireQueue, SendAnswer, SendDenial, SendGrant, SendHint
from orchestrator.errors import StoreUnavailable
from orchestrator.wire.hints import HintPublisher
from orchestrator.wire.mailbox import ReplySender
from orchestrator.wire.messages import Answer, Denial, DesiredState, Grant, GrantSpec

QUICK = 1.0
"""Seconds: a failure after a longer time was no cut connection, and another try would only take as long again."""


@dataclass(slots=True)
class Messages:
    """What one transaction wants sent after its commit."""

    hints: list[SendHint] = field(default_factory=list)
    replies: list[tuple[str, Grant | Denial | Answer]] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)


def messages_of(effects: Iterable[Effect], specs: Mapping[str, GrantSpec]) -> Messages:
    """Return the messages that the effects ask for; a grant without a specification is left out."""
    messages = Messages()
    for effect in effects:
        match effect:
            case SendHint():
                messages.hints.append(effect)
            case SendGrant(attempt, nonce):
                if attempt.id in specs:
                    messages.replies.append((attempt.worker_id, Grant(specs[attempt.id], nonce)))
            case SendDenial(worker_id, attempt_id, nonce, reason):
                messages.replies.append((worker_id, Denial(attempt_id, nonce, reason)))
            case SendAnswer(worker_id, attempt_id, token, verdict):
                messages.replies.append((worker_id, Answer(attempt_id, token, verdict)))
            case RetireQueue(worker_id):
                messages.retired.append(worker_id)
    return messages


class Outbox:
    """The leader's voice. Whatever is lost on the way is asked for, or sent, again."""

    def __init__(self, replies: ReplySender, hints: HintPublisher) -> None:
        self._replies = replies
        self._hints = hints

    def send(self, messages: Messages) -> None:
        """Send the messages, replies first: somebody waits for them.

        :raises HintsLost: hints may not have arrived.
        :raises StoreUnavailable: replies may not have arrived; their workers ask again.
        """
        if messages.replies:
            try:
                self._replies.send(messages.replies)
            except StoreUnavailable as error:
                if messages.hints:
                    raise HintsLost(str(error)) from error
                raise
        self._publish(messages.hints)
        if messages.retired:
            self._hints.delete_queues(messages.retired)

    def write_desired(self, states: list[tuple[str, DesiredState]]) -> None:
        """Replace the desired states of workers.

        :raises StoreUnavailable: they are written again at the next heartbeat.
        """
        if states:
            self._replies.write_desired(states)

    def close(self) -> None:
        self._hints.close()

    def _publish(self, hints: list[SendHint]) -> None:
        if not hints:
            return
        since = time.monotonic()
        try:
            self._hints.publish(hints)
        except StoreUnavailable as error:
            if time.monotonic() - since > QUICK:
                raise HintsLost(str(error)) from error
            # The connection was cut while it idled; the second try opens another.
            try:
                self._hints.publish(hints)
            except StoreUnavailable as again:
                raise HintsLost(str(again)) from again


class HintsLost(StoreUnavailable):
    """Hints may not have arrived; those still unclaimed are sent again when Redis is back."""
