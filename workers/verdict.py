"""Says how an attempt ended, from what its supervisor saw: the one place where endings are classified."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from orchestrator.errors import UnreadableMessage
from orchestrator.records import Outcome, Usage
from orchestrator.states import AttemptState
from orchestrator.wire.strict_json import Fields, decode

MAX_RESULT_BYTES = 768 * 1024
MAX_OUTPUT_BYTES = 256 * 1024
MAX_RECORDS_BYTES = 384 * 1024
"""Of a script that leaves the most files it may, each with a record."""
MAX_MESSAGE = 2000
NO_ROOM_FOR_RESULT = 74
"""Exit status of a task whose result the disk did not take; no disk is needed to say so."""

CANCELLED, FENCED, PREEMPTED, TIMEOUT, OUT_OF_MEMORY, TOO_MANY_PROCESSES, WORKER_LOST, FORK_SERVER_LOST, CUT_OFF = (
    "cancelled", "fenced", "preempted", "timeout", "oom", "too_many_processes", "worker_lost", "fork_server_lost",
    "cut_off",
)  # fmt: skip
NO_PROGRESS, SETUP_TIMEOUT = "no_progress", "setup_timeout"
"""Why a tree was stopped before its end."""
NOT_YET = "not_yet"
"""What the attempt waits for is not there; it ended well, and is to be looked at again."""

_STOPPED: Mapping[str, Outcome] = {
    CANCELLED: Outcome(AttemptState.CANCELLED, CANCELLED, "Cancelled; nothing of it lives on.", retryable=False),
    FENCED: Outcome(AttemptState.CANCELLED, FENCED, "Given to another attempt; stopped here.", retryable=False),
    PREEMPTED: Outcome(AttemptState.PREEMPTED, PREEMPTED, "Its worker leaves or was drained.", infrastructure=True),
    TIMEOUT: Outcome(AttemptState.TIMED_OUT, TIMEOUT, "It ran longer than its timeout and was stopped."),
    NO_PROGRESS: Outcome(
        AttemptState.TIMED_OUT,
        NO_PROGRESS,
        "It wrote no log line, reported no progress and saved no checkpoint for longer than its "
        "progress_timeout_seconds, and was stopped.",
    ),
    SETUP_TIMEOUT: Outcome(
        AttemptState.LOST,
        SETUP_TIMEOUT,
        "Its process did not come to run the operator: starting, importing or checking hung; it was stopped.",
        infrastructure=True,
    ),
    OUT_OF_MEMORY: Outcome(
        AttemptState.FAILED, OUT_OF_MEMORY, "It needed more memory than it asked for; raise memory_gb."
    ),
    TOO_MANY_PROCESSES: Outcome(
        AttemptState.FAILED,
        TOO_MANY_PROCESSES,
        "It had more processes (or threads) than MAX_TASK_PROCESSES allows; start fewer, or raise it on the workers.",
    ),
    WORKER_LOST: Outcome(AttemptState.LOST, WORKER_LOST, "Its worker died; the tree was killed.", infrastructure=True),
    FORK_SERVER_LOST: Outcome(
        AttemptState.LOST,
        FORK_SERVER_LOST,
        "The process by which workers adopt it died; the tree was stopped.",
        infrastructure=True,
    ),
    CUT_OFF: Outcome(
        AttemptState.LOST,
        CUT_OFF,
        "It is exclusive and its worker heard nothing of the scheduler for too long; stopped.",
        infrastructure=True,
    ),
}

_A_PART_WAS_KILLED = "The kernel killed a process of it for want of memory; raise memory_gb, or its worker's memory."
_MAY_STILL_SUCCEED = frozenset({PREEMPTED, WORKER_LOST, FORK_SERVER_LOST})
"""Stops under which a task that finished within its grace counts as finished."""
_NEVER_SUCCEEDS = frozenset({CANCELLED, FENCED})
"""Stops of what nobody wants any more, even if it had finished before."""

_UNEXPLAINED = frozenset({"exception", "exit", "killed", "signal"})
"""Failures whose cause the operator did not name by a reason of its own."""
_TELLS_OF_A_KILL = re.compile(r"SIGKILL|signal: Killed|exit status 137|^BrokenProcessPool")
"""What ``subprocess``, joblib, a DataLoader, a shell and ``concurrent.futures`` say when a child was killed."""


class OutOfMemory(Enum):
    """How surely the kernel has killed something of an attempt for memory."""

    NO = "no"
    POSSIBLE = "possible"
    """It has killed something in the same container; it may have been another attempt's."""
    LIKELY = "likely"
    """And a process of the attempt went at that moment, or was killed."""
    CERTAIN = "certain"
    """It has killed the attempt's first process, or one of its own cgroup."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What the supervisor saw."""

    stop: str
    """Why it was stopped; empty when it ended by itself."""
    status: int
    """As ``waitpid`` gives it."""
    result: bytes | None
    """Content of the result file."""
    out_of_memory: OutOfMemory
    usage: Usage
    local_to: str | None
    had_ended: bool = False
    """There was a result before it was stopped: what was stopped was but its leave-taking."""
    folder: str = ""
    """Where the result was to be written."""


def judge(ending: Ending) -> Outcome:
    """Return the outcome of an attempt nothing of which lives any more."""
    exit_code = os.waitstatus_to_exitcode(ending.status)
    outcome = _judge(ending, exit_code)
    if outcome.exit_code is None:
        outcome = replace(outcome, exit_code=exit_code)
    outcome = replace(outcome, usage=ending.usage)
    return replace(outcome, local_to=ending.local_to) if outcome.state is AttemptState.SUCCEEDED else outcome


def stopped(why: str) -> Outcome:
    """Return the outcome of an attempt that was stopped, for this reason, before its end or before its start."""
    return _STOPPED[why]


def never_started(message: str, reason: str = "fork_failed") -> Outcome:
    """Return the outcome of an attempt that its worker could not start: lost, and no fault of the task's."""
    return Outcome(AttemptState.LOST, reason, message, infrastructure=True)


def _judge(ending: Ending, exit_code: int) -> Outcome:
    outcome = _by_itself(ending, exit_code)
    has_finished = outcome.state is AttemptState.SUCCEEDED or outcome.again
    if ending.stop and not (has_finished and _came_in_time(ending)):
        return _STOPPED[ending.stop]
    if ending.out_of_memory is OutOfMemory.CERTAIN and not has_finished:
        return _STOPPED[OUT_OF_MEMORY]
    if _was_out_of_memory(outcome, ending.out_of_memory):
        message = f"{_A_PART_WAS_KILLED} It ended so: {outcome.message}"
        return replace(outcome, reason=OUT_OF_MEMORY, message=message[:MAX_MESSAGE])
    return outcome


def _came_in_time(ending: Ending) -> bool:
    """Say whether a success counts though the task was stopped."""
    return ending.stop in _MAY_STILL_SUCCEED or (ending.had_ended and ending.stop not in _NEVER_SUCCEEDS)


def _was_out_of_memory(outcome: Outcome, seen: OutOfMemory) -> bool:
    """Say whether a failure that nobody explains is one for memory. An operator that names its reason is believed."""
    if outcome.state is not AttemptState.FAILED or outcome.reason not in _UNEXPLAINED:
        return False
    # Our own sentence about a signal names SIGKILL, too.
    is_told = outcome.reason in ("exception", "killed") and _TELLS_OF_A_KILL.search(outcome.message) is not None
    return seen is OutOfMemory.LIKELY or (seen is OutOfMemory.POSSIBLE and is_told)


def _by_itself(ending: Ending, exit_code: int) -> Outcome:
    told = _told(ending.result)
    if told is not None and (exit_code >= 0 or told.state is AttemptState.SUCCEEDED or told.again):
        return told
    if exit_code < 0:
        return Outcome(
            AttemptState.FAILED, "signal", f"Its process was killed by {_signal_name(-exit_code)}, not by us."
        )
    if exit_code == NO_ROOM_FOR_RESULT:
        message = (
            f"Its worker's disk has no room for the result (or fails): it could not be written to {ending.folder}. "
            "Make room there."
        )
        return Outcome(AttemptState.LOST, "disk_full", message, infrastructure=True)
    return Outcome(AttemptState.FAILED, "exit", f"Its process ended with status {exit_code} and left no result.")


def _told(result: bytes | None) -> Outcome | None:
    """Return what the result file says; what is none of ours says that the task has failed."""
    if result is None:
        return None
    try:
        return _from_result(decode(result, MAX_RESULT_BYTES, "result file"))
    except UnreadableMessage as error:
        return Outcome(AttemptState.FAILED, "bad_result", str(error), retryable=False)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of the real-time signals only the first and the last have names
        return f"signal {number}"


def _from_result(result: Fields) -> Outcome:
    match result.text("end"):
        case "ok":
            return Outcome(
                AttemptState.SUCCEEDED, outputs=result.mapping("outputs"), records=result.mappings("records")
            )
        case "skip":
            return Outcome(
                AttemptState.SUCCEEDED,
                result.text("reason")[:200],
                result.text("message", "")[:MAX_MESSAGE],
                skipped=True,
            )
        case "not_yet":
            return Outcome(
                AttemptState.FAILED,
                NOT_YET,
                result.text("message", "")[:MAX_MESSAGE],
                retry_after=result.number("retry_after"),
                again=True,
            )
        case "failure":
            return Outcome(
                AttemptState.FAILED,
                result.text("reason")[:200],
                result.text("message", "")[:MAX_MESSAGE],
                retryable=result.flag("retryable"),
                retry_after=result.number_or_none("retry_after"),
                exit_code=result.integer_or_none("exit_code"),
                exception=result.text("exception", "")[:200],
                records=result.mappings("records"),
            )
        case other:
            raise UnreadableMessage(f"The result file says {other[:40]!r}, which is no ending we know.")


def failure(
    reason: str,
    message: str,
    *,
    retryable: bool,
    retry_after: float | None = None,
    exit_code: int | None = None,
) -> dict[str, Any]:
    """Return a result document that says that the operator failed.

    :param exit_code: of the program that the operator ran, where that says more than the status of our process.
    """
    return {
        "end": "failure",
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "retryable": retryable,
        "retry_after": retry_after,
        "exit_code": exit_code,
    }


def not_yet(retry_after: float, message: str) -> dict[str, Any]:
    """Return a result document that says that the operator is to look again later."""
    return {"end": "not_yet", "retry_after": retry_after, "message": message[:MAX_MESSAGE]}
