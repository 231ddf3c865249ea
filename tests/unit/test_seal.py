"""Seals: what is altered, copied to another worker or too old does not open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ForgedMessage
from orchestrator.wire.seal import Seal

SEAL = Seal("the key of the site")
names = st.text(max_size=40)


@given(names, names, st.binary(max_size=200))
def test_a_report_is_accepted_as_it_was_sealed(incarnation: str, kind: str, body: bytes) -> None:
    SEAL.check_report(incarnation, kind, body, SEAL.report_mac(incarnation, kind, body))


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_report_with_any_bit_flipped_is_forged(body: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * len(body) - 1))
    altered = bytearray(body)
    altered[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ForgedMessage):
        SEAL.check_report("worker", "claim", bytes(altered), SEAL.report_mac("worker", "claim", body))


@pytest.mark.parametrize(
    ("incarnation", "kind"), [("other", "claim"), ("worker", "outcome"), ("worke", "rclaim"), ("workerclaim", "")]
)
def test_a_report_is_bound_to_its_worker_and_kind(incarnation: str, kind: str) -> None:
    with pytest.raises(ForgedMessage):
        SEAL.check_report(incarnation, kind, b"{}", SEAL.report_mac("worker", "claim", b"{}"))


@pytest.mark.parametrize("mac", [b"", b"x", b"\0" * 32, "ü".encode()])
def test_a_mac_of_any_other_shape_is_forged(mac: bytes) -> None:
    with pytest.raises(ForgedMessage):
        SEAL.check_report("worker", "claim", b"{}", mac)


def test_reports_and_control_messages_have_different_keys() -> None:
    mac = SEAL.report_mac("worker", "denial", b"{}")
    with pytest.raises(ForgedMessage):
        SEAL.check_control("worker", "denial", b"{}", mac)
    SEAL.check_control("worker", "denial", b"{}", SEAL.control_mac("worker", "denial", b"{}"))


def test_another_site_key_is_named_as_the_likely_cause() -> None:
    with pytest.raises(ForgedMessage, match="WORKER_KEY"):
        SEAL.check_report("worker", "claim", b"{}", Seal("another").report_mac("worker", "claim", b"{}"))


def open_grant(box: bytes, **changes: object) -> bytes:
    arguments: dict[str, object] = {"incarnation": "worker", "attempt_id": "attempt", "nonce": "nonce", "box": box}
    arguments |= {"lifetime": 30.0, "age": 1.0} | changes
    return SEAL.open_grant(**arguments)  # type: ignore[arg-type]


@given(st.binary(max_size=500))
def test_a_grant_opens_for_whom_it_was_made(body: bytes) -> None:
    assert open_grant(SEAL.seal_grant("worker", "attempt", "nonce", body)) == body


@pytest.mark.parametrize(
    "changes",
    [
        {"incarnation": "other"},
        {"attempt_id": "other"},
        {"nonce": "other"},
        {"attempt_id": "attemptn", "nonce": "once"},
        {"lifetime": 3600.0},
        {"age": 30.1},
        {"age": -1.0},
        {"age": float("nan")},
    ],
)
def test_a_grant_replayed_elsewhere_stretched_or_expired_does_not_open(changes: dict[str, object]) -> None:
    box = SEAL.seal_grant("worker", "attempt", "nonce", b"secret")
    with pytest.raises(ForgedMessage):
        open_grant(box, **changes)


@given(st.data())
def test_a_grant_with_any_bit_flipped_does_not_open(data: st.DataObject) -> None:
    box = bytearray(SEAL.seal_grant("worker", "attempt", "nonce", b"secret"))
    bit = data.draw(st.integers(0, 8 * len(box) - 1))
    box[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ForgedMessage):
        open_grant(bytes(box))


@given(st.binary(max_size=60))
def test_noise_is_no_grant(noise: bytes) -> None:
    with pytest.raises(ForgedMessage):
        open_grant(noise)


def test_two_grants_of_the_same_text_look_different() -> None:
    assert SEAL.seal_grant("w", "a", "n", b"x") != SEAL.seal_grant("w", "a", "n", b"x")


def test_a_seal_does_not_print_its_key() -> None:
    assert "key" not in repr(SEAL)
