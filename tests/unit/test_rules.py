"""The twelve trigger rules, exhaustively, and the result of a run."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations, product
from typing import Any

import pytest

from orchestrator.kernel.shape import Shape, leaves_of, nowhere
from orchestrator.records import MapPlan, Plan
from orchestrator.rules import ROOT_RULES, RULES, Verdict, run_result, verdict
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.rule_oracle import TERMINAL, expected
from tests.unit.simulated_graph import is_success

S, F, U, K, C = TERMINAL


def ask(rule: str, states: list[TaskState | None], *, cancelling: bool = False) -> Verdict:
    seen = Counter(states)
    return verdict(rule, seen[S], seen[F], seen[U], seen[K], seen[C], len(states), cancelling=cancelling)


@pytest.mark.parametrize("rule", RULES)
def test_every_verdict_on_every_vector_and_arrival_order_is_right_and_final(rule: str) -> None:
    for total in range(1, 4):
        for vector in product(TERMINAL, repeat=total):
            for order in permutations(range(total)):
                states: list[TaskState | None] = [None] * total
                settled: Verdict | None = None
                for arrived in (None, *order):
                    if arrived is not None:
                        states[arrived] = vector[arrived]
                    said = ask(rule, states)
                    assert said == expected(rule, tuple(states)), (rule, states)
                    assert settled in (None, said), f"{rule} said {settled} and then {said} on {states}"
                    settled = said if said is not Verdict.WAIT else None
                assert settled is not None, f"{rule} never settles on {vector}"


def test_there_are_exactly_airflows_twelve_rules() -> None:
    assert len(RULES) == 12


@pytest.mark.parametrize("rule", sorted(ROOT_RULES))
def test_an_accepted_root_rule_runs_without_upstreams(rule: str) -> None:
    assert ask(rule, []) is Verdict.RUN


def test_the_rules_not_accepted_on_a_root_are_named() -> None:
    assert sorted(ROOT_RULES) == ["all_done", "all_success", "always", "none_failed", "none_skipped"]


@pytest.mark.parametrize("rule", RULES)
def test_a_cancelled_upstream_settles_nothing_while_the_run_is_being_cancelled(rule: str) -> None:
    assert ask(rule, [C], cancelling=True) is Verdict.WAIT


def result(*tasks: tuple[TaskState, tuple[int, ...], str], critical: tuple[bool, ...] = ()) -> RunState:
    return run_result(
        [task[0] for task in tasks],
        [task[1] for task in tasks],
        [task[2] for task in tasks],
        critical or (True,) * len(tasks),
    )


def test_a_run_whose_leaves_succeeded_or_were_skipped_is_a_success() -> None:
    assert result((S, (1, 2), "all_success"), (S, (), "all_success"), (K, (), "all_success")) is RunState.SUCCESS


def test_a_failed_leaf_fails_the_run() -> None:
    assert result((S, (1,), "all_success"), (F, (), "all_success")) is RunState.FAILED


def test_a_failure_with_a_handler_that_succeeded_does_not_fail_the_run() -> None:
    assert result((F, (1,), "all_success"), (S, (), "one_failed")) is RunState.SUCCESS


def test_all_done_handles_nothing() -> None:
    assert result((F, (1,), "all_success"), (S, (), "all_done")) is RunState.FAILED


def test_a_handler_that_was_skipped_or_failed_handles_nothing() -> None:
    assert result((F, (1, 2), "all_success"), (K, (), "all_failed"), (S, (), "all_done")) is RunState.FAILED
    assert result((F, (1,), "all_success"), (F, (), "one_failed")) is RunState.FAILED


def test_a_failure_may_be_handled_below_tasks_that_it_made_upstream_failed() -> None:
    assert result((F, (1,), "all_success"), (U, (2,), "all_success"), (S, (), "one_failed")) is RunState.SUCCESS


def test_a_task_that_is_not_critical_decides_nothing() -> None:
    tasks = ((S, (1,), "all_success"), (F, (), "all_success"))
    assert result(*tasks, critical=(True, False)) is RunState.SUCCESS


def test_an_upstream_failed_leaf_fails_the_run_even_beside_a_handler() -> None:
    assert result((F, (1, 2), "all_success"), (S, (), "one_failed"), (U, (), "all_success")) is RunState.FAILED


def test_a_downstream_whose_condition_names_the_state_handles_the_failure() -> None:
    states, below, rules = [F, S], [(1,), ()], ["all_success", "all_done"]
    assert run_result(states, below, rules, (True, True), {0: (1,)}) is RunState.SUCCESS
    assert run_result([F, K], below, rules, (True, True), {0: (1,)}) is RunState.FAILED
    assert run_result(states, below, rules, (True, True)) is RunState.FAILED


def test_what_has_only_tasks_below_that_decide_nothing_is_a_leaf() -> None:
    tasks = ((U, (1,), "all_success"), (S, (), "all_done"))
    assert result(*tasks, critical=(True, False)) is RunState.FAILED


EDGES = [pairs for n in range(4) for pairs in combinations(((0, 1), (0, 2), (1, 2)), n)]


@pytest.mark.parametrize("edges", EDGES, ids=str)
def test_the_result_of_every_run_of_three_tasks_is_that_of_the_naive_judge(edges: tuple[tuple[int, int], ...]) -> None:
    """All states × rules of the last two × what the last one is: a teardown, not critical, with a condition that names
    a state, or a map with such a condition inside, which was met or not."""
    asking: dict[str, Any] = {"map": MapPlan([1]), "body": Plan((task("t2", when="tasks.t0.state"),))}
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"teardown": True},
        {"critical": False},
        {"when": "tasks.t0.state"},
        asking,
        {**asking, "teardown": True},
    )
    rules = ("all_success", "one_failed", "all_failed", "all_done")
    for rule, other, kind in product(rules, rules, kinds):
        tasks = tuple(
            task(
                f"t{at}",
                *(f"t{up}" for up, down in edges if down == at),
                rule=("all_success", rule, other)[at],
                **(kind if at == 2 else {}),
            )
            for at in range(3)
        )
        shape = Shape(Plan(tasks))
        for vector in product(TERMINAL, repeat=3):
            states = {f"t{at}": state for at, state in enumerate(vector)}
            for is_met in (False, True) if kind is asking else (False,):
                has_asked = is_met and vector[2] is S
                wanted = is_success(tasks, states, {"t0"} if has_asked else ())
                found = shape.result(vector, {(2, 0)}.__contains__ if has_asked else nowhere)
                assert found is (RunState.SUCCESS if wanted else RunState.FAILED), (edges, rule, other, kind, vector)


def test_what_runs_leave_is_of_the_tasks_below_which_only_what_tears_down_stands() -> None:
    stop = task("stop", "work", teardown=True)
    plan = Plan((task("start"), task("work", "start"), stop, task("after", "stop", teardown=True), task("side")))
    assert leaves_of(plan) == (1, 4)


def test_a_condition_inside_names_the_nearest_task_and_one_that_tears_down_asks_for_nothing() -> None:
    asks = task("asks", when="tasks.a.state == 'failed'")
    down = task("down", when="tasks.a.state == 'failed'", teardown=True)
    nearer = Plan((task("a"), asks))
    inner = task("inner", map=MapPlan([1]), body=Plan((down, asks)), is_group=True)
    groups = (Plan((task("x"), inner)), nearer, Plan((task("x"), down)))
    tasks = (task(f"g{at}", "a", map=MapPlan([1]), body=body, is_group=True) for at, body in enumerate(groups))
    assert Shape(Plan((task("a"), *tasks))).inner_watchers == {0: [(1, 1, 1)]}
