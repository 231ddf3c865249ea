"""Stopping and resuming containers inside of containers: nothing stays behind, and nothing runs again unasked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.effects import Count
from orchestrator.events import ReconcileDue, Tick
from orchestrator.kernel import Kernel, decide
from orchestrator.records import Outcome, PlannedTask
from orchestrator.states import TASK_TERMINAL, AttemptState, RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.test_kernel_rerun_maps import with_one_broken_index
from tests.unit.written_driver import BAD, Written, gave, mapped

S, C, P = TaskState.SUCCESS, TaskState.CANCELLED, TaskState.PENDING
STOPPED = Outcome(AttemptState.CANCELLED, "cancelled")


def run_through(driver: Written, *broken: str) -> list[str]:
    """Let everything run that is sent out; returns what has run, in order."""
    ran: list[str] = []
    while queued := driver.queued():
        for name in queued:
            ran.append(name)
            driver.finish(name, outcome=BAD if name in broken else None)
    return ran


def folds(**fields: Any) -> PlannedTask:
    inner = mapped("fit", over={"range": 3})
    return mapped("folds", over={"range": 2}, body=(inner, task("best", "fit")), **fields)


def broken_in_each_fold(**fields: Any) -> Written:
    driver = started(folds(**fields), task("report", "folds"))
    run_through(driver, "folds[0].fit[1]", "folds[1].fit[1]")
    assert driver.run_state() is RunState.FAILED
    return driver


def with_a_decided_map_inside(**fields: Any) -> Written:
    """Of each fold the inner map is decided by its first index, while the second one still runs."""
    inner = mapped("fit", over={"range": 2}, success="any")
    driver = started(mapped("folds", over={"range": 2}, body=(inner, task("best", "fit")), **fields))
    for name in driver.queued():
        driver.start_of(name, "r1")
    driver.end_of("folds[0].fit[0]", "r1", gave())
    assert driver.told("folds[0].fit")[0] is S
    return driver


def test_a_map_that_is_cancelled_before_its_rerun_starts_takes_the_chosen_index_with_it() -> None:
    driver = with_one_broken_index()
    driver.ask("rerun", **{"from": "failed"})
    driver.ask("cancel", task="train")
    assert driver.told("train[1]") == (C, "cancelled")
    driver.feed(driver.submission(), Tick())
    assert driver.run_state() is RunState.FAILED
    assert driver.told("report") == (TaskState.UPSTREAM_FAILED, "all_success")


def test_a_map_that_is_cancelled_ends_the_maps_inside_that_wait_to_be_resumed() -> None:
    driver = broken_in_each_fold(max_parallel=1)
    driver.again("failed")
    driver.start_of("folds[0].fit[1]", "r1")
    driver.ask("cancel", task="folds")
    assert driver.told("folds[1].fit[1]") == (C, "cancelled")
    driver.end_of("folds[0].fit[1]", "r1", STOPPED)
    assert {name: state for name, state in driver.states().items() if state not in TASK_TERMINAL} == {}
    assert driver.told("folds")[0] is C
    assert driver.run_state() is RunState.FAILED


def test_what_older_rows_hold_open_inside_of_a_stopped_map_is_ended_by_reconcile() -> None:
    driver = with_one_broken_index()
    driver.ask("rerun", **{"from": "failed"})
    driver.feed(driver.submission())
    rows = driver.store.task_runs
    rows[driver.row("train[1]").id] = replace(driver.row("train[1]"), state=P, attempt_id=None)
    rows[driver.row("train").id] = replace(driver.row("train"), state=C, reason="cancelled")
    driver.kernel = Kernel(driver.settings, driver.now)
    driver.kernel.load(driver.store.snapshot(driver.now), driver.now)
    effects = decide(driver.kernel, ReconcileDue(), driver.now)
    driver.store.commit(1, effects, [ReconcileDue()], driver.now)
    repaired = [effect.detail for effect in effects if isinstance(effect, Count) and effect.what == "repaired"]
    assert repaired == [
        "task report of run r1 stood still, though its rule says upstream_failed",
        "inside of task train of run r1, which is cancelled, 1 task runs were open",
    ]
    assert driver.told("train[1]") == (C, "cancelled")
    assert driver.run_state() is RunState.FAILED


def test_a_cancel_reaches_what_still_runs_in_a_decided_map_inside() -> None:
    driver = with_a_decided_map_inside()
    driver.ask("cancel", task="folds")
    assert driver.told("folds[0].fit[1]") == (TaskState.CANCELLING, "cancelled")
    assert driver.attempt("folds[0].fit[1]").cancel
    for name in ("folds[0].fit[1]", "folds[1].fit[0]", "folds[1].fit[1]"):
        driver.end_of(name, "r1", STOPPED)
    assert driver.told("folds")[0] is C
    assert driver.told("folds[0].fit")[0] is S, "it was decided before"


def test_failing_fast_reaches_what_still_runs_in_a_decided_map_inside() -> None:
    driver = with_a_decided_map_inside(fail_fast=True)
    for name in ("folds[1].fit[0]", "folds[1].fit[1]"):
        driver.end_of(name, "r1", BAD)
    assert driver.told("folds")[0] is TaskState.FAILED
    assert driver.told("folds[0].fit[1]") == (TaskState.CANCELLING, "fail_fast")
    driver.end_of("folds[0].fit[1]", "r1", STOPPED)
    assert driver.run_state() is RunState.FAILED


@pytest.mark.parametrize("at_once", [None, 1])
def test_of_a_map_inside_that_waits_for_its_turn_only_the_chosen_index_runs_again(at_once: int | None) -> None:
    driver = broken_in_each_fold(max_parallel=at_once)
    driver.again("failed")
    assert driver.told("folds[1].fit") == ((P, "max_parallel") if at_once else (TaskState.RUNNING, "mapped"))
    if at_once:
        driver.take_over()
    ran = run_through(driver)
    assert sorted(ran) == ["folds[0].best", "folds[0].fit[1]", "folds[1].best", "folds[1].fit[1]", "report"]
    assert driver.run_state() is RunState.SUCCESS


def test_a_map_that_is_marked_before_it_goes_on_leaves_nothing_inside_to_run() -> None:
    driver = with_one_broken_index()
    driver.ask("rerun", **{"from": "failed"})
    driver.ask("mark", task="train", state="success")
    assert driver.told("train[1]") == (C, "marked")
    driver.feed(driver.submission(), Tick())
    assert driver.queued() == ["report"]
    driver.finish("report")
    assert driver.run_state() is RunState.SUCCESS


def test_a_map_whose_upstream_is_marked_as_failed_before_it_goes_on_leaves_nothing_inside_to_run() -> None:
    driver = with_one_broken_index()
    driver.ask("rerun", **{"from": "failed"})
    driver.ask("mark", task="first", state="failed")
    driver.feed(driver.submission(), Tick())
    assert driver.told("train") == (TaskState.UPSTREAM_FAILED, "all_success")
    assert driver.told("train[1]") == (C, "all_success")
    assert driver.run_state() is RunState.FAILED


def test_a_map_that_was_decided_and_ends_with_its_upstream_stops_what_still_runs_inside() -> None:
    driver = started(task("first"), mapped("train", "first", over={"range": 2}), task("long"))
    driver.finish("first")
    driver.start_of("train[1]", "r1")
    driver.finish("train[0]", outcome=BAD)
    assert driver.told("train") == (TaskState.FAILED, "index_failed")
    driver.ask("mark", task="first", state="failed")
    driver.ask("mark", task="train[0]", state="success")
    assert driver.told("train") == (TaskState.UPSTREAM_FAILED, "all_success")
    assert driver.told("train[1]") == (TaskState.CANCELLING, "all_success")
    driver.feed(ReconcileDue())
    driver.end_of("train[1]", "r1", STOPPED)
    driver.feed(ReconcileDue())
    driver.finish("long")
    assert driver.run_state() is RunState.FAILED


def test_nothing_is_marked_inside_of_a_map_that_is_being_cancelled() -> None:
    inner = mapped("fit", over={"range": 1})
    driver = started(mapped("folds", over={"range": 1}, body=(inner, task("other"))))
    driver.start_of("folds[0].other", "r1")
    driver.finish("folds[0].fit[0]", outcome=BAD)
    driver.ask("cancel", task="folds")
    told = driver.ask("mark", task="folds[0].fit[0]", state="success")
    assert told == "Refused: folds around it is being cancelled; wait for its end."
    driver.end_of("folds[0].other", "r1", STOPPED)
    assert driver.told("folds")[0] is C
    assert driver.run_state() is RunState.FAILED


def skipped_before_it_goes_on() -> Written:
    """Of a map whose only upstream counts as skipped by now one index was to run again."""
    driver = started(task("first"), mapped("train", "first", over={"range": 2}))
    run_through(driver)
    driver.ask("mark", task="first", state="skipped")
    driver.feed(driver.submission(), Tick())
    driver.again(["train[1]"])
    return driver


def test_a_map_that_its_rule_skips_before_it_goes_on_leaves_nothing_inside_to_run() -> None:
    driver = skipped_before_it_goes_on()
    assert driver.told("train") == (TaskState.SKIPPED, "all_success")
    assert driver.told("train[1]") == (C, "all_success")
    assert driver.run_state() is RunState.SUCCESS


def test_what_older_rows_hold_open_inside_of_a_skipped_map_is_ended_and_never_sent_out() -> None:
    driver = skipped_before_it_goes_on()
    index = driver.row("train[1]")
    driver.store.task_runs[index.id] = replace(index, state=P, reason="")
    driver.store.runs["r1"] = replace(driver.store.runs["r1"], state=RunState.RUNNING)
    driver.kernel = Kernel(driver.settings, driver.now)
    driver.kernel.load(driver.store.snapshot(driver.now), driver.now)
    assert not any(node.scope.is_started for node in driver.kernel.runs["r1"].tasks if node.scope.owner is not None)
    effects = decide(driver.kernel, ReconcileDue(), driver.now)
    assert [effect.detail for effect in effects if isinstance(effect, Count)] == [
        "inside of task train of run r1, which is skipped, 1 task runs were open"
    ]
    driver.store.commit(1, effects, [], driver.now)
    assert driver.told("train[1]") == (C, "all_success")
    assert driver.run_state() is RunState.SUCCESS


@pytest.mark.parametrize("state", ["skipped", "failed"])
def test_a_mark_of_a_decided_map_stops_what_still_runs_inside(state: str) -> None:
    driver = started(mapped("train", over={"range": 4}, success="any", max_parallel=2), task("long"))
    driver.start_of("train[1]", "r1")
    driver.finish("train[0]")
    assert driver.told("train")[0] is S
    driver.ask("mark", task="train", state=state)
    assert driver.told("train[1]") == (TaskState.CANCELLING, "marked")
    assert [driver.told(f"train[{at}]") for at in (2, 3)] == [(C, "marked")] * 2
    driver.take_over()
    driver.end_of("train[1]", "r1", STOPPED)
    driver.finish("long")
    assert driver.run_state() is (RunState.FAILED if state == "failed" else RunState.SUCCESS)


def test_a_pending_task_that_nobody_had_told_is_a_repair() -> None:
    driver = started(task("first"), task("next", "first"), task("other"))
    driver.finish("first")
    row = driver.row("next")
    driver.kernel = Kernel(driver.settings, driver.now)
    driver.store.task_runs[row.id] = replace(row, state=P, reason="", attempt_id=None)
    driver.store.attempts.pop(row.attempt_id or "")
    driver.store.reservations.pop(row.attempt_id or "")
    driver.kernel.load(driver.store.snapshot(driver.now), driver.now)
    counts = [effect for effect in decide(driver.kernel, ReconcileDue(), driver.now) if isinstance(effect, Count)]
    assert [(count.what, count.detail) for count in counts] == [
        ("repaired", "task next of run r1 stood still, though its rule says run")
    ]
