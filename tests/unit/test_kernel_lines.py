"""Many lines that ask the same and differ by their gates: the best goes first, and what waits costs nothing."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from orchestrator.effects import CreateAttempt
from orchestrator.events import ClaimReceived, OutcomeReceived, ReconcileDue, Tick
from orchestrator.kernel import dispatch
from orchestrator.kernel.gatekeeping import shut
from orchestrator.kernel.waiting import Line
from orchestrator.records import ConcurrencyLimit, MapPlan, Outcome, Plan
from orchestrator.states import AttemptState, TaskState
from tests.unit.kernel_driver import GIB, Driver, task


def keyed(name: str, key: str, **fields: Any) -> Any:
    return task(name, concurrency=(ConcurrencyLimit(key, 1),), **fields)


def crowd(count: int) -> Driver:
    """A map whose indices have a key each, of which eight run."""
    driver = Driver()
    driver.worker(cpu=8000, slots=8)
    body = Plan((keyed("each", "key {{ map.item }}"),))
    driver.run(task("each", map=MapPlan({"range": count}, max_size=count), body=body))
    return driver


def end_one(driver: Driver) -> list[str]:
    """End the attempt that was sent out first; returns what is sent out then."""
    attempt = next(iter(driver.kernel.attempts.values()))
    outcome = Outcome(AttemptState.SUCCEEDED)
    driver.feed(
        ClaimReceived("w1", attempt.id, 1, "n"), OutcomeReceived("w1", attempt.id, attempt.token, outcome), Tick()
    )
    return driver.dispatched()


@pytest.mark.parametrize("count", [40, 400, 4000])
def test_an_end_costs_the_same_however_many_wait_for_keys_of_their_own(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = crowd(count)
    driver.feed(ReconcileDue())
    driver.tick()
    looks: Counter[str] = Counter()
    head = Line.head

    def counted_head(line: Line) -> Any:
        looks["head"] += 1
        return head(line)

    def counted_shut(*args: Any) -> Any:
        looks["gate"] += 1
        return shut(*args)

    monkeypatch.setattr(Line, "head", counted_head)
    monkeypatch.setattr(dispatch, "shut", counted_shut)
    for _ in range(10):
        assert len(end_one(driver)) == 1
    assert looks["gate"] <= 50
    assert looks["head"] <= 300


@pytest.mark.parametrize("number", range(5))
def test_the_best_ranked_whose_key_is_free_goes_first_whatever_line_it_stands_in(number: int) -> None:
    random = Random(number)
    driver = Driver(max_runs=500)
    driver.worker(cpu=64_000, memory=64 * GIB, slots=3)
    best: dict[str, tuple[int, int]] = {}
    keys: dict[str, str] = {}

    def those(state: TaskState) -> list[str]:
        return [run_id for run_id in best if driver.state("a", run_id) is state]

    for order in range(60):
        run_id, priority = f"r{order}", random.randint(0, 3)
        keys[run_id], best[run_id] = f"k{random.randint(0, 9 if number % 2 else 99)}", (-priority, order)
        driver.run(keyed("a", keys[run_id]), run_id=run_id, order=order, priority=priority)
    while sent := those(TaskState.QUEUED):
        gone = random.choice(sent)
        held = {keys[run_id] for run_id in sent if run_id != gone}
        free = sorted((one for one in those(TaskState.READY) if keys[one] not in held), key=best.__getitem__)
        driver.command("cancel", run_id=gone)
        assert [effect.attempt.run_id for effect in driver.of(CreateAttempt)] == free[:1]
    assert not those(TaskState.READY)
    assert not driver.kernel.waiting_lines.asks


def test_a_resting_line_says_what_it_waits_for_when_its_turn_comes() -> None:
    driver = Driver()
    driver.worker(cpu=2000, slots=2)
    driver.run(keyed("a", "x"), keyed("b", "y"), keyed("c", "z"), keyed("d", "x"), task("big", cpu=2000))
    assert driver.dispatched() == ["a", "b"]
    driver.tick()
    driver.claim("b")
    driver.end("b")
    assert driver.dispatched() == ["c"]
    driver.claim("c")
    driver.end("c")
    assert driver.reason("d")[0] == "concurrency"


def test_one_that_joins_a_resting_line_is_told_what_it_waits_for() -> None:
    driver = Driver()
    driver.worker(cpu=1000, slots=1)
    driver.run(task("a"), keyed("b", "x"), keyed("c", "y"))
    for order in range(2, 6):
        driver.feed(ReconcileDue(), Tick())
        assert driver.kernel.waiting_lines.resting
        driver.run(keyed("a", "y" if order % 2 else "x"), run_id=f"r{order}", order=order)
        assert driver.reason("a", f"r{order}")[0] in ("waiting_for_slot", "waiting_for_cpu")


def test_one_that_joins_a_resting_line_with_a_better_rank_goes_first() -> None:
    driver = Driver()
    driver.worker(cpu=1000, slots=1)
    driver.run(task("a"))
    for order, key in enumerate(("x", "y", "z"), 2):
        driver.run(keyed("a", key), run_id=f"r{order}", order=order)
    driver.claim("a")
    driver.end("a")
    assert driver.state("a", "r2") is TaskState.QUEUED
    driver.run(keyed("a", "z"), run_id="r9", order=9, priority=1)
    driver.command("cancel", run_id="r2")
    assert driver.state("a", "r9") is TaskState.QUEUED
    driver.command("cancel", run_id="r9")
    assert driver.state("a", "r3") is TaskState.QUEUED


def test_a_line_that_has_rested_twice_is_forgotten_once_when_nobody_stands_in_it() -> None:
    driver = Driver()
    driver.worker(cpu=1000, slots=1)
    driver.run(task("a"), task("b"), keyed("c", "y"))
    for order in range(2, 5):
        driver.feed(ReconcileDue(), Tick())
        driver.run(keyed("a", "y"), run_id=f"r{order}", order=order)
        driver.feed(ReconcileDue(), Tick())
    assert max(map(len, driver.kernel.waiting_lines.resting.values())) > 1
    for order in range(2, 5):
        driver.command("cancel", run_id=f"r{order}")
    driver.command("cancel", run_id="r1")
    driver.tick()
    assert not driver.kernel.waiting_lines.lines
    driver.run(keyed("a", "y"), run_id="r9", order=9)
    assert driver.state("a", "r9") is TaskState.QUEUED
