"""The breaker of external services in the kernel: tasks of a service that does not answer wait, one finds out."""

from __future__ import annotations

from typing import Any

from orchestrator.effects import SaveCircuit
from orchestrator.events import ReconcileDue, Tick
from orchestrator.kernel import Kernel, Snapshot
from orchestrator.records import Outcome, PlannedTask, RetryPolicy
from orchestrator.states import AttemptState, TaskState
from tests.unit.kernel_driver import GIB, SUCCESS, Driver, task

DOWN = Outcome(AttemptState.FAILED, "unreachable", "No route to the warehouse.")
FINAL = RetryPolicy(retries=0, jitter=0)


def using(name: str, *connections: str, **fields: Any) -> PlannedTask:
    return task(name, connections=connections or ("warehouse",), retry=FINAL, **fields)


def site(*tasks: PlannedTask, **settings: Any) -> Driver:
    driver = Driver(**settings)
    driver.worker(slots=5, cpu=100_000, memory=100 * GIB)
    driver.run(*tasks)
    return driver


def failing(count: int = 10, **settings: Any) -> Driver:
    """Of ``count`` tasks of the warehouse the first five have found it unreachable."""
    driver = site(*(using(f"t{n}") for n in range(count)), task("free"), **settings)
    for n in range(5):
        driver.claim(f"t{n}")
    for n in range(5):
        driver.end(f"t{n}", DOWN, tick=False)
    driver.tick()
    return driver


def wait(driver: Driver, seconds: float) -> None:
    until = driver.now + seconds
    while driver.now < until:
        driver.now = min(until, driver.now + 5.0)
        driver.beat("w1")
        driver.feed(Tick())


def circuits(driver: Driver) -> list[tuple[str, str]]:
    return [(effect.service, effect.state) for effect in driver.all_of(SaveCircuit)]


def test_after_five_failures_in_a_row_its_tasks_wait_and_others_go_on() -> None:
    driver = failing()
    assert driver.dispatched() == ["free"]
    reason, message = driver.reason("t7")
    assert reason == "service_open"
    assert message == "5 tasks in a row found the service 'warehouse' unreachable; the next try is in 30 s."
    assert driver.all_of(SaveCircuit) == [SaveCircuit("warehouse", "open", 5, "unreachable", 30.0)]


def test_the_kernel_knows_when_the_service_may_be_asked_again() -> None:
    driver = failing()
    wait(driver, 25.0)
    due = driver.kernel.next_due(driver.now)
    assert due is not None
    assert due <= 5.0


def test_after_the_hold_one_task_finds_out_whether_it_is_back() -> None:
    driver = failing()
    wait(driver, 30.0)
    assert driver.dispatched() == ["t5"]
    assert circuits(driver)[-1] == ("warehouse", "half_open")
    driver.tick()
    assert driver.dispatched() == []
    driver.claim("t5")
    driver.end("t5")
    assert circuits(driver)[-1] == ("warehouse", "closed")
    assert set(driver.dispatched()) == {"t6", "t7", "t8", "t9"}


def test_when_it_is_not_back_the_others_wait_twice_as_long() -> None:
    driver = failing()
    wait(driver, 30.0)
    driver.claim("t5")
    driver.end("t5", DOWN)
    assert driver.of(SaveCircuit) == [SaveCircuit("warehouse", "open", 6, "unreachable", 60.0)]
    wait(driver, 55.0)
    assert driver.dispatched() == []
    wait(driver, 5.0)
    assert driver.dispatched() == ["t6"]


def test_a_probe_that_tells_nothing_makes_way_for_another() -> None:
    driver = failing()
    wait(driver, 30.0)
    driver.claim("t5")
    driver.end("t5", Outcome(AttemptState.FAILED, "exception"))
    assert driver.dispatched() == ["t6"]


def test_a_probe_that_runs_for_hours_keeps_the_others_waiting_for_ten_minutes_each() -> None:
    driver = failing()
    wait(driver, 30.0)
    driver.start("t5")
    wait(driver, 590.0)
    assert driver.state("t6") is TaskState.READY
    wait(driver, 15.0)
    assert (driver.state("t6"), driver.state("t7")) == (TaskState.QUEUED, TaskState.READY)
    driver.start("t6")
    driver.end("t6")
    assert circuits(driver)[-1] == ("warehouse", "closed")
    assert set(driver.dispatched()) == {"t7", "t8", "t9"}


def test_a_success_of_an_attempt_that_began_before_does_not_close_it() -> None:
    driver = site(*(using(f"t{n}") for n in range(7)))
    driver.worker("w2", host="b", slots=5, cpu=100_000, memory=100 * GIB)
    driver.tick()
    for n in range(5):
        driver.claim(f"t{n}", "w1")
    driver.claim("t5", "w2")
    for n in range(5):
        driver.end(f"t{n}", DOWN)
    driver.end("t5", SUCCESS, "w2")
    assert circuits(driver) == [("warehouse", "open")]


def test_failures_of_other_kinds_and_of_other_services_do_not_count() -> None:
    driver = site(*(using(f"t{n}", "lake" if n % 2 else "warehouse") for n in range(5)), using("after"))
    for n in range(5):
        driver.claim(f"t{n}")
    for n in range(5):
        driver.end(f"t{n}", DOWN)
    assert circuits(driver) == []
    assert driver.state("after") is TaskState.QUEUED


def test_without_the_breaker_every_task_finds_out_for_itself() -> None:
    driver = failing(breaker=False)
    assert set(driver.dispatched()) == {"t5", "t6", "t7", "t8", "t9"}
    assert circuits(driver) == []


def test_a_new_leader_writes_the_circuits_closed_that_it_finds_open() -> None:
    driver = Driver()
    driver.kernel = Kernel(driver.kernel.settings, driver.now)
    driver.kernel.load(Snapshot(circuits=("lake", "warehouse")), driver.now)
    driver.feed(ReconcileDue(), Tick())
    assert circuits(driver) == [("lake", "closed"), ("warehouse", "closed")]
    driver.feed(ReconcileDue(), Tick())
    assert driver.of(SaveCircuit) == []
