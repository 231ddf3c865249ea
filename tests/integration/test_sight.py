"""What a task sees of its run: templates filled in from the rows, whatever it is inside of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from orchestrator.errors import TemplateError, TooLarge
from orchestrator.records import ChildPlan, InputLink, MapPlan, Plan, PlannedTask, RepeatPlan
from orchestrator.store.engine import create_store_engine
from orchestrator.store.places import Asked
from orchestrator.store.plans import PlanCache
from orchestrator.store.sight import Sight, look_around
from tests.integration.expanded_rows import add_task, set_task
from tests.integration.seeded_runs import SeededRun, planned, seed_run

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_store_engine(database_url)
    yield made
    made.dispose()


def task(name: str, *upstream: str, **parameters: Any) -> PlannedTask:
    return replace(planned(name, *upstream), parameters=parameters)


def mapped(name: str, *upstream: str, body: PlannedTask) -> PlannedTask:
    return replace(planned(name, *upstream), map=MapPlan([]), body=Plan((body,)))


def group(name: str, *upstream: str, body: tuple[PlannedTask, ...], repeat: bool = False) -> PlannedTask:
    kind: Mapping[str, Any] = {"repeat": RepeatPlan("true", 9)} if repeat else {"map": MapPlan([])}
    return replace(planned(name, *upstream), is_group=True, body=Plan(body), **kind)


def sight(engine: Engine, run: SeededRun, plan: Plan, name: str) -> Sight:
    with engine.connect() as connection:
        found = look_around(connection, PlanCache(), [Asked(run.tasks[name], plan)])[run.tasks[name]]
    assert isinstance(found, Sight), found
    return found


def test_a_plain_task_gets_parameters_outputs_and_facts_of_its_run(engine: Engine) -> None:
    plan = Plan(
        (
            task("load"),
            task("check", "load"),
            task("use", "check", rows="{{ tasks.load.outputs.rows }}", who="{{ params.who }} of {{ run.pipeline }}",
                 state="{{ tasks.check.state }}", all="{{ tasks['load'].outputs }}", none="{{ tasks.check.outputs }}"),
        )
    )  # fmt: skip
    run = seed_run(engine, plan=plan, parameters={"who": "me"})
    set_task(engine, run, "load", outputs={"rows": [1, 2]})
    set_task(engine, run, "check", "failed")
    found = sight(engine, run, plan, "use")
    assert found.parameters_of_task() == {
        "rows": [1, 2],
        "who": f"me of {found.pipeline}",
        "state": "failed",
        "all": {"rows": [1, 2]},
        "none": None,
    }
    assert found.upstream == {"load": {"rows": [1, 2]}}


def test_a_path_that_is_not_there_says_how_far_it_led(engine: Engine) -> None:
    plan = Plan((task("load"), task("use", "load", rows="{{ tasks.load.outputs.rows[5] }}")))
    run = seed_run(engine, plan=plan)
    set_task(engine, run, "load", outputs={"rows": [1, 2]})
    with pytest.raises(TemplateError, match="has 2 entries and no"):
        sight(engine, run, plan, "use").parameters_of_task()


def test_an_index_sees_its_item_and_what_is_upstream_of_its_container(engine: Engine) -> None:
    body = replace(
        task("train", lr="{{ map.item.lr }}", at="{{ map.index }}-{{ map.key }}", rows="{{ tasks.load.outputs.rows }}"),
        links=(InputLink("data", "dataset", "load"),),
    )
    plan = Plan((task("load"), mapped("train", "load", body=body)))
    run = seed_run(engine, plan=plan)
    set_task(engine, run, "load", outputs={"rows": 5, "dataset": {"uri": "x.csv"}})
    add_task(engine, run, "train[1]", "train", 1, state="running", item={"lr": 0.1})
    found = sight(engine, run, plan, "train[1]")
    assert found.parameters_of_task() == {"lr": 0.1, "at": "1-k1", "rows": 5, "data": "x.csv"}
    assert list(found.upstream) == ["load"]


def test_what_a_map_has_left_is_a_list_by_index_with_null_where_it_did_not_succeed(engine: Engine) -> None:
    plan = Plan(
        (
            mapped("train", body=task("train")),
            task("best", "train", all="{{ tasks.train.outputs }}", one="{{ tasks.train.outputs[0].loss }}"),
            task("second", "train", one="{{ tasks.train.outputs[2].loss }}"),
        )
    )
    run = seed_run(engine, plan=plan)
    set_task(engine, run, "train")
    add_task(engine, run, "train[0]", "train", 0, outputs={"loss": 1})
    add_task(engine, run, "train[1]", "train", 1, state="failed")
    add_task(engine, run, "train[2]", "train", 2, outputs={"loss": 3})
    add_task(engine, run, "train[3]", "train", 3, outputs={"loss": 4}, superseded=True)
    found = sight(engine, run, plan, "best").parameters_of_task()
    assert found == {"all": [{"loss": 1}, None, {"loss": 3}], "one": 1}
    assert sight(engine, run, plan, "best").upstream == {}, "what maps have left is given to who names it"
    second = sight(engine, run, plan, "second")
    assert second.parameters_of_task() == {"one": 3}
    assert second.values["tasks"]["train"]["outputs"][0] is None, "what nobody asks for is not read"


def test_groups_leave_objects_and_maps_nest(engine: Engine) -> None:
    inner = mapped("fit", "split", body=task("fit", fold="{{ map.index }}"))
    plan = Plan((group("folds", body=(task("split"), inner)), task("sum", "folds", all="{{ tasks.folds.outputs }}")))
    run = seed_run(engine, plan=plan)
    set_task(engine, run, "folds")
    for at, state in ((0, "success"), (1, "failed")):
        add_task(engine, run, f"folds[{at}].split", "folds", at, outputs={"rows": at})
        add_task(engine, run, f"folds[{at}].fit", "folds", at, state=state, position=1)
        add_task(engine, run, f"folds[{at}].fit[0]", f"folds[{at}].fit", 0, outputs={"loss": at})
    assert sight(engine, run, plan, "sum").parameters_of_task() == {
        "all": [{"split": {"rows": 0}, "fit": [{"loss": 0}]}, None]
    }
    assert sight(engine, run, plan, "folds[1].fit[0]").parameters_of_task() == {"fold": 0}
    assert sight(engine, run, plan, "folds[1].fit[0]").upstream == {"split": {"rows": 1}}


def test_a_round_sees_the_one_before_and_a_repeat_leaves_what_its_last_one_left(engine: Engine) -> None:
    body = task("step", before="{{ repeat.previous.outputs.loss }}", at="{{ repeat.index }}")
    loop = replace(planned("step"), repeat=RepeatPlan("true", 9), body=Plan((body,)))
    plan = Plan((loop, task("use", "step", last="{{ tasks.step.outputs.loss }}")))
    run = seed_run(engine, plan=plan)
    set_task(engine, run, "step")
    for at in range(3):
        add_task(engine, run, f"step[{at}]", "step", at, outputs={"loss": 10 - at})
    assert sight(engine, run, plan, "step[0]").parameters_of_task() == {"before": None, "at": 0}
    assert sight(engine, run, plan, "step[2]").parameters_of_task() == {"before": 9, "at": 2}
    assert sight(engine, run, plan, "use").parameters_of_task() == {"last": 8}


def test_a_run_that_is_a_task_leaves_the_outputs_of_its_leaves(engine: Engine) -> None:
    child_plan = Plan((task("a"), task("b", "a")))
    child = seed_run(engine, plan=child_plan)
    set_task(engine, child, "b", outputs={"score": 7})
    plan = Plan(
        (
            replace(planned("other"), child=ChildPlan("other")),
            task(
                "use", "other", score="{{ tasks.other.outputs.outputs.b.score }}", id="{{ tasks.other.outputs.run_id }}"
            ),
        )
    )
    run = seed_run(engine, plan=plan)
    set_task(engine, run, "other")
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE task_runs SET child_run_id = :child WHERE id = :id"),
            {"child": child.id, "id": run.tasks["other"]},
        )
    found = sight(engine, run, plan, "use")
    assert found.parameters_of_task() == {"score": 7, "id": child.id}


def test_a_map_that_has_left_too_much_is_named_and_one_index_of_it_is_given(engine: Engine) -> None:
    plan = Plan(
        (
            mapped("train", body=task("train")),
            task("all", "train", all="{{ tasks.train.outputs }}"),
            task("one", "train", one="{{ tasks.train.outputs[3].size }}"),
        )
    )
    run = seed_run(engine, plan=plan)
    set_task(engine, run, "train")
    for at in range(60):
        add_task(engine, run, f"train[{at}]", "train", at, outputs={"size": at, "text": "x" * 240_000})
    with pytest.raises(TooLarge, match=r"tasks\.train\.outputs has more than the 8 MB"):
        sight(engine, run, plan, "all").parameters_of_task()
    assert sight(engine, run, plan, "one").parameters_of_task() == {"one": 3}
