"""Rerun in place: what starts again, what is kept, and that nothing of an older generation counts any more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.effects import CloseCommand, CreateAttempt, SaveOutcome, SendGrant, Transition
from orchestrator.events import ClaimReceived, Command, EndedRun, OutcomeReceived, ReconcileDue, RunSubmitted, Tick
from orchestrator.kernel import Kernel, KernelSettings, Snapshot
from orchestrator.records import Outcome
from orchestrator.states import (
    ATTEMPT_TERMINAL,
    RUN_TERMINAL,
    TASK_TERMINAL,
    AttemptState,
    Entity,
    RunState,
    TaskState,
    is_allowed,
    is_reopening,
)
from tests.unit.kernel_driver import SUCCESS, Driver, task

BAD = Outcome(AttemptState.FAILED, "bad_data", retryable=False)


def broken() -> Driver:
    """A run of a diamond whose left side has failed: ``root`` and ``right`` are well, ``join`` never ran."""
    driver = Driver()
    driver.worker()
    driver.run(task("root"), task("left", "root"), task("right", "root"), task("join", "left", "right"))
    driver.start("root")
    driver.end("root")
    driver.start("left", "right")
    driver.end("right")
    driver.end("left", BAD)
    assert driver.run_state() is RunState.FAILED
    return driver


def states(driver: Driver) -> dict[str, TaskState]:
    return {row.name: row.state for row in driver.rows().tasks}


def test_what_failed_and_all_below_it_starts_again_and_the_rest_is_kept() -> None:
    driver = broken()
    result = driver.rerun(start=False)
    assert result == "Run r1 starts again as its generation 2: 2 of its 4 tasks; it is queued."
    assert states(driver) == {
        "root": TaskState.SUCCESS,
        "left": TaskState.PENDING,
        "right": TaskState.SUCCESS,
        "join": TaskState.PENDING,
    }
    assert [row.generation for row in driver.rows().tasks] == [1, 2, 1, 2]
    assert (driver.rows().run.state, driver.rows().run.generation) == (RunState.QUEUED, 2)


def test_the_states_that_were_kept_count_for_the_rules_below() -> None:
    driver = broken()
    driver.rerun()
    assert driver.dispatched() == ["left"], "its upstream is well from before"
    driver.start("left")
    driver.end("left")
    assert driver.dispatched() == ["join"]
    driver.start("join")
    driver.end("join")
    assert driver.run_state() is RunState.SUCCESS


def test_attempts_go_on_being_counted_and_the_budgets_begin_anew() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"))
    for _ in range(2):
        driver.tick(after=11)
        driver.start("a")
        driver.end("a", Outcome(AttemptState.FAILED, "exception"))
    row = driver.rows().tasks[0]
    assert (row.state, row.attempts, row.failures) == (TaskState.FAILED, 2, 2)
    driver.rerun()
    row = driver.rows().tasks[0]
    assert (row.attempts, row.failures, row.losses) == (3, 0, 0)
    assert driver.attempt("a").number == 3
    driver.start("a")
    driver.end("a", Outcome(AttemptState.FAILED, "exception"))
    assert driver.state("a") is TaskState.RETRY_WAIT, "one retry is left again"


def test_every_step_of_it_is_audited_with_cause_and_actor() -> None:
    driver = broken()
    driver.rerun(start=False)
    steps = driver.of(Transition)
    assert {(step.entity, step.id, step.before, step.after) for step in steps} == {
        (Entity.RUN, "r1", RunState.FAILED, RunState.QUEUED),
        (Entity.TASK_RUN, "r1.left", TaskState.FAILED, TaskState.PENDING),
        (Entity.TASK_RUN, "r1.join", TaskState.UPSTREAM_FAILED, TaskState.PENDING),
    }
    assert {(step.cause, step.actor, step.durable) for step in steps} == {("rerun", "ann", True)}
    columns = driver.last("r1.left").changes
    assert [columns[name] for name in ("outputs", "retry_at", "attempt_id", "local_to", "ended_at")] == [None] * 5


def test_all_tasks_can_be_run_again_also_of_a_run_that_went_well() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"), task("b", "a"))
    for name in "ab":
        driver.start(name)
        driver.end(name)
    assert "no task of run r1 has failed" in driver.rerun(start=False)
    driver.rerun("all")
    assert states(driver) == {"a": TaskState.QUEUED, "b": TaskState.PENDING}


def test_named_tasks_take_everything_below_them_along() -> None:
    driver = broken()
    driver.rerun(["right"])
    assert states(driver) == {
        "root": TaskState.SUCCESS,
        "left": TaskState.FAILED,
        "right": TaskState.QUEUED,
        "join": TaskState.UPSTREAM_FAILED,
    }, "left was kept as failed, so that join is settled at once"


def test_a_cancelled_run_starts_again_where_it_was_stopped() -> None:
    driver = Driver()
    driver.worker()
    driver.run(task("a"), task("b", "a"))
    driver.start("a")
    driver.end("a")
    driver.command("cancel", run_id="r1")
    assert driver.run_state() is RunState.CANCELLED
    driver.rerun()
    assert driver.dispatched() == ["b"]


def test_a_second_rerun_is_refused_with_a_sentence_while_the_first_is_under_way() -> None:
    driver = broken()
    driver.rerun(start=False)
    assert driver.rerun(start=False).startswith("Refused: run r1 is queued")
    driver.feed(driver.rows(), Tick())
    assert driver.rerun(start=False).startswith("Refused: run r1 is running")
    assert driver.rows().run.generation == 2
    assert not driver.of(Transition)


def test_a_double_click_makes_one_generation_however_fast_the_first_one_ends() -> None:
    driver = broken()
    seen = driver.rows()
    late = Command(99, "rerun", "ann", "r1", payload={"generation": 1}, ended=EndedRun(seen.run, seen.tasks, seen.plan))
    driver.rerun(generation=1)
    driver.command("cancel", run_id="r1")
    assert driver.run_state() is RunState.CANCELLED
    for command in (late, replace(late, ended=None)):
        driver.feed(command)
        assert driver.of(CloseCommand)[0].result.startswith("Refused")
    assert "since its generation 1 ended" in driver.rerun(start=False, generation=1)
    assert driver.rows().run.generation == 2


def test_what_can_not_be_run_again_is_refused_with_a_sentence() -> None:
    driver = broken()
    assert "has no task 'nobody'" in driver.rerun(["left", "nobody"], start=False)
    rows = driver.rows()
    unreadable = EndedRun(rows.run, rows.tasks, rows.plan, "It is of format 9.")
    driver.feed(Command(1, "rerun", "ann", "r1", ended=unreadable))
    assert "can't be read" in driver.of(CloseCommand)[0].result
    driver.feed(Command(1, "rerun", "ann", "r2"))
    assert "no run r2 that is over" in driver.of(CloseCommand)[0].result
    assert not driver.kernel.runs, "nothing of it is held"


@pytest.mark.parametrize("outcome", [SUCCESS, BAD, Outcome(AttemptState.LOST, "runner_vanished")])
def test_a_late_outcome_of_the_generation_before_changes_nothing(outcome: Outcome) -> None:
    driver = Driver(max_losses=1)
    driver.worker()
    driver.run(task("a"))
    driver.start("a")
    old = driver.attempt("a")
    driver.tick(after=31)
    assert driver.last(old.id).after is AttemptState.LOST
    driver.beat(running={old.id: old.token})
    driver.rerun()
    driver.start("a")
    new = driver.attempt("a")
    driver.feed(OutcomeReceived("w1", old.id, old.token, outcome))
    assert driver.verdicts() == ["fenced"]
    assert not driver.of(SaveOutcome)
    assert not driver.of(Transition)
    driver.feed(ClaimReceived("w1", old.id, 1, "n9"))
    assert not driver.of(SendGrant)
    driver.feed(OutcomeReceived("w1", new.id, old.token, outcome))
    assert driver.verdicts() == ["fenced"], "its token is another one"
    driver.end("a")
    assert driver.run_state() is RunState.SUCCESS


def test_the_tree_of_the_generation_before_is_stopped_and_stays_charged_until_it_is_dead() -> None:
    driver = Driver(max_losses=1)
    driver.worker(cpu=2000)
    driver.run(task("a"))
    driver.start("a")
    old = driver.attempt("a")
    driver.tick(after=31)
    driver.beat(running={old.id: old.token})
    driver.rerun()
    new = driver.attempt("a")
    assert driver.kernel.desired("w1").fence == (old.id,)
    assert driver.held() == {old.id, new.id}


def test_it_waits_for_a_place_among_the_runs() -> None:
    driver = Driver(max_runs=1)
    driver.worker()
    driver.run(task("a"))
    driver.start("a")
    driver.end("a", BAD)
    driver.run(task("b"), run_id="r2")
    driver.rerun()
    assert driver.rows().run.state is RunState.QUEUED
    assert not driver.all_of(CreateAttempt)[2:]
    driver.command("cancel", run_id="r2")
    driver.feed(driver.rows(), Tick())
    assert driver.dispatched() == ["a"]


def test_it_can_be_cancelled_before_it_starts_and_keeps_what_was_well() -> None:
    driver = broken()
    driver.rerun(start=False)
    driver.command("cancel", run_id="r1")
    assert driver.run_state() is RunState.CANCELLED
    assert states(driver)["root"] is TaskState.SUCCESS
    assert states(driver)["join"] is TaskState.CANCELLED
    driver.rerun()
    assert driver.rows().run.generation == 3


def test_a_new_leader_goes_on_with_the_generation_of_the_rows() -> None:
    driver = broken()
    driver.rerun()
    rows = driver.rows()
    driver.kernel = Kernel(KernelSettings(new_id=lambda: f"id{next(driver.ids)}"), driver.now)
    driver.kernel.load(
        Snapshot(
            runs=(rows.run,),
            plans={"r1": rows.plan},
            task_runs=rows.tasks,
            attempts=tuple(e.attempt for e in driver.all_of(CreateAttempt) if e.attempt.number == 2),
        ),
        driver.now,
    )
    driver.feed(ReconcileDue(), Tick())
    assert driver.kernel.runs["r1"].generation == 2
    driver.worker("w1")
    driver.start("left")
    driver.end("left")
    driver.start("join")
    driver.end("join")
    assert driver.run_state() is RunState.SUCCESS
    driver.rerun("all")
    assert driver.rows().run.generation == 3


def test_a_row_read_before_the_rerun_starts_nothing() -> None:
    driver = broken()
    before = driver.rows()
    driver.rerun(start=False)
    driver.kernel.drop_run(driver.kernel.runs["r1"])
    driver.feed(RunSubmitted(replace(before.run, state=RunState.QUEUED), before.tasks, before.plan), Tick())
    assert not driver.of(Transition), "its generation is over"


def test_only_a_rerun_leads_out_of_a_terminal_state_and_only_to_the_beginning() -> None:
    for run in RunState:
        assert is_reopening(Entity.RUN, run, RunState.QUEUED) == (run in RUN_TERMINAL)
    for before in TaskState:
        assert is_reopening(Entity.TASK_RUN, before, TaskState.PENDING) == (before in TASK_TERMINAL)
        assert not is_reopening(Entity.TASK_RUN, before, TaskState.READY)
    for ended in ATTEMPT_TERMINAL:
        assert not any(is_reopening(Entity.ATTEMPT, ended, after) for after in AttemptState)
    for entity, left in ((Entity.RUN, RUN_TERMINAL), (Entity.TASK_RUN, TASK_TERMINAL)):
        assert not any(is_allowed(entity, before, after) for before in left for after in type(before))
