"""The spool and the sender of outcomes: nothing is dropped before it is answered."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from orchestrator.errors import StoreUnavailable, TooLarge
from orchestrator.records import Outcome
from orchestrator.states import AttemptState
from orchestrator.wire.messages import Answer, outcome_report
from workers.outcomes import OutcomeSender
from workers.spool import KEPT_SECONDS, Spool

DONE = Outcome(AttemptState.SUCCEEDED, outputs={"rows": 3})


class Reporter:
    def __init__(self) -> None:
        self.sent: list[str] = []
        self.is_away = False
        self.is_read = True

    def outcome_from_spool(self, body: bytes) -> str:
        if self.is_away:
            raise StoreUnavailable("away")
        self.sent.append(outcome_report(body)[0])
        return f"entry-{len(self.sent)}"

    def is_unread(self, entry_id: str) -> bool:
        assert entry_id == f"entry-{len(self.sent)}"
        return not self.is_read


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def sender(spool: Spool, reporter: Reporter, clock: Clock, ended: frozenset[str] = frozenset()) -> OutcomeSender:
    return OutcomeSender(spool, reporter, "me", lambda incarnation: incarnation in ended, clock)


def test_what_is_written_is_read_back(spool: Spool) -> None:
    assert spool.write("a", "token", "me", DONE)
    found = spool.read("a")
    assert found is not None
    assert (found.attempt_id, found.token, found.worker_id, found.outcome) == ("a", "token", "me", DONE)
    assert [spooled.attempt_id for spooled in spool.waiting()] == ["a"]


def test_the_first_outcome_of_an_attempt_stands(spool: Spool) -> None:
    assert spool.write("a", "token", "me", DONE)
    assert not spool.write("a", "token", "me", Outcome(AttemptState.LOST))
    found = spool.read("a")
    assert found is not None
    assert found.outcome == DONE
    assert not [file for file in spool.folder.iterdir() if file.name.startswith(".")]


def test_committed_is_removed_and_the_rest_is_kept_for_a_day(spool: Spool) -> None:
    for attempt in ("a", "b", "c"):
        spool.write(attempt, "token", "me", DONE)
    spool.answer("a", "committed")
    spool.answer("b", "fenced")
    spool.answer("c", "unknown")
    assert not list(spool.waiting())
    assert sorted(file.name for file in spool.folder.iterdir()) == ["b.json.fenced", "c.json.unknown"]
    assert not spool.write("b", "token", "me", DONE), "a fenced attempt gets no second outcome"
    spool.forget_old()
    assert len(list(spool.folder.iterdir())) == 2
    spool.forget_old(time.time() + KEPT_SECONDS + 1)
    assert not list(spool.folder.iterdir())


def test_an_unreadable_file_is_put_aside_and_stops_nothing(spool: Spool) -> None:
    (spool.folder / "bad.json").write_bytes(b'{"attempt": "bad"')
    spool.write("good", "token", "me", DONE)
    assert [spooled.attempt_id for spooled in spool.waiting()] == ["good"]
    assert (spool.folder / "bad.json.unknown").exists()


def test_what_the_wire_can_not_take_is_refused_before_it_is_written(spool: Spool) -> None:
    with pytest.raises(TooLarge):
        spool.write("a", "token", "me", Outcome(AttemptState.SUCCEEDED, outputs={"text": "x" * 2**20}))
    assert not list(spool.folder.iterdir())


def test_a_temporary_file_of_a_killed_process_is_no_outcome(spool: Spool) -> None:
    stray = spool.folder / ".a.json.123"
    stray.write_bytes(b"{")
    assert not list(spool.waiting())
    os.utime(stray, (0, 0))
    spool.forget_old()
    assert not stray.exists()


def test_an_outcome_is_sent_after_2_4_8_and_at_most_30_seconds(spool: Spool, clock: Clock) -> None:
    reporter = Reporter()
    outcomes = sender(spool, reporter, clock)
    spool.write("a", "token", "me", DONE)
    outcomes.add("a")
    times: list[float] = []
    for _ in range(100):
        before = len(reporter.sent)
        outcomes.send_due()
        if len(reporter.sent) > before:
            times.append(clock.now - 100)
        clock.now += 1
    assert times[:6] == [0, 2, 6, 14, 30, 60]


def test_an_outcome_that_nobody_has_read_yet_is_not_sent_again(spool: Spool, clock: Clock) -> None:
    reporter = Reporter()
    outcomes = sender(spool, reporter, clock)
    spool.write("a", "token", "me", DONE)
    outcomes.add("a")
    reporter.is_read = False
    for _ in range(600):
        outcomes.send_due()
        clock.now += 1
    assert reporter.sent == ["a"]
    reporter.is_read = True
    clock.now += 30
    outcomes.send_due()
    assert reporter.sent == ["a", "a"], "it was read, and its answer was lost"


def test_only_an_answer_with_its_token_ends_the_sending(spool: Spool, clock: Clock) -> None:
    outcomes = sender(spool, Reporter(), clock)
    spool.write("a", "token", "me", DONE)
    outcomes.add("a")
    assert not outcomes.take_answer(Answer("a", "another", "committed"))
    assert outcomes.next_at() is not None
    assert outcomes.take_answer(Answer("a", "token", "committed"))
    assert outcomes.next_at() is None
    assert not spool.has("a")


def test_redis_being_away_keeps_an_outcome_due(spool: Spool, clock: Clock) -> None:
    reporter = Reporter()
    outcomes = sender(spool, reporter, clock)
    spool.write("a", "token", "me", DONE)
    outcomes.add("a")
    reporter.is_away = True
    with pytest.raises(StoreUnavailable):
        outcomes.send_due()
    reporter.is_away = False
    outcomes.send_due()
    assert reporter.sent == ["a"]


def test_a_reset_of_redis_sends_all_again_at_once(spool: Spool, clock: Clock) -> None:
    reporter = Reporter()
    outcomes = sender(spool, reporter, clock)
    spool.write("a", "token", "me", DONE)
    outcomes.add("a")
    outcomes.send_due()
    outcomes.send_due()
    assert reporter.sent == ["a"]
    outcomes.hurry()
    outcomes.send_due()
    assert reporter.sent == ["a", "a"]


def test_outcomes_of_a_living_neighbour_are_left_to_it(spool: Spool, clock: Clock) -> None:
    reporter = Reporter()
    outcomes = sender(spool, reporter, clock, frozenset({"dead"}))
    for worker in ("me", "dead", "neighbour"):
        spool.write(f"of-{worker}", "token", worker, DONE)
    outcomes.look()
    outcomes.send_due()
    assert sorted(reporter.sent) == ["of-dead", "of-me"]
