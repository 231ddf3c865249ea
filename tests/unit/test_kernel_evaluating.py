"""How many conditions a round of the leader works out: what is over goes on in the next, and nobody is passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.effects import Count
from orchestrator.events import ReconcileDue, Tick
from orchestrator.expressions import Expression
from orchestrator.expressions.effort import Effort
from orchestrator.kernel import decide, evaluating, expanding
from orchestrator.kernel.evaluating import Evaluating
from orchestrator.kernel.expanding import Expanding
from orchestrator.records import RateLimit
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import Written, gave, mapped, repeated

P, R, K, F = TaskState.PENDING, TaskState.RUNNING, TaskState.SKIPPED, TaskState.FAILED
LARGE = {"l": [1] * 50_000}
ONE: dict[str, Any] = {"parameters": {"x": 1}}


@pytest.fixture
def worked_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The expressions that were worked out, in order."""
    seen: list[str] = []
    evaluate = Expression.evaluate

    def noted(self: Expression, values: Mapping[str, Any], effort: Effort | None = None) -> Any:
        seen.append(self.text)
        return evaluate(self, values, effort)

    monkeypatch.setattr(Expression, "evaluate", noted)
    return seen


def next_round(driver: Written) -> None:
    driver.now += 0.1
    driver.feed(Tick())


def test_conditions_that_read_much_are_spread_over_rounds_the_first_one_first(
    monkeypatch: pytest.MonkeyPatch, worked_out: list[str]
) -> None:
    monkeypatch.setattr(evaluating, "MOST_IN_ROUND", 200_000)
    tasks = [task(f"t{n}", when=f"sum(params.l) < {n}") for n in range(7)]
    driver = started(*tasks, parameters=LARGE)
    assert len(worked_out) == 2
    first = {name for name in ("t0", "t1", "t5", "t6") if driver.told(name)[0] is K}
    assert len(first) == 2
    assert driver.told("t3") == (P, "conditions")
    assert driver.kernel.next_due(driver.now) == 0.0
    for expected in (4, 6, 7):
        next_round(driver)
        assert len(worked_out) == expected
    assert driver.run_state() is RunState.SUCCESS
    assert driver.kernel.next_due(driver.now) != 0.0
    assert len(set(worked_out)) == 7, "each was worked out once"


def test_one_that_reads_too_much_fails_its_task_and_says_so() -> None:
    driver = started(task("a", when="'x' in [str(params.l)]"), task("b"), parameters=LARGE)
    assert driver.told("a") == (F, "condition_error")
    assert "It reads too much" in driver.row("a").message
    assert driver.queued() == ["b"]


def test_a_condition_whose_values_are_the_same_is_worked_out_once_in_a_round(worked_out: list[str]) -> None:
    driver = started(mapped("m", over=[1, 2, 3], body=(task("s", when="sum(params.l) < 1"),)), parameters=LARGE)
    assert len(worked_out) == 1
    assert {driver.told(f"m[{n}].s") for n in range(3)} == {(K, "condition")}


def test_a_condition_whose_values_differ_is_worked_out_for_each(worked_out: list[str]) -> None:
    when = "map.item > 1 and tasks.a.outputs.n == 1"
    driver = started(task("a"), mapped("m", "a", over=[1, 2, 3], body=(task("s", when=when),)))
    driver.finish("a", outcome=gave(n=1))
    assert len(worked_out) == 3
    assert driver.queued() == ["m[1].s", "m[2].s"]


def test_a_condition_is_worked_out_anew_when_the_state_that_it_names_has_changed(worked_out: list[str]) -> None:
    driver = started(
        task("first"),
        task("a", "first", when="params.l == 1"),
        task("early", rule="always", when="tasks.a.state == 'skipped'"),
        task("late", "a", rule="all_done", when="tasks.a.state == 'skipped'"),
        task("too", "a", rule="all_done", when="tasks.a.state == 'skipped'"),
        parameters=LARGE,
    )
    assert driver.told("early")[0] is K
    driver.finish("first")
    assert driver.told("a")[0] is K
    assert driver.queued() == ["late", "too"]
    assert worked_out.count("tasks.a.state == 'skipped'") == 2


def test_the_end_of_a_loop_waits_for_its_turn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "MOST_IN_ROUND", 1)
    driver = started(*(repeated(f"r{n}", until=f"repeat.index == {n}", most=3) for n in range(2)))
    driver.now += 0.1
    driver.finish("r0[0]")
    driver.finish("r1[0]")
    waiting = [name for name in ("r0", "r1") if driver.told(name) == (R, "conditions")]
    for _ in range(12):
        next_round(driver)
        for name in driver.queued():
            driver.finish(name)
    assert waiting
    assert driver.run_state() is RunState.SUCCESS
    assert {row.name for row in driver.rows_of()} == {"r0", "r0[0]", "r1", "r1[0]", "r1[1]"}


def test_what_waits_for_its_turn_is_cancelled_or_taken_over_and_is_no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "MOST_IN_ROUND", 1)
    driver = started(*(task(f"t{n}", when=f"params.x == {n}") for n in range(4)), parameters={"x": -1})
    driver.feed(ReconcileDue())
    assert sum(driver.told(f"t{n}")[0] is P for n in range(4)) == 3
    driver.now += 0.1
    driver.take_over()
    assert sum(driver.told(f"t{n}")[0] is P for n in range(4)) == 2
    driver.ask("cancel")
    next_round(driver)
    assert sum(driver.told(f"t{n}")[0] is TaskState.CANCELLED for n in range(4)) == 2
    assert driver.run_state() is RunState.CANCELLED


def test_what_waits_for_its_turn_waits_for_it_again_after_its_run_was_stopped_and_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluating, "MOST_IN_ROUND", 1)
    driver = started(*(task(f"t{n}", when=f"params.x > {n - 9}") for n in range(4)), parameters={"x": 1})
    assert [driver.told(f"t{n}") for n in range(1, 4)] == [(P, "conditions")] * 3
    driver.ask("cancel")
    while driver.run_state() is not RunState.CANCELLED:
        driver.finish(*driver.queued())
    assert not driver.kernel.evaluating.is_due, "a run that is over has nothing to wait for"
    assert driver.again("all").startswith("Run r1 starts again")
    for _ in range(4):
        next_round(driver)
    assert driver.queued() == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize("queue", ["evaluating", "expanding"])
def test_what_a_queue_has_lost_is_put_back_by_the_next_reconcile_and_is_a_repair(
    queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "MOST_IN_ROUND", 1)
    monkeypatch.setattr(expanding, "MOST_IN_ROUND", 1)
    tasks = [task(f"t{n}", when="params.x == 1") for n in range(2)]
    driver = started(*(tasks if queue == "evaluating" else [mapped(f"t{n}", over=[1]) for n in range(2)]), **ONE)
    (node,) = (node for node in driver.kernel.tasks.values() if node.name == "t1")
    waiting: Evaluating | Expanding = getattr(driver.kernel, queue)
    assert waiting.awaits(node)
    assert not repairs(driver)
    waiting.forget(node)
    assert repairs(driver) == 1


def repairs(driver: Written) -> int:
    return sum(isinstance(e, Count) and e.what == "repaired" for e in decide(driver.kernel, ReconcileDue(), driver.now))


def test_a_rate_limits_key_reads_the_round_before() -> None:
    limit = RateLimit("host-{{ repeat.previous.outputs.s.h }}", 5, 60.0)
    driver = started(repeated("again", until="False", most=5, body=(task("s", rate_limit=limit), task("t"))))
    driver.finish("again[0].s", outcome=gave(h="h1"))
    driver.finish("again[0].t")
    (node,) = (node for node in driver.kernel.tasks.values() if node.name == "again[1].s")
    assert node.gate is not None
    assert node.gate.rate is not None
    assert node.gate.rate.key[-1] == "host-h1"
