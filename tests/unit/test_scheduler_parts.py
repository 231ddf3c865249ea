"""The parts of the scheduler that need no stores: giving up, grants, registrations, and what a row can hold."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from types import MappingProxyType

import pytest

from orchestrator.effects import Count, Effect, SendAnswer, SendDenial, SendGrant, SendHint, Transition
from orchestrator.errors import StoreUnavailable
from orchestrator.events import OutcomeReceived
from orchestrator.records import AttemptRecord, InputLink, Outcome, PlannedTask, Resources, RunInput
from orchestrator.states import AttemptState, Entity, RunState
from orchestrator.store.fold import fold
from orchestrator.store.lease import Lease
from orchestrator.store.loader import MOST_TASKS
from orchestrator.store.sight import resolve_parameters
from orchestrator.store.text_safety import storable, storable_json
from orchestrator.watchdog import EXIT_STATUS, Pulse, Watchdog
from orchestrator.wire.messages import Answer, Denial, Grant, GrantSpec
from scheduler.lease_keeper import LeaseKeeper
from scheduler.outbox import HintsLost, Outbox, messages_of
from scheduler.registered_models import Registry
from scheduler.troubles import LONGEST_PUT_OFF, PUT_OFF_SECONDS, ROUNDS, TRIES, Troubles

TASK = PlannedTask(
    "train",
    "model_training",
    links=(InputLink("dataset", "dataset", "ingest"),),
    run_inputs=(RunInput("baseline", "model", required=False),),
)


def test_an_input_takes_what_its_source_left() -> None:
    upstream = {"ingest": {"dataset": {"uri": "artifact://x"}}}
    assert resolve_parameters(TASK, upstream, {"dataset": "other"}) == {"dataset": "artifact://x"}


def test_a_tasks_own_value_wins_over_what_is_upstream() -> None:
    own = replace(TASK, parameters={"dataset": "mine.csv"})
    upstream = {"ingest": {"dataset": {"uri": "artifact://x"}}}
    assert resolve_parameters(own, upstream, {"dataset": "other"}) == {"dataset": "mine.csv"}


def test_an_input_whose_source_left_nothing_takes_the_runs_parameter() -> None:
    assert resolve_parameters(TASK, {}, {"dataset": "given.csv", "colour": "red"}) == {"dataset": "given.csv"}
    assert resolve_parameters(TASK, {"ingest": {}}, {}) == {}


def test_an_input_that_no_ancestor_makes_takes_the_runs_parameter() -> None:
    assert resolve_parameters(TASK, {}, {"baseline": "artifact://m"}) == {"baseline": "artifact://m"}


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a\x00b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("🙂", "🙂"),
        ({"k\x00": [1, float("inf"), None, True]}, {"k\ufffd": [1, None, None, True]}),
        ((1, "x"), [1, "x"]),
        ("written \\u0000 and \\ud800", "written \\u0000 and \\ud800"),
        (MappingProxyType({"a": "\x00"}), {"a": "\ufffd"}),
        ({1: AttemptState.LOST}, {"1": "lost"}),
    ],
)
def test_every_value_becomes_one_that_a_row_can_hold(value: object, stored: object) -> None:
    assert storable(value) == stored
    assert json.loads(storable_json(value)) == stored


def test_one_row_is_written_once_however_often_it_moves() -> None:
    def move(before: RunState, after: RunState) -> Transition:
        return Transition(Entity.RUN, "r", before, after, "test", run_id="r")

    net = fold([move(RunState.QUEUED, RunState.RUNNING), move(RunState.RUNNING, RunState.SUCCESS)])
    [row] = net.updates[Entity.RUN].values()
    assert (row.before, row.after) == ("queued", "success")
    assert {"started_at", "ended_at"} <= row.columns.keys()
    assert [event["after"] for event in net.events] == ["running", "success"]


def test_counts_of_one_kind_are_added_up() -> None:
    assert fold([Count("denied", "a"), Count("denied", "b")]).counts == {"denied": (2, "b")}


def outcome(version: str, digest: str) -> Outcome:
    record = {"kind": "model", "name": "m", "version": version, "digest": digest}
    return Outcome(AttemptState.SUCCEEDED, records=(record,))


def test_the_next_version_counts_on_from_the_highest_number() -> None:
    registry = Registry({("t", "m"): {"2": "a", "10": "b", "beta": "c"}})
    assert registry.settle("t", outcome("", "d")).records[0]["version"] == "11"
    assert registry.settle("other", outcome("", "d")).records[0]["version"] == "1"


def test_another_digest_under_a_registered_version_is_a_conflict() -> None:
    registry = Registry({("t", "m"): {"1": "a"}})
    assert registry.settle("t", outcome("1", "a")).state is AttemptState.SUCCEEDED
    refused = registry.settle("t", outcome("1", "b"))
    assert (refused.state, refused.reason, refused.retryable) == (AttemptState.FAILED, "registry_conflict", False)
    assert refused.records == ()


def test_an_outcome_that_is_refused_for_one_model_takes_no_version_of_another() -> None:
    registry = Registry({("t", "m"): {"7": "old"}})
    free = {"kind": "model", "name": "other", "digest": "d"}
    conflicting = {"kind": "model", "name": "m", "version": "7", "digest": "new"}
    both = Outcome(AttemptState.SUCCEEDED, records=(free, conflicting))
    assert registry.settle("t", both).state is AttemptState.FAILED
    twice = Outcome(AttemptState.SUCCEEDED, records=(free, free))
    assert [record["version"] for record in registry.settle("t", twice).records] == ["1", "2"]


def test_a_report_that_fails_alone_every_time_is_hopeless() -> None:
    troubles = Troubles()
    assert troubles.batch > 1
    for _ in range(TRIES):
        assert troubles.hopeless(["1-0"], []) == []
        assert troubles.may_go_on(["1-0"])
        troubles.back_off()
        assert troubles.batch == 1
    assert troubles.hopeless(["1-0"], []) == ["1-0"]
    assert troubles.hopeless(["1-0", "2-0"], []) == []


def test_an_outcome_that_can_not_be_stored_becomes_a_failure_before_it_is_dropped() -> None:
    troubles = Troubles()
    report = OutcomeReceived("w", "a", "token", outcome("1", "d"))
    other = replace(report, attempt_id="b")
    for _ in range(TRIES):
        troubles.may_go_on(["1-0"])
    assert troubles.hopeless(["1-0"], [report]) == []
    mended, untouched = troubles.mend([report, other])
    assert isinstance(mended, OutcomeReceived)
    assert (mended.token, mended.outcome.state, mended.outcome.reason) == ("token", "failed", "unusable_report")
    assert untouched is other
    for _ in range(TRIES):
        troubles.may_go_on(["1-0"])
    assert troubles.hopeless(["1-0"], [mended]) == ["1-0"]


def test_after_many_failed_rounds_in_a_row_the_process_gives_itself_up() -> None:
    troubles = Troubles()
    for _ in range(ROUNDS):
        assert troubles.may_go_on([])
        troubles.back_off()
    assert not troubles.may_go_on([])
    troubles.passed()
    assert troubles.may_go_on([])


def test_after_a_failed_round_one_command_is_tried_and_then_more_with_each_that_passes() -> None:
    troubles = Troubles()
    assert troubles.most_tasks == MOST_TASKS
    troubles.back_off()
    assert troubles.most_tasks == 1
    troubles.passed()
    assert troubles.most_tasks == 2
    for _ in range(20):
        troubles.passed()
    assert troubles.most_tasks == MOST_TASKS


def test_a_command_that_fails_alone_every_time_waits_while_others_are_tried() -> None:
    troubles = Troubles()
    for _ in range(2 * TRIES):
        assert not troubles.note_taken([7, 8], [], 0.0)
        assert not troubles.note_taken([7], ["r"], 0.0)
    for _ in range(TRIES):
        assert troubles.put_off(0.0) == frozenset()
        troubles.note_taken([7], [], 0.0)
    assert troubles.put_off(0.0) == {7}
    assert troubles.put_off(PUT_OFF_SECONDS) == frozenset()
    troubles.note_taken([7], [], PUT_OFF_SECONDS)
    assert troubles.put_off(PUT_OFF_SECONDS + 1.0) == {7}


def test_a_run_that_fails_alone_every_time_waits_longer_with_each_failure_and_never_for_ever() -> None:
    troubles, now = Troubles(), 0.0
    for _ in range(2 * TRIES):
        troubles.note_taken([], ["r", "other"], now)
    for _ in range(TRIES):
        assert troubles.put_off_runs(now) == frozenset()
        troubles.note_taken([], ["r"], now)
    for further in range(1_000):
        assert troubles.put_off(now) == frozenset()
        now += min(LONGEST_PUT_OFF, PUT_OFF_SECONDS * 2**further)
        assert troubles.put_off_runs(now - 1.0) == {"r"}
        assert troubles.put_off_runs(now) == frozenset()
        assert troubles.note_taken([], ["r"], now)


@pytest.mark.timeout(10)
def test_the_watchdog_ends_a_process_whose_main_loop_stands_still() -> None:
    ended = threading.Event()
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    watchdog = Watchdog(Pulse(), limit=0.05, end=end)
    watchdog.start()
    assert ended.wait(5)
    watchdog.stop()
    assert statuses == [EXIT_STATUS]


@pytest.mark.timeout(10)
def test_the_watchdog_lets_a_beating_pulse_live() -> None:
    now = [0.0]
    pulse = Pulse(lambda: now[0])
    now[0] = 29.0
    assert pulse.age() == 29.0
    pulse.beat()
    assert pulse.age() == 0.0


class Replies:
    def __init__(self, *, fail: bool = False) -> None:
        self.sent: list[object] = []
        self._fail = fail

    def send(self, replies: list[object]) -> None:
        if self._fail:
            raise StoreUnavailable("away")
        self.sent += replies


class Hints:
    def __init__(self, failures: int = 0) -> None:
        self.sent: list[SendHint] = []
        self._failures = failures

    def publish(self, hints: list[SendHint]) -> None:
        if self._failures:
            self._failures -= 1
            raise StoreUnavailable("away")
        self.sent += hints


ATTEMPT = AttemptRecord("a", "r", "k", 1, "cpu", Resources(), "h", "w", "token")
SPEC = GrantSpec("a", "token", "r", "t", "task", 1, "custom_script", {})
HINT = SendHint("b", 1, "cpu")


def test_effects_become_messages_and_a_grant_without_specification_is_left_out() -> None:
    effects: list[Effect] = [
        SendGrant(ATTEMPT, "n"),
        SendGrant(replace(ATTEMPT, id="other"), "n"),
        SendDenial("w", "x", "m", "superseded"),
        SendAnswer("w", "y", "token", "committed"),
        HINT,
    ]
    messages = messages_of(effects, {"a": SPEC})
    assert messages.replies == [
        ("w", Grant(SPEC, "n")),
        ("w", Denial("x", "m", "superseded")),
        ("w", Answer("y", "token", "committed")),
    ]
    assert messages.hints == [HINT]


def test_a_hint_that_meets_a_cut_connection_is_tried_once_more() -> None:
    hints = Hints(failures=1)
    Outbox(Replies(), hints).send(messages_of([HINT], {}))  # type: ignore[arg-type]
    assert hints.sent == [HINT]


@pytest.mark.parametrize(("replies_fail", "failures"), [(True, 0), (False, 2)])
def test_hints_that_may_not_have_arrived_are_said_to_be_lost(replies_fail: bool, failures: int) -> None:
    outbox = Outbox(Replies(fail=replies_fail), Hints(failures))  # type: ignore[arg-type]
    with pytest.raises(HintsLost):
        outbox.send(messages_of([HINT, SendAnswer("w", "y", "token", "committed")], {}))


class BrokenOnce(Lease):
    """A lease whose first renewal fails in a way that nobody foresaw."""

    def __init__(self) -> None:
        self.ttl = 0.1
        self.epoch = 1
        self.tries = 0
        self.renewed = threading.Event()

    def renew(self) -> None:
        self.tries += 1
        if self.tries == 1:
            raise ValueError("unforeseen")
        self.renewed.set()


def test_the_keeper_keeps_renewing_after_a_failure_that_nobody_foresaw() -> None:
    lease = BrokenOnce()
    keeper = LeaseKeeper(lease, Pulse())
    keeper.start()
    assert lease.renewed.wait(10)
    keeper.check()
    keeper.stop()
