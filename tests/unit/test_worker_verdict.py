"""Every ending of an attempt, classified in one place."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from orchestrator.records import Outcome, Usage
from orchestrator.states import AttemptState
from workers import verdict
from workers.verdict import OutOfMemory

USAGE = Usage(peak_memory=1, cpu_seconds=2.0, wall_seconds=3.0)


def judge(
    stop: str = "",
    status: int = 0,
    result: Any = None,
    oom: OutOfMemory = OutOfMemory.NO,
    *,
    had_ended: bool = False,
) -> Outcome:
    body = result if isinstance(result, bytes) or result is None else json.dumps(result).encode()
    return verdict.judge(verdict.Ending(stop, status, body, oom, USAGE, "host-1", had_ended, "/data/attempts/a1"))


OK = {"end": "ok", "outputs": {"rows": 1}, "records": [{"kind": "model"}]}
EXIT_1 = 1 << 8


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (40, "signal 40"), (64, "SIGRTMAX")])
def test_every_signal_can_be_named(number: int, name: str) -> None:
    outcome = judge(status=number)
    assert (outcome.state, outcome.reason) == (AttemptState.FAILED, "signal")
    assert name in outcome.message


def test_a_finished_task_succeeds_with_its_outputs() -> None:
    outcome = judge(result=OK)
    assert outcome == Outcome(
        AttemptState.SUCCEEDED,
        outputs={"rows": 1},
        records=({"kind": "model"},),
        exit_code=0,
        usage=USAGE,
        local_to="host-1",
    )


@pytest.mark.parametrize(
    ("stop", "state", "infrastructure"),
    [
        (verdict.CANCELLED, AttemptState.CANCELLED, False),
        (verdict.FENCED, AttemptState.CANCELLED, False),
        (verdict.PREEMPTED, AttemptState.PREEMPTED, True),
        (verdict.TIMEOUT, AttemptState.TIMED_OUT, False),
        (verdict.NO_PROGRESS, AttemptState.TIMED_OUT, False),
        (verdict.SETUP_TIMEOUT, AttemptState.LOST, True),
        (verdict.OUT_OF_MEMORY, AttemptState.FAILED, False),
        (verdict.WORKER_LOST, AttemptState.LOST, True),
        (verdict.CUT_OFF, AttemptState.LOST, True),
    ],
)
def test_a_stopped_task_ends_as_it_was_stopped(stop: str, state: AttemptState, infrastructure: bool) -> None:
    outcome = judge(stop, status=signal.SIGKILL)
    assert (outcome.state, outcome.reason, outcome.infrastructure) == (state, stop, infrastructure)
    assert outcome.exit_code == -9
    assert outcome.local_to is None
    assert outcome.message


@pytest.mark.parametrize("stop", [verdict.PREEMPTED, verdict.WORKER_LOST])
def test_a_task_that_finished_in_its_grace_was_not_preempted(stop: str) -> None:
    assert judge(stop, result=OK).state is AttemptState.SUCCEEDED


@pytest.mark.parametrize(
    "stop", [verdict.CANCELLED, verdict.FENCED, verdict.TIMEOUT, verdict.CUT_OFF, verdict.NO_PROGRESS]
)
def test_no_other_stop_lets_a_task_succeed(stop: str) -> None:
    assert judge(stop, result=OK).state is not AttemptState.SUCCEEDED


ENDS = [verdict.TIMEOUT, verdict.CUT_OFF, verdict.OUT_OF_MEMORY, verdict.TOO_MANY_PROCESSES]


@pytest.mark.parametrize("status", [0, EXIT_1, signal.SIGKILL])
@pytest.mark.parametrize("stop", [*ENDS, verdict.PREEMPTED, verdict.WORKER_LOST, verdict.FORK_SERVER_LOST])
def test_a_task_that_had_succeeded_before_it_was_stopped_has_succeeded(stop: str, status: int) -> None:
    outcome = judge(stop, status=status, result=OK, had_ended=True)
    assert (outcome.state, outcome.outputs, outcome.local_to) == (AttemptState.SUCCEEDED, {"rows": 1}, "host-1")


@pytest.mark.parametrize("stop", [verdict.CANCELLED, verdict.FENCED])
def test_what_nobody_wants_any_more_does_not_succeed(stop: str) -> None:
    assert judge(stop, result=OK, had_ended=True).reason == stop


@pytest.mark.parametrize("stop", [*ENDS, verdict.PREEMPTED])
@pytest.mark.parametrize("result", [verdict.failure("bad_data", "Empty.", retryable=True), b"{", None])
def test_what_had_not_succeeded_ends_as_it_was_stopped(stop: str, result: Any) -> None:
    assert judge(stop, status=signal.SIGKILL, result=result, had_ended=True).reason == stop


def test_a_death_after_the_result_takes_no_success_back() -> None:
    for oom in OutOfMemory:
        assert judge(status=signal.SIGKILL, result=OK, oom=oom).state is AttemptState.SUCCEEDED
    assert judge(status=signal.SIGKILL, result=b"{").reason == "signal"


def test_a_full_disk_is_the_hosts_fault_and_is_named_with_its_folder() -> None:
    outcome = judge(status=verdict.NO_ROOM_FOR_RESULT << 8)
    assert (outcome.state, outcome.reason, outcome.infrastructure) == (AttemptState.LOST, "disk_full", True)
    assert "disk" in outcome.message
    assert "/data/attempts/a1" in outcome.message


def test_a_kill_for_memory_is_told_apart_from_other_kills() -> None:
    certain = OutOfMemory.CERTAIN
    assert judge(status=signal.SIGKILL, oom=certain).reason == "oom"
    assert judge(status=signal.SIGKILL).reason == "signal"
    assert "SIGKILL" in judge(status=signal.SIGKILL).message
    failed = {"end": "failure", "reason": "script", "message": "137", "retryable": True}
    assert judge(status=EXIT_1, result=failed, oom=certain).reason == "oom"
    assert judge(result=OK, oom=certain).state is AttemptState.SUCCEEDED, "it coped with the loss of a part"


KILLED = "CalledProcessError: Command 'sort' died with <Signals.SIGKILL: 9>."


@pytest.mark.parametrize(
    ("reason", "message", "seen", "told"),
    [
        ("exception", KILLED, OutOfMemory.POSSIBLE, "oom"),
        ("exception", "BrokenProcessPool: A process in the process pool was terminated", OutOfMemory.POSSIBLE, "oom"),
        ("exception", KILLED, OutOfMemory.NO, "exception"),
        ("exception", "KeyError: 'rows'", OutOfMemory.POSSIBLE, "exception"),
        ("exception", "KeyError: 'rows'", OutOfMemory.LIKELY, "oom"),
        ("bad_data", KILLED, OutOfMemory.LIKELY, "bad_data"),
        ("quality_gate", "Too few rows.", OutOfMemory.LIKELY, "quality_gate"),
    ],
)
def test_a_failure_is_one_for_memory_when_a_process_of_it_was_killed_and_it_names_no_other_reason(
    reason: str, message: str, seen: OutOfMemory, told: str
) -> None:
    outcome = judge(status=EXIT_1, result=verdict.failure(reason, message, retryable=True), oom=seen)
    assert (outcome.state, outcome.reason) == (AttemptState.FAILED, told)
    assert message in outcome.message, "what the operator said is kept"


def test_a_sentence_of_our_own_tells_of_no_kill_for_memory() -> None:
    assert judge(status=signal.SIGKILL, oom=OutOfMemory.POSSIBLE).reason == "signal"
    assert judge(status=signal.SIGABRT, oom=OutOfMemory.LIKELY).reason == "oom"
    assert judge(result=OK, oom=OutOfMemory.LIKELY).state is AttemptState.SUCCEEDED


def test_a_failure_carries_what_the_operator_said() -> None:
    outcome = judge(status=EXIT_1, result=verdict.failure("bad_data", "Empty.", retryable=False, retry_after=3.5))
    assert (outcome.state, outcome.reason, outcome.message) == (AttemptState.FAILED, "bad_data", "Empty.")
    assert (outcome.retryable, outcome.retry_after, outcome.exit_code) == (False, 3.5, 1)


def test_a_failure_names_its_exception_and_the_exit_code_of_the_program_that_it_ran() -> None:
    document = verdict.failure("exit_code", "137.", retryable=True, exit_code=137)
    artifact = {"kind": "artifact", "uri": "artifact://t/x"}
    outcome = judge(status=EXIT_1, result={**document, "exception": "a.b.Broken", "records": [artifact]})
    assert (outcome.exit_code, outcome.exception, outcome.records) == (137, "a.b.Broken", (artifact,))
    of_a_former_release = {"end": "failure", "reason": "x", "message": "", "retryable": True, "retry_after": None}
    assert judge(status=EXIT_1, result=of_a_former_release).exit_code == 1


def test_not_yet_is_to_be_looked_at_again_and_is_nobodys_fault() -> None:
    outcome = judge(result=verdict.not_yet(30.0, "The file is not there yet."))
    assert (outcome.state, outcome.reason, outcome.again) == (AttemptState.FAILED, "not_yet", True)
    assert (outcome.retry_after, outcome.infrastructure, outcome.exit_code) == (30.0, False, 0)
    assert outcome.message == "The file is not there yet."
    assert judge(verdict.CANCELLED, result=verdict.not_yet(1.0, "")).again is False


def test_a_skip_is_a_success_that_says_so() -> None:
    outcome = judge(result={"end": "skip", "reason": "nothing_new", "message": "No rows."})
    assert outcome.skipped
    assert outcome.state is AttemptState.SUCCEEDED


@pytest.mark.parametrize(
    "result",
    [b"", b"[]", b"{", b'{"end": "party"}', b'{"end": "ok", "outputs": 3}', b"x" * (verdict.MAX_RESULT_BYTES + 1)],
)
def test_a_result_file_that_is_none_of_ours_is_a_failure(result: bytes) -> None:
    outcome = judge(result=result)
    assert (outcome.state, outcome.reason, outcome.retryable) == (AttemptState.FAILED, "bad_result", False)


def test_no_result_is_a_failure_that_names_the_status() -> None:
    assert "status 3" in judge(status=3 << 8).message
    assert judge().reason == "exit"
