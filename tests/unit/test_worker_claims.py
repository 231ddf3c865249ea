"""Claims with a fake wire: what is granted is held first, anything else leaves no trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from orchestrator.errors import ForgedMessage, StoreUnavailable
from orchestrator.nonces import claim_of, nth, sending_of
from orchestrator.wire.messages import Denial, GrantSpec, SealedGrant
from workers.attempt_folder import is_safe_id
from workers.claim import Claims

pytestmark = pytest.mark.timeout(90)


class Wire:
    """Answers each claim at once, from another thread, as ``answer`` says."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, str]] = []
        self.answer: Callable[[str, str], None] = lambda attempt, nonce: None
        self.before_claim_returns: Callable[[], object] = lambda: None
        self.ages: list[float] = []
        self.is_away = False
        self.unread: set[str] = set()
        self.looked_for: list[str] = []

    def claim(self, attempt_id: str, seq: int, nonce: str) -> str:
        self.sent.append((attempt_id, seq, nonce))
        if self.is_away:
            raise StoreUnavailable("away")
        threading.Thread(target=self.answer, args=(attempt_id, nonce)).start()
        self.before_claim_returns()
        return f"entry-{len(self.sent)}"

    def is_unread(self, entry_id: str) -> bool:
        self.looked_for.append(entry_id)
        return entry_id in self.unread

    def open(self, grant: SealedGrant, *, age: float) -> GrantSpec:
        self.ages.append(age)
        if grant.box == b"forged":
            raise ForgedMessage("forged")
        return GrantSpec(grant.attempt_id, "token", "run", "tenant", "task", 1, "probe", {})


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have claims sent again every hundredth of a second."""
    monkeypatch.setattr("workers.claim.FIRST_DELAY", 0.01)
    monkeypatch.setattr("workers.claim.LONGEST_DELAY", 0.01)


def asking(claims: Claims) -> tuple[threading.Thread, list[GrantSpec | None]]:
    """Claim in another thread; returns it and what will hold the answer."""
    answers: list[GrantSpec | None] = []
    thread = threading.Thread(target=lambda: answers.append(claims.ask("a", 1)))
    thread.start()
    return thread, answers


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_granted_attempt_is_held_before_the_claimant_goes_on(wire: Wire) -> None:
    held: list[str] = []
    answered: list[bool] = []
    claims = Claims(wire, wire, lambda spec: held.append(spec.attempt_id))
    wire.answer = lambda attempt, nonce: answered.append(claims.deliver(SealedGrant(attempt, nonce, 30.0, b"")))
    spec = claims.ask("a", 1)
    assert spec is not None
    assert held == ["a"]
    assert 0 <= wire.ages[0] < 30


def test_a_denied_claim_is_nothing(wire: Wire) -> None:
    answered: list[bool] = []
    claims = Claims(wire, wire, lambda spec: pytest.fail("held"))
    wire.answer = lambda attempt, nonce: answered.append(claims.deliver(Denial(attempt, nonce, "superseded")))
    assert claims.ask("a", 1) is None
    assert answered == [True]


def test_a_claim_is_given_up_when_the_worker_leaves(wire: Wire) -> None:
    claims = Claims(wire, wire, lambda spec: pytest.fail("held"))
    thread, answers = asking(claims)
    wait_for(lambda: bool(wire.sent))
    claims.give_up()
    thread.join(30)
    assert answers == [None]
    assert not claims.deliver(SealedGrant("a", wire.sent[0][2], 30.0, b"")), "a late grant finds nobody"
    assert claims.ask("b", 1) is None, "nothing is claimed any more"
    assert len(wire.sent) == 1


@pytest.mark.usefixtures("quick")
def test_a_claim_is_repeated_however_long_nobody_answers(wire: Wire) -> None:
    claims = Claims(wire, wire, lambda spec: None)
    thread, answers = asking(claims)
    wait_for(lambda: len(wire.sent) >= 50)
    assert len({claim_of(nonce) for _, _, nonce in wire.sent}) == 1
    assert [sending_of(nonce) for _, _, nonce in wire.sent] == list(range(1, len(wire.sent) + 1))
    claims.deliver(SealedGrant("a", wire.sent[0][2], 30.0, b""))
    thread.join(30)
    assert answers[0] is not None


@pytest.mark.usefixtures("quick")
def test_a_claim_that_still_waits_on_the_stream_is_not_sent_again(wire: Wire) -> None:
    claims = Claims(wire, wire, lambda spec: None)
    wire.unread = {"entry-1"}
    thread, _ = asking(claims)
    wait_for(lambda: len(wire.looked_for) >= 5)
    assert len(wire.sent) == 1
    wire.unread = set()
    wait_for(lambda: len(wire.sent) >= 2)
    claims.give_up()
    thread.join(30)


def test_a_grant_that_came_too_late_is_asked_for_again_at_once(wire: Wire) -> None:
    now = [100.0]
    claims = Claims(wire, wire, lambda spec: None, clock=lambda: now[0])
    wire.unread = {"entry-1", "entry-2"}
    late = threading.Event()

    def answer_late(attempt: str, nonce: str) -> None:
        if len(wire.sent) == 1:
            now[0] += 40.0
            assert not claims.deliver(SealedGrant(attempt, nonce, 30.0, b"forged"))
            late.set()

    wire.answer = answer_late
    wire.before_claim_returns = lambda: late.wait(30)  # the answer may be quicker than the return of what it answers
    thread, answers = asking(claims)
    wait_for(lambda: len(wire.sent) == 2)
    assert claims.deliver(SealedGrant("a", wire.sent[1][2], 30.0, b""))
    thread.join(30)
    assert wire.ages == [40.0, 0.0]
    assert answers[0] is not None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("away", [True, False])
def test_an_old_grant_is_not_made_young_by_what_was_sent_since(wire: Wire, away: bool) -> None:
    now = [100.0]
    claims = Claims(wire, wire, lambda spec: None, clock=lambda: now[0])
    thread, _ = asking(claims)
    wait_for(lambda: len(wire.sent) == 1)
    first = wire.sent[0][2]
    wire.is_away = away
    now[0] += 45.0
    wait_for(lambda: len(wire.sent) >= 3)
    claims.deliver(SealedGrant("a", first, 30.0, b"forged"))
    assert wire.ages == [45.0]
    claims.give_up()
    thread.join(30)


def test_a_nonce_says_which_sending_of_which_claim_it_is() -> None:
    assert (claim_of(nth("c", 3)), sending_of(nth("c", 3))) == ("c", 3)
    assert (claim_of("of-an-older-release"), sending_of("of-an-older-release")) == ("of-an-older-release", 0)
    assert [sending_of(f"c.{odd}") for odd in ("", "x", "-1", "٣", "1" * 30)] == [0] * 5


def test_a_claim_is_sent_again_when_redis_was_reset(wire: Wire) -> None:
    claims = Claims(wire, wire, lambda spec: None)

    def answer(attempt: str, nonce: str) -> None:
        if len(wire.sent) == 1:
            claims.resend()
        else:
            claims.deliver(SealedGrant(attempt, nonce, 30.0, b""))

    wire.answer = answer
    assert claims.ask("a", 4) is not None
    assert [(seq, claim_of(nonce)) for _, seq, nonce in wire.sent] == [(4, claim_of(wire.sent[0][2]))] * 2


@pytest.mark.usefixtures("quick")
def test_redis_being_away_only_delays_a_claim(wire: Wire) -> None:
    wire.is_away = True
    claims = Claims(wire, wire, lambda spec: None)

    def answer(attempt: str, nonce: str) -> None:
        claims.deliver(SealedGrant(attempt, nonce, 30.0, b""))

    wire.answer = answer
    thread, answers = asking(claims)
    wait_for(lambda: len(wire.sent) >= 3)
    wire.is_away = False
    thread.join(30)
    assert answers[0] is not None


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
    thread, answers = asking(claims)
    wait_for(lambda: bool(delivered))
    claims.give_up()
    thread.join(30)
    assert answers == [None]
    assert not any(delivered)


def test_a_double_hint_makes_one_claim(wire: Wire) -> None:
    claims = Claims(wire, wire, lambda spec: None)
    first, _ = asking(claims)
    wait_for(lambda: bool(wire.sent))
    assert claims.ask("a", 2) is None
    assert len(wire.sent) == 1
    claims.give_up()
    first.join()


@pytest.mark.parametrize("attempt", ["", ".", "..", "../x", "a/b", "a b", "a.json", "x" * 65, None, 7])
def test_a_hint_can_not_name_a_path(attempt: object) -> None:
    assert not is_safe_id(attempt)


@pytest.mark.parametrize("attempt", ["a", "0b1c", "6a9b0c9e-52a2-4a6e-9d2f-111111111111"])
def test_ids_as_they_are_made_are_accepted(attempt: str) -> None:
    assert is_safe_id(attempt)
