"""Equal tasks in flight: pauses, new leaders, tasks that only read or write, long queues, and those that can't run now:
they fit no worker, or their gate is shut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.effects import Annotate, Count, LookUp
from orchestrator.events import CacheAnswered, ClaimReceived, OutcomeReceived, ReconcileDue, Tick
from orchestrator.records import (
    CachePlan,
    Capacity,
    ConcurrencyLimit,
    Outcome,
    Plan,
    PlannedTask,
    RateLimit,
    RetryPolicy,
)
from orchestrator.states import AttemptState, RunState, TaskState
from tests.unit.kernel_driver import GIB, SUCCESS, Driver, task
from tests.unit.test_kernel_cache import FAILED, answer, asked, cached, end, flying, site
from tests.unit.written_driver import Written, mapped

AT_ONCE = RetryPolicy(retries=5, delay=0, factor=1, max_delay=0, jitter=0)
AT_WORK = (TaskState.QUEUED, TaskState.RUNNING)


def working(driver: Driver, *runs: str) -> list[str]:
    return [run_id for run_id in runs if driver.state("a", run_id) in AT_WORK]


def run_through(driver: Driver, run_id: str, *, fails: bool = False) -> None:
    """Let a worker run the task, and the cache answer each question with nothing."""
    driver.feed(ClaimReceived("w1", driver.attempt("a", run_id).id, 1, "n1"))
    end(driver, run_id, FAILED if fails else None)
    for task_run_id in asked(driver):
        driver.feed(CacheAnswered(task_run_id, "k", None), Tick())


# Pauses


def test_a_follower_whose_run_was_paused_is_not_sent_out_beside_the_one_it_follows() -> None:
    driver = Driver()
    driver.worker(slots=1, cpu=1000, memory=64 * GIB)
    driver.run(task("z"), run_id="r0", order=0)
    driver.run(task("y"), run_id="r9", order=1)
    for order, run_id in enumerate(("r1", "r2"), start=2):
        driver.run(cached(), run_id=run_id, order=order)
        answer(driver, run_id)
    driver.command("pause", run_id="r1")
    driver.command("resume", run_id="r1")
    assert driver.kernel.flights.waits(driver.kernel.tasks["r1.a"])
    driver.beat("w1", slots=4, capacity=Capacity(4000, 64 * GIB))
    driver.tick()
    assert working(driver, "r1", "r2") == ["r2"]


def test_when_its_run_goes_on_a_task_asks_for_what_an_equal_one_has_left_meanwhile() -> None:
    driver = flying("r1", "r2")
    driver.command("pause", run_id="r2")
    end(driver, "r1")
    driver.command("resume", run_id="r2")
    assert asked(driver) == ["r2.a"]
    assert driver.dispatched() == []
    answer(driver, "r2", origin="r1.a", outputs={})
    assert driver.run_state("r2") is RunState.SUCCESS


def test_a_retry_that_was_paused_asks_for_what_the_one_in_its_place_has_left() -> None:
    driver = flying("r1", "r2")
    driver.command("pause", run_id="r1")
    end(driver, "r1", replace(FAILED, retryable=True))
    driver.tick(after=11.0)
    run_through(driver, "r2")
    driver.command("resume", run_id="r1")
    assert asked(driver) == ["r1.a"]


# New leaders


def of_equal_runs(*runs: str) -> Written:
    driver = Written()
    driver.worker(slots=8, cpu=8000, memory=64 * GIB)
    for order, run_id in enumerate(runs):
        driver.run(cached(), run_id=run_id, order=order)
        driver.feed(CacheAnswered(driver.row("a", run_id).id, "k", None), Tick())
    return driver


def test_a_new_leader_asks_anew_what_was_asked_and_not_answered() -> None:
    driver = of_equal_runs("r1", "r2")
    driver.finish("a")
    followers = [driver.row("a", "r2").id]
    assert asked(driver) == followers
    driver.take_over()
    assert asked(driver) == followers
    assert driver.queued("r2") == []


def test_of_equal_tasks_that_wait_for_room_a_new_leader_asks_for_one_only() -> None:
    driver = Written()
    for order, run_id in enumerate(("r1", "r2", "r3")):
        driver.run(cached(), run_id=run_id, order=order)
        driver.feed(CacheAnswered(driver.row("a", run_id).id, "k", None), Tick())
    driver.take_over()
    (first,) = asked(driver)
    assert first == driver.row("a", "r1").id
    driver.feed(CacheAnswered(first, "k", None), Tick())
    driver.worker()
    driver.tick()
    assert [run_id for run_id in ("r1", "r2", "r3") if driver.queued(run_id)] == ["r1"]


def test_a_key_that_has_changed_when_it_asks_again_keeps_nobody_waiting_for_the_old_one() -> None:
    driver = Driver()
    for order, run_id in enumerate(("r1", "r2")):
        driver.run(cached(), run_id=run_id, order=order)
        answer(driver, run_id)
    driver.command("pause", run_id="r1")
    driver.command("pause", run_id="r2")
    driver.command("resume", run_id="r1")
    driver.command("resume", run_id="r2")
    assert driver.reason("a", "r2")[0] == "cache_flight"
    answer(driver, "r1", key="other")
    answer(driver, "r2", key="k")
    driver.worker()
    driver.tick()
    assert working(driver, "r1", "r2") == ["r1", "r2"]
    driver.feed(ReconcileDue(), Tick())
    assert "repaired" not in [count.what for count in driver.all_of(Count)]


# Modes


def test_tasks_that_only_read_the_cache_run_side_by_side_for_none_leaves_anything() -> None:
    runs = ("r1", "r2", "r3")
    driver = site(*runs, planned=cached(mode="read"))
    for run_id in runs:
        answer(driver, run_id)
    assert working(driver, *runs) == list(runs)


def test_tasks_that_only_write_the_cache_run_side_by_side_for_none_takes_anything() -> None:
    runs = ("r1", "r2", "r3")
    driver = site(*runs, planned=cached(mode="write"))
    for run_id in runs:
        answer(driver, run_id)
    assert working(driver, *runs) == list(runs)


def test_a_task_that_only_writes_waits_for_none_under_a_new_leader_when_it_is_tried_again() -> None:
    driver, runs = Written(), ("r1", "r2")
    driver.worker(slots=8, cpu=8000, memory=64 * GIB)
    for order, run_id in enumerate(runs):
        driver.run(replace(cached(mode="write"), retry=AT_ONCE), run_id=run_id, order=order)
        driver.feed(CacheAnswered(driver.row("a", run_id).id, "k", None), Tick())
    driver.take_over()
    driver.finish("a", outcome=Outcome(AttemptState.FAILED, "exception"), run_id="r2")
    second = driver.row("a", "r2").id
    driver.tick()
    driver.feed(CacheAnswered(second, "k", None))
    assert not driver.kernel.flights.waits(driver.kernel.tasks[second]), "one that waits is taken to stand in no line"
    driver.tick()
    assert driver.queued("r2") == ["a"]


@pytest.mark.parametrize("mode", ["write", "read_write"])
def test_a_task_that_only_reads_waits_for_one_that_writes(mode: str) -> None:
    driver = site("r1", planned=cached(mode=mode))
    answer(driver)
    driver.run(cached(mode="read"), run_id="r2", order=1)
    answer(driver, "r2")
    assert driver.reason("a", "r2")[0] == "cache_flight"
    run_through(driver, "r1")
    assert working(driver, "r2") == ["r2"], "it found nothing, so it runs"


def test_when_the_only_one_that_writes_fails_all_that_read_go_on() -> None:
    driver = site("r1")
    answer(driver)
    for order, run_id in enumerate(("r2", "r3"), start=1):
        driver.run(cached(mode="read"), run_id=run_id, order=order)
        answer(driver, run_id)
    run_through(driver, "r1", fails=True)
    assert working(driver, "r2", "r3") == ["r2", "r3"]


# Long queues


def test_of_many_equal_tasks_only_the_next_are_told_each_time_that_another_leads() -> None:
    most = 120
    driver = Driver()
    driver.worker(slots=8, cpu=8000, memory=64 * GIB)
    many = mapped("m", over={"range": most}, max_size=1000)
    assert many.body is not None
    driver.run(replace(many, body=Plan((replace(many.body.tasks[0], cache=CachePlan(key=("same",))),))))
    equal = [node.id for node in driver.kernel.runs["r1"].tasks if node.body is None]
    for id_ in equal:
        driver.feed(CacheAnswered(id_, "k", None))
    driver.feed(Tick())
    told = dict.fromkeys(equal, "")
    for _ in range(most):
        (attempt,) = driver.kernel.attempts.values()
        driver.feed(ClaimReceived("w1", attempt.id, 1, "n1"))
        driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, FAILED), Tick())
        for effect in driver.of(Annotate):
            told[effect.id] = effect.changes.get("message", "")
        waiting = [node.id for node in driver.kernel.tasks.values() if node.reason == "cache_flight"]
        if waiting:
            (attempt,) = driver.kernel.attempts.values()
            assert f"Task {driver.kernel.tasks[attempt.task_run_id].name} of" in told[waiting[0]]
    assert driver.run_state() is RunState.FAILED
    written = [e for e in driver.all_of(Annotate) if e.id in told and e.changes.get("reason") == "cache_flight"]
    assert len(written) <= 12 * most


# Tasks that fit no worker


def with_gpu(gpus: int = 1) -> PlannedTask:
    return task("a", gpus=gpus, cache=CachePlan(scope="tenant", key=("k",)))


def plain() -> PlannedTask:
    return cached(scope="tenant", key=("k",))


@pytest.mark.parametrize("is_told_first", [False, True])
def test_a_task_that_fits_no_worker_keeps_no_equal_one_from_running(is_told_first: bool) -> None:
    driver = Driver()
    driver.worker(slots=8, cpu=8000, memory=64 * GIB)
    driver.run(with_gpu(), run_id="r1", order=0)
    driver.run(plain(), run_id="r2", order=1)
    if is_told_first:
        answer(driver, "r1")
        answer(driver, "r2")
    else:
        driver.feed(CacheAnswered("r1.a", "k", None), CacheAnswered("r2.a", "k", None), Tick())
    driver.tick()
    assert driver.reason("a", "r1")[0] == "infeasible"
    assert working(driver, "r1", "r2") == ["r2"]


def test_a_task_that_stood_aside_takes_what_the_other_has_left() -> None:
    driver = site("r1", planned=with_gpu())
    answer(driver, "r1")
    driver.run(plain(), run_id="r2", order=1)
    answer(driver, "r2")
    driver.tick()
    driver.feed(ClaimReceived("w1", driver.attempt("a", "r2").id, 1, "n1"))
    end(driver, "r2")
    assert asked(driver) == ["r1.a"]
    answer(driver, "r1", origin="r2.a", outputs={})
    assert driver.run_state("r1") is RunState.SUCCESS


def test_a_task_that_stood_aside_waits_for_the_other_though_a_worker_for_it_has_come() -> None:
    driver = site("r1", planned=with_gpu())
    answer(driver, "r1")
    driver.run(plain(), run_id="r2", order=1)
    answer(driver, "r2")
    driver.tick()
    driver.worker("w2", host="b", gpus=1)
    driver.tick()
    assert working(driver, "r1", "r2") == ["r2"]
    assert driver.reason("a", "r1")[0] == "cache_flight"
    driver.feed(ReconcileDue(), Tick())
    assert "repaired" not in [count.what for count in driver.all_of(Count)]
    end_of(driver, "r2")
    assert working(driver, "r1") == ["r1"]


def end_of(driver: Driver, run_id: str) -> None:
    attempt = driver.attempt("a", run_id)
    driver.feed(ClaimReceived(attempt.worker_id, attempt.id, 1, "n1"))
    driver.feed(OutcomeReceived(attempt.worker_id, attempt.id, attempt.token, FAILED), Tick())
    for effect in driver.of(LookUp):
        driver.feed(CacheAnswered(effect.task_run_id, "k", None), Tick())


def test_of_two_that_fit_no_worker_the_one_for_which_one_comes_goes_first() -> None:
    driver = site("r1", planned=with_gpu())
    answer(driver, "r1")
    driver.run(with_gpu(2), run_id="r2", order=1)
    answer(driver, "r2")
    for _ in range(3):
        driver.tick(after=1.0)
        driver.beat()
    assert [driver.reason("a", run_id)[0] for run_id in ("r1", "r2")] == ["infeasible", "infeasible"]
    driver.worker("w2", host="b", gpus=1)
    driver.tick()
    assert asked(driver) == ["r1.a"], "what it knew of the cache is old"
    answer(driver, "r1")
    assert working(driver, "r1", "r2") == ["r1"]


def test_equal_tasks_that_ask_the_same_and_fit_no_worker_are_not_handed_round() -> None:
    driver = site("r1", "r2", planned=with_gpu())
    answer(driver, "r1")
    answer(driver, "r2")
    written = len(driver.all_of(Annotate))
    for _ in range(5):
        driver.tick(after=1.0)
        driver.beat()
    assert len(driver.all_of(Annotate)) == written


# Tasks whose gate is shut


def gated(kind: str) -> PlannedTask:
    """A cached task behind a limit or a service."""
    limits: dict[str, dict[str, Any]] = {
        "concurrency": {"concurrency": (ConcurrencyLimit("busy", 1),)},
        "rate_limit": {"rate_limit": RateLimit("busy", 1, 3600.0)},
        "service_open": {"connections": ("lake",)},
    }
    return replace(plain(), **limits[kind])


def claim_z(driver: Driver) -> None:
    driver.feed(ClaimReceived("w1", driver.attempt("z", "r0").id, 1, "n1"))


def end_z(driver: Driver, outcome: Outcome) -> None:
    attempt = driver.attempt("z", "r0")
    driver.feed(OutcomeReceived(attempt.worker_id, attempt.id, attempt.token, outcome), Tick())


def shut_gate(kind: str) -> Driver:
    """A site where another task has taken what is behind the gate."""
    driver = Driver()
    driver.worker(slots=8, cpu=8000, memory=64 * GIB)
    planned = replace(gated(kind), name="z", cache=None, retry=AT_ONCE)
    driver.run(planned, run_id="r0", order=0)
    if kind != "concurrency":
        for _ in range(5 if kind == "service_open" else 1):
            claim_z(driver)
            outcome = Outcome(AttemptState.FAILED, "unreachable" if kind == "service_open" else "bad")
            end_z(driver, replace(outcome, retryable=kind == "service_open"))
            driver.tick(after=0.1)
    return driver


GATES = ["concurrency", "rate_limit", "service_open"]


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("is_told_first", [False, True])
def test_a_task_before_a_shut_gate_keeps_no_equal_one_waiting_that_has_none(kind: str, is_told_first: bool) -> None:
    driver = shut_gate(kind)
    driver.run(gated(kind), run_id="r1", order=1)
    if is_told_first:
        answer(driver, "r1")
        driver.run(plain(), run_id="r2", order=2)
        answer(driver, "r2")
    else:
        driver.run(plain(), run_id="r2", order=2)
        driver.feed(CacheAnswered("r1.a", "k", None), CacheAnswered("r2.a", "k", None), Tick())
    driver.tick()
    assert driver.reason("a", "r1")[0] == kind
    assert working(driver, "r1", "r2") == ["r2"]


@pytest.mark.parametrize("kind", GATES)
def test_equal_tasks_before_the_same_shut_gate_are_not_handed_round(kind: str) -> None:
    driver = shut_gate(kind)
    for order, run_id in enumerate(("r1", "r2", "r3"), start=1):
        driver.run(gated(kind), run_id=run_id, order=order)
        answer(driver, run_id)
    told = [driver.reason("a", run_id)[0] for run_id in ("r1", "r2", "r3")]
    assert told == [kind, "cache_flight", "cache_flight"]
    for _ in range(3):
        driver.tick(after=1.0)
        driver.beat()
    assert [driver.reason("a", run_id)[0] for run_id in ("r1", "r2", "r3")] == told


def test_of_two_before_shut_gates_the_one_whose_gate_opens_first_goes_first() -> None:
    driver = shut_gate("concurrency")
    other = replace(plain(), concurrency=(ConcurrencyLimit("other", 1),))
    driver.run(replace(other, name="y", cache=None), run_id="r9", order=1)
    driver.run(gated("concurrency"), run_id="r1", order=2)
    driver.run(other, run_id="r2", order=3)
    driver.run(gated("concurrency"), run_id="r3", order=4)
    for run_id in ("r1", "r2", "r3"):
        answer(driver, run_id)
    driver.tick()
    assert [driver.reason("a", run_id)[0] for run_id in ("r1", "r2", "r3")] == [
        "concurrency",
        "concurrency",
        "cache_flight",
    ]
    claim_z(driver)
    end_z(driver, SUCCESS)
    assert asked(driver) == ["r1.a"], "what it knew of the cache is old"
    answer(driver, "r1")
    assert working(driver, "r1", "r2", "r3") == ["r1"]
    driver.feed(ReconcileDue(), Tick())
    assert "repaired" not in [count.what for count in driver.all_of(Count)]


def test_a_task_whose_gate_has_opened_does_not_wait_for_one_that_has_no_room_yet() -> None:
    driver = shut_gate("concurrency")
    driver.run(gated("concurrency"), run_id="r1", order=1)
    answer(driver, "r1")
    driver.worker("w2", host="b", queues=("gpu",), gpus=1, slots=1)
    driver.run(task("x", gpus=1, queue="gpu"), run_id="r8", order=2)
    driver.run(replace(with_gpu(), queue="gpu"), run_id="r2", order=3)
    answer(driver, "r2")
    driver.tick()
    assert driver.reason("a", "r2")[0].startswith("waiting_for_")
    claim_z(driver)
    end_z(driver, SUCCESS)
    assert asked(driver) == ["r1.a"]
    answer(driver, "r1")
    assert working(driver, "r1", "r2") == ["r1"]
    assert driver.reason("a", "r2")[0] in ("cache_flight", "waiting_for_slot", "waiting_for_gpu")


def test_when_the_one_before_an_open_gate_is_cancelled_another_of_its_kind_goes_first() -> None:
    """Two kinds stand before shut gates, and the one that stood aside for its kind is gone when its gate opens."""
    driver = shut_gate("concurrency")
    other = replace(plain(), concurrency=(ConcurrencyLimit("other", 1),))
    driver.run(replace(other, name="y", cache=None), run_id="r9", order=1)
    for order, (run_id, planned) in enumerate(
        (("r1", gated("concurrency")), ("r2", other), ("r3", gated("concurrency"))), start=2
    ):
        driver.run(planned, run_id=run_id, order=order)
        answer(driver, run_id)
    driver.command("cancel", run_id="r1")
    claim_z(driver)
    end_z(driver, SUCCESS)
    for _ in range(2):
        driver.tick(after=1.0)
        for task_run_id in asked(driver):
            driver.feed(CacheAnswered(task_run_id, "k", None), Tick())
    assert working(driver, "r2", "r3") == ["r3"]
