"""Concurrency and rate limits: of runs at their admission, of tasks at their dispatch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.effects import Annotate, CreateAttempt
from orchestrator.events import Tick
from orchestrator.kernel import Kernel, Snapshot
from orchestrator.kernel.held_runs import HeldBack
from orchestrator.records import ConcurrencyLimit, MapPlan, Outcome, Plan, PlannedTask, RateLimit, RetryPolicy
from orchestrator.states import AttemptState, RunState, TaskState
from tests.unit.kernel_driver import GIB, Driver, task
from tests.unit.written_driver import BAD, Written, mapped

CANCELLED = Outcome(AttemptState.CANCELLED, "cancelled")
FAILED = Outcome(AttemptState.FAILED, "exception")
PER_USER = "{{ params.user }}"


def site(**settings: Any) -> Driver:
    driver = Driver(**{"max_runs": 50, **settings})
    driver.worker(slots=50, cpu=100_000, memory=100 * GIB)
    return driver


def one(limit: int, on_limit: str = "queue", key: str = "k") -> dict[str, Any]:
    return {"concurrency": (ConcurrencyLimit(key, limit, on_limit),)}


def submit(driver: Driver, run_id: str, order: int, *tasks: PlannedTask, **fields: Any) -> None:
    driver.run(*(tasks or (task("a"),)), run_id=run_id, order=order, **fields)


def come_again(driver: Driver) -> None:
    """Let the runs be read again that are queued and not left out, as the scheduler does each second."""
    left_out = driver.kernel.held_back()
    for run_id in driver.submitted:
        rows = driver.rows(run_id)
        if rows.run.state is RunState.QUEUED and run_id not in left_out.runs:
            driver.feed(replace(rows, run=replace(rows.run, reason="concurrency")))
    driver.feed(Tick())


def runs_of(driver: Driver) -> set[str]:
    return {run.id for run in driver.kernel.runs.values() if run.state is RunState.RUNNING}


# Runs


def test_a_run_beyond_the_limit_of_its_pipeline_stays_queued_and_says_why() -> None:
    driver = site()
    submit(driver, "r1", 1, plan={"max_active_runs": 1})
    submit(driver, "r2", 2, plan={"max_active_runs": 1})
    assert runs_of(driver) == {"r1"}
    told = [effect for effect in driver.of(Annotate) if effect.id == "r2"]
    assert told[0].changes["reason"] == "concurrency"
    assert told[0].changes["message"] == "Pipeline p allows 1 run at once; held by run r1."
    assert driver.kernel.held_back().runs == ("r2",)


def test_a_run_that_was_told_is_not_told_again() -> None:
    driver = site()
    submit(driver, "r1", 1, plan=one(1))
    submit(driver, "r2", 2, plan=one(1), reason="concurrency")
    assert not driver.of(Annotate)


def test_the_next_in_line_starts_when_the_slot_is_free_and_the_others_are_not_even_read() -> None:
    driver = site()
    for n in range(1, 5):
        submit(driver, f"r{n}", n, plan=one(1))
    driver.start("a")
    driver.end("a")
    assert set(driver.kernel.held_back().runs) == {"r3", "r4"}
    come_again(driver)
    assert runs_of(driver) == {"r2"}
    assert set(driver.kernel.held_back().runs) == {"r3", "r4"}


def test_of_those_held_back_the_one_with_the_highest_priority_goes_first() -> None:
    driver = site()
    submit(driver, "r1", 1, plan=one(1))
    submit(driver, "r2", 2, plan=one(1))
    submit(driver, "r3", 3, plan=one(1), priority=5)
    driver.start("a")
    driver.end("a")
    come_again(driver)
    assert runs_of(driver) == {"r3"}


def test_a_held_run_that_is_cancelled_makes_way_for_the_one_behind_it() -> None:
    driver = site()
    for n in (1, 2, 3):
        submit(driver, f"r{n}", n, plan=one(1))
    driver.feed(replace(driver.submitted["r2"], hold=True))
    driver.command("cancel", run_id="r2")
    driver.start("a")
    driver.end("a")
    come_again(driver)
    assert runs_of(driver) == {"r3"}


def test_runs_with_other_keys_and_of_other_tenants_go_on() -> None:
    driver = site()
    limited = one(1, key=PER_USER)
    submit(driver, "r1", 1, plan=limited, parameters={"user": "ann"})
    submit(driver, "r2", 2, plan=limited, parameters={"user": "ann"})
    submit(driver, "r3", 3, plan=limited, parameters={"user": "bob"})
    submit(driver, "r4", 4, plan=limited, parameters={"user": None})
    submit(driver, "r5", 5, plan=limited, parameters={"user": None})
    assert runs_of(driver) == {"r1", "r3", "r4", "r5"}


def test_two_pipelines_with_one_key_exclude_each_other() -> None:
    driver = site()
    submit(driver, "r1", 1, plan=one(1), pipeline_id="p1", pipeline="p1")
    submit(driver, "r2", 2, plan=one(1), pipeline_id="p2", pipeline="p2")
    assert runs_of(driver) == {"r1"}


@pytest.mark.parametrize(("on_limit", "state"), [("cancel_new", RunState.CANCELLED), ("fail", RunState.FAILED)])
def test_a_new_run_may_be_ended_instead_of_queued(on_limit: str, state: RunState) -> None:
    driver = site()
    submit(driver, "r1", 1, plan=one(1, on_limit))
    submit(driver, "r2", 2, plan=one(1, on_limit))
    assert (driver.run_state("r2"), driver.last("r2").reason) == (state, "concurrency")
    assert driver.state("a", "r2") is TaskState.CANCELLED
    assert not driver.kernel.knows_run("r2")


def test_a_new_run_may_take_the_place_of_the_oldest_one() -> None:
    driver = site()
    for n in (1, 2):
        submit(driver, f"r{n}", n, plan=one(2, "cancel_running"))
        if n == 1:
            driver.start("a")
    submit(driver, "r3", 3, plan=one(2, "cancel_running"))
    assert (driver.run_state("r1"), driver.last("r1").reason) == (RunState.CANCELLING, "superseded")
    assert driver.run_state("r2") is RunState.RUNNING
    assert driver.kernel.held_back().runs == ("r3",)
    driver.end("a", CANCELLED)
    come_again(driver)
    assert runs_of(driver) == {"r2", "r3"}
    assert driver.run_state("r1") is RunState.CANCELLED


def test_the_newest_of_several_runs_wins_in_the_end() -> None:
    driver = site()
    for n in (1, 2, 3):
        submit(driver, f"r{n}", n, plan=one(1, "cancel_running"))
    for _ in range(3):
        come_again(driver)
    assert runs_of(driver) == {"r3"}
    assert {driver.last(run_id).reason for run_id in ("r1", "r2")} == {"superseded"}


def test_what_is_inside_of_a_run_that_newer_ones_keep_from_going_on_counts_when_it_is_run_again() -> None:
    driver = Written()
    driver.worker(slots=8, cpu=8000)
    plan: dict[str, Any] = {"concurrency": (ConcurrencyLimit("one", 1, "cancel_running"),)}
    driver.run(mapped("m", over=[1, 2]), task("end", "m"), **plan)
    driver.finish("m[0]", "m[1]", outcome=BAD)
    driver.run(task("a"), run_id="r2", order=2, **plan)
    driver.again(["m[0]"])
    assert (driver.run_state(), driver.told("m[0]")) == (RunState.CANCELLED, (TaskState.CANCELLED, "run_cancelled"))
    driver.finish("a", run_id="r2")
    driver.again(["m[0]", "m[1]"])
    assert driver.queued() == ["m[0]", "m[1]"]


def test_a_run_inside_of_another_does_not_wait_for_it() -> None:
    driver = site()
    submit(driver, "r1", 1, plan=one(1))
    submit(driver, "r2", 2, plan=one(1), parent_task_run_id="r1.a", depth=1)
    assert runs_of(driver) == {"r1", "r2"}


def test_a_run_whose_key_can_t_be_worked_out_fails() -> None:
    driver = site()
    submit(driver, "r1", 1, plan=one(1, key="{{ params.nobody }}"))
    assert (driver.run_state(), driver.last("r1").reason) == (RunState.FAILED, "template")
    assert "nobody" in driver.last("r1").message


def test_many_runs_that_wait_for_one_key_are_left_out_but_for_the_next_and_stand_in_nobodys_way() -> None:
    driver = site()
    for n in range(1, 203):
        submit(driver, f"r{n}", n, plan=one(1, key=PER_USER), parameters={"user": "a"})
    assert driver.kernel.held_back() == HeldBack(tuple(f"r{n}" for n in range(2, 203)))
    driver.start("a")
    driver.end("a")
    assert driver.kernel.held_back().runs == tuple(f"r{n}" for n in range(3, 203))
    submit(driver, "other", 300, plan=one(1, key=PER_USER), parameters={"user": "b"})
    come_again(driver)
    assert runs_of(driver) == {"r2", "other"}


def test_the_slots_of_runs_are_the_same_under_another_leader() -> None:
    driver = site()
    submit(driver, "r1", 1, plan=one(1))
    driver.command("pause", run_id="r1")
    rows = driver.rows()
    driver.kernel = Kernel(driver.kernel.settings, driver.now)
    driver.kernel.load(
        Snapshot(runs=(rows.run,), plans={"r1": rows.plan}, task_runs=rows.tasks, workers=()), driver.now
    )
    submit(driver, "r2", 2, plan=one(1))
    assert driver.kernel.held_back().runs == ("r2",)


# Tasks


def limited(name: str, limit: int, on_limit: str = "queue", *up: str, key: str = "k", **fields: Any) -> PlannedTask:
    return task(name, *up, concurrency=(ConcurrencyLimit(key, limit, on_limit),), **fields)


def test_no_more_attempts_live_at_once_than_the_limit_allows() -> None:
    driver = site()
    driver.run(*(limited(f"t{n}", 2) for n in range(5)))
    assert driver.dispatched() == ["t0", "t1"]
    for name in ("t2", "t3", "t4"):
        assert driver.state(name) is TaskState.READY
        reason, message = driver.reason(name)
        assert reason == "concurrency"
        assert message == "Key 'k' allows 2 attempts at once; held by t0 of run r1, t1 of run r1."
    driver.start("t0")
    driver.end("t0")
    assert driver.dispatched() == ["t2"]


def test_a_blocked_gate_starves_nobody_else() -> None:
    driver = site()
    driver.run(*(limited(f"t{n}", 1) for n in range(5)), task("free"), limited("other", 1, key="other"))
    assert set(driver.dispatched()) == {"t0", "free", "other"}


def test_a_blocked_line_is_told_once_however_often_its_slot_moves_on() -> None:
    driver = site()
    driver.run(*(limited(f"t{n}", 1) for n in range(30)))
    told = len(driver.all_of(Annotate))
    for n in range(10):
        driver.start(f"t{n}")
        driver.end(f"t{n}")
    notes = [effect for effect in driver.all_of(Annotate)[told:] if "reason" in effect.changes]
    assert not notes


def test_a_slot_is_free_while_a_task_waits_for_its_retry() -> None:
    driver = site()
    driver.run(limited("a", 1), limited("b", 1))
    driver.start("a")
    driver.end("a", FAILED)
    assert driver.dispatched() == ["b"]


def test_a_slot_is_held_until_what_is_cancelled_has_ended() -> None:
    driver = site()
    driver.run(limited("a", 1), limited("b", 1))
    driver.start("a")
    driver.command("cancel", run_id="r1", task="a")
    assert driver.dispatched() == []
    driver.end("a", CANCELLED)
    assert driver.dispatched() == ["b"]


@pytest.mark.parametrize(("on_limit", "state"), [("cancel_new", TaskState.CANCELLED), ("fail", TaskState.FAILED)])
def test_a_task_may_be_ended_instead_of_waiting(on_limit: str, state: TaskState) -> None:
    driver = site()
    driver.run(limited("a", 1, on_limit), limited("b", 1, on_limit), limited("c", 1, on_limit), task("d"))
    assert (driver.state("b"), driver.reason("b")[0]) == (state, "concurrency")
    assert driver.state("c") is state
    assert driver.state("d") is TaskState.QUEUED


def test_a_task_may_take_the_place_of_the_one_that_runs() -> None:
    driver = site()
    driver.run(limited("a", 1, "cancel_running"))
    driver.start("a")
    driver.run(limited("a", 1, "cancel_running"), run_id="r2")
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.CANCELLING, "displaced")
    assert driver.state("a", "r2") is TaskState.READY
    driver.end("a", CANCELLED)
    assert driver.state("a") is TaskState.CANCELLED
    assert driver.state("a", "r2") is TaskState.QUEUED


def test_a_task_of_an_older_run_that_comes_late_gives_way_itself() -> None:
    driver = Written()
    driver.worker(slots=8, cpu=8000)
    driver.run(task("first"), limited("a", 1, "cancel_running", "first"), run_id="r1", order=1)
    driver.run(limited("a", 1, "cancel_running"), run_id="r2", order=2)
    driver.start_of("a", "r2")
    driver.finish("first")
    assert driver.told("a", "r1") == (TaskState.CANCELLED, "displaced")
    assert driver.told("a", "r2")[0] is TaskState.RUNNING


def test_of_two_tasks_of_one_run_the_later_takes_the_place_of_the_earlier() -> None:
    driver = site()
    driver.run(limited("a", 1, "cancel_running"), limited("b", 1, "cancel_running"))
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.CANCELLED, "displaced")
    assert driver.state("b") is TaskState.QUEUED


def test_a_task_whose_key_is_not_there_fails_at_once() -> None:
    driver = site()
    driver.run(limited("a", 1, key="{{ params.nobody }}"), task("b", "a", rule="one_failed"))
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.FAILED, "template")
    driver.tick()
    assert driver.state("b") is TaskState.QUEUED


def test_room_is_not_held_for_a_task_that_waits_for_its_slot() -> None:
    driver = Driver(max_runs=50)
    driver.worker(slots=9, cpu=4000)
    driver.run(limited("a", 1), limited("big", 1, cpu=4000))
    driver.start("a")
    for _ in range(10):
        driver.now += 10.0
        driver.beat("w1")
        driver.feed(Tick())
    assert not driver.kernel.ledger.held


def test_the_slots_of_attempts_are_the_same_under_another_leader() -> None:
    driver = site()
    driver.run(limited("a", 1), limited("b", 1))
    old, rows = driver.kernel, driver.rows()
    driver.kernel = Kernel(old.settings, driver.now)
    driver.kernel.load(
        Snapshot(
            runs=(rows.run,),
            plans={"r1": rows.plan},
            task_runs=rows.tasks,
            attempts=tuple(old.attempts.values()),
            reservations=old.reservations(),
            workers=tuple(old.workers.values()),
        ),
        driver.now,
    )
    driver.beat("w1")
    driver.tick()
    assert driver.dispatched() == []
    assert driver.reason("b")[0] == "concurrency"


# Rates


def rated(name: str, units: int, per: float, **fields: Any) -> PlannedTask:
    return task(name, rate_limit=RateLimit("api", units, per), **fields)


def test_no_more_are_sent_out_in_any_window_than_the_rate_allows() -> None:
    driver = site()
    driver.run(*(rated(f"t{n}", 2, 60.0) for n in range(6)), task("free"))
    assert set(driver.dispatched()) == {"t0", "t1", "free"}
    assert driver.reason("t2")[0] == "rate_limit"
    assert "60 s" in driver.reason("t2")[1]
    sent = [(driver.now, "t0"), (driver.now, "t1")]
    for _ in range(40):
        driver.now += 5.0
        driver.beat("w1")
        driver.feed(Tick())
        sent += [(driver.now, name) for name in driver.dispatched()]
    assert [name for _, name in sent] == [f"t{n}" for n in range(6)]
    for at, _ in sent:
        assert sum(at <= other < at + 60.0 for other, _ in sent) <= 2


def test_the_kernel_knows_when_the_next_one_may_go() -> None:
    driver = site()
    driver.run(rated("a", 1, 7.0), rated("b", 1, 7.0))
    driver.now += 3.0
    driver.beat("w1")
    driver.feed(Tick())
    assert driver.kernel.next_due(driver.now) == pytest.approx(4.0)


def test_each_try_counts_against_the_rate() -> None:
    driver = site()
    again = RetryPolicy(retries=3, delay=0, factor=1, max_delay=0, jitter=0)
    driver.run(rated("a", 1, 60.0, retry=again))
    driver.start("a")
    driver.end("a", FAILED)
    assert (driver.state("a"), driver.reason("a")[0]) == (TaskState.READY, "rate_limit")
    assert not driver.of(CreateAttempt)


def test_the_key_of_an_index_may_name_its_item() -> None:
    driver = site()
    body = Plan((limited("m", 1, key="gpu-{{ map.item.gpu }}"),))
    driver.run(task("m", map=MapPlan(over=[{"gpu": 0}, {"gpu": 0}, {"gpu": 1}]), body=body))
    assert driver.dispatched() == ["m[0]", "m[2]"]


def test_of_two_limits_with_one_key_each_has_its_own_next_turn() -> None:
    driver = site()
    driver.run(rated("a", 1, 7.0), rated("b", 1, 7.0), rated("c", 1, 3600.0))
    assert driver.reason("b")[0] == driver.reason("c")[0] == "rate_limit"
    driver.beat("w1")
    assert driver.kernel.next_due(driver.now) == pytest.approx(7.0)


@pytest.mark.parametrize("ended", [True, False])
def test_a_new_leader_keeps_to_what_was_sent_out_before(ended: bool) -> None:
    driver = Written()
    driver.worker()
    driver.run(rated("a", 1, 3600.0), rated("b", 1, 3600.0))
    assert driver.queued() == ["a"]
    if ended:
        driver.finish("a")
    driver.take_over()
    driver.tick(after=1.0)
    assert driver.told("b") == (TaskState.READY, "rate_limit")
    driver.tick(after=3600.0)
    assert driver.state("b") is TaskState.QUEUED
