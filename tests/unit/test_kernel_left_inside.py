"""A container that runs again and is settled without expanding has nothing inside: what an earlier generation has left
is nobody's list, and no rerun goes on with it."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.events import ReconcileDue, Tick
from orchestrator.records import PlannedTask
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import BAD, Written, gave, mapped, repeated

S, F, U, K, P = (
    TaskState.SUCCESS,
    TaskState.FAILED,
    TaskState.UPSTREAM_FAILED,
    TaskState.SKIPPED,
    TaskState.PENDING,
)


def over_old(*tasks: PlannedTask, last: str = "", **fields: Any) -> Written:
    """Let a map over a list of two end; of the second index as ``last`` says."""
    driver = started(task("a"), mapped("m", "a", over="{{ tasks.a.outputs.l }}", **fields), *tasks)
    driver.finish("a", outcome=gave(l=["old0", "old1"], go=1))
    driver.finish("m[0]", outcome=gave(x="OLD"))
    driver.finish("m[1]", outcome=BAD if last == "failed" else gave(x="OLD"))
    while queued := driver.queued():
        driver.finish(*queued)
    return driver


def counted(driver: Written) -> list[str]:
    return [row.name for row in driver.rows_of() if row.parent_id is not None and not row.superseded]


@pytest.mark.parametrize("takes_over", [False, True])
def test_what_stands_on_a_map_that_its_condition_skips_now_gets_nothing_of_before(takes_over: bool) -> None:
    use = mapped("use", "m", over="{{ tasks.m.outputs }}", rule="all_done")
    driver = over_old(
        use, task("look", "m", rule="all_done", when="len(tasks.m.outputs) > 0"), when="tasks.a.outputs.go == 1"
    )
    assert counted(driver) == ["m[0]", "m[1]", "use[0]", "use[1]"]
    driver.again(["a"])
    if takes_over:
        driver.take_over()
    driver.finish("a", outcome=gave(go=False, l=[7]))
    assert (driver.told("m"), driver.told("use")) == ((K, "condition"), (K, "empty"))
    assert driver.told("look") == (K, "condition")
    assert counted(driver) == []
    row = driver.row("m[0]")
    assert (row.reason, row.message) == ("superseded", "m was settled anew without it.")
    driver.take_over()
    assert driver.run_state() is RunState.SUCCESS


def test_nor_do_they_of_one_whose_upstream_fails_now() -> None:
    driver = over_old(mapped("use", "m", over="{{ tasks.m.outputs }}", rule="all_done"))
    driver.again(["a"])
    driver.finish("a", outcome=BAD)
    assert (driver.told("m"), driver.told("use")) == ((U, "all_success"), (K, "empty"))


@pytest.mark.parametrize("given", [{"l": 5, "go": True}, {"l": ["new"], "go": "?"}])
@pytest.mark.parametrize("takes_over", [False, True])
def test_a_rerun_of_what_failed_expands_what_could_not_expand(given: dict[str, object], takes_over: bool) -> None:
    driver = over_old(task("z", "m"), last="failed", when="tasks.a.outputs.go > 0" if given["go"] == "?" else "")
    driver.again(["a"])
    driver.finish("a", outcome=gave(**given))
    assert driver.state("m") is F
    before = driver.told("m")
    if takes_over:
        driver.take_over()
    driver.again()
    assert driver.told("m") == before, "it is asked anew, and comes to the same"
    assert driver.queued() == []
    assert "no task 'm[1]'" in driver.again(["m[1]"])
    driver.again(["a"])
    driver.finish("a", outcome=gave(l=["new0", "new1", "new2"], go=1))
    assert [row.item for row in driver.rows_of() if row.parent_id is not None] == ["new0", "new1", "new2"]
    assert driver.row("m[0]").generation == 2, "its rows are used again"


def test_a_map_that_is_cancelled_before_it_expands_anew_does_not_go_on_with_what_was() -> None:
    driver = over_old(last="failed")
    driver.again(["a"])
    driver.ask("cancel", task="m")
    assert driver.told("m") == (TaskState.CANCELLED, "cancelled")
    driver.finish("a", outcome=gave(l=["new0", "new1", "new2"], go=True))
    driver.take_over()
    driver.again()
    assert driver.queued() == ["m[0]", "m[1]", "m[2]"]
    assert {row.item for row in driver.rows_of() if row.parent_id is not None} == {"new0", "new1", "new2"}


def test_a_map_that_is_marked_before_it_expands_anew_has_left_nothing() -> None:
    use = mapped("use", "m", over="{{ tasks.m.outputs }}", rule="all_done")
    driver = over_old(use)
    driver.again(["a"])
    driver.ask("mark", task="m", state="success")
    driver.take_over()
    assert driver.told("use") == (K, "empty")
    driver.finish("a", outcome=gave(l=[1], go=True))
    assert driver.run_state() is RunState.SUCCESS


def test_a_map_that_has_run_keeps_what_it_has_left_when_it_is_marked() -> None:
    driver = over_old(last="failed")
    driver.ask("mark", task="m", state="success")
    assert counted(driver) == ["m[0]", "m[1]"]


def test_one_that_is_still_to_expand_anew_has_left_nothing_yet() -> None:
    driver = over_old(task("b"), task("look", "b", "m", rule="one_success", when="len(tasks.m.outputs) > 0"))
    assert driver.state("look") is S
    driver.again(["a", "b"])
    driver.finish("b")
    assert driver.state("m") is P
    assert driver.told("look") == (K, "condition")


def test_nothing_is_left_of_a_loop_either() -> None:
    loop = repeated("r", "a", until="outputs.done", most=3, when="tasks.a.outputs.go == 1")
    driver = started(task("a"), loop, task("look", "r", rule="all_done", when="tasks.r.outputs != null"))
    driver.finish("a", outcome=gave(go=True))
    driver.finish("r[0]", outcome=gave(done=False))
    driver.finish("r[1]", outcome=gave(done=True))
    driver.finish("look")
    driver.again(["a"])
    driver.finish("a", outcome=gave(go=False))
    assert (driver.told("r"), driver.told("look")) == ((K, "condition"), (K, "condition"))
    assert counted(driver) == []
    driver.again(["a"])
    driver.take_over()
    driver.finish("a", outcome=gave(go=True))
    assert driver.queued() == ["r[0]"]


def test_a_map_inside_of_an_index_that_runs_again_is_no_other() -> None:
    body = (task("a"), mapped("deep", "a", over=[1, 2], when="tasks.a.outputs.go"))
    driver = started(mapped("m", over=[1], body=body), task("look", "m", when="len(tasks.m.outputs[0].deep) > 0"))
    driver.finish("m[0].a", outcome=gave(go=True))
    driver.finish("m[0].deep[0]", "m[0].deep[1]", "look")
    driver.again(["m[0].a"])
    driver.take_over()
    driver.finish("m[0].a", outcome=gave(go=False))
    assert driver.told("m[0].deep") == (K, "condition")
    assert counted(driver) == ["m[0].a", "m[0].deep"]
    assert driver.told("look") == (K, "condition")


def test_a_map_that_goes_on_keeps_what_stands() -> None:
    driver = over_old(task("z", "m"))
    driver.again(["m[1]"])
    driver.ask("cancel", task="m")
    driver.again()
    assert driver.queued() == ["m[1]"]
    assert driver.state("m[0]") is S


@pytest.mark.parametrize("given", [{"l": [], "go": 1}, {"l": [1], "go": 0}, {"l": 5, "go": 1}])
def test_a_reconcile_finds_nothing_to_repair_in_it(given: dict[str, object]) -> None:
    driver = over_old(task("b", "a"), when="tasks.a.outputs.go == 1")
    driver.again(["a"])
    driver.finish("a", outcome=gave(**given))
    assert (driver.queued(), counted(driver)) == (["b"], [])
    driver.feed(ReconcileDue(), Tick())
    driver.finish("b")
    assert driver.run_state() is not RunState.RUNNING
