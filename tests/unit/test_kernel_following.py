"""Rerun of one index where another map goes over what the first has left: the same index of that one, and no other."""

from __future__ import annotations

from random import Random
from time import process_time
from typing import Any

import pytest

from orchestrator.effects import Annotate
from orchestrator.events import Tick
from orchestrator.kernel.following import Reading, reading_of
from orchestrator.records import CachePlan, ChildPlan, InputLink, Plan, PlannedTask
from orchestrator.rerun_plan import PastTask, plan_rerun
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import BAD, SKIP, Written, gave, mapped, repeated

S, F, U, C = TaskState.SUCCESS, TaskState.FAILED, TaskState.UPSTREAM_FAILED, TaskState.CANCELLED
FIRST, PREVIOUS = "{{ tasks.first.outputs }}", "{{ repeat.previous }}"


def shown(driver: Written, chosen: list[str] | str) -> set[str]:
    """Return what the preview of a rerun says would run."""
    record = driver.store.runs["r1"]
    past = [
        PastTask(
            row.id,
            row.name,
            row.state,
            row.parent_id,
            row.map_index,
            row.map_key,
            row.attempts,
            row.reason,
            row.resumed,
            row.item,
            row.outputs,
        )
        for row in driver.rows_of()
        if not row.superseded
    ]
    return set(plan_rerun(driver.store.plans["r1"], past, chosen, run=record).again)


def end(driver: Written, *, bad: tuple[str, ...] = (), **outputs: Any) -> list[str]:
    """Let all run that is sent out, until nothing is; returns what has run, in order. Each leaves its attempt's id."""
    ran: list[str] = []
    while queued := driver.queued():
        for name in queued:
            left = gave(of=driver.attempt(name).id, **outputs)
            driver.finish(name, outcome=BAD if name in bad else left)
            ran.append(name)
    return ran


def again(driver: Written, *chosen: str, bad: tuple[str, ...] = ()) -> list[str]:
    """Run these again; returns what has run."""
    begin_again(driver, list(chosen))
    return end(driver, bad=bad)


def begin_again(driver: Written, chosen: list[str] | str) -> None:
    """Run these again, and see that the preview has told what runs."""
    told = shown(driver, chosen)
    before = {row.name: row.generation for row in driver.rows_of()}
    asked: dict[str, Any] = {"from": chosen}
    driver.ask("rerun", **asked)
    assert {row.name for row in driver.rows_of() if row.generation > before[row.name]} == told
    driver.feed(driver.submission(), Tick())


def pair(**fields: Any) -> Written:
    driver = started(mapped("first", over=[1, 2, 3]), mapped("second", "first", over=FIRST, **fields))
    end(driver)
    assert driver.run_state() is RunState.SUCCESS
    return driver


def test_of_a_map_below_only_the_index_runs_that_stands_on_the_one_that_runs_again() -> None:
    driver = pair()
    before = {row.name: row for row in driver.rows_of()}
    assert again(driver, "first[1]") == ["first[1]", "second[1]"]
    assert driver.run_state() is RunState.SUCCESS
    for name in ("first[0]", "first[2]", "second[0]", "second[2]"):
        assert driver.row(name) == before[name], "it is not touched"
    row = driver.row("second[1]")
    assert (row.item, row.attempts, row.generation) == (driver.row("first[1]").outputs, 2, 2)
    assert row.item != before["second[1]"].item
    assert driver.row("second").message == "3 of 3 indices succeeded, 0 failed, 0 were skipped."


def test_so_it_goes_on_however_far_and_what_takes_them_all_runs_again() -> None:
    driver = started(
        mapped("first", over=[1, 2, 3]),
        mapped("second", "first", over=FIRST),
        mapped("third", "second", over="{{ tasks.second.outputs }}"),
        task("all", "third"),
        task("beside"),
    )
    end(driver)
    for index in (1, 0):
        wanted = [f"first[{index}]", f"second[{index}]", f"third[{index}]", "all"]
        assert again(driver, f"first[{index}]") == wanted
        driver.take_over()
        items = [driver.row(f"third[{n}]").item for n in range(3)]
        assert items == [driver.row(f"second[{n}]").outputs for n in range(3)]
    assert driver.run_state() is RunState.SUCCESS


def test_a_new_leader_goes_on_between_any_two_steps() -> None:
    driver = pair()
    driver.again(["first[1]"])
    driver.take_over()
    assert driver.row("second").resumed
    driver.finish("first[1]", outcome=gave(of="another"))
    driver.take_over()
    assert driver.queued() == ["second[1]"]
    assert driver.row("second[1]").item == {"of": "another"}
    assert end(driver) == ["second[1]"]
    assert driver.run_state() is RunState.SUCCESS


def test_groups_and_maps_inside_of_an_index_run_again_as_a_whole_or_not_at_all() -> None:
    body = (mapped("fit", over=[1, 2]), task("best", "fit"))
    driver = started(mapped("first", over=[1, 2]), mapped("folds", "first", over=FIRST, body=body))
    end(driver)
    ran = again(driver, "first[1]")
    assert ran == ["first[1]", "folds[1].fit[0]", "folds[1].fit[1]", "folds[1].best"]
    new = driver.row("first[1]").outputs
    for name in ("fit", "fit[0]", "fit[1]", "best"):
        assert driver.row(f"folds[0].{name}").generation == 1
    assert driver.row("folds[1].best").item == driver.row("folds[1].fit").item == new
    assert driver.run_state() is RunState.SUCCESS


def test_a_part_of_an_index_of_a_group_touches_that_index_below() -> None:
    body = (task("up"), task("work", "up"))
    driver = started(mapped("first", over=[1, 2], body=body), mapped("second", "first", over=FIRST))
    end(driver)
    assert again(driver, "first[0].work") == ["first[0].work", "second[0]"]
    assert driver.row("second[0]").item["work"] == driver.row("first[0].work").outputs


def test_it_holds_inside_of_a_group_too() -> None:
    body = (mapped("first", over="{{ map.item }}"), mapped("second", "first", over=FIRST), task("sum", "second"))
    driver = started(
        mapped("folds", over=[[1, 2], [3, 4]], body=body), mapped("each", "folds", over="{{ tasks.folds.outputs }}")
    )
    end(driver)
    ran = again(driver, "folds[1].first[0]")
    assert ran == ["folds[1].first[0]", "folds[1].second[0]", "folds[1].sum", "each[1]"]


def test_of_a_zip_the_indices_of_all_its_maps_count() -> None:
    over = {"zip": {"a": FIRST, "b": "{{ tasks.other.outputs }}", "c": "{{ params.names }}"}}
    driver = started(
        mapped("first", over=[1, 2, 3]),
        mapped("other", over=[1, 2, 3]),
        mapped("both", "first", "other", over=over),
        parameters={"names": ["x", "y", "z"]},
    )
    end(driver)
    assert again(driver, "first[1]") == ["first[1]", "both[1]"]
    assert again(driver, "first[0]", "other[2]") == ["first[0]", "other[2]", "both[0]", "both[2]"]
    assert driver.row("both[2]").item["b"] == driver.row("other[2]").outputs


def test_what_was_chosen_besides_and_what_has_not_succeeded_runs_too() -> None:
    driver = started(mapped("first", over=[1, 2, 3, 4]), mapped("second", "first", over=FIRST, success="any"))
    end(driver, bad=("second[0]",))
    assert again(driver, "first[1]", "second[3]") == ["first[1]", "second[0]", "second[1]", "second[3]"]
    assert again(driver, "second[3]", "first[1]") == ["first[1]", "second[1]", "second[3]"]
    driver = started(mapped("first", over=[1, 2]), mapped("second", "first", over=FIRST))
    driver.finish("first[0]", "first[1]")
    driver.finish("second[0]", outcome=SKIP)
    driver.finish("second[1]")
    assert again(driver, "first[1]") == ["first[1]", "second[0]", "second[1]"], "skipped is not succeeded"


def test_an_equal_item_of_an_index_that_ran_again_runs_again_for_it_may_stand_for_other_data() -> None:
    driver = pair()
    same = gave(**dict(driver.row("first[1]").outputs or {}))
    driver.again(["first[1]"])
    driver.finish("first[1]", outcome=same)
    assert driver.queued() == ["second[1]"]


def test_where_the_index_fails_again_nothing_below_runs_and_the_next_rerun_keeps_the_rest_too() -> None:
    driver = pair()
    assert again(driver, "first[1]", bad=("first[1]",)) == ["first[1]"]
    assert driver.run_state() is RunState.FAILED
    assert (driver.told("second"), driver.state("second[1]")) == ((U, "all_success"), C)
    assert shown(driver, "failed") == {"first", "first[1]", "second", "second[1]"}
    driver.again()
    assert end(driver) == ["first[1]", "second[1]"]
    assert driver.run_state() is RunState.SUCCESS


def test_nothing_that_is_kept_is_counted_twice_and_a_ratio_counts_it() -> None:
    driver = pair(success="min_ratio", least=0.6)
    driver.again(["first[0]", "first[1]"])
    driver.finish("first[0]", "first[1]")
    driver.finish("second[0]", outcome=BAD)
    assert driver.state("second") is TaskState.RUNNING
    driver.finish("second[1]")
    assert driver.row("second").message == "2 of 3 indices succeeded, 1 failed, 0 were skipped."
    assert driver.run_state() is RunState.SUCCESS


def test_a_map_that_fails_fast_stops_what_runs_again_and_nothing_that_is_kept() -> None:
    driver = pair(fail_fast=True)
    driver.again(["first[0]", "first[1]"])
    driver.finish("first[0]", "first[1]")
    driver.finish("second[0]", outcome=BAD)
    assert [driver.state(f"second[{n}]") for n in range(3)] == [F, C, S]
    assert driver.run_state() is RunState.FAILED
    assert again(driver, "second") == ["second[0]", "second[1]", "second[2]"]


def test_max_parallel_holds() -> None:
    driver = started(mapped("first", over={"range": 4}), mapped("second", "first", over=FIRST, max_parallel=1))
    end(driver)
    driver.again(["first[1]", "first[3]"])
    driver.finish("first[1]", "first[3]")
    assert driver.queued() == ["second[1]"]
    assert driver.told("second[3]") == (TaskState.PENDING, "max_parallel")
    driver.take_over()
    driver.finish("second[1]")
    assert driver.queued() == ["second[3]"]


def test_keys_are_worked_out_again_and_two_that_are_the_same_fail_the_map() -> None:
    driver = started(mapped("first", over=[1, 2]), mapped("second", "first", over=FIRST, key="{{ map.item.of }}"))
    driver.finish("first[0]", outcome=gave(of="a"))
    driver.finish("first[1]", outcome=gave(of="b"))
    end(driver)
    driver.again(["first[1]"])
    driver.finish("first[1]", outcome=gave(of="c"))
    assert [driver.row(f"second[{n}]").map_key for n in range(2)] == ["a", "c"]
    end(driver)
    assert again(driver, "second[c]") == ["second[1]"]
    driver.again(["first[1]"])
    driver.finish("first[1]", outcome=gave(of="a"))
    assert driver.told("second") == (F, "map_key")
    assert (driver.state("second[0]"), driver.state("second[1]")) == (S, C)
    assert driver.run_state() is RunState.FAILED
    driver.take_over()


def test_a_key_that_leads_nowhere_fails_the_map_and_leaves_nothing_open() -> None:
    driver = started(mapped("first", over=[1, 2]), mapped("second", "first", over=FIRST, key="{{ map.item.of }}"))
    end(driver)
    driver.again(["first[1]"])
    driver.finish("first[1]", outcome=gave(other=1))
    assert driver.told("second") == (F, "template")
    assert (driver.state("second[1]"), driver.run_state()) == (C, RunState.FAILED)
    driver.take_over()


LIST = task("list")
READERS: dict[str, tuple[PlannedTask, ...]] = {
    "a parameter": (mapped("second", "first", over=FIRST, parameters={"all": FIRST}),),
    "one entry": (mapped("second", "first", over=FIRST, parameters={"x": "{{ tasks.first.outputs[0].of }}"}),),
    "its state": (mapped("second", "first", over=FIRST, body=(task("a", when="tasks.first.state == 'success'"),)),),
    "its own condition": (mapped("second", "first", over=FIRST, when="tasks.first.outputs[0].of != ''"),),
    "its key": (mapped("second", "first", over=FIRST, key="{{ map.index }}{{ tasks.first.outputs[0].of }}"),),
    "an inner map": (mapped("second", "first", over=FIRST, body=(mapped("in", over=FIRST),)),),
    "an inner loop": (
        mapped("second", "first", over=FIRST, body=(repeated("in", until="tasks.first.state != ''", most=2),)),
    ),
    "a grid": (mapped("second", "first", over={"grid": {"a": FIRST}}),),
    "a part of each": (
        mapped("second", "first", over=["{{ tasks.first.outputs[0] }}", "{{ tasks.first.outputs[1] }}"]),
    ),
    "nothing of it": (mapped("second", "first", over=[1, 2]),),
    "a task between": (task("r", "first"), mapped("second", "first", "r", over=FIRST)),
    "a map that goes over it anew": (
        mapped("r", "first", over={"grid": {"a": FIRST}}),
        mapped("second", "first", "r", over=FIRST),
    ),
    "one further up": (
        mapped("r", "first", over=FIRST),
        mapped("second", "r", over="{{ tasks.r.outputs }}", parameters={"all": FIRST}),
    ),
}


@pytest.mark.parametrize("reads", READERS)
def test_a_map_that_may_read_more_than_its_items_runs_again_as_a_whole(reads: str) -> None:
    driver = started(LIST, mapped("first", "list", over=[1, 2]), *READERS[reads])
    end(driver)
    indices = {row.name for row in driver.rows_of() if row.name.startswith("second[") and row.attempts}
    assert indices
    assert indices <= set(again(driver, "first[1]"))
    assert driver.run_state() is RunState.SUCCESS


def test_a_task_that_was_not_run_again_may_be_read_as_before() -> None:
    second = mapped(
        "second",
        "first",
        over=FIRST,
        parameters={"of": "{{ tasks.list.outputs.of }}"},
        when="tasks.list.outputs.of != ''",
    )
    driver = started(LIST, mapped("first", "list", over=[1, 2]), second)
    end(driver)
    assert again(driver, "first[1]") == ["first[1]", "second[1]"]
    assert again(driver, "list") == ["list", "first[0]", "first[1]", "second[0]", "second[1]"]
    assert again(driver, "first[0]", "first") == ["first[0]", "first[1]", "second[0]", "second[1]"]


def test_what_a_person_has_marked_lets_the_whole_map_run_again() -> None:
    driver = pair()
    mark(driver, "first[0]")
    assert again(driver, "first[1]") == ["first[1]", "second[0]", "second[1]", "second[2]"]
    assert driver.row("second[0]").item == {"of": "by hand"}
    assert again(driver, "first[0]") == ["first[0]", "second[0]", "second[1]", "second[2]"], "it is marked no more"
    assert again(driver, "first[0]") == ["first[0]", "second[0]"]


def mark(driver: Written, name: str, **outputs: Any) -> None:
    """Mark a task run of a run that is over, which ends anew."""
    driver.ask("mark", task=name, state="success", outputs=outputs or {"of": "by hand"})
    driver.feed(driver.submission())
    driver.tick()
    assert driver.run_state() is RunState.SUCCESS


@pytest.mark.parametrize("name", ["beside", "above", "second[0]", "first[2]"])
def test_what_a_person_has_marked_is_no_matter_where_the_map_does_not_read_it(name: str) -> None:
    over = "{{ tasks.list.outputs.files }}"
    driver = started(
        task("above"),
        task("list", "above"),
        mapped("first", "list", over=over),
        mapped("second", "first", over=FIRST),
        task("beside"),
    )
    driver.finish("above", "beside")
    driver.finish("list", outcome=gave(files=[1, 2, 3]))
    end(driver)
    mark(driver, name)
    if name == "first[2]":
        driver.again(["list"])
        driver.finish("list", outcome=gave(files=[1, 2]))
        end(driver)
        assert driver.row("first[2]").superseded
    assert again(driver, "first[1]") == ["first[1]", "second[1]"]
    assert driver.run_state() is RunState.SUCCESS


SECOND: dict[str, PlannedTask] = {
    "a parameter": mapped("second", "first", over=FIRST, parameters={"p": "{{ tasks.list.outputs }}"}),
    "an upstream": mapped("second", "first", "list", over=FIRST),
    "an inner condition": mapped("second", "first", over=FIRST, body=(task("a", when="tasks.list.outputs.of != ''"),)),
    "another list": mapped("second", "first", "other", over={"zip": {"a": FIRST, "b": "{{ tasks.other.outputs }}"}}),
}


@pytest.mark.parametrize("reads", SECOND)
def test_a_map_that_may_read_what_a_person_has_marked_runs_again_as_a_whole(reads: str) -> None:
    driver = started(LIST, mapped("first", "list", over=[1, 2]), mapped("other", "list", over=[1, 2]), SECOND[reads])
    end(driver)
    indices = {row.name for row in driver.rows_of() if row.name.startswith("second[")}
    assert set(again(driver, "first[1]")) < {"first[1]", *indices}
    mark(driver, "other[0]" if reads == "another list" else "list")
    assert set(again(driver, "first[1]")) == {"first[1]", *indices}


def test_a_mark_in_the_round_before_counts_for_the_maps_of_the_next() -> None:
    body = (mapped("first", over=[1, 2]), mapped("second", "first", over=FIRST, parameters={"p": PREVIOUS}))
    driver = started(repeated("loop", until="False", most=2, on_max="succeed", body=body))
    end(driver)
    assert again(driver, "loop[1].first[1]") == ["loop[1].first[1]", "loop[1].second[1]"]
    mark(driver, "loop[0].first[0]")
    ran = again(driver, "loop[1].first[1]")
    assert ran == ["loop[1].first[1]", "loop[1].second[0]", "loop[1].second[1]"]


def test_an_index_that_has_run_stays_as_it_is_when_a_mark_comes_while_its_map_waits_to_go_on() -> None:
    driver = pair()
    driver.again(["first[1]"])
    old = driver.row("second[0]").item
    driver.ask("mark", task="first[0]", state="success", outputs={"of": "by hand"})
    assert end(driver) == ["first[1]", "second[1]"]
    assert (driver.run_state(), driver.row("second[0]").item) == (RunState.SUCCESS, old)
    assert again(driver, "first[2]") == ["first[2]", "second[0]", "second[1]", "second[2]"]
    assert driver.row("second[0]").item == {"of": "by hand"}


def test_one_index_alone_takes_what_a_person_has_marked_upstream_of_it() -> None:
    driver = pair()
    mark(driver, "first[1]")
    assert again(driver, "second[1]") == ["second[1]"]
    assert driver.row("second[1]").item == {"of": "by hand"}


def test_a_map_that_began_before_all_was_there_runs_again_as_a_whole() -> None:
    driver = started(mapped("first", over=[1, 2], success="any"), mapped("second", "first", over=FIRST))
    driver.finish("first[0]", outcome=gave(of="a"))
    assert driver.queued() == ["first[1]", "second[0]", "second[1]"]
    end(driver)
    assert driver.row("second[1]").item is None
    assert sorted(again(driver, "first[0]"))[-2:] == ["second[0]", "second[1]"]


def test_a_map_that_never_came_to_the_new_list_runs_again_as_a_whole() -> None:
    over = "{{ tasks.list.outputs.files }}"
    driver = started(LIST, mapped("first", "list", over=over), mapped("second", "first", over=FIRST))
    driver.finish("list", outcome=gave(files=[1, 2, 3]))
    driver.finish(*(f"first[{n}]" for n in range(3)), outcome=gave(of="same"))
    end(driver)
    driver.again(["list"])
    driver.finish("list", outcome=gave(files=[4, 5, 6]))
    driver.finish("first[0]", "first[2]", outcome=gave(of="same"))
    driver.finish("first[1]", outcome=BAD)
    assert driver.state("second") is U
    assert again(driver, "first[1]") == ["first[1]", "second[0]", "second[1]", "second[2]"]


def test_a_cancel_in_between_leaves_nothing_open_and_what_was_kept_is_kept() -> None:
    driver = pair()
    driver.again(["first[1]"])
    driver.ask("cancel")
    assert driver.run_state() is RunState.CANCELLED
    assert (driver.state("second"), driver.state("second[1]"), driver.state("second[0]")) == (C, C, S)
    driver.again()
    assert end(driver) == ["first[1]", "second[1]"]


def test_ten_thousand_indices_are_followed_in_a_moment() -> None:
    count = 10_000
    plan = Plan((mapped("first", over={"range": count}), mapped("second", "first", over=FIRST, max_size=count)))
    past = [PastTask("first", "first", S), PastTask("second", "second", S)]
    for name in ("first", "second"):
        past += [
            PastTask(f"{name}{n}", f"{name}[{n}]", S, name, n, str(n), item={"n": n}, outputs={"n": n})
            for n in range(count)
        ]
    for chosen in (range(7, 8), range(0, count, 2)):
        began = process_time()
        found = plan_rerun(plan, past, [f"first[{n}]" for n in chosen])
        assert process_time() - began < 5
        indices = [f"{name}[{n}]" for name in ("first", "second") for n in chosen]
        assert found.again == ("first", "second", *indices)


def test_no_other_index_is_written_to() -> None:
    driver = pair()
    driver.again(["first[1]"])
    driver.history.clear()
    end(driver)
    told = {effect.id for effect in driver.history if isinstance(effect, Annotate) and "item" in effect.changes}
    assert told == {driver.row("second[1]").id}


def test_what_a_map_reads_is_seen_in_all_that_may_name_a_task() -> None:
    def read(inner: PlannedTask) -> Reading:
        return reading_of(mapped("m", over=FIRST, body=(inner,)))

    named = "{{ tasks.x.outputs.y }}"
    for inner in (
        task("a", parameters={"p": [named]}),
        task("a", when="tasks.x.state == 'failed'"),
        task("a", links=(InputLink("p", source="x", kind="dataset"),)),
        task("a", cache=CachePlan("read_write", (named,))),
        task("a", child=ChildPlan("other", parameters={"p": named})),
        mapped("a", over=[1], key=named),
        repeated("a", until="tasks.x.outputs.y == 1", most=2),
        mapped("a", over=[1], body=(task("b", parameters={"p": named}),)),
    ):
        assert read(inner) == Reading(frozenset({"first"}), frozenset({"x"})), inner
    own = (task("x"), task("a", "x", parameters={"p": named}))
    assert reading_of(mapped("m", over=FIRST, body=own)).otherwise == frozenset()
    assert reading_of(mapped("m", over=named)).by_index == frozenset()
    assert reading_of(task("t")) == Reading(frozenset(), frozenset())


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_chosen_no_task_is_left_behind_what_it_stands_on(seed: int) -> None:
    """The oracle: after a run that succeeded, all that a task run may read has last run before it has."""
    chance = Random(seed)
    tasks, above = _plan(chance)
    driver = started(*tasks, parameters={"names": ["a", "b", "c"]})
    clock: dict[str, int] = {}

    def run(*, all_good: bool) -> None:
        while queued := driver.queued():
            name = chance.choice(queued)
            is_bad = not all_good and chance.random() < 0.1
            of = chance.choice(["same", driver.attempt(name).id])
            driver.finish(name, outcome=BAD if is_bad else gave(of=of, files=[1, 2, 3]))
            if not is_bad:
                clock[name] = len(clock) + sum(clock.values()) + 1
            if chance.random() < 0.1:
                driver.take_over()

    run(all_good=True)
    for _ in range(6):
        # What is inside of a map that never came to its list is of an older one; who names it alone wants just that.
        settled = {row.id for row in driver.rows_of() if row.state in (U, C)}
        names = [row.name for row in driver.rows_of() if not row.superseded and row.parent_id not in settled]
        is_broken = driver.run_state() is RunState.FAILED and chance.random() < 0.5
        begin_again(driver, "failed" if is_broken else chance.sample(names, chance.randint(1, 2)))
        run(all_good=chance.random() < 0.5)
        assert driver.run_state() in (RunState.SUCCESS, RunState.FAILED), seed
        if driver.run_state() is RunState.SUCCESS:
            _look(driver, above, clock)


def _plan(chance: Random) -> tuple[list[PlannedTask], dict[str, list[str]]]:
    """Return tasks at random, and what is upstream of each."""
    tasks: list[PlannedTask] = [task("t0")]
    above: dict[str, list[str]] = {"t0": []}
    maps: list[str] = []
    for n in range(1, 6):
        name, ups = f"t{n}", chance.sample(list(above), chance.randint(1, min(2, len(above))))
        kind = chance.choice(["plain", "fixed", "over", "over", "over", "zip"])
        sources = [up for up in ups if up in maps]
        if kind == "plain" or (kind in ("over", "zip") and not sources):
            tasks.append(task(name, *ups))
        else:
            maps.append(name)
            lists = [f"{{{{ tasks.{up}.outputs }}}}" for up in sources]
            zipped = {"zip": {**{f"c{at}": text for at, text in enumerate(lists)}, "n": "{{ params.names }}"}}
            over: Any = {"fixed": {"range": 3}, "over": lists[0] if lists else 0, "zip": zipped}[kind]
            body = (task("a"), task("b", "a")) if chance.random() < 0.3 else ()
            reads = {"all": chance.choice(lists)} if lists and not body and chance.random() < 0.15 else {}
            tasks.append(mapped(name, *ups, over=over, body=body, parameters=reads))
        above[name] = ups
    return tasks, above


def _look(driver: Written, above: dict[str, list[str]], clock: dict[str, int]) -> None:
    plan = {one.name: one for one in driver.store.plans["r1"].tasks}

    def last(name: str, index: int | None = None) -> int:
        start = name if index is None else f"{name}[{index}]"
        return max(at for one, at in clock.items() if one == start or one.startswith((f"{start}[", f"{start}.")))

    def first(name: str, index: int) -> int:
        start = f"{name}[{index}]"
        return min(at for one, at in clock.items() if one == start or one.startswith(f"{start}."))

    for name, ups in above.items():
        reading = reading_of(plan[name])
        by_index = reading.by_index - reading.otherwise
        for up in ups:
            if plan[name].map is None:
                assert clock[name] > last(up), (name, up)
                continue
            for index in range(3):
                read = last(up, index) if up in by_index else last(up)
                assert first(name, index) > read, (name, index, up)
        map_ = plan[name].map
        if map_ is not None and isinstance(map_.over, str):
            (up,) = reading.by_index
            for index in range(3):
                row = next(row for row in driver.rows_of() if row.name.startswith(f"{name}[{index}]"))
                made = [one for one in driver.rows_of() if one.name == f"{up}[{index}]"]
                assert not made or row.item == made[0].outputs, (name, index)
