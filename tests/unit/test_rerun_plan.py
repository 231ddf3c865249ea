"""What a rerun takes with it and what it keeps, inside of containers too."""

from __future__ import annotations

import random
from dataclasses import replace
from time import process_time

import pytest

from orchestrator.errors import InvalidDefinition
from orchestrator.kernel import Kernel, KernelSettings
from orchestrator.kernel.choosing import to_run_again
from orchestrator.records import MapPlan, Plan, PlannedTask, RunRecord, TaskRunRecord
from orchestrator.rerun_plan import PastTask, RerunPlan, plan_rerun
from orchestrator.states import RunState, TaskState

OK, BAD, UP = TaskState.SUCCESS, TaskState.FAILED, TaskState.UPSTREAM_FAILED


def task(name: str, *upstream: str) -> PlannedTask:
    return PlannedTask(name, "custom_script", upstream)


PLAIN = Plan((task("load"), task("left", "load"), task("right", "load"), task("join", "left", "right")))
INNER = (task("split"), task("fit", "split"), task("score", "fit"))
MAPPED = Plan(
    (
        task("load"),
        PlannedTask("train", "map", ("load",), map=MapPlan([]), body=Plan((task("train"),))),
        PlannedTask("folds", "map", ("load",), map=MapPlan([]), body=Plan(INNER), is_group=True),
        task("sum", "train", "folds"),
        task("other", "load"),
    )
)


def plain(**states: TaskState) -> list[PastTask]:
    return [PastTask(one.name, one.name, states.get(one.name, OK)) for one in PLAIN.tasks]


def mapped(**states: TaskState) -> list[PastTask]:
    """Two indices of each container; ids are names, and states are given by names without brackets and dots."""

    def row(name: str, parent: str | None = None, index: int | None = None) -> PastTask:
        word = name.replace("[", "").replace("].", "_").replace("]", "")
        return PastTask(name, name, states.get(word, OK), parent, index, "" if index is None else f"k{index}")

    rows = [row(one.name) for one in MAPPED.tasks]
    for at in range(2):
        rows.append(row(f"train[{at}]", "train", at))
        rows += [row(f"folds[{at}].{one.name}", "folds", at) for one in INNER]
    return rows


def test_what_failed_and_all_below_it_runs_again() -> None:
    found = plan_rerun(PLAIN, plain(left=BAD, join=UP), "failed")
    assert found == RerunPlan(("left", "join"), ("left", "join"), ("load", "right"), ())


def test_all_is_all_and_names_take_what_is_below_them() -> None:
    assert plan_rerun(PLAIN, plain(), "all").again == ("load", "left", "right", "join")
    assert plan_rerun(PLAIN, plain(right=BAD), ["left"]) == RerunPlan(
        ("left",), ("left", "join"), ("load",), ("right",)
    )


def test_an_unknown_name_is_refused_with_its_pointer() -> None:
    with pytest.raises(InvalidDefinition) as refused:
        plan_rerun(PLAIN, plain(), ["left", "nobody"])
    assert [problem.pointer for problem in refused.value.problems] == ["/from/1"]


def test_one_index_takes_only_what_is_downstream_of_its_container() -> None:
    found = plan_rerun(MAPPED, mapped(), ["train[1]"])
    assert found.again == ("train", "sum", "train[1]")
    assert "train[0]" in found.reused
    assert "folds[0].fit" in found.reused


def test_inside_of_a_group_it_takes_the_rest_of_its_own_index() -> None:
    found = plan_rerun(MAPPED, mapped(), ["folds[0].fit"])
    assert found.again == ("folds", "sum", "folds[0].fit", "folds[0].score")


def test_a_container_that_is_chosen_or_below_is_expanded_anew() -> None:
    assert plan_rerun(MAPPED, mapped(), ["train"]).again == ("train", "sum")
    found = plan_rerun(MAPPED, mapped(), ["load"])
    assert found.again == ("load", "train", "folds", "sum", "other")
    assert found.reused == ()


def test_of_a_container_that_failed_the_indices_that_did_run_again() -> None:
    found = plan_rerun(MAPPED, mapped(train=BAD, train1=BAD, sum=UP), "failed")
    assert found.chosen == ("train[1]", "sum")
    assert found.again == ("train", "sum", "train[1]")
    assert plan_rerun(MAPPED, mapped(train=BAD, sum=UP), "failed").chosen == ("train", "sum")


def test_what_failed_in_a_container_that_succeeded_was_accepted() -> None:
    assert plan_rerun(MAPPED, mapped(train1=BAD), "failed").chosen == ()


def test_what_is_gone_joins_if_something_that_runs_again_may_read_it() -> None:
    gone = {"load": "removed", "right": "removed too"}
    found = plan_rerun(PLAIN, plain(left=BAD, join=UP), "failed", gone)
    assert found.missing == gone
    assert found.again == ("load", "left", "right", "join")
    assert plan_rerun(MAPPED, mapped(sum=BAD), "failed", {"other": "removed"}).missing == {}


def test_an_index_whose_output_is_gone_joins_alone() -> None:
    found = plan_rerun(MAPPED, mapped(sum=BAD), "failed", {"train[0]": "removed"})
    assert found.again == ("train", "sum", "train[0]")
    assert found.missing == {"train[0]": "removed"}


def test_an_index_is_named_by_its_key_too_and_as_a_whole() -> None:
    assert plan_rerun(MAPPED, mapped(), ["train[k1]"]).again == ("train", "sum", "train[1]")
    found = plan_rerun(MAPPED, mapped(), ["folds[0]"])
    assert found.again == ("folds", "sum", "folds[0].split", "folds[0].fit", "folds[0].score")
    assert plan_rerun(MAPPED, mapped(), ["folds[k1].score"]).chosen == ("folds[1].score",)
    with pytest.raises(InvalidDefinition):
        plan_rerun(MAPPED, mapped(), ["folds[k2]"])


@pytest.mark.parametrize("seed", range(60))
def test_what_is_shown_is_what_the_rules_do(seed: int) -> None:
    chance = random.Random(seed)
    past = [
        PastTask(row.name, row.name, chance.choice([OK, OK, BAD, UP]), row.parent_id, row.map_index, row.map_key)
        for row in mapped()
    ]
    chosen: str | list[str] = chance.choice(["failed", "all", ""]) or [
        row.name for row in chance.sample(past, chance.randint(1, 3))
    ]
    rows = tuple(
        TaskRunRecord(
            row.id, "r", row.name, row.state, parent_id=row.parent_id, map_index=row.map_index, map_key=row.map_key
        )
        for row in past
    )
    kernel = Kernel(KernelSettings(new_id=lambda: "id"), 0.0)
    run = kernel.adopt_run(RunRecord("r", "t", RunState.FAILED), rows, MAPPED, 0.0)
    done = {node.name for node in to_run_again(run, chosen).nodes}
    assert done == set(plan_rerun(MAPPED, past, chosen).again), (seed, chosen, past)


SET_UP = Plan(
    (
        task("up"),
        task("work", "up"),
        task("apart"),
        PlannedTask("down", "custom_script", ("work", "apart"), teardown=True, setups=("up",)),
        task("report", "down"),
    )
)


def set_up(**states: TaskState) -> list[PastTask]:
    return [PastTask(one.name, one.name, states.get(one.name, OK), attempts=1) for one in SET_UP.tasks]


def test_what_was_taken_down_is_set_up_again_for_what_works_on_it() -> None:
    found = plan_rerun(SET_UP, set_up(work=BAD), "failed")
    assert found.again == ("up", "work", "down", "report")
    assert found.chosen == ("work",)
    assert found.why == {"up": "setup", "work": "chosen", "down": "downstream", "report": "downstream"}


@pytest.mark.parametrize("chosen", ["down", "report", "apart"])
def test_for_what_does_not_work_on_it_nothing_is_set_up(chosen: str) -> None:
    assert "up" not in plan_rerun(SET_UP, set_up(), [chosen]).again


def test_what_was_not_taken_down_stays_as_it_was_set_up() -> None:
    past = set_up(work=BAD, down=TaskState.CANCELLED)
    assert "up" in plan_rerun(SET_UP, past, "failed").again
    assert "up" not in plan_rerun(SET_UP, [replace(row, attempts=0) for row in past], "failed").again


def test_a_set_up_around_a_map_takes_the_map_with_it() -> None:
    inner = PlannedTask("train", "map", ("up",), map=MapPlan([]), body=Plan((task("train"),)))
    down = PlannedTask("down", "custom_script", ("train",), teardown=True, setups=("up",))
    plan = Plan((task("up"), inner, down))
    past = [PastTask(one.name, one.name, OK, attempts=1) for one in plan.tasks]
    past += [PastTask(f"train[{n}]", f"train[{n}]", OK, "train", n, str(n)) for n in range(2)]
    assert plan_rerun(plan, past, ["train[1]"]).again == ("up", "train", "down")


def test_of_a_wide_map_all_may_be_named() -> None:
    plan = Plan((PlannedTask("train", "map", map=MapPlan([]), body=Plan((task("train"),))), task("sum", "train")))
    past = [PastTask(one.name, one.name, OK) for one in plan.tasks]
    past += [PastTask(f"i{n}", f"train[{n}]", OK, "train", n, f"k{n}") for n in range(10_000)]
    began = process_time()
    found = plan_rerun(plan, past, [f"train[{n}]" for n in range(10_000)])
    assert len(found.again) == 10_002
    assert process_time() - began < 2.0
