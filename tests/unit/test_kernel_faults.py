"""What people's values bring about fails one task; what shows that the memory is broken still ends the round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, cast

import pytest
from sqlalchemy import Engine

from orchestrator.documents import is_nested_too_deep
from orchestrator.effects import Count, Fault, SaveOutcome
from orchestrator.errors import StaleMemory
from orchestrator.events import OutcomeReceived, Tick
from orchestrator.kernel import would_publish
from orchestrator.records import ApprovalPlan, ChildPlan, ConcurrencyLimit, PlannedTask, RateLimit
from orchestrator.states import AttemptState, RunState, TaskState
from scheduler.transaction import Leader, Round
from tests.unit.kernel_driver import Driver, task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import Written, gave, mapped, repeated


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def failing(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_given: object, **_named: object) -> NoReturn:
        raise error

    return fail


EVALUATION = "orchestrator.expressions.evaluation.Expression.evaluate"
TEMPLATES = "orchestrator.expressions.templates._Filling._value"
PLACES: dict[str, PlannedTask] = {
    "a condition": task("t", when="params.x"),
    "what a map goes over": mapped("t", over="{{ params.x }}"),
    "the keys of a map": mapped("t", over=[1], key="{{ map.item }}"),
    "the message of an approval": task("t", approval=ApprovalPlan("{{ params.x }}")),
    "the parameters of a sub-pipeline": task("t", child=ChildPlan("other", parameters={"a": "{{ params.x }}"})),
    "a key of a limit": task("t", concurrency=(ConcurrencyLimit("{{ params.x }}", 1),)),
    "a key of a rate": task("t", rate_limit=RateLimit("{{ params.x }}", 1, 1.0)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_that_values_bring_about_fails_the_one_task_and_is_told_to_the_log(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for worked_out in (EVALUATION, TEMPLATES):
        monkeypatch.setattr(worked_out, failing(RuntimeError("lost and found")))
    driver = started(PLACES[place], task("after", "t", rule="all_done"), task("beside"), parameters={"x": 1})
    assert driver.told("t") == (TaskState.FAILED, "internal_error")
    message = driver.row("t").message
    assert "RuntimeError: lost and found" in message
    assert "The scheduler's log says where" in message
    [fault] = [effect for effect in driver.history if isinstance(effect, Fault)]
    assert (fault.run_id, fault.task) == ("r1", "t")
    assert "in fail" in fault.trace
    assert Count("internal_error", "task t of run r1") in driver.history
    monkeypatch.undo()
    driver.finish("beside", "after")
    assert driver.run_state() is RunState.FAILED


def test_a_fault_in_the_condition_of_a_loop_fails_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = started(repeated("t", until="outputs.n > 1", most=3))
    monkeypatch.setattr(EVALUATION, failing(RuntimeError("lost and found")))
    driver.finish("t[0]")
    assert driver.told("t") == (TaskState.FAILED, "internal_error")


def test_a_fault_in_a_key_of_a_runs_limits_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TEMPLATES, failing(RuntimeError("lost and found")))
    driver = started(task("t"), concurrency=(ConcurrencyLimit("{{ params.x }}", 1),), parameters={"x": 1})
    assert (driver.run_state(), driver.store.runs["r1"].reason) == (RunState.FAILED, "internal_error")
    assert [effect.run_id for effect in driver.history if isinstance(effect, Fault)] == ["r1"]


def waiting(**fields: Any) -> Written:
    """A run whose task ``v`` follows a task and an approval that times out: the passing of time alone starts it."""
    answered = ApprovalPlan("", timeout=5.0, on_timeout="approve")
    driver = started(task("u"), task("w", approval=answered), task("v", "u", "w", **fields))
    driver.finish("u", outcome=gave(a=1))
    return driver


@pytest.mark.parametrize("error", [AssertionError("an invariant"), StaleMemory("a row is not as we know it")])
def test_what_shows_a_broken_memory_ends_the_round_and_the_log_is_told_where(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = waiting(when="params.x")
    monkeypatch.setattr(EVALUATION, failing(error))
    leader = Leader(cast("Engine", None), 1, connections={}, registry_url=None)
    with pytest.raises(type(error)):
        leader.take_in(driver.kernel, Round(driver.now + 60.0))
    assert leader.at_work == {"run_id": "r1", "task": "v"}
    leader.begin()
    assert leader.at_work == {}


def test_values_that_are_nested_too_deep_fail_the_one_task_also_when_only_time_passes() -> None:
    driver = waiting(child=ChildPlan("other", parameters={"x": "{{ tasks.u.outputs.a }}"}))
    upstream = next(node for node in driver.kernel.tasks.values() if node.name == "u")
    upstream.outputs = {"a": deep(5_000)}
    driver.tick(after=10.0)
    assert driver.told("v") == (TaskState.FAILED, "template")
    assert "nested too deep" in driver.row("v").message


def running() -> Driver:
    driver = Driver()
    driver.worker()
    driver.run(task("u"), task("v", "u", when="tasks.u.outputs.a"))
    driver.start("u")
    return driver


def test_outputs_that_are_nested_too_deep_are_no_success_whoever_reports_them() -> None:
    driver = running()
    attempt = driver.attempt("u")
    report = OutcomeReceived("w1", attempt.id, attempt.token, gave(a=deep(32)))
    assert not would_publish(driver.kernel, report)
    driver.feed(report, Tick())
    assert driver.state("u") is TaskState.FAILED, "and it is not tried again"
    assert driver.reason("u")[0] == "bad_outputs"
    assert "nested more than 32 deep" in driver.reason("u")[1]
    [saved] = driver.of(SaveOutcome)
    assert (saved.outcome.state, saved.outcome.outputs, saved.publish) == (AttemptState.FAILED, {}, False)
    driver.feed(report)
    assert driver.verdicts() == ["committed"], "sent again it is the same report"


def test_outputs_may_be_nested_as_deep_as_parameters() -> None:
    driver = running()
    attempt = driver.attempt("u")
    report = OutcomeReceived("w1", attempt.id, attempt.token, gave(a=deep(31)))
    assert would_publish(driver.kernel, report)
    driver.feed(report, Tick())
    assert driver.state("u") is TaskState.SUCCESS


def test_it_is_told_how_deep_a_value_is_nested_however_deep() -> None:
    assert not any(map(is_nested_too_deep, (None, 1, "x", [], {}, deep(32), {"a": [{"b": deep(29)}]})))
    assert all(map(is_nested_too_deep, (deep(33), {"a": deep(32)}, deep(100_000))))
