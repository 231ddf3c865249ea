"""What it costs to find out what runs again: it follows from how much that is, and not from how often large values are
gone over, or how many indices stand above how many tasks."""

from __future__ import annotations

from dataclasses import replace
from time import process_time
from typing import Any

import pytest

from orchestrator.events import Tick
from orchestrator.kernel import following
from orchestrator.kernel.choosing import chosen_by, with_all_below
from orchestrator.kernel.following import goes_by_index
from orchestrator.records import Plan, PlannedTask, RunRecord
from orchestrator.rerun_plan import PastTask, RerunPlan, plan_rerun, run_of
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import BAD, gave, mapped

S, F, U = TaskState.SUCCESS, TaskState.FAILED, TaskState.UPSTREAM_FAILED
BIG, OUTER = "{{ tasks.big.outputs }}", "{{ tasks.outer.outputs }}"
PIECES, LARGE = 16, {"l": [0] * 150_000}
"""Together nearly as much as a run may keep."""


def rows(name: str, item: Any = None, outputs: Any = None, *, count: int = PIECES) -> list[PastTask]:
    """Return a map and its indices, all of which have succeeded."""
    inside = [
        PastTask(f"{name}/{n}", f"{name}[{n}]", S, name, n, str(n), 1, item=item, outputs=outputs) for n in range(count)
    ]
    return [PastTask(name, name, S), *inside]


def planned(plan: Plan, past: list[PastTask], *chosen: str, seconds: float, **fields: Any) -> RerunPlan:
    began = process_time()
    found = plan_rerun(plan, past, list(chosen), **fields)
    assert process_time() - began < seconds
    return found


def test_many_maps_over_large_outputs_are_followed_in_a_moment() -> None:
    maps = [f"m{n}" for n in range(12)]
    plan = Plan((mapped("big", over={"range": PIECES}), *(mapped(name, "big", over=BIG) for name in maps)))
    past = [*rows("big", outputs=LARGE), *(row for name in maps for row in rows(name, item=LARGE))]
    found = planned(plan, past, "big[3]", seconds=2)
    assert found.again == tuple(one for name in ("big", *maps) for one in (name, f"{name}[3]"))


def test_a_preview_in_many_turns_looks_at_large_outputs_once() -> None:
    turns = 30
    chain = [task("t0"), *(task(f"t{n}") for n in range(1, turns))]
    below = [task(f"u{n}", f"t{n}", f"t{n + 1}") for n in range(turns - 1)]
    plan = Plan((mapped("big", over={"range": PIECES}), mapped("m", "big", over=BIG), *chain, *below))
    past = [*rows("big", outputs=LARGE), *rows("m", item=LARGE)]
    past += [PastTask(one.name, one.name, S, attempts=1) for one in (*chain, *below)]
    gone = {f"t{n}": "It is gone." for n in range(1, turns)}
    found = planned(plan, past, "big[3]", "t0", seconds=2, gone=gone)
    assert found.again[:4] == ("big", "big[3]", "m", "m[3]")
    assert set(found.missing) == set(gone)


def test_a_zip_of_many_lists_is_compared_once_for_all_the_maps_that_it_goes_over() -> None:
    names = [f"n{n}" for n in range(50)]
    small = {"l": [0] * 5_000}
    over = {"zip": {name: f"{{{{ tasks.{name}.outputs }}}}" for name in names}}
    firsts = [mapped(name, over={"range": 10}) for name in names]
    plan = Plan((*firsts, *(mapped(f"m{n}", *names, over=over) for n in range(4))))
    past = [row for name in names for row in rows(name, outputs=small, count=10)]
    for n in range(4):
        past += rows(f"m{n}", item=dict.fromkeys(names, small), count=10)
    chosen = [f"{name}[1]" for name in names]
    found = planned(plan, past, *chosen, seconds=3)
    assert [one for one in found.again if one.startswith("m")] == [f"m{n}{at}" for n in range(4) for at in ("", "[1]")]


def test_so_much_is_put_together_for_comparing_and_then_maps_run_again_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, maps = "x" * 10_000, [f"m{n}" for n in range(9)]
    over = {"zip": {"a": BIG, "b": [f"{{{{ params.text }}}}{n}" for n in range(PIECES)]}}
    plan = Plan((mapped("big", over={"range": PIECES}), *(mapped(name, "big", over=over) for name in maps)))
    record = RunRecord("r", "t", RunState.FAILED, parameters={"text": text})
    past = rows("big", outputs={"of": 1})
    for name in maps:
        past += [
            replace(row, item=None if row.map_index is None else {"a": {"of": 1}, "b": f"{text}{row.map_index}"})
            for row in rows(name)
        ]
    in_part = {name for name in plan_rerun(plan, past, ["big[3]"], run=record).again if name.endswith("[3]")}
    assert in_part == {f"{name}[3]" for name in ("big", *maps)}
    monkeypatch.setattr(following, "MOST_READ", 20_000)
    again = plan_rerun(plan, past, ["big[3]"], run=record).again
    some = {name for name in again if name.endswith("[3]")}
    assert {"big", *maps} <= set(again)
    assert {"big[3]"} < some < in_part


def test_what_is_below_a_map_is_looked_at_once_however_many_of_its_indices_run_again() -> None:
    wide, below = 9_990, 9_900
    plan = Plan((mapped("m", over={"range": wide}, max_size=wide), *(task(f"t{n}", "m") for n in range(below))))
    past = [PastTask("m", "m", F, reason="index_failed")]
    past += [PastTask(f"t{n}", f"t{n}", U, begun=False) for n in range(below)]
    past += [PastTask(f"m/{n}", f"m[{n}]", F, "m", n, str(n), 1) for n in range(wide)]
    run = run_of(plan, past)
    began = process_time()
    choice = with_all_below(run, chosen_by(run, "failed"))
    assert process_time() - began < 1
    assert len(choice.nodes) == 1 + below + wide
    assert {node.name for node in choice.resumed} == {"m"}


def test_maps_that_go_on_are_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = mapped("inner", over=[1], parameters={"p": ["{{ map.item }}"]})
    driver = started(mapped("outer", over=[1, 2], body=(inner,)), mapped("below", "outer", over=OUTER))
    for name in driver.queued():
        driver.finish(name, outcome=BAD if name == "outer[1].inner[0]" else gave(of=1))
    driver.ask("rerun", **{"from": "failed"})

    def named_inside(looked_into: PlannedTask) -> set[str]:
        raise AssertionError(f"{looked_into.name} is looked into, as it would be for each index around it")

    monkeypatch.setattr(following, "_named_inside", named_inside)
    driver.feed(driver.submission(), Tick())
    assert driver.queued() == ["outer[1].inner[0]"]
    driver.finish("outer[1].inner[0]")
    driver.finish(*driver.queued())
    assert driver.run_state() is RunState.SUCCESS


def test_a_map_goes_by_index_where_a_list_of_outputs_is_all_that_stands_there() -> None:
    def goes(over: Any) -> bool:
        return goes_by_index(mapped("m", over=over))

    assert goes(BIG)
    assert goes({"zip": {"a": [1], "b": BIG}})
    for over in ("{{ params.l }}", [BIG], {"grid": {"a": BIG}}, {"zip": BIG}, {"range": 3}, f"{BIG}x"):
        assert not goes(over), over
    assert not goes("{{" + " " * 1000 + "tasks.big.outputs }}"), "it would be read for each index around"
    assert not goes_by_index(PlannedTask("t", "custom_script"))
