"""Leadership: one holder, an epoch that rises, and an old leader that can write nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, text

from orchestrator.errors import LostLeadership, StoreUnavailable
from orchestrator.store.engine import SCHEDULER_LIMITS, create_store_engine
from orchestrator.store.lease import Lease, lock_epoch

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url, limits=SCHEDULER_LIMITS)
    yield made
    made.dispose()


class SteppedClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_of_two_acquires(engine: Engine) -> None:
    first, second = Lease(engine, "first", 10), Lease(engine, "second", 10)
    assert first.acquire()
    assert first.epoch == 1
    assert first.trusted()
    assert not second.acquire()


def test_an_expired_lease_is_taken_over_with_a_higher_epoch(engine: Engine) -> None:
    first, second = Lease(engine, "first", 0.2), Lease(engine, "second", 10)
    assert first.acquire()
    _until(second.acquire)
    assert second.epoch == first.epoch + 1
    with pytest.raises(LostLeadership):
        first.renew()
    assert not first.trusted()


def test_a_renewed_lease_is_kept(engine: Engine) -> None:
    first, second = Lease(engine, "first", 60), Lease(engine, "second", 60)
    assert first.acquire()
    for _ in range(3):
        # Aged in its row: two turns without a renewal are more than its life, and no clock has to be waited for.
        with engine.begin() as connection:
            connection.execute(text("UPDATE leases SET expires_at = expires_at - interval '40 seconds'"))
        first.renew()
        assert not second.acquire()


def test_an_expired_lease_nobody_took_can_be_renewed(engine: Engine) -> None:
    lease = Lease(engine, "first", 10)
    assert lease.acquire()
    with engine.begin() as connection:
        connection.execute(text("UPDATE leases SET expires_at = clock_timestamp() - interval '1 minute'"))
    lease.renew()
    assert not Lease(engine, "second", 10).acquire()


def test_stepping_down_lets_the_standby_in_at_once(engine: Engine) -> None:
    first, second = Lease(engine, "first", 60), Lease(engine, "second", 60)
    assert first.acquire()
    first.step_down()
    assert not first.trusted()
    assert second.acquire()
    first.step_down()
    assert not Lease(engine, "third", 60).acquire()


def test_trust_ends_before_the_lease_does(engine: Engine) -> None:
    clock = SteppedClock()
    lease = Lease(engine, "first", 10, clock=clock)
    assert lease.acquire()
    clock.now += 8.9
    assert lease.trusted()
    clock.now += 0.2
    assert not lease.trusted()


def test_a_lease_that_stands_still_is_taken_whatever_the_databases_clock_says(engine: Engine) -> None:
    first = Lease(engine, "first", 10)
    assert first.acquire()
    with engine.begin() as connection:
        connection.execute(text("UPDATE leases SET expires_at = clock_timestamp() + interval '1 hour'"))
    clock = SteppedClock()
    second = Lease(engine, "second", 10, clock=clock)
    assert not second.acquire()
    clock.now += 9
    assert not second.acquire()
    clock.now += 2
    assert second.acquire()


def test_a_databases_clock_that_jumps_ahead_takes_the_lease_from_nobody_who_renews(engine: Engine) -> None:
    clock = SteppedClock()
    first, second = Lease(engine, "first", 10), Lease(engine, "second", 10, clock=clock)
    assert first.acquire()
    for _ in range(3):
        _let_an_hour_pass(engine)
        assert not second.acquire()
        clock.now += 3.0
        assert not second.acquire()
        first.renew()
        assert not second.acquire()


def test_a_lease_that_expired_by_a_jump_and_is_not_renewed_is_taken(engine: Engine) -> None:
    clock = SteppedClock()
    first, second = Lease(engine, "first", 10), Lease(engine, "second", 10, clock=clock)
    assert first.acquire()
    _let_an_hour_pass(engine)
    assert not second.acquire()
    clock.now += 4.9
    assert not second.acquire()
    clock.now += 0.2
    assert second.acquire()


def test_a_lease_given_back_is_free_though_the_databases_clock_jumps_back(engine: Engine) -> None:
    first = Lease(engine, "first", 10)
    assert first.acquire()
    first.step_down()
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE leases SET renewed_at = renewed_at + interval '1h', expires_at = expires_at + interval '1h'")
        )
    assert Lease(engine, "second", 10).acquire()


def _let_an_hour_pass(engine: Engine) -> None:
    """Have the database's clock be ahead of the row by an hour."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE leases SET renewed_at = renewed_at - interval '1h', expires_at = expires_at - interval '1h'")
        )


def test_a_holder_that_renews_is_not_taken_for_standing_still(engine: Engine) -> None:
    first = Lease(engine, "first", 10)
    assert first.acquire()
    clock = SteppedClock()
    second = Lease(engine, "second", 10, clock=clock)
    for _ in range(5):
        assert not second.acquire()
        clock.now += 8
        first.renew()


def test_a_frozen_holder_can_not_write_after_a_take_over(engine: Engine) -> None:
    first, second = Lease(engine, "first", 0.1), Lease(engine, "second", 10)
    assert first.acquire()
    _until(second.acquire)
    with pytest.raises(LostLeadership), engine.begin() as connection:
        lock_epoch(connection, first.epoch)
    with engine.begin() as connection:
        lock_epoch(connection, second.epoch)


def test_a_take_over_waits_for_an_open_transaction_of_the_old_epoch(engine: Engine) -> None:
    first, second = Lease(engine, "first", 0.1), Lease(engine, "second", 10)
    assert first.acquire()
    order: list[str] = []

    def take() -> None:
        _until(second.acquire)
        order.append("taken")

    with engine.begin() as connection:
        lock_epoch(connection, first.epoch)
        thread = threading.Thread(target=take)
        thread.start()
        _until(lambda: _somebody_waits_for_a_lock(engine))
        order.append("committed")
    thread.join()
    assert order == ["committed", "taken"]


def test_a_renewal_does_not_wait_for_an_open_transaction(engine: Engine) -> None:
    lease = Lease(engine, "first", 10)
    assert lease.acquire()
    with engine.begin() as connection:
        lock_epoch(connection, lease.epoch)
        lease.renew()


def test_a_holder_frozen_inside_a_transaction_blocks_a_take_over_only_for_its_session_limit(engine: Engine) -> None:
    first, second = Lease(engine, "first", 0.1), Lease(engine, "second", 10)
    assert first.acquire()
    connection = engine.connect()
    transaction = connection.begin()
    lock_epoch(connection, first.epoch)
    since = time.monotonic()
    _until(lambda: _acquire_or_wait(second), seconds=10)
    assert time.monotonic() - since < SCHEDULER_LIMITS.idle_in_transaction + SCHEDULER_LIMITS.lock + 1
    with pytest.raises(StoreUnavailable):
        connection.execute(text("UPDATE leases SET holder = 'thawed'"))
    transaction.close()
    connection.close()


def _acquire_or_wait(lease: Lease) -> bool:
    try:
        return lease.acquire()
    except StoreUnavailable:
        return False


def _somebody_waits_for_a_lock(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(
            connection.execute(
                text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%leases%'")
            ).scalar_one()
        )


def _until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def test_a_leader_that_renews_and_is_deaf_is_replaced_and_writes_no_more(engine: Engine) -> None:
    first, second = Lease(engine, "first", 60), Lease(engine, "second", 60)
    assert first.acquire()
    assert not second.acquire()
    assert second.seen_epoch == first.epoch
    assert not second.acquire(deaf_epoch=first.epoch - 1), "the deaf one was replaced before"
    assert second.acquire(deaf_epoch=first.epoch)
    with pytest.raises(LostLeadership):
        first.renew()
