"""Messages come out as they went in, and nothing else comes out at all."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import TooLarge, UnreadableMessage
from orchestrator.events import ClaimReceived, OutcomeReceived
from orchestrator.records import Capacity, GpuDevice, Heartbeat, Outcome, Resources, Usage
from orchestrator.states import ATTEMPT_TERMINAL, AttemptState
from orchestrator.wire.heartbeat_json import heartbeat_body, heartbeat_from_body
from orchestrator.wire.messages import (
    MAX_REPORT_BYTES,
    Answer,
    Denial,
    DesiredState,
    GrantSpec,
    claim_body,
    control_body,
    grant_body,
    grant_from_body,
    outcome_body,
    read_control,
    read_report,
)

words = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 2**62)
seconds = st.floats(0, 1e9, allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(-1e9, 1e9) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(words, json_values, max_size=4)
outcomes = st.builds(
    Outcome,
    state=st.sampled_from(sorted(ATTEMPT_TERMINAL - {AttemptState.EXPIRED})),
    reason=words,
    message=words,
    skipped=st.booleans(),
    retryable=st.booleans(),
    retry_after=st.none() | seconds,
    infrastructure=st.booleans(),
    exit_code=st.none() | st.integers(-255, 255),
    exception=words,
    again=st.booleans(),
    outputs=objects,
    records=st.lists(objects, max_size=2).map(tuple),
    usage=st.builds(Usage, counts, seconds, seconds, counts, seconds),
    local_to=st.none() | words,
)
heartbeats = st.builds(
    Heartbeat,
    worker_id=words,
    host_id=words,
    boot_id=words,
    hostname=words,
    name=words,
    seq=counts,
    queues=st.lists(words, max_size=3).map(tuple),
    slots=counts,
    capacity=st.builds(
        Capacity,
        cpu=counts,
        memory=counts,
        gpus=st.lists(st.builds(GpuDevice, words, words, counts, words), max_size=2).map(tuple),
    ),
    labels=st.dictionaries(words, words, max_size=3),
    running=st.dictionaries(words, words, max_size=3),
    started=st.frozensets(words, max_size=3),
    dead=st.lists(words, max_size=3).map(tuple),
    draining=st.booleans(),
    store_scope=words,
    version=words,
)
grants = st.builds(
    GrantSpec,
    attempt_id=words,
    token=words,
    run_id=words,
    tenant_id=words,
    task=words,
    number=counts,
    operator=words,
    parameters=objects,
    run_parameters=objects,
    upstream_outputs=st.dictionaries(words, objects, max_size=2),
    connections=st.dictionaries(words, objects, max_size=2),
    resources=st.builds(Resources, counts, counts, counts, counts),
    devices=st.lists(words, max_size=2).map(tuple),
    timeout=st.none() | seconds,
    grace=seconds,
    exclusive=st.booleans(),
    generation=counts,
    registry_url=st.none() | words,
    progress_timeout=st.none() | seconds,
    outputs_schema=st.none() | objects,
)
controls = (
    st.builds(Denial, words, words, words)
    | st.builds(Answer, words, words, st.sampled_from(["committed", "fenced", "unknown"]))
    | st.builds(
        DesiredState,
        epoch=counts,
        hb_seq=counts,
        cancel=st.lists(st.tuples(words, seconds), max_size=3).map(tuple),
        fence=st.lists(words, max_size=3).map(tuple),
        drain=st.booleans(),
        gen=counts,
    )
)


@given(words, counts, words)
def test_a_claim_comes_out_as_it_went_in(attempt: str, seq: int, nonce: str) -> None:
    assert read_report("claim", "w", claim_body(attempt, seq, nonce)) == ClaimReceived("w", attempt, seq, nonce)


@given(outcomes)
def test_an_outcome_comes_out_as_it_went_in(outcome: Outcome) -> None:
    body = outcome_body("attempt", "token", "ran", outcome)
    assert read_report("outcome", "w", body) == OutcomeReceived("ran", "attempt", "token", outcome, reply_to="w")


@given(heartbeats)
def test_a_heartbeat_comes_out_as_it_went_in(heartbeat: Heartbeat) -> None:
    assert heartbeat_from_body(heartbeat_body(heartbeat)) == heartbeat


@given(grants)
def test_a_grant_comes_out_as_it_went_in(spec: GrantSpec) -> None:
    assert grant_from_body(grant_body(spec)) == spec


def test_a_grant_of_a_release_that_knew_no_generations_is_of_the_first() -> None:
    spec = GrantSpec("a", "token", "r", "t", "x", 1, "op", {}, generation=7)
    former = json.loads(grant_body(spec))
    del former["generation"]
    assert grant_from_body(json.dumps(former).encode()).generation == 1


def test_what_a_former_release_does_not_say_is_as_it_was_with_that_release() -> None:
    outcome = Outcome(AttemptState.FAILED, "not_yet", exception="x.Y", again=True, usage=Usage(setup_seconds=3.0))
    former = json.loads(outcome_body("a", "t", "w", outcome))
    del former["exception"], former["again"], former["usage"]["setup_seconds"]
    report = read_report("outcome", "w", json.dumps(former).encode())
    assert isinstance(report, OutcomeReceived)
    assert (report.outcome.exception, report.outcome.again, report.outcome.usage.setup_seconds) == ("", False, 0.0)
    spec = GrantSpec("a", "t", "r", "t", "x", 1, "op", {}, progress_timeout=5.0, outputs_schema={"type": "object"})
    granted = json.loads(grant_body(spec))
    del granted["progress_timeout"], granted["outputs_schema"]
    read = grant_from_body(json.dumps(granted).encode())
    assert (read.progress_timeout, read.outputs_schema) == (None, None)


@given(controls)
def test_a_control_message_comes_out_as_it_went_in(message: Denial | Answer | DesiredState) -> None:
    assert read_control(*control_body(message)) == message


GOOD: dict[str, Any] = {"attempt": "a", "token": "t", "worker": "w", "state": "succeeded"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b'{"attempt": "a"}',
        b'{"attempt": "a", "token": "t", "worker": "w", "state": "succeeded", "outputs": {"loss": NaN}}',
        b'{"attempt": "a", "token": "t", "worker": "w", "state": "succeeded", "outputs": {"loss": 1e999}}',
        b'{"attempt": "a", "token": "t", "worker": "w", "state": "succeeded", "outputs": {"n": ' + b"9" * 5000 + b"}}",
        b'{"outputs":' + b"[" * 100_000,
        json.dumps({**GOOD, "state": "running"}).encode(),
        json.dumps({**GOOD, "state": "expired"}).encode(),
        json.dumps({**GOOD, "attempt": 7}).encode(),
        json.dumps({**GOOD, "outputs": []}).encode(),
        json.dumps({**GOOD, "records": [1]}).encode(),
        json.dumps({**GOOD, "exit_code": True}).encode(),
        json.dumps({**GOOD, "exit_code": 2**63}).encode(),
        json.dumps({**GOOD, "usage": {"peak_memory": "much"}}).encode(),
        json.dumps({**GOOD, "message": "x" * MAX_REPORT_BYTES}).encode(),
    ],
)
def test_an_outcome_of_another_shape_is_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableMessage):
        read_report("outcome", "w", body)


@given(st.sampled_from(["claim", "outcome", "goodbye", "other"]), st.binary(max_size=100))
def test_noise_is_read_or_unreadable_and_nothing_else(kind: str, body: bytes) -> None:
    with contextlib.suppress(UnreadableMessage):
        read_report(kind, "w", body)
    with contextlib.suppress(UnreadableMessage):
        read_control(kind, body)


@given(st.sampled_from(["denial", "answer", "desired"]), objects)
def test_any_object_is_a_control_message_or_unreadable(kind: str, fields: dict[str, Any]) -> None:
    with contextlib.suppress(UnreadableMessage):
        read_control(kind, json.dumps(fields).encode())


def test_what_a_newer_side_adds_is_left_alone() -> None:
    body = json.dumps({"attempt": "a", "seq": 1, "nonce": "n", "colour": "blue"}).encode()
    assert read_report("claim", "w", body) == ClaimReceived("w", "a", 1, "n")


def test_an_unknown_verdict_is_unreadable() -> None:
    with pytest.raises(UnreadableMessage, match="'maybe'"):
        read_control("answer", b'{"attempt": "a", "token": "t", "verdict": "maybe"}')


def test_outputs_too_large_for_the_wire_are_not_sent() -> None:
    outcome = Outcome(AttemptState.SUCCEEDED, outputs={"text": "x" * MAX_REPORT_BYTES})
    with pytest.raises(TooLarge, match="artifact store"):
        outcome_body("a", "t", "w", outcome)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes", {1, 2}])
def test_outputs_that_are_no_json_are_not_sent(value: object) -> None:
    with pytest.raises(UnreadableMessage):
        outcome_body("a", "t", "w", Outcome(AttemptState.SUCCEEDED, outputs={"value": value}))


def test_a_grant_does_not_print_its_secrets() -> None:
    spec = GrantSpec("a", "secret-token", "r", "t", "x", 1, "op", {}, connections={"db": {"url": "secret-url"}})
    assert "secret" not in repr(spec)
