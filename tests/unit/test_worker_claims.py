"""Claims with a fake wire: what is granted is held first, anything else leaves no trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from orchestrator.errors import ForgedMessage, StoreUnavailable
from orchestrator.wire.messages import Denial, GrantSpec, SealedGrant
from workers.attempt_folder import is_safe_id
from workers.claim import Claims

pytestmark = pytest.mark.timeout(20)


class Wire:
    """Answers each claim at once, from another thread, as ``answer`` says."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, str]] = []
        self.answer: Callable[[str, str], None] = lambda attempt, nonce: None
        self.ages: list[float] = []
        self.is_away = False

    def claim(self, attempt_id: str, seq: int, nonce: str) -> None:
        self.sent.append((attempt_id, seq, nonce))
        if self.is_away:
            raise StoreUnavailable("away")
        threading.Thread(target=self.answer, args=(attempt_id, nonce)).start()

    def open(self, grant: SealedGrant, *, age: float) -> GrantSpec:
        self.ages.append(age)
        if grant.box == b"forged":
            raise ForgedMessage("forged")
        return GrantSpec(grant.attempt_id, "token", "run", "tenant", "task", 1, "probe", {})


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_a_granted_attempt_is_held_before_the_claimant_goes_on(wire: Wire) -> None:
    held: list[str] = []
    answered: list[bool] = []
    claims = Claims(wire, wire, lambda spec: held.append(spec.attempt_id))
    wire.answer = lambda attempt, nonce: answered.append(claims.deliver(SealedGrant(attempt, nonce, 30.0, b"")))
    spec = claims.ask("a", 1)
    assert spec is not None
    assert held == ["a"]
    assert 0 <= wire.ages[0] < 5


def test_a_denied_claim_is_nothing(wire: Wire) -> None:
    answered: list[bool] = []
    claims = Claims(wire, wire, lambda spec: pytest.fail("held"))
    wire.answer = lambda attempt, nonce: answered.append(claims.deliver(Denial(attempt, nonce, "superseded")))
    assert claims.ask("a", 1) is None
    assert answered == [True]


def test_a_claim_is_given_up_after_its_patience(wire: Wire) -> None:
    claims = Claims(wire, wire, lambda spec: pytest.fail("held"))
    assert claims.ask("a", 1, patience=0.1) is None
    assert not claims.deliver(SealedGrant("a", wire.sent[0][2], 30.0, b"")), "a late grant finds nobody"


def test_a_claim_is_sent_again_with_its_nonce_when_redis_was_reset(wire: Wire) -> None:
    claims = Claims(wire, wire, lambda spec: None)

    def answer(attempt: str, nonce: str) -> None:
        if len(wire.sent) == 1:
            claims.resend()
        else:
            claims.deliver(SealedGrant(attempt, nonce, 30.0, b""))

    wire.answer = answer
    assert claims.ask("a", 4) is not None
    assert wire.sent[0] == wire.sent[1]
    assert wire.sent[0][1] == 4


def test_redis_being_away_only_takes_patience(wire: Wire) -> None:
    wire.is_away = True
    claims = Claims(wire, wire, lambda spec: pytest.fail("held"))
    assert claims.ask("a", 1, patience=0.1) is None


@pytest.mark.parametrize("wrong", ["nonce", "attempt", "box"])
def test_a_grant_that_does_not_fit_its_claim_grants_nothing(wire: Wire, wrong: str) -> None:
    claims = Claims(wire, wire, lambda spec: pytest.fail("held"))
    delivered: list[bool] = []

    def answer(attempt: str, nonce: str) -> None:
        grant = SealedGrant(
            "b" if wrong == "attempt" else attempt,
            "other" if wrong == "nonce" else nonce,
            30.0,
            b"forged" if wrong == "box" else b"",
        )
        delivered.append(claims.deliver(grant))

    wire.answer = answer
    assert claims.ask("a", 1, patience=0.2) is None
    assert not any(delivered)


def test_a_double_hint_makes_one_claim(wire: Wire) -> None:
    claims = Claims(wire, wire, lambda spec: None)
    first = threading.Thread(target=claims.ask, args=("a", 1, 1.0))
    first.start()
    deadline = time.monotonic() + 5
    while not wire.sent and time.monotonic() < deadline:
        time.sleep(0.005)
    assert claims.ask("a", 2) is None
    assert len(wire.sent) == 1
    first.join()


@pytest.mark.parametrize("attempt", ["", ".", "..", "../x", "a/b", "a b", "a.json", "x" * 65, None, 7])
def test_a_hint_can_not_name_a_path(attempt: object) -> None:
    assert not is_safe_id(attempt)


@pytest.mark.parametrize("attempt", ["a", "0b1c", "6a9b0c9e-52a2-4a6e-9d2f-111111111111"])
def test_ids_as_they_are_made_are_accepted(attempt: str) -> None:
    assert is_safe_id(attempt)
