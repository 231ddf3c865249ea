"""Submission, dispatch and re-dispatch."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from orchestrator.effects import Count, SendHint, Transition
from orchestrator.events import ClaimReceived, OutcomeReceived, RedisAway, RedisBack, RunSubmitted, Tick
from orchestrator.records import Outcome, Plan, PlannedTask, RunRecord, TaskRunRecord
from orchestrator.states import AttemptState, RunState, TaskState
from tests.unit.kernel_driver import GIB, SUCCESS, Driver, task


def test_a_submitted_run_starts_and_its_roots_are_dispatched() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"), task("b", "a"))
    assert driver.run_state() is RunState.RUNNING
    assert driver.dispatched() == ["a"]
    assert driver.hints() == [(driver.attempt("a").id, 1, "cpu")]
    assert driver.state("b") is TaskState.PENDING


def test_every_step_of_a_task_is_a_transition() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.start("a")
    driver.end("a")
    steps = [e.after for e in driver.all_of(Transition) if e.id == "r1.a"]
    assert steps == [TaskState.READY, TaskState.QUEUED, TaskState.RUNNING, TaskState.SUCCESS]
    assert driver.run_state() is RunState.SUCCESS
    assert not driver.held()
    assert not driver.kernel.runs


def test_the_hint_goes_to_the_planned_worker_alone_where_another_listener_could_not_take_it() -> None:
    driver = Driver()
    driver.worker("small", host="b", cpu=500)
    driver.worker("large", host="a")
    driver.run(task("a", cpu=2000))
    assert driver.of(SendHint)[0].queue == "w.large"


def test_nothing_is_dispatched_without_a_free_slot() -> None:
    driver = Driver()
    driver.worker(slots=1)
    driver.run(task("a"), task("b"))
    assert driver.dispatched() == ["a"]
    assert driver.reason("b")[0] == "waiting_for_slot"


def test_what_ends_makes_room_for_what_waits() -> None:
    driver = Driver()
    driver.worker(slots=1)
    driver.run(task("a"), task("b"))
    driver.start("a")
    driver.end("a")
    assert driver.dispatched() == ["b"]


def test_a_run_beyond_the_limit_stays_queued() -> None:
    driver = Driver(max_runs=1)
    driver.worker()
    driver.run(task("a"))
    assert driver.kernel.run_slots_free() == 0
    driver.run(task("a"), run_id="r2")
    assert not driver.kernel.knows_run("r2")
    assert [count.what for count in driver.of(Count)] == ["no_run_slot"]


def test_higher_priority_goes_first_then_the_older_run_then_the_longer_path() -> None:
    driver = Driver()
    driver.worker(slots=0)
    driver.run(task("short"), task("long"), task("tail", "long"))
    driver.run(task("second"), run_id="r2")
    driver.run(task("urgent"), run_id="r3", priority=5)
    driver.beat(slots=4)
    driver.tick()
    assert driver.dispatched() == ["urgent", "long", "short", "second"]


def test_a_run_without_tasks_succeeds_at_once() -> None:
    driver = Driver()
    driver.run()
    assert driver.run_state() is RunState.SUCCESS


def test_an_unclaimed_hint_is_sent_again_after_the_redispatch_time() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    driver.tick(after=19)
    assert not driver.hints()
    driver.tick(after=1)
    assert driver.hints() == [(driver.attempt("a").id, 2, "cpu")]


def test_time_in_which_claims_wait_unread_does_not_count_for_redispatch() -> None:
    driver = Driver(lease=1000)
    driver.worker()
    driver.run(task("a"))
    driver.tick(after=30, claims_waiting=True)
    assert not driver.hints()
    driver.tick(after=10)
    assert not driver.hints()
    driver.tick(after=10)
    assert driver.hints()


def test_a_worker_that_lets_hints_pass_loses_the_attempt_to_another() -> None:
    driver = Driver(lease=1000)
    driver.worker("deaf", cpu=1000)
    driver.run(task("a"))
    driver.worker("well", host="b")
    driver.tick(after=20)
    assert driver.attempt("a").worker_id == "deaf"
    driver.tick(after=20)
    assert driver.attempt("a").worker_id == "well"


def test_a_reset_of_redis_sends_every_unclaimed_hint_again_at_once() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"), task("b"))
    driver.start("a")
    driver.feed(RedisBack(reset=True))
    assert driver.hints() == [(driver.attempt("b").id, 2, "cpu")]


def test_nothing_is_dispatched_while_redis_is_away_and_the_wait_says_so() -> None:
    driver = Driver()
    driver.worker()
    driver.feed(RedisAway())
    driver.run(task("a"))
    assert not driver.dispatched()
    assert driver.reason("a")[0] == "waiting_for_redis"
    assert driver.kernel.next_due(driver.now) != 0.0
    driver.feed(RedisBack(), Tick())
    assert driver.dispatched() == ["a"]


def test_a_task_that_fits_no_worker_says_what_is_missing() -> None:
    driver = Driver()
    driver.worker(cpu=2000, queues=("cpu", "gpu"))
    driver.run(task("a", cpu=4000, queue="gpu"))
    assert driver.reason("a") == ("infeasible", "Asks 4 cpu; the largest worker on queue gpu, host a, has 2.")


def test_an_infeasible_task_goes_as_soon_as_a_fitting_worker_joins() -> None:
    driver = Driver()
    driver.worker(cpu=2000)
    driver.run(task("a", cpu=4000))
    driver.worker("w2", host="b", cpu=8000)
    driver.tick()
    assert driver.dispatched() == ["a"]


def test_consumers_of_local_outputs_are_pinned_to_the_host_that_has_them() -> None:
    driver = Driver()
    driver.worker("w1", host="a", slots=1)
    driver.run(task("a"), task("b", "a"))
    driver.start("a")
    driver.worker("w2", host="b")
    driver.beat("w1", slots=0)
    attempt = driver.attempt("a")
    driver.end("a", type(SUCCESS)(SUCCESS.state, local_to="a"))
    assert attempt.host_id == "a"
    assert driver.reason("b")[0] == "waiting_for_slot"
    driver.beat("w1", slots=1)
    driver.tick()
    assert driver.attempt("b").host_id == "a"


def test_a_big_task_is_not_starved_by_small_ones_of_higher_priority() -> None:
    driver = Driver(hold_after=30, lease=1000)
    driver.worker(cpu=2000, memory=64 * GIB, slots=8)
    driver.run(task("s1"), task("s2"), priority=1)
    driver.start("s1", "s2")
    driver.run(task("big", cpu=2000), run_id="patient")
    driver.tick(after=31)
    driver.run(task("s3"), task("s4"), run_id="more", priority=1)
    driver.end("s1")
    assert not driver.dispatched(), "the freed core is held for the big task"
    driver.end("s2")
    assert driver.dispatched() == ["big"]


def hold_for_big() -> Driver:
    """Room is held on host ``a`` for a task that has waited long; host ``b`` has none of it."""
    driver = Driver(lease=1000)
    driver.worker("w1", host="a", cpu=2000)
    driver.run(task("s1"), task("s2"), priority=1)
    driver.start("s1", "s2")
    driver.run(task("big", cpu=2000), run_id="patient")
    driver.tick(after=31)
    assert list(driver.kernel.ledger.held.values()) == ["a"]
    return driver


def test_what_waited_behind_held_room_is_placed_or_told_why_in_the_same_pass() -> None:
    driver = hold_for_big()
    driver.end("s1", tick=False)
    driver.end("s2", tick=False)
    driver.run(task("s3"), task("s4"), run_id="more", priority=1)
    assert driver.dispatched() == ["big"]
    assert driver.reason("s3", "more")[0] == "waiting_for_cpu"
    assert driver.reason("s4", "more") == ("waiting_for_cpu", "Asks 1 cpu; host a has 0 of 2 free.")


def test_no_room_is_held_on_the_host_of_a_worker_that_drains() -> None:
    driver = hold_for_big()
    driver.command("drain", worker_id="w1")
    assert not driver.kernel.ledger.held


def test_no_room_is_held_on_the_host_of_a_worker_that_has_fallen_silent() -> None:
    driver = hold_for_big()
    driver.worker("w2", host="b", cpu=2000)
    driver.tick(after=501)
    assert list(driver.kernel.ledger.held.values()) != ["a"]


def test_held_room_stays_while_another_worker_of_the_host_can_take_the_task() -> None:
    driver = hold_for_big()
    driver.worker("w3", host="a", cpu=2000)
    driver.command("drain", worker_id="w1")
    assert list(driver.kernel.ledger.held.values()) == ["a"]


def test_an_attempt_that_moves_goes_by_the_pools_queue_or_by_its_workers_own() -> None:
    driver = Driver(lease=1000)
    driver.worker("deaf", cpu=2000)
    driver.run(task("a", cpu=2000))
    driver.worker("small", host="b", cpu=1000)
    driver.worker("well", host="c", cpu=2000)
    driver.tick(after=20)
    driver.tick(after=20)
    assert driver.attempt("a").worker_id == "well"
    assert driver.hints() == [(driver.attempt("a").id, 3, "w.well")], "small could not take it"


def test_timers_of_attempts_and_tasks_that_have_ended_do_not_pile_up() -> None:
    driver = Driver()
    driver.worker(slots=9)
    for number in range(1200):
        driver.run(task("a", timeout=86400.0), task("b"), run_id=f"r{number}")
        attempts = [driver.attempt(name, f"r{number}") for name in "ab"]
        driver.feed(
            *(ClaimReceived("w1", attempt.id, 1, "n") for attempt in attempts),
            OutcomeReceived("w1", attempts[0].id, attempts[0].token, SUCCESS),
            OutcomeReceived("w1", attempts[1].id, attempts[1].token, Outcome(AttemptState.FAILED)),
        )
        driver.command("cancel", run_id=f"r{number}")
    assert not driver.kernel.attempts
    assert len(driver.kernel.deadlines) <= 1010
    assert len(driver.kernel.retries) <= 1010


def test_a_run_whose_plan_can_not_be_read_fails_with_a_reason_and_takes_no_place() -> None:
    driver = Driver(max_runs=1)
    driver.worker()
    rows = (TaskRunRecord("bad.a", "bad", "a"), TaskRunRecord("bad.b", "bad", "b"))
    plan = Plan((PlannedTask("a", ""), PlannedTask("b", "")))
    record = RunRecord("bad", "tenant", RunState.QUEUED)
    driver.run(task("a"), run_id="good")
    driver.feed(RunSubmitted(record, rows, plan, unreadable="A stored plan has format 9."), Tick())
    assert (driver.last("bad").after, driver.last("bad").reason) == (RunState.FAILED, "plan_unreadable")
    assert "format 9" in driver.last("bad").message
    assert driver.state("a", "bad") is TaskState.CANCELLED
    assert not driver.kernel.knows_run("bad")
    driver.feed(RunSubmitted(record, rows, plan, unreadable="A stored plan has format 9."))
    assert not driver.of(Transition), "its row was read before it was ended"


def test_a_run_whose_plan_can_not_be_read_can_be_cancelled() -> None:
    driver = Driver()
    record = RunRecord("bad", "tenant", RunState.QUEUED)
    rows = (TaskRunRecord("bad.a", "bad", "a"),)
    driver.feed(RunSubmitted(record, rows, Plan((PlannedTask("a", ""),)), hold=True, unreadable="Why."))
    assert not driver.effects
    driver.command("cancel", run_id="bad")
    assert driver.last("bad").after is RunState.CANCELLED


def test_next_due_names_the_nearest_timer() -> None:
    driver = Driver(lease=1000)
    assert driver.kernel.next_due(driver.now) is None
    driver.worker()
    driver.tick()
    driver.run(task("a"))
    assert driver.kernel.next_due(driver.now) == 20.0


def lost_with_their_host(tasks: int) -> Driver:
    """So many tasks ran on one host and were lost with it; they are ready again."""
    driver = Driver(breaker=False)
    driver.worker("old", host="old", slots=tasks, cpu=tasks * 1000, memory=tasks * GIB)
    driver.run(*(task(f"a{n}") for n in range(tasks)))
    driver.start(*(f"a{n}" for n in range(tasks)), worker_id="old")
    driver.tick(after=31)
    return driver


def steps_to_place(tasks: int) -> int:
    """Count the steps of Python that it takes to place the lost tasks anew: no clock, so nothing that varies."""
    driver = lost_with_their_host(tasks)
    steps = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return count

    before = sys.gettrace()
    try:
        for host in ("b", "c"):
            sys.settrace(count)
            driver.worker(host, host=host, slots=tasks, cpu=tasks * 1000, memory=tasks * GIB)
            driver.tick()
            sys.settrace(before)
    finally:
        sys.settrace(before)
    assert len(driver.kernel.unclaimed) == tasks
    assert all(node.losses == 1 for node in driver.kernel.tasks.values())
    return steps


def test_to_place_what_was_lost_together_takes_time_in_proportion() -> None:
    assert steps_to_place(400) < 1.2 * 4 * steps_to_place(100)


def test_which_hosts_run_what_was_lost_before_is_always_what_a_look_at_all_attempts_would_find() -> None:
    driver = lost_with_their_host(6)
    kernel = driver.kernel

    def agrees() -> bool:
        lost = [one for one in kernel.attempts.values() if kernel.tasks[one.task_run_id].losses]
        return kernel.relapses.hosts == {
            host: {one.id for one in lost if one.host_id == host} for host in {one.host_id for one in lost}
        }

    driver.worker("b", host="b", slots=3)
    driver.run(task("never lost"), run_id="r2")
    driver.tick()
    assert len(kernel.relapses.hosts["b"]) == 3
    driver.worker("c", host="c", slots=9, cpu=9000, memory=9 * GIB)
    driver.tick()
    assert set(kernel.relapses.hosts) == {"b", "c"}
    assert agrees()
    moved = next(iter(kernel.relapses.hosts["b"]))
    driver.feed(ClaimReceived("c", moved, 1, "n1"))
    assert kernel.attempts[moved].host_id == "c"
    assert agrees()
    for _ in range(9):
        driver.tick(after=5)
        assert agrees()
    for attempt in list(kernel.attempts.values()):
        driver.feed(OutcomeReceived(attempt.worker_id, attempt.id, attempt.token, SUCCESS))
        assert agrees()
    assert not kernel.attempts
    assert not kernel.relapses.hosts
