"""The twelve trigger rules, exhaustively, and the result of a run."""

from __future__ import annotations

from collections import Counter
from itertools import permutations, product

import pytest

from orchestrator.rules import ROOT_RULES, RULES, Verdict, run_result, verdict
from orchestrator.states import RunState, TaskState
from tests.unit.rule_oracle import TERMINAL, expected

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
