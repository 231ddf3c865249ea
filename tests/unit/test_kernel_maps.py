"""Maps: expansion, parallelism, when they are decided, groups and nesting, cancel, and their width."""

from __future__ import annotations

from itertools import product
from time import process_time
from typing import Any

import pytest

from orchestrator.effects import CreateTasks
from orchestrator.events import ClaimReceived, OutcomeReceived, ReconcileDue, Tick
from orchestrator.records import ConcurrencyLimit, PlannedTask
from orchestrator.rules import map_result
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import GIB, Driver, task
from tests.unit.written_driver import BAD, SKIP, Written, gave, mapped

S, F, K = TaskState.SUCCESS, TaskState.FAILED, TaskState.SKIPPED


def started(*tasks: PlannedTask, cpu: int = 64_000, **fields: Any) -> Written:
    driver = Written()
    driver.worker(cpu=cpu, memory=64 * GIB, slots=64)
    driver.run(*tasks, **fields)
    return driver


def test_a_map_makes_one_task_run_for_each_item_and_ends_with_them() -> None:
    driver = started(mapped("train", over=[0.1, 0.2]), task("report", "train"))
    assert driver.told("train") == (TaskState.RUNNING, "mapped")
    assert driver.queued() == ["train[0]", "train[1]"]
    assert [(r.item, r.map_index, r.map_key) for r in driver.rows_of() if r.parent_id] == [(0.1, 0, "0"), (0.2, 1, "1")]
    driver.finish("train[1]")
    assert driver.row("train").message == "1 of 2 done"
    assert driver.state("report") is TaskState.PENDING
    driver.finish("train[0]")
    assert driver.state("train") is S
    assert driver.queued() == ["report"]


def test_a_map_holds_no_slot_and_has_no_attempt() -> None:
    driver = started(mapped("train", over=[1]))
    assert driver.row("train").attempts == 0
    assert len(driver.kernel.attempts) == 1


def test_a_map_over_what_an_upstream_has_left_is_expanded_when_that_has_ended() -> None:
    driver = started(task("list"), mapped("train", "list", over="{{ tasks.list.outputs.files }}"))
    assert len(driver.rows_of()) == 2
    driver.finish("list", outcome=gave(files=["a", "b", "c"]))
    assert [row.item for row in driver.rows_of() if row.parent_id] == ["a", "b", "c"]


def test_only_outputs_that_the_rules_read_are_kept_and_they_go_with_the_run() -> None:
    driver = started(task("list"), task("other"), mapped("train", "list", over="{{ tasks.list.outputs.files }}"))
    driver.finish("list", outcome=gave(files=["a"]))
    driver.finish("other", outcome=gave(large="x"))
    kept = {node.name for node in driver.kernel.tasks.values() if node.outputs is not None}
    assert kept == {"list"}
    driver.finish("train[0]")
    assert not driver.kernel.tasks


def test_an_empty_map_is_skipped_and_rules_apply() -> None:
    driver = started(mapped("train", over=[]), task("report", "train", rule="all_done"))
    assert driver.told("train") == (K, "empty")
    assert driver.queued() == ["report"]


def test_too_many_items_fail_before_any_is_made() -> None:
    driver = started(mapped("train", over={"range": 6}, max_size=5))
    assert driver.told("train") == (F, "too_many_items")
    assert "6 items; at most 5" in driver.row("train").message
    assert not driver.all_of(CreateTasks)
    assert driver.run_state() is RunState.FAILED


@pytest.mark.parametrize(
    ("over", "reason"), [("{{ params.nothing }}", "template"), ("{{ params.text }}", "map"), ({"range": "x"}, "map")]
)
def test_what_can_not_be_gone_over_fails_with_a_sentence(over: Any, reason: str) -> None:
    driver = started(mapped("train", over=over), parameters={"text": "a"})
    assert driver.told("train") == (F, reason)
    assert driver.row("train").message


def test_keys_come_from_the_items_and_have_to_differ() -> None:
    driver = started(mapped("train", over=[{"lr": 1}, {"lr": 2}], key="lr={{ map.item.lr }}"))
    assert [row.map_key for row in driver.rows_of() if row.parent_id] == ["lr=1", "lr=2"]
    driver = started(mapped("train", over=[{"lr": 1}, {"lr": 1}], key="{{ map.item.lr }}"))
    assert driver.told("train") == (F, "map_key")


def test_only_so_many_indices_run_at_once_and_the_others_say_so() -> None:
    driver = started(mapped("train", over={"range": 5}, max_parallel=2))
    assert driver.queued() == ["train[0]", "train[1]"]
    assert driver.told("train[2]") == (TaskState.PENDING, "max_parallel")
    driver.finish("train[1]")
    assert driver.queued() == ["train[0]", "train[2]"]
    driver.take_over()
    driver.finish("train[0]", "train[2]")
    assert driver.queued() == ["train[3]", "train[4]"]
    driver.finish("train[3]", "train[4]")
    assert driver.run_state() is RunState.SUCCESS


def test_one_failed_index_fails_a_map_that_wants_all_at_once_and_the_rest_runs_on() -> None:
    driver = started(mapped("train", over={"range": 3}), task("clean", "train", rule="one_failed"))
    driver.finish("train[1]", outcome=BAD)
    assert driver.told("train") == (F, "index_failed")
    assert "first train[1] failed (bad_data)" in driver.row("train").message
    assert driver.queued() == ["clean", "train[0]", "train[2]"]
    driver.finish("clean", "train[0]")
    assert driver.run_state() is RunState.RUNNING, "train[2] is still open"
    driver.finish("train[2]")
    assert driver.run_state() is RunState.SUCCESS, "the failure was handled"


def test_a_map_that_fails_fast_stops_what_is_left() -> None:
    driver = started(mapped("train", over={"range": 4}, max_parallel=2, fail_fast=True))
    driver.finish("train[0]", outcome=BAD)
    assert driver.told("train[1]") == (TaskState.CANCELLED, "fail_fast")
    assert driver.told("train[3]") == (TaskState.CANCELLED, "fail_fast")
    assert driver.run_state() is RunState.FAILED


def test_the_first_success_decides_a_map_that_wants_any() -> None:
    driver = started(mapped("train", over={"range": 3}, success="any", fail_fast=True), task("next", "train"))
    driver.finish("train[0]", outcome=BAD)
    assert driver.state("train") is TaskState.RUNNING
    driver.finish("train[1]")
    assert (driver.state("train"), driver.state("train[2]")) == (S, TaskState.CANCELLED)
    assert driver.queued() == ["next"]


def test_a_ratio_is_decided_as_soon_as_it_is_certain() -> None:
    driver = started(mapped("train", over={"range": 4}, success="min_ratio", least=0.75))
    driver.finish("train[0]", outcome=BAD)
    assert driver.state("train") is TaskState.RUNNING
    driver.finish("train[1]", outcome=BAD)
    assert driver.state("train") is F
    assert "0 were skipped; the 2 that are left change nothing; first train[0]" in driver.row("train").message


def test_skipped_indices_are_neither_and_all_of_them_skip_the_map() -> None:
    driver = started(mapped("train", over={"range": 2}))
    driver.finish("train[0]", outcome=SKIP)
    driver.finish("train[1]")
    assert driver.state("train") is S
    driver = started(mapped("train", over={"range": 2}))
    driver.finish("train[0]", "train[1]", outcome=SKIP)
    assert driver.told("train") == (K, "all_skipped")


def final(success: str, least: float, vector: tuple[TaskState, ...]) -> TaskState:
    """The naive judge: decide when all indices have ended."""
    good, bad = vector.count(S), vector.count(F)
    if good + bad == 0:
        return K
    met = {
        "all": bad == 0,
        "any": good >= 1,
        "min_count": good >= least,
        "min_ratio": good / (good + bad) >= least,
    }
    return S if met[success] else F


@pytest.mark.parametrize(
    ("success", "least"),
    [("all", 0), ("any", 0), *(("min_count", n) for n in (1, 2, 4)), *(("min_ratio", r) for r in (0.0, 0.5, 0.7, 1.0))],
)
def test_a_map_is_decided_exactly_when_no_open_index_could_change_it(success: str, least: float) -> None:
    for total in range(1, 6):
        for ended in range(total + 1):
            for vector in product((S, F, K), repeat=ended):
                endings = {final(success, least, vector + rest) for rest in product((S, F, K), repeat=total - ended)}
                said = map_result(success, least, vector.count(S), vector.count(F), vector.count(K), total)
                wanted = endings.pop() if len(endings) == 1 else None
                # What is the same by chance of rounding is not looked for: never said too early, and always at the end.
                assert said == wanted, (vector, total)


def folds(**fields: Any) -> PlannedTask:
    return mapped("folds", over=["x", "y"], body=(task("train"), task("score", "train")), **fields)


def test_a_group_runs_its_own_graph_for_each_item() -> None:
    driver = started(folds(), task("report", "folds"))
    assert driver.queued() == ["folds[0].train", "folds[1].train"]
    driver.finish("folds[1].train")
    assert driver.queued() == ["folds[0].train", "folds[1].score"]
    driver.finish("folds[1].score", "folds[0].train", "folds[0].score")
    assert driver.queued() == ["report"]


def test_a_failure_handled_inside_of_an_index_is_no_failure_of_it() -> None:
    body = (task("train"), task("fallback", "train", rule="one_failed"))
    driver = started(mapped("folds", over=[1], body=body))
    driver.finish("folds[0].train", outcome=BAD)
    driver.finish("folds[0].fallback")
    assert driver.run_state() is RunState.SUCCESS


def test_maps_are_nested_and_the_names_say_where() -> None:
    inner = mapped("train", over="{{ map.item }}")
    driver = started(mapped("folds", over=[[1, 2], [3]], body=(inner, task("best", "train"))))
    assert driver.queued() == ["folds[0].train[0]", "folds[0].train[1]", "folds[1].train[0]"]
    driver.take_over()
    driver.finish("folds[1].train[0]")
    assert driver.queued() == ["folds[0].train[0]", "folds[0].train[1]", "folds[1].best"]
    driver.finish("folds[1].best", "folds[0].train[0]", "folds[0].train[1]", "folds[0].best")
    assert driver.run_state() is RunState.SUCCESS


def test_what_a_map_has_left_is_a_list_by_index_with_null_where_one_did_not_succeed() -> None:
    driver = started(
        mapped("list", over=[1, 2, 3], success="any"),
        mapped("train", "list", over="{{ tasks.list.outputs }}"),
    )
    driver.finish("list[0]", outcome=gave(n=1))
    driver.finish("list[1]", outcome=BAD)
    driver.finish("list[2]", outcome=gave(n=3))
    assert [row.item for row in driver.rows_of() if row.name.startswith("train[")] == [{"n": 1}, None, None]
    # It was decided by the first one, and went over what there was then.


def test_what_is_left_is_read_as_it_is_each_time() -> None:
    inner = mapped("fit", over=[1, 2], success="any")
    driver = started(
        mapped("folds", over=["x", "y"], success="any", body=(inner,)),
        task("first"),
        mapped("early", "folds", over="{{ tasks.folds.outputs }}"),
        mapped("late", "folds", "first", over="{{ tasks.folds.outputs }}"),
    )

    def items(name: str) -> list[Any]:
        return [row.item for row in driver.rows_of() if row.name.startswith(f"{name}[")]

    driver.finish("folds[1].fit[1]", outcome=gave(n=1))
    assert items("early") == [None, {"fit": [None, {"n": 1}]}]
    driver.finish("folds[1].fit[0]", outcome=gave(n=2))
    driver.finish("folds[0].fit[0]", outcome=gave(n=3))
    driver.finish("first")
    assert items("late") == [{"fit": [{"n": 3}, None]}, {"fit": [{"n": 2}, {"n": 1}]}]


def test_conditions_of_many_indices_over_the_outputs_of_many_are_tested_in_a_moment() -> None:
    driver = Driver()
    count = 3_000
    driver.worker(cpu=count * 1000, memory=count * GIB, slots=count)
    body = (task("use", when="tasks.big.outputs[map.index].n >= 0"),)
    over = {"range": count}
    driver.run(mapped("big", over=over, max_size=count), mapped("next", "big", over=over, max_size=count, body=body))
    *others, last = driver.kernel.attempts.values()
    for attempt in others:
        driver.feed(*claim_and_end(attempt, n=1))
    began = process_time()
    driver.feed(*claim_and_end(last, n=1))
    took = process_time() - began
    ready = sum(node.state is TaskState.READY for node in driver.kernel.tasks.values())
    assert ready == count
    print(f"the conditions of {count:,} indices over as many outputs took {took:.2f} s")
    assert took < 1.0


def test_an_index_whose_slot_another_has_taken_counts_under_a_new_leader_too() -> None:
    inner = task("one", concurrency=(ConcurrencyLimit("k", 1, "cancel_running"),))
    driver = started(mapped("train", over=[1, 2], success="any", body=(inner,)))
    assert driver.told("train[0].one") == (TaskState.CANCELLED, "displaced")
    driver.take_over()
    assert len(driver.kernel.runs["r1"].root.tasks[0].inside.scopes) == 2  # type: ignore[union-attr]
    driver.finish("train[1].one")
    assert driver.row("train").message == "1 of 2 indices succeeded, 1 failed, 0 were skipped."


def test_maps_are_nested_four_deep() -> None:
    third = mapped("c", over=[[1, 2]], body=(mapped("d", over="{{ map.item }}"),))
    plan = mapped("a", over=["only"], body=(mapped("b", over=[1, 2], body=(third,)),))
    driver = started(plan, task("end", "a", when="tasks.a.outputs[0].b[1].c[0].d[1].n == 7"))
    names = [f"a[0].b[{b}].c[0].d[{d}]" for b in range(2) for d in range(2)]
    assert driver.queued() == names
    driver.take_over()
    driver.finish(*names[:3])
    driver.finish(names[3], outcome=BAD)
    assert [driver.told(name)[0] for name in ("a", "a[0].b", "a[0].b[1].c", "a[0].b[1].c[0].d")] == [F] * 4
    assert driver.state("a[0].b[0].c") is TaskState.SUCCESS
    driver.again([names[3]])
    assert driver.queued() == [names[3]]
    driver.take_over()
    driver.finish(names[3], outcome=gave(n=7))
    assert driver.queued() == ["end"]
    driver.ask("cancel")
    assert driver.run_state() is RunState.CANCELLED


def test_the_outputs_of_a_group_are_objects_by_task() -> None:
    driver = started(folds(), mapped("next", "folds", over="{{ tasks.folds.outputs }}"))
    for name in ("folds[0].train", "folds[0].score", "folds[1].train", "folds[1].score"):
        driver.take_over()
        driver.finish(name, outcome=gave(of=name))
    items = [row.item for row in driver.rows_of() if row.name.startswith("next[")]
    assert items[1] == {"train": {"of": "folds[1].train"}, "score": {"of": "folds[1].score"}}


def test_a_cancel_of_the_map_stops_all_that_is_inside_and_waits_for_it() -> None:
    driver = started(mapped("train", over={"range": 3}, max_parallel=2), task("next", "train"))
    driver.start("train[0]")
    driver.ask("cancel", task="train")
    assert [driver.state(f"train[{n}]") for n in range(3)] == [
        TaskState.CANCELLING,
        TaskState.CANCELLED,
        TaskState.CANCELLED,
    ]
    assert driver.state("train") is TaskState.CANCELLING
    driver.take_over()
    driver.end("train[0]", BAD)
    assert driver.state("train") is TaskState.CANCELLED
    assert driver.run_state() is RunState.FAILED


def test_a_cancel_of_the_run_and_of_one_index_reach_the_right_ones() -> None:
    driver = started(folds(success="any"))
    assert "folds[0]" in driver.ask("cancel", task="folds[0]")
    assert driver.state("folds[0].score") is TaskState.CANCELLED
    assert driver.queued() == ["folds[1].train"]
    driver.ask("cancel")
    assert driver.run_state() is RunState.CANCELLED


def test_an_index_is_placed_like_any_task_and_no_two_leaders_expand_it_twice() -> None:
    driver = started(mapped("train", over={"range": 3}), cpu=1000)
    assert driver.queued() == ["train[0]"]
    driver.take_over()
    assert len(driver.all_of(CreateTasks)) == 1
    assert len(driver.rows_of()) == 4


def test_a_map_of_ten_thousand_is_expanded_within_a_second_and_settles_by_what_changes() -> None:
    driver = Driver()
    driver.worker()
    # The rules' own time: how busy the machine is besides is no matter of theirs.
    began = process_time()
    driver.run(mapped("train", over={"range": 10_000}, max_size=10_000, key="{{ map.item }}"))
    expanded = process_time() - began
    [created] = driver.all_of(CreateTasks)
    assert len(created.tasks) == 10_000
    began = process_time()
    for _ in range(50):
        node = next(n for n in driver.kernel.tasks.values() if n.attempt_id)
        attempt = driver.kernel.attempts[node.attempt_id or ""]
        driver.feed(*claim_and_end(attempt), Tick())
    each = (process_time() - began) / 50
    driver.feed(ReconcileDue())
    print(f"expanded 10,000 in {expanded:.2f} s; an end and what follows takes {1000 * each:.2f} ms")
    assert expanded < 1.0
    assert each < 0.005


def claim_and_end(attempt: Any, **outputs: Any) -> tuple[Any, ...]:
    return ClaimReceived("w1", attempt.id, 1, "n"), OutcomeReceived("w1", attempt.id, attempt.token, gave(**outputs))
