"""What templates read in a round of the leader is bounded, whatever comes of it; and so is what is asked of hosts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.events import ReconcileDue, Tick
from orchestrator.expressions import texts
from orchestrator.kernel import expanding
from orchestrator.kernel.nodes import TaskNode
from orchestrator.records import ApprovalPlan, ChildPlan, ConcurrencyLimit, Outcome, PlannedTask, RateLimit
from orchestrator.states import AttemptState, RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import Written, mapped

P, F, R, W = TaskState.PENDING, TaskState.FAILED, TaskState.RUNNING, TaskState.WAITING
LARGE = {"l": [0] * 30_000, "s": "x" * 70_000}


@pytest.fixture
def characters(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all texts that templates have had made."""
    found: list[int] = []
    as_text = texts.as_text

    def noted(value: Any) -> str:
        text = as_text(value)
        found.append(len(text))
        return text

    monkeypatch.setattr(texts, "as_text", noted)
    return found


def next_round(driver: Written) -> None:
    driver.now += 0.1
    driver.feed(Tick())


def ended(driver: Written, prefix: str) -> int:
    return sum(row.state is not P for row in driver.rows_of() if row.name.startswith(prefix))


def call(**parameters: Any) -> PlannedTask:
    return PlannedTask("c", "pipeline", child=ChildPlan("other", parameters=parameters))


def keyed(key: str) -> PlannedTask:
    return task("c", concurrency=(ConcurrencyLimit(key, 1),))


@pytest.mark.parametrize(
    "body",
    [
        call(x="{{ params.s }}"),
        call(x="{{ params.nothing }}"),
        keyed("{{ params.nothing }}"),
        task("c", rate_limit=RateLimit("{{ params.nothing }}", 1, 1.0)),
        PlannedTask("c", "approval", approval=ApprovalPlan(message="{{ params.nothing }}")),
        mapped("c", over="{{ params.nothing }}"),
        mapped("c", over={"range": 2}, key="x"),
        mapped("c", over="{{ params.l }}", max_size=1),
    ],
    ids=["parameters too large", "parameters", "key", "rate", "message", "over", "same keys", "too many items"],
)
def test_what_is_read_in_vain_counts_for_the_round(
    body: PlannedTask, monkeypatch: pytest.MonkeyPatch, characters: list[int]
) -> None:
    monkeypatch.setattr(expanding, "MOST_READ", 300)
    driver = started(mapped("m", over={"range": 12}, body=(body,)), parameters=LARGE)
    assert ended(driver, "m[") <= 3
    assert driver.kernel.next_due(driver.now) == 0.0
    for _ in range(14):
        before = ended(driver, "m[")
        next_round(driver)
        assert ended(driver, "m[") - before <= 3
    assert {driver.told(f"m[{n}].c")[0] for n in range(12)} == {F}
    assert driver.run_state() is RunState.FAILED
    assert driver.kernel.next_due(driver.now) != 0.0
    assert sum(characters) <= 100_000, "the same text is made once for all that wait for one another"


@pytest.mark.parametrize(
    ("path", "most", "why"),
    [("{{ params.l }}", 16 * 2**20, "map_key"), ("{{ params.l }}", 200_000, "too_many_items"), ("{{ params }}", 0, "")],
    ids=["alike", "too large in all", "too large"],
)
def test_the_text_of_a_key_that_is_none_is_made_once_for_all_items(
    path: str, most: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    dumps = json.dumps

    def noted(*args: Any, **options: Any) -> str:
        text = dumps(*args, **options)
        made.append(len(text))
        return text

    monkeypatch.setattr(json, "dumps", noted)
    monkeypatch.setattr(expanding, "MOST_CHARACTERS", most)
    names = [f"m{n}" for n in range(20)]
    driver = started(*(mapped(name, over={"range": 50}, key=path) for name in names), parameters=LARGE)
    assert {driver.told(name) for name in names} == {(F, why or "too_many_items")}
    assert sum(made) <= 200_000
    assert driver.kernel.expanding.texts.read >= sum(made)


def test_messages_of_many_approvals_over_the_same_are_made_once(characters: list[int]) -> None:
    body = PlannedTask("c", "approval", approval=ApprovalPlan(message="{{ params.l }}"))
    driver = started(mapped("m", over={"range": 200}, body=(body,)), parameters=LARGE)
    assert {driver.told(f"m[{n}].c")[0] for n in range(200)} == {W}
    assert driver.row("m[7].c").message.startswith("[0, 0, 0")
    assert "[cut: " in driver.row("m[7].c").message
    assert not characters
    assert driver.kernel.expanding.texts.read < 200 * 120 + 200_000


def test_keys_that_are_not_worked_out_yet_wait_for_their_turn_and_then_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_READ", 200)
    body = task("c", concurrency=(ConcurrencyLimit("k{{ map.item }}", 1),))
    driver = started(mapped("m", over=[1, 1, 2, 2], body=(body, task("free"))))
    assert driver.told("m[3].c") == (P, "expansion")
    assert driver.queued() == [f"m[{n}].free" for n in range(4)]
    driver.feed(ReconcileDue())
    driver.now += 0.1
    driver.take_over()
    assert driver.told("m[3].c") == (P, "expansion")
    for _ in range(3):
        next_round(driver)
    assert [name for name in driver.queued() if name.endswith(".c")] == ["m[0].c", "m[2].c"]
    assert driver.told("m[1].c") == (TaskState.READY, "concurrency")


def test_what_waits_for_its_keys_is_cancelled_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_READ", 1)
    driver = started(mapped("m", over=[1, 2], body=(task("c", concurrency=(ConcurrencyLimit("{{ map.item }}", 1),)),)))
    assert driver.told("m[1].c") == (P, "expansion")
    driver.ask("cancel")
    assert driver.told("m[1].c")[0] is TaskState.CANCELLED
    next_round(driver)
    assert driver.kernel.next_due(driver.now) != 0.0


def test_runs_take_turns_however_much_one_of_them_has_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_READ", 1)
    driver = started(*(mapped(f"m{n}", over=["{{ params.s }}"]) for n in range(9)), parameters=LARGE)
    driver.run(*(mapped(f"m{n}", over=["{{ params.s }}"]) for n in range(2)), run_id="r2", parameters=LARGE)
    for _ in range(2):
        next_round(driver)
    assert driver.told("m0", "r2") == (R, "mapped")
    next_round(driver)
    next_round(driver)
    assert driver.told("m1", "r2") == (R, "mapped")
    assert driver.told("m8")[0] is P


def test_what_waits_in_a_run_that_is_over_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "MOST_READ", 1)
    driver = started(*(mapped(f"m{n}", over=["{{ params.s }}"]) for n in range(3)), parameters=LARGE)
    assert driver.kernel.expanding.is_due
    driver.kernel.drop_run(driver.kernel.runs["r1"])
    assert not driver.kernel.expanding.is_due


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that were asked on which hosts their outputs lie."""
    seen: list[str] = []
    hosts = TaskNode.hosts

    def noted(self: TaskNode) -> tuple[str, ...]:
        seen.append(self.name)
        return hosts(self)

    monkeypatch.setattr(TaskNode, "hosts", noted)
    return seen


def hosts_of(driver: Written, name: str) -> tuple[str, ...]:
    (node,) = (node for node in driver.kernel.tasks.values() if node.name == name)
    return driver.kernel.ask_of(node).hosts


def deep(wide: int, below: int) -> tuple[PlannedTask, ...]:
    """A join of many tasks below another one, above a map of many."""
    ups = [task(f"u{n}") for n in range(wide)]
    inner_ups = [task(f"v{n}") for n in range(wide)]
    leaf = mapped("leaf", *(up.name for up in inner_ups), over={"range": below})
    return (*ups, mapped("g", *(up.name for up in ups), over=[1], body=(*inner_ups, leaf)))


def test_where_nothing_lies_on_one_host_alone_no_host_is_asked_for(asked: list[str]) -> None:
    driver = started(*deep(3, 5))
    driver.finish("u0", "u1", "u2", "g[0].v0", "g[0].v1", "g[0].v2")
    assert len(driver.queued()) == 5
    assert not asked


def test_a_join_above_a_map_is_asked_for_its_hosts_once_and_not_by_each_index(asked: list[str]) -> None:
    driver = started(*deep(20, 30))
    here = Outcome(AttemptState.SUCCEEDED, local_to="a")
    for n in range(20):
        driver.finish(f"u{n}", outcome=here)
    for n in range(19):
        driver.finish(f"g[0].v{n}")
    asked.clear()
    driver.finish("g[0].v19")
    assert len(driver.queued()) == 30
    assert len(asked) <= 4 * 40, "some decisions look once each: not each of thirty indices"
    assert {hosts_of(driver, f"g[0].leaf[{n}]") for n in range(30)} == {("a",)}


def test_hosts_are_those_of_all_that_a_task_reads_at_any_depth() -> None:
    reads = {"x": "{{ tasks.first.outputs.x }}"}
    body = (task("s"), mapped("n", "s", over=[1, 2], body=(task("t"), task("o", parameters=reads))))
    driver = started(task("first"), task("a", "first"), mapped("m", "a", over=[1, 2], body=body))
    driver.finish("first", outcome=Outcome(AttemptState.SUCCEEDED, outputs={"x": 1}, local_to="a"))
    driver.finish("a", outcome=Outcome(AttemptState.SUCCEEDED))
    driver.finish("m[0].s", outcome=Outcome(AttemptState.SUCCEEDED, local_to="b"))
    driver.finish("m[1].s")
    assert {hosts_of(driver, f"m[0].n[{n}].t") for n in range(2)} == {("b",)}
    assert {hosts_of(driver, f"m[0].n[{n}].o") for n in range(2)} == {("a", "b")}
    assert {hosts_of(driver, f"m[1].n[{n}].t") for n in range(2)} == {()}
    assert {hosts_of(driver, f"m[1].n[{n}].o") for n in range(2)} == {("a",)}
