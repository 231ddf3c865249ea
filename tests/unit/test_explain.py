"""Blockers: whatever waits has at least one, and what runs or is over has none."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from orchestrator.explain import AttemptFacts, RunFacts, TaskFacts, Upstream, blockers_of_run, blockers_of_task
from orchestrator.kernel.marks import AT_WORK
from orchestrator.states import RUN_TERMINAL, TASK_TERMINAL, RunState, TaskState

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = RunFacts("r", RunState.RUNNING, "", "", NOW, "p", False, 1, 10, 0, False, None)
TASK = TaskFacts("t", TaskState.PENDING, "", "", NOW, None, "all_success")
REASONS = ["", "waiting_for_memory", "infeasible", "concurrency", "rate_limit", "cache_flight", "run_paused", "a_new"]


def kinds(task: TaskFacts, run: RunFacts = RUN, around: tuple[TaskFacts, ...] = ()) -> list[str]:
    return [blocker.kind for blocker in blockers_of_task(task, around, run)]


@pytest.mark.parametrize("state", sorted(set(TaskState) - TASK_TERMINAL - {TaskState.RUNNING}))
@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("run_state", sorted(set(RunState) - RUN_TERMINAL))
def test_what_waits_has_a_blocker_that_says_all(state: TaskState, reason: str, run_state: RunState) -> None:
    found = blockers_of_task(replace(TASK, state=state, reason=reason), (), replace(RUN, state=run_state))
    assert found
    for blocker in found:
        assert blocker.kind
        assert blocker.needs
        assert blocker.would_unblock.endswith(".") or blocker.would_unblock.endswith(")")
        assert blocker.message


@pytest.mark.parametrize("state", sorted(TASK_TERMINAL | {TaskState.RUNNING}))
def test_what_runs_or_is_over_has_none(state: TaskState) -> None:
    assert kinds(replace(TASK, state=state), replace(RUN, state=RunState.PAUSED)) == []


@pytest.mark.parametrize("state", sorted(set(RunState) - RUN_TERMINAL - {RunState.RUNNING}))
def test_a_run_that_does_not_run_has_a_blocker(state: RunState) -> None:
    assert blockers_of_run(replace(RUN, state=state))


def test_a_queued_run_waits_for_its_pipeline_a_place_or_the_next_look() -> None:
    queued = replace(RUN, state=RunState.QUEUED)

    def found(run: RunFacts) -> list[str]:
        return [blocker.kind for blocker in blockers_of_run(run)]

    assert found(queued) == ["admission"]
    assert found(replace(queued, active_runs=10, before_it=3)) == ["run_place"]
    assert found(replace(queued, active_runs=10, is_child=True)) == ["admission"]
    assert found(replace(queued, pipeline_paused=True)) == ["pipeline_paused"]
    assert found(replace(queued, reason="concurrency")) == ["concurrency"]
    assert found(replace(queued, reason="put_off")) == ["put_off"]
    assert found(replace(queued, leader_away=60.0))[0] == "no_leader"
    assert "3 run(s) wait in front" in blockers_of_run(replace(queued, active_runs=10, before_it=3))[0].message


def test_a_pending_task_names_each_open_upstream_and_no_other() -> None:
    ups = (Upstream("a", TaskState.SUCCESS, ""), Upstream("b", TaskState.READY, "infeasible"))
    [blocker] = blockers_of_task(replace(TASK, upstreams=ups), (), RUN)
    assert blocker.kind == "upstream"
    assert blocker.message == "t (all_success) waits for b, which is ready (infeasible)."
    many = tuple(Upstream(f"u{n}", TaskState.RUNNING, "") for n in range(30))
    assert len(kinds(replace(TASK, upstreams=many))) == 21


@pytest.mark.parametrize("state", sorted(set(TaskState) - TASK_TERMINAL))
def test_a_mark_is_advised_only_where_it_is_not_refused(state: TaskState) -> None:
    [blocker] = blockers_of_task(replace(TASK, upstreams=(Upstream("a", state, ""),)), (), RUN)
    assert ("Or mark a as" in blocker.would_unblock) is (state not in AT_WORK)
    assert ("cancel a" in blocker.would_unblock) is (state in (TaskState.RUNNING, TaskState.QUEUED))


@pytest.mark.parametrize("state", [TaskState.PENDING, TaskState.READY])
def test_a_paused_run_is_told_of_once_with_what_unblocks_it(state: TaskState) -> None:
    held = replace(TASK, state=state, reason="run_paused", message="Run r is paused; resume it.")
    [blocker] = blockers_of_task(held, (), replace(RUN, state=RunState.PAUSED))
    assert (blocker.kind, blocker.would_unblock) == ("run_paused", "Resume the run.")
    assert kinds(held) == ["decision"], "the run goes on; the word is from before"


def test_blockers_come_from_the_outside_to_the_inside() -> None:
    container = replace(TASK, name="c", upstreams=(Upstream("a", TaskState.RUNNING, ""),))
    task = replace(TASK, name="c[1]", reason="max_parallel", parallel=2)
    paused = replace(RUN, state=RunState.PAUSED)
    assert kinds(task, paused, (container,)) == ["run_paused", "upstream", "max_parallel"]


def test_a_queued_task_says_where_its_hint_lies() -> None:
    attempt = AttemptFacts("cpu", False, "cpu@h", 3, NOW, False)
    [blocker] = blockers_of_task(replace(TASK, state=TaskState.QUEUED, attempt=attempt), (), RUN)
    assert blocker.kind == "hint"
    assert blocker.since == NOW
    assert "sent 3 time(s) to queue cpu" in blocker.message


def test_timers_are_told() -> None:
    retry = replace(TASK, state=TaskState.RETRY_WAIT, reason="oom", until=NOW)
    assert "(oom); it is tried again at 2026-01-02 03:04:05 UTC" in blockers_of_task(retry, (), RUN)[0].message
    waiting = replace(TASK, state=TaskState.WAITING, reason="approval", message="Deploy?", until=NOW)
    [blocker] = blockers_of_task(waiting, (), RUN)
    assert blocker.message == "Deploy? Its time is over at 2026-01-02 03:04:05 UTC."


def test_a_service_that_is_left_alone_is_named() -> None:
    ready = replace(TASK, state=TaskState.READY, reason="waiting_for_slot", open_services={"warehouse": NOW})
    assert kinds(ready) == ["waiting_for_slot", "service_open"]


def test_a_teardown_is_not_held_up_by_the_cancel_of_its_run_which_is_why_it_runs() -> None:
    cancelling = replace(RUN, state=RunState.CANCELLING)
    down = replace(TASK, tears_down=True, upstreams=(Upstream("work", TaskState.CANCELLING, "cancelled"),))
    assert kinds(down, cancelling) == ["upstream"]
    assert kinds(replace(down, tears_down=False), cancelling) == ["run_cancelling", "upstream"]
    assert kinds(down, replace(cancelling, reason="force_cancelled")) == ["run_cancelling", "upstream"]


def test_a_task_that_is_a_run_names_it_and_what_that_waits_for() -> None:
    sub = replace(TASK, state=TaskState.RUNNING, reason="child", child_id="s")
    waiting = replace(RUN, id="s", pipeline="inner", state=RunState.QUEUED, reason="put_off", is_child=True)
    [blocker] = blockers_of_task(replace(sub, child=waiting), (), RUN)
    assert blocker.kind == "put_off"
    assert blocker.message == "t is run s of pipeline inner, which is queued. To start it has failed each time."
    assert kinds(replace(sub, child=replace(waiting, state=RunState.RUNNING))) == []
    [blocker] = blockers_of_task(sub, (), RUN)
    assert (blocker.kind, blocker.message) == ("child", "Run s, which t is, has not been made yet.")


def test_a_task_that_is_a_run_and_is_being_stopped_waits_for_the_end_of_that() -> None:
    [blocker] = blockers_of_task(replace(TASK, state=TaskState.CANCELLING, child_id="s"), (), RUN)
    assert (blocker.kind, blocker.needs) == ("cancelling", "its run to be over")
