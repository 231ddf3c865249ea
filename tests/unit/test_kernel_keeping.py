"""What the rules keep of outputs: what expressions name, and of one run no more than so much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.effects import SendAnswer
from orchestrator.events import ClaimReceived, OutcomeReceived, Tick
from orchestrator.expressions import Missing, value_at
from orchestrator.expressions.paths import Path
from orchestrator.kernel import nodes
from orchestrator.kernel.keeping import both, kept_by_task, kept_of
from orchestrator.records import ChildPlan, MapPlan, Plan, PlannedTask
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import GIB, NO_JITTER, task
from tests.unit.written_driver import Written, container, gave, mapped, repeated

BIG = "x" * 1000


def started(*tasks: PlannedTask, **fields: Any) -> Written:
    driver = Written()
    driver.worker(cpu=64_000, memory=64 * GIB, slots=64)
    driver.run(*tasks, **fields)
    return driver


def kept(driver: Written, name: str, run_id: str = "r1") -> Any:
    [node] = [node for node in driver.kernel.runs[run_id].tasks if node.name == name]
    return node.outputs


def test_of_a_task_only_the_fields_are_kept_that_conditions_and_templates_name() -> None:
    driver = started(
        task("u"),
        task("when", "u", when="tasks.u.outputs.n > 1 and tasks.u.outputs.deep.part == 2"),
        mapped("over", "u", over="{{ tasks.u.outputs.list }}"),
        task("reads", "u", parameters={"all": "{{ tasks.u.outputs }}"}),
    )
    driver.finish("u", outcome=gave(n=2, list=[1], deep={"part": 2, "out": BIG}, big=BIG))
    assert kept(driver, "u") == {"n": 2, "list": [1], "deep": {"part": 2}}
    assert driver.row("u").outputs == {"n": 2, "list": [1], "deep": {"part": 2, "out": BIG}, "big": BIG}
    assert driver.told("over") == (TaskState.RUNNING, "mapped")
    assert "when" in driver.queued()
    driver.take_over()
    assert kept(driver, "u") == {"n": 2, "list": [1], "deep": {"part": 2}}
    assert driver.kernel.runs["r1"].kept == len('{"n": 2, "list": [1], "deep": {"part": 2}}')


def test_of_what_is_inside_of_containers_what_is_named_of_them_is_kept() -> None:
    group = mapped("g", over=[1], body=(task("a"), task("b")))
    loop = repeated("r", until="outputs.done", most=2)
    driver = started(
        mapped("m", over=[1, 2]),
        group,
        loop,
        task("end", "m", "g", "r", when="tasks.m.outputs[1].n and tasks.g.outputs[0].b.n and tasks.r.outputs.n"),
    )
    driver.finish("m[0]", "m[1]", "g[0].a", "g[0].b", "r[0]", outcome=gave(n=1, done=True, big=BIG))
    names = ("m[0]", "g[0].a", "g[0].b", "r[0]")
    assert [kept(driver, name) for name in names] == [{"n": 1}, None, {"n": 1}, {"done": True, "n": 1}]
    assert driver.queued() == ["end"]


def test_the_rounds_before_are_kept_whole_where_a_round_reads_them() -> None:
    body = (task("a", when="repeat.index == 0 or repeat.previous.outputs.a.n == 1"),)
    driver = started(repeated("r", until="tasks.a.outputs.n == 2", most=3, body=body))
    driver.finish("r[0].a", outcome=gave(n=1, more=2))
    assert kept(driver, "r[0].a") == {"n": 1, "more": 2}
    driver.finish("r[1].a", outcome=gave(n=2))
    assert driver.run_state() is RunState.SUCCESS


def test_a_sub_run_keeps_what_it_leaves_only_where_the_task_that_it_is_is_read() -> None:
    def call(name: str) -> PlannedTask:
        return PlannedTask(name, "pipeline", child=ChildPlan("other"))

    driver = Written()
    driver.worker(cpu=64_000, memory=64 * GIB, slots=64)
    driver.store.pipelines["other"] = Plan((task("x"),))
    driver.run(call("read"), call("unread"), task("after", "read", when="tasks.read.outputs.outputs.x.n == 1"))
    for _ in range(2):
        children = {run.parent_task_run_id: run for run in driver.kernel.runs.values() if run.depth}
        by_name = {driver.store.task_runs[task_id or ""].name: run for task_id, run in children.items()}
        assert [by_name[name].hands_on for name in ("read", "unread")] == [True, False]
        driver.take_over()
    for name in ("unread", "read"):
        driver.finish("x", run_id=by_name[name].id, outcome=gave(n=1, big=BIG))
    assert kept(driver, "read") == {"outputs": {"x": {"n": 1}}}
    assert kept(driver, "unread") is None
    assert driver.queued() == ["after"]


def test_a_task_whose_outputs_do_not_fit_beside_what_is_kept_already_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MOST_KEPT", 2500)
    driver = started(mapped("m", over=[0, 1, 2]), mapped("v", "m", over="{{ tasks.m.outputs }}"))
    driver.finish("m[0]", "m[1]", outcome=gave(text=BIG))
    attempt = driver.attempt("m[2]")
    report = OutcomeReceived("w1", attempt.id, attempt.token, gave(text=BIG))
    driver.feed(ClaimReceived("w1", attempt.id, 1, "n1"))
    for _ in range(2):
        driver.feed(report, Tick())
        assert [answer.verdict for answer in driver.of(SendAnswer)] == ["committed"], "a report that is sent again too"
    assert driver.told("m[2]") == (TaskState.FAILED, "too_large")
    assert "with what task m[2] leaves. Name fields of outputs" in driver.row("m[2]").message
    assert driver.row("m[2]").outputs is None
    assert driver.run_state() is RunState.FAILED


def test_outputs_that_no_rule_reads_fail_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MOST_KEPT", 100)
    driver = started(task("u"), task("v", "u", when="tasks.u.outputs.n == 1"))
    driver.finish("u", outcome=gave(n=1, big=BIG))
    assert driver.queued() == ["v"]


def test_a_sub_run_fails_the_task_that_it_is_where_what_it_leaves_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    child = PlannedTask("c", "pipeline", retry=NO_JITTER, child=ChildPlan("other"))
    calls = container("c", (), MapPlan([0, 1]), None, (), {})
    calls = PlannedTask("c", "pipeline", retry=NO_JITTER, map=calls.map, body=Plan((child,)))
    monkeypatch.setattr(nodes, "MOST_KEPT", 1500)
    driver = Written()
    driver.worker(cpu=64_000, memory=64 * GIB, slots=64)
    driver.store.pipelines["other"] = Plan((task("x"),))
    driver.run(calls, mapped("v", "c", over="{{ tasks.c.outputs }}"))
    for run_id in [run.id for run in driver.kernel.runs.values() if run.depth]:
        driver.finish("x", run_id=run_id, outcome=gave(text=BIG))
    assert [driver.told(name) for name in ("c[0]", "c[1]")] == [
        (TaskState.SUCCESS, ""),
        (TaskState.FAILED, "too_large"),
    ]


VALUES = st.recursive(
    st.none() | st.integers(0, 2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
PATHS = st.lists(st.sampled_from(["a", "b", "c", 0, 1, -1]), max_size=4).map(tuple)


def found(value: Any, path: Path) -> Any:
    try:
        return value_at({"v": value}, ("v", *path))
    except Missing as missing:
        return str(missing)


@given(VALUES, st.lists(PATHS, max_size=4))
def test_every_path_that_is_named_leads_to_the_same_in_what_is_kept(value: Any, paths: list[Path]) -> None:
    kept_fields = kept_by_task(("tasks", "u", "outputs", *path) for path in paths).get("u", {})
    less = kept_of(value, kept_fields)
    for path in paths:
        assert found(less, path) == found(value, path)
    assert both(kept_fields, kept_fields) == kept_fields
