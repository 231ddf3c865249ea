"""Waits: for a person's approval, for an event from outside, for what is not there yet. They hold no slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.effects import MESSAGE_LIMIT
from orchestrator.events import Command
from orchestrator.expressions import lookup_in
from orchestrator.expressions.templates import resolve_text
from orchestrator.expressions.texts import Texts
from orchestrator.kernel.changes import Changes
from orchestrator.kernel.choosing import tasks_named
from orchestrator.kernel.expanding import has_room, is_put_off, put_off
from orchestrator.kernel.nodes import TEMPLATE, TaskNode
from orchestrator.kernel.values import values_in
from orchestrator.kernel.working_out import work_out
from orchestrator.records import ApprovalPlan, Outcome
from orchestrator.retry import LONGEST_RETRY_AFTER
from orchestrator.states import TASK_TERMINAL, TaskState

APPROVAL, EVENT, NOT_YET = "approval", "event", "not_yet"
REJECTED, APPROVAL_TIMEOUT, EVENT_TIMEOUT = "rejected", "approval_timeout", "event_timeout"
CUT = f" … [cut: the message has more than {MESSAGE_LIMIT} characters, and the rest of it is not shown]"
SHORTEST, USUAL = 1.0, 60.0
"""Seconds after which it is looked again for what is not there yet: at least, and where nothing is said."""


def wait_for_approval(changes: Changes, node: TaskNode) -> None:
    """Wait until a person approves or rejects."""
    approval = node.planned.approval
    assert approval is not None
    if is_put_off(changes, node):
        return
    texts = changes.kernel.expanding.texts
    message = work_out(changes, node, lambda: _asked(node, approval, texts), TEMPLATE)
    if message is None:
        return
    if not has_room(changes, 0, len(message)):
        put_off(changes, node)
        return
    changes.task(
        node,
        TaskState.WAITING,
        "upstream",
        reason=APPROVAL,
        message=message or "It waits for a person's approval.",
        durable=True,
        retry_in=approval.timeout,
    )


def _asked(node: TaskNode, approval: ApprovalPlan, texts: Texts) -> str:
    """Return what a person is to decide. What is too long for a row is cut, and says so: nobody is to approve what they
    can't see without knowing that there is more.

    :raises TemplateError: it can't be worked out.
    """
    lookup = lookup_in(values_in(node.scope))
    message = resolve_text(approval.message, lookup, "/approval/message", MESSAGE_LIMIT, texts)
    if message is None:
        return "null"
    return message if len(message) <= MESSAGE_LIMIT else f"{message[: MESSAGE_LIMIT - len(CUT)]}{CUT}"


def wait_for_event(changes: Changes, node: TaskNode) -> None:
    """Wait until somebody reports the event by the task's token."""
    event = node.planned.event
    assert event is not None
    changes.task(
        node,
        TaskState.WAITING,
        "upstream",
        reason=EVENT,
        message="It waits for an event from outside, which is reported by its token.",
        durable=True,
        retry_in=event.timeout,
        wait_token=changes.kernel.settings.new_id(),
    )


def look_again(changes: Changes, node: TaskNode, outcome: Outcome) -> None:
    """What the task waits for is not there yet: it waits without a slot, charged to nobody, and looks again later."""
    after = USUAL if outcome.retry_after is None else min(LONGEST_RETRY_AFTER, max(SHORTEST, outcome.retry_after))
    changes.task(
        node,
        TaskState.WAITING,
        "outcome",
        reason=NOT_YET,
        message=f"{outcome.message} The next look is in {after:g} s.".lstrip(),
        durable=True,
        retry_in=after,
        attempt_id=None,
    )


def approve(changes: Changes, command: Command) -> str:
    """Let a task go on that waits for approval."""
    node = _waiting(changes, command, APPROVAL)
    if isinstance(node, str):
        return node
    said = command.payload.get("reason")
    message = f"{command.actor}: {said}" if isinstance(said, str) and said else ""
    _approved(changes, node, command.actor, command.payload, message=message)
    return f"Task {node.name} of run {node.run.id} is approved."


def reject(changes: Changes, command: Command) -> str:
    """Let a task that waits for approval fail, or be skipped."""
    node = _waiting(changes, command, APPROVAL)
    if isinstance(node, str):
        return node
    said = command.payload.get("reason")
    message = f"{command.actor}: {said}" if isinstance(said, str) and said else f"{command.actor} has rejected it."
    _rejected(changes, node, command.actor, REJECTED, message)
    return f"Task {node.name} of run {node.run.id} is rejected: it is {node.state}."


def report_event(changes: Changes, command: Command) -> str:
    """Take the event that a task waits for."""
    node = _waiting(changes, command, EVENT)
    if isinstance(node, str):
        return node
    token = command.payload.get("token")
    if token is not None and token != node.wait_token:
        return f"Refused: this is not the token that task {node.name} of run {node.run.id} waits for now."
    outputs = {"payload": command.payload.get("payload"), "at": command.payload.get("at")}
    _succeed(changes, node, "event", command.actor, outputs)
    return f"Task {node.name} of run {node.run.id} has its event."


def time_out(changes: Changes, node: TaskNode) -> None:
    """The time is over for which the task was to wait: for an answer, or until it is looked again."""
    approval, event = node.planned.approval, node.planned.event
    if approval is not None:
        message = f"Nobody has answered within {approval.timeout or 0.0:g} s."
        if approval.on_timeout == "approve":
            _approved(changes, node, "timeout", {}, APPROVAL_TIMEOUT, message, cause="timer")
        elif approval.on_timeout == "reject":
            _rejected(changes, node, "timeout", APPROVAL_TIMEOUT, message, cause="timer")
        else:
            changes.task(node, TaskState.FAILED, "timer", reason=APPROVAL_TIMEOUT, message=message, durable=True)
    elif event is not None:
        after = TaskState.SKIPPED if event.on_timeout == "skip" else TaskState.FAILED
        message = f"The event was not reported within {event.timeout or 0.0:g} s."
        changes.task(node, after, "timer", reason=EVENT_TIMEOUT, message=message, durable=True, wait_token=None)
    else:
        changes.task(node, TaskState.READY, "timer")


def _waiting(changes: Changes, command: Command, reason: str) -> TaskNode | str:
    """Return the task that the command means, or why it is refused."""
    run = changes.kernel.runs.get(command.run_id or "")
    if run is None:
        return f"Refused: run {command.run_id} has ended, or there is none."
    nodes = tasks_named(run, command.task or "")
    if not nodes:
        return f"Refused: run {run.id} has no task {command.task!r}."
    if len(nodes) > 1:
        return f"Refused: {command.task!r} is {len(nodes)} task runs of run {run.id}; name one of them."
    (node,) = nodes
    if node.state in TASK_TERMINAL:
        # Not what was asked for: somebody else, a time-out or a cancel came first, and it may say the opposite.
        return (
            f"Refused: task {node.name} of run {run.id} is {node.state} already, and stays it; the run's events say "
            "who decided that."
        )
    kind = node.planned.approval if reason == APPROVAL else node.planned.event
    if kind is None or node.state is not TaskState.WAITING:
        what = "a person's approval" if reason == APPROVAL else "an event"
        return f"Refused: task {node.name} of run {run.id} is {node.state} and does not wait for {what}."
    return node


def _approved(
    changes: Changes,
    node: TaskNode,
    actor: str,
    payload: Mapping[str, Any],
    reason: str = "",
    message: str = "",
    *,
    cause: str = "approve",
) -> None:
    outputs = {"approved": True, "by": actor, "at": payload.get("at"), "input": payload.get("input")}
    _succeed(changes, node, cause, actor, outputs, reason, message or f"Approved by {actor}.")


def _succeed(
    changes: Changes,
    node: TaskNode,
    cause: str,
    actor: str,
    outputs: Mapping[str, Any],
    reason: str = "",
    message: str = "",
) -> None:
    node.keep(outputs)
    changes.task(
        node,
        TaskState.SUCCESS,
        cause,
        reason=reason,
        message=message,
        actor="scheduler" if cause == "timer" else actor,
        durable=True,
        row={"outputs": dict(outputs)},
        wait_token=None,
    )


def _rejected(
    changes: Changes, node: TaskNode, actor: str, reason: str, message: str, *, cause: str = "reject"
) -> None:
    approval = node.planned.approval
    assert approval is not None
    after = TaskState.SKIPPED if approval.on_reject == "skip" else TaskState.FAILED
    by = "scheduler" if cause == "timer" else actor
    changes.task(node, after, cause, reason=reason, message=message, actor=by, durable=True)
