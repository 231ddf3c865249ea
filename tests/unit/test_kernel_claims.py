"""Claims, grants and denials."""

from __future__ import annotations

from orchestrator.effects import SendDenial, SendGrant, SendHint
from orchestrator.events import ClaimReceived
from orchestrator.records import Capacity
from orchestrator.states import AttemptState, TaskState
from tests.unit.kernel_driver import GIB, Driver, task


def granted(driver: Driver) -> list[tuple[str, str]]:
    return [(effect.attempt.worker_id, effect.nonce) for effect in driver.of(SendGrant)]


def denied(driver: Driver) -> list[str]:
    return [effect.reason for effect in driver.of(SendDenial)]


def test_a_claim_of_a_dispatched_attempt_is_granted_whatever_its_seq() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.claim("a", seq=99)
    assert granted(driver) == [("w1", "n1")]
    assert driver.attempt("a").state is AttemptState.RUNNING
    assert driver.state("a") is TaskState.RUNNING


def test_the_same_worker_and_nonce_get_the_same_grant_again() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.claim("a")
    first = driver.of(SendGrant)[0].attempt
    driver.claim("a")
    again = driver.of(SendGrant)[0].attempt
    assert (again.token, again.granted_at) == (first.token, first.granted_at)


def test_another_nonce_or_another_worker_is_refused_once_granted() -> None:
    driver = Driver()
    driver.worker()
    driver.worker("w2")
    driver.run(task("a"))
    driver.claim("a")
    driver.claim("a", nonce="other")
    assert denied(driver) == ["taken"]
    driver.claim("a", worker_id="w2")
    assert denied(driver) == ["taken"]


def test_a_claim_of_an_unknown_attempt_is_refused_and_changes_nothing() -> None:
    driver = Driver()
    driver.worker()
    driver.feed(ClaimReceived("w1", "nobody's", 1, "n"))
    assert denied(driver) == ["unknown"]


def test_a_claim_by_another_worker_of_the_pool_moves_the_reservation() -> None:
    driver = Driver()
    driver.worker("w1", cpu=1000)
    driver.run(task("a"))
    driver.worker("w2", host="b")
    driver.claim("a", worker_id="w2")
    assert granted(driver) == [("w2", "n1")]
    reservation = driver.kernel.ledger.reservations[driver.attempt("a").id]
    assert (reservation.worker_id, reservation.host_id) == ("w2", "b")
    assert driver.kernel.ledger.hosts["a"].cpu_used == 0


def test_where_it_does_not_fit_the_claim_is_refused_and_the_planned_worker_gets_the_hint() -> None:
    driver = Driver()
    driver.worker("w1", host="a", cpu=2000)
    driver.run(task("a", cpu=2000))
    driver.worker("w2", host="b", cpu=1000)
    driver.claim("a", worker_id="w2")
    assert denied(driver) == ["no_room"]
    assert [hint.queue for hint in driver.of(SendHint)] == ["w.w1"]
    driver.claim("a", worker_id="w2")
    assert not driver.of(SendHint), "a direct hint is on its way; another would only multiply them"


def test_two_workers_that_took_each_others_hint_are_both_granted() -> None:
    driver = Driver()
    driver.worker("w1", host="a", cpu=1000, slots=1)
    driver.worker("w2", host="b", cpu=1000, slots=1)
    driver.run(task("a"), task("b"))
    planned = {name: driver.attempt(name).worker_id for name in ("a", "b")}
    assert set(planned.values()) == {"w1", "w2"}
    for name, taker in (("a", planned["b"]), ("b", planned["a"])):
        driver.claim(name, worker_id=taker)
        assert granted(driver) == [(taker, "n1")]


def test_a_draining_worker_and_an_unknown_one_are_refused() -> None:
    driver = Driver()
    driver.worker("w1")
    driver.worker("w2", host="b", draining=True)
    driver.run(task("a"))
    driver.claim("a", worker_id="w2")
    assert denied(driver) == ["worker_draining"]
    driver.claim("a", worker_id="w9")
    assert denied(driver) == ["unknown_worker"]


def test_a_claim_after_the_cancel_is_refused() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"), task("b"))
    attempt = driver.attempt("a")
    driver.command("cancel", run_id="r1", task="a")
    driver.feed(ClaimReceived("w1", attempt.id, 1, "n"))
    assert denied(driver) == ["superseded"]


def test_a_grant_that_a_later_event_of_the_batch_has_ended_is_not_to_be_sent() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.claim("a")
    attempt = driver.attempt("a")
    assert driver.kernel.is_granted(attempt)
    driver.command("cancel", run_id="r1")
    assert not driver.kernel.is_granted(attempt)


def test_the_scheduler_learns_which_grants_must_be_on_disk_first() -> None:
    from orchestrator.effects import is_durable

    driver = Driver()
    driver.worker()
    driver.run(task("plain"), task("only_one", exclusive=True))
    driver.claim("plain")
    assert not is_durable(driver.effects)
    driver.claim("only_one")
    assert is_durable(driver.effects)


def test_a_refused_claim_that_comes_again_late_is_refused_again() -> None:
    driver = Driver()
    driver.worker("w1", host="a", cpu=2000)
    driver.run(task("a", cpu=2000))
    driver.worker("w2", host="b", cpu=1000)
    driver.claim("a", worker_id="w2", nonce="gone")
    assert denied(driver) == ["no_room"]
    driver.beat("w2", capacity=Capacity(2000, 8 * GIB))
    driver.claim("a", worker_id="w2", nonce="gone")
    assert denied(driver) == ["no_room"], "its worker has let go of it: a grant would reach nobody"
    assert driver.attempt("a").state is AttemptState.DISPATCHED
    driver.claim("a", worker_id="w2", nonce="new")
    assert granted(driver) == [("w2", "new")]
