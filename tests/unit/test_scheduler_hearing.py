"""What the scheduler tells the rules of its own deafness: Redis or PostgreSQL away, reports unread, failed rounds."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.config import Settings
from orchestrator.errors import StaleMemory, StoreUnavailable
from orchestrator.events import Event, ReconcileDue, RedisAway, RedisBack, WorkerLeft
from orchestrator.kernel import Snapshot
from orchestrator.records import WorkerRecord
from orchestrator.states import WorkerState
from orchestrator.watchdog import Pulse
from orchestrator.wire.heartbeats import HeartbeatsRead
from orchestrator.wire.stream import StreamEntry
from scheduler import term as term_module
from scheduler.inbox import Inbox
from scheduler.term import Term
from scheduler.transaction import Committed, Round
from scheduler.troubles import ROUNDS, TRIES


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Redis:
    """The stream, the heartbeats and the generation counter, which may be away."""

    value = 7

    def __init__(self) -> None:
        self.is_away = False
        self.age = 0.0
        self.entries: list[StreamEntry] = []
        self.acknowledged: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Callable[..., Any]] = {
            "advance": lambda: False,
            "oldest_unread_age": lambda: self.age,
            "read_changed": lambda: HeartbeatsRead(()),
            "read": lambda batch, _block: self.entries[:batch],
            "ack": self._ack,
        }

        def answer(*arguments: Any) -> Any:
            if name in {"take_over", "forget", "ensure_group"}:
                return None
            if self.is_away:
                raise StoreUnavailable("Redis is away.")
            return answers[name](*arguments)

        return answer

    def _ack(self, ids: list[str]) -> None:
        self.acknowledged += ids
        self.entries = [entry for entry in self.entries if entry.id not in ids]


def inbox_at(clock: Clock, redis: Any) -> Inbox:
    inbox = Inbox(redis, None, None, "me", heartbeat=5.0, redispatch=20.0, clock=clock)  # type: ignore[arg-type]
    inbox._stream = inbox._heartbeats = inbox._generation = redis
    return inbox


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Redis:
    made = Redis()
    for name in ("EventStream", "HeartbeatReader", "GenerationCounter"):
        monkeypatch.setattr(f"scheduler.inbox.{name}", lambda *_arguments: made)
    return made


@pytest.fixture
def inbox(clock: Clock, redis: Redis) -> Inbox:
    inbox = inbox_at(clock, redis)
    inbox.start_over(messages_in_doubt=False)
    inbox.gather(0.0)
    inbox.acknowledge([])
    return inbox


def test_an_absence_begins_when_redis_answered_last(inbox: Inbox, redis: Redis, clock: Clock) -> None:
    clock.now += 3
    redis.is_away = True
    assert inbox.gather(0.0).events == [RedisAway(since=1000.0)]


def test_a_memory_that_is_made_during_or_after_an_absence_is_told_of_it(
    inbox: Inbox, redis: Redis, clock: Clock
) -> None:
    clock.now += 3
    redis.is_away = True
    inbox.gather(0.0)
    inbox.start_over(messages_in_doubt=False)
    assert inbox.take_news() == [RedisAway(since=1000.0)]
    redis.is_away = False
    clock.now += 60
    for _ in range(2):
        inbox.start_over(messages_in_doubt=False)
        assert inbox.take_news() == [RedisBack(reset=False, since=1000.0)], "its round may not be committed"
    inbox.acknowledge([])
    inbox.start_over(messages_in_doubt=False)
    assert inbox.take_news() == []


def test_reports_are_read_up_to_the_age_of_the_oldest_on_the_stream(inbox: Inbox, redis: Redis, clock: Clock) -> None:
    clock.now += 1
    assert inbox.gather(0.0).read_until == clock.now
    clock.now += 1
    redis.age = 30.0
    assert inbox.gather(0.0).read_until == clock.now - 30
    clock.now += 0.5
    assert inbox.gather(0.0).read_until == clock.now - 30.5, "looked at once a second"
    redis.is_away = True
    clock.now += 1
    assert inbox.gather(0.0).read_until == -math.inf


def test_after_a_rebuild_nothing_counts_as_read_before_it_is(inbox: Inbox, redis: Redis, clock: Clock) -> None:
    inbox.start_over(messages_in_doubt=False)
    redis.age = 12.0
    assert inbox.gather(0.0).read_until == clock.now - 12


class FakeLeader:
    """Commits nothing, and fails as it is told."""

    plans = None
    taking: tuple[int, ...] = ()
    starting: tuple[str, ...] = ()
    is_answered_soon = False

    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self.at_work: dict[str, str] = {}
        self.fails: Callable[[Round], Exception | None] = lambda _round: None

    def begin(self) -> None:
        pass

    def take_in(self, _kernel: object, round_: Round) -> Committed:
        self.rounds.append(round_)
        if (error := self.fails(round_)) is not None:
            raise error
        return Committed()


class FakeEngine:
    @contextmanager
    def connect(self) -> Iterator[Any]:
        yield self

    def execution_options(self, **_options: str) -> None:
        pass


class FakeLease:
    holder, epoch = "me", 1


@pytest.fixture
def leader() -> FakeLeader:
    return FakeLeader()


def worker() -> WorkerRecord:
    return WorkerRecord("w1", "a", "boot", WorkerState.ONLINE, frozenset({"cpu"}), 2, {}, "shared", 0.0, 7)


@pytest.fixture
def term(redis: Redis, clock: Clock, leader: FakeLeader, monkeypatch: pytest.MonkeyPatch) -> Term:
    def snapshot(_connection: object, _plans: object, now: float) -> Snapshot:
        return Snapshot(workers=(replace(worker(), seen_at=now),))

    monkeypatch.setattr(term_module, "load_snapshot", snapshot)
    monkeypatch.setattr(term_module, "find_drift", lambda *_arguments: None)
    monkeypatch.setattr(term_module, "Leader", lambda *_arguments, **_options: leader)
    monkeypatch.setattr(term_module, "Outbox", lambda *_arguments: Nobody())
    settings = Settings(worker_key="k" * 32, redis_url="redis://nowhere", database_url="postgresql://nowhere/x")
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: clock.__dict__.update(now=clock.now + seconds))
    return Term(
        settings,
        FakeEngine(),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        FakeLease(),  # type: ignore[arg-type]
        pulse=Pulse(),
        stop=stop,
        clock=clock,
    )


class Nobody:
    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments: None


def is_rebuild(round_: Round) -> bool:
    return any(isinstance(event, ReconcileDue) for event in round_.events)


def kernel_of(term: Term) -> Any:
    assert term._kernel is not None
    return term._kernel


def run_for(term: Term, clock: Clock, seconds: float) -> None:
    until = clock.now + seconds
    while clock.now < until:
        clock.now += 1
        term._step()


def test_nothing_counts_as_read_in_the_rebuild_itself(term: Term, leader: FakeLeader, clock: Clock) -> None:
    run_for(term, clock, 2)
    assert [is_rebuild(round_) for round_ in leader.rounds] == [True, False]
    assert leader.rounds[0].unread_for == math.inf
    assert leader.rounds[1].unread_for == 0.0


def test_after_postgres_was_away_silence_counts_from_its_return(term: Term, leader: FakeLeader, clock: Clock) -> None:
    run_for(term, clock, 600)
    assert clock.now - kernel_of(term).trusted_from >= 599
    leader.fails = lambda _round: StoreUnavailable("PostgreSQL is away.")
    run_for(term, clock, 120)
    leader.fails = lambda _round: None
    term._step()
    assert kernel_of(term).trusted_from == pytest.approx(clock.now, abs=1)


def test_failures_of_a_moment_neither_begin_a_lease_anew_nor_make_anybody_heard(
    term: Term, leader: FakeLeader, clock: Clock
) -> None:
    run_for(term, clock, 600)
    heard_at = kernel_of(term).workers["w1"].seen_at
    leader.fails = lambda round_: None if is_rebuild(round_) else StaleMemory("A row differs.")
    run_for(term, clock, 1)
    leader.fails = lambda _round: None
    run_for(term, clock, 2)
    assert clock.now - kernel_of(term).trusted_from > 25
    assert kernel_of(term).workers["w1"].seen_at == heard_at


def test_a_memory_made_while_redis_is_away_knows_it_from_its_first_transaction_on(
    term: Term, leader: FakeLeader, redis: Redis, clock: Clock
) -> None:
    run_for(term, clock, 5)
    redis.is_away = True
    run_for(term, clock, 5)
    term._drop_memory()
    term._step()
    assert leader.rounds[-1].events == [RedisAway(since=1005.0), ReconcileDue()]


def test_rows_that_contradict_each_other_make_no_hot_loop_and_end_the_process_at_last(
    term: Term, leader: FakeLeader, clock: Clock
) -> None:
    leader.fails = lambda _round: StaleMemory("The rows contradict each other.")
    begun = clock.now
    with pytest.raises(StaleMemory):
        run_for(term, clock, 3600)
    assert len(leader.rounds) == ROUNDS + 1
    assert clock.now - begun > ROUNDS * 0.5


def report(number: int) -> StreamEntry:
    return StreamEntry(f"{number}-0", WorkerLeft(f"w{number}"))


def is_about(round_: Round, worker_id: str) -> bool:
    return WorkerLeft(worker_id) in round_.events


@pytest.mark.parametrize("error", [StoreUnavailable("It took too long."), StaleMemory("A row differs.")])
def test_a_report_that_can_never_be_committed_keeps_no_other_waiting(
    term: Term, leader: FakeLeader, redis: Redis, clock: Clock, error: Exception
) -> None:
    redis.entries = [report(n) for n in range(300)]
    leader.fails = lambda round_: error if is_about(round_, "w0") else None
    run_for(term, clock, 120)
    assert set(redis.acknowledged) == {f"{n}-0" for n in range(300)}
    alone = [round_ for round_ in leader.rounds if round_.events == [WorkerLeft("w0")]]
    assert len(alone) == TRIES
    dropped = [count.detail for round_ in leader.rounds for count in round_.counts if count.what == "dropped_report"]
    assert dropped == ["The report 0-0 failed every time."]


def test_a_batch_that_is_too_large_for_one_transaction_is_halved(
    term: Term, leader: FakeLeader, redis: Redis, clock: Clock
) -> None:
    def reports(events: list[Event]) -> int:
        return sum(isinstance(event, WorkerLeft) for event in events)

    redis.entries = [report(n) for n in range(2000)]
    leader.fails = lambda round_: StoreUnavailable("Too long.") if reports(list(round_.events)) > 60 else None
    run_for(term, clock, 120)
    sizes = [reports(list(round_.events)) for round_ in leader.rounds if not is_rebuild(round_)]
    assert sizes[:3] == [200, 100, 50]
    assert not redis.entries
    assert sum(size > 60 for size in sizes) < sum(0 < size <= 60 for size in sizes) / 2, sizes


def test_many_hopeless_reports_in_a_row_do_not_end_the_process(
    term: Term, leader: FakeLeader, redis: Redis, clock: Clock
) -> None:
    redis.entries = [report(n) for n in range(ROUNDS // TRIES + 2)]
    leader.fails = lambda round_: None if is_rebuild(round_) or not round_.events else ValueError("unforeseen")
    run_for(term, clock, 300)
    assert not redis.entries


@pytest.mark.parametrize("speaks_of_server", [True, False])
def test_a_run_is_put_off_for_a_round_that_was_too_much_and_not_for_a_full_disk(
    term: Term, leader: FakeLeader, clock: Clock, speaks_of_server: bool
) -> None:
    leader.starting = ("r1",)
    error = StoreUnavailable("It was refused.", speaks_of_server=speaks_of_server)
    leader.fails = lambda round_: None if is_rebuild(round_) else error
    run_for(term, clock, 60)
    assert leader.rounds[-1].put_off_runs == (frozenset() if speaks_of_server else {"r1"})
