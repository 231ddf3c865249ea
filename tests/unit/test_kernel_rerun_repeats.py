"""Reruns and marks of single rounds: what a round has left is what the later ones stand on."""

from __future__ import annotations

import pytest

from orchestrator.records import PlannedTask
from orchestrator.rerun_plan import PastTask, plan_rerun
from orchestrator.states import RunState, TaskState
from tests.unit.kernel_driver import task
from tests.unit.test_kernel_maps import started
from tests.unit.written_driver import BAD, SKIP, Written, gave, mapped, repeated

S, F, K, P = TaskState.SUCCESS, TaskState.FAILED, TaskState.SKIPPED, TaskState.PENDING


def counted(most: int = 5, delay: float = 0.0) -> PlannedTask:
    return repeated("tune", until="outputs.n >= 2", most=most, delay=delay)


def three_rounds() -> Written:
    driver = started(counted(), task("next", "tune"))
    for n in range(3):
        driver.finish(f"tune[{n}]", outcome=gave(n=n))
    driver.finish("next")
    assert driver.run_state() is RunState.SUCCESS
    return driver


@pytest.mark.parametrize("takes_over", [False, True])
def test_a_round_that_runs_again_takes_the_later_ones_with_it(takes_over: bool) -> None:
    driver = three_rounds()
    driver.again(["tune[0]"])
    if takes_over:
        driver.take_over()
    assert driver.queued() == ["tune[0]"], "nothing downstream, and no later round, before it has run"
    assert driver.told("tune") == (TaskState.RUNNING, "repeating")
    assert [driver.row(f"tune[{n}]").superseded for n in range(3)] == [False, True, True]
    assert driver.row("tune[1]").message == "An earlier round of tune runs again."
    driver.finish("tune[0]", outcome=gave(n=0))
    assert driver.queued() == ["tune[1]"]
    driver.finish("tune[1]", outcome=gave(n=7))
    assert (driver.state("tune"), driver.row("tune").message) == (S, "Ended after round 2.")
    assert [driver.row(f"tune[{n}]").generation for n in range(3)] == [2, 2, 1]
    assert driver.row("tune[2]").superseded
    driver.take_over()
    driver.finish("next")
    assert driver.run_state() is RunState.SUCCESS


def test_a_round_that_fails_when_it_runs_again_fails_the_loop() -> None:
    driver = three_rounds()
    driver.again(["tune[1]"])
    driver.finish("tune[1]", outcome=BAD)
    assert driver.told("tune") == (F, "round_failed")
    assert driver.run_state() is RunState.FAILED
    driver.again()
    assert driver.queued() == ["tune[1]"], "it goes on from there"


def of_groups() -> Written:
    body = (task("p"), task("q", "p"), mapped("m", "p", over={"range": 2}))
    driver = started(repeated("tune", until="repeat.index >= 2", most=5, body=body), task("next", "tune"))
    for n in range(3):
        driver.finish(*(f"tune[{n}].{name}" for name in ("p", "q", "m[0]", "m[1]")))
    driver.finish("next")
    assert driver.run_state() is RunState.SUCCESS
    return driver


def test_one_task_of_a_round_takes_the_later_rounds_with_it_too() -> None:
    driver = of_groups()
    driver.again(["tune[1].m[1]", "tune[2].q"])
    assert driver.queued() == ["tune[1].m[1]"]
    assert driver.states()["tune[1].q"] is S
    driver.take_over()
    driver.finish("tune[1].m[1]")
    assert driver.queued() == ["tune[2].p"], "all of the later round is new"
    driver.finish("tune[2].p")
    assert driver.queued() == ["tune[2].m[0]", "tune[2].m[1]", "tune[2].q"]
    driver.finish("tune[2].m[0]", "tune[2].m[1]", "tune[2].q")
    assert driver.queued() == ["next"]


def test_the_preview_says_so() -> None:
    driver = of_groups()
    rows = driver.rows_of()
    past = [PastTask(r.id, r.name, r.state, r.parent_id, r.map_index, r.map_key) for r in rows]
    found = plan_rerun(driver.store.plans["r1"], past, ["tune[0].q"])
    assert found.again == ("tune", "next", "tune[0].q")
    assert found.reused == ("tune[0].p", "tune[0].m", "tune[0].m[0]", "tune[0].m[1]")
    told = driver.again(["tune[0].q"])
    assert told.startswith("Run r1 starts again as its generation 2: 3 of its")


@pytest.mark.parametrize(("state", "reason"), [("failed", "round_failed"), ("skipped", "round_skipped")])
def test_an_earlier_round_that_is_marked_otherwise_decides_the_loop(state: str, reason: str) -> None:
    driver = three_rounds()
    driver.ask("mark", task="tune[0]", state=state)
    driver.feed(driver.submission())
    driver.tick()
    assert driver.told("tune") == (TaskState(state), reason)
    assert [driver.row(f"tune[{n}]").generation for n in range(3)] == [2, 1, 1], "what has run stays as it is"
    driver.ask("mark", task="tune[0]", state="success", outputs={"n": 0})
    driver.feed(driver.submission())
    driver.tick()
    assert (driver.state("tune"), driver.row("tune").message) == (S, "Ended after round 3.")


def test_a_mark_that_lets_something_run_in_an_earlier_round_is_waited_for() -> None:
    body = (task("p"), task("q", "p", when="tasks.p.outputs.go"))
    driver = started(repeated("tune", until="repeat.index >= 1", most=5, body=body), task("next", "tune"))
    driver.finish("tune[0].p", outcome=gave(go=False))
    driver.finish("tune[1].p", outcome=gave(go=False))
    driver.finish("next")
    driver.ask("mark", task="tune[0].p", state="success", outputs={"go": True})
    driver.feed(driver.submission())
    driver.tick()
    assert driver.queued() == ["tune[0].q"]
    assert driver.state("tune") is TaskState.RUNNING
    driver.take_over()
    driver.finish("tune[0].q", outcome=BAD)
    assert driver.told("tune") == (F, "round_failed")


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize(
    ("state", "outputs", "after"),
    [("failed", None, (F, "round_failed")), ("skipped", None, (K, "round_skipped")), ("success", {"n": 5}, (S, ""))],
)
def test_a_mark_during_the_delay_decides_at_once(
    state: str, outputs: dict[str, int] | None, after: tuple[TaskState, str], takes_over: bool
) -> None:
    driver = started(counted(delay=60.0))
    driver.finish("tune[0]", outcome=gave(n=0))
    assert driver.told("tune") == (TaskState.RUNNING, "repeat_delay")
    if takes_over:
        driver.take_over()
    driver.ask("mark", task="tune[0]", state=state, outputs=outputs)
    assert driver.told("tune") == after
    driver.tick(after=100)
    driver.take_over()
    assert driver.states() == {"tune": after[0], "tune[0]": TaskState(state)}


def test_a_mark_during_the_delay_that_changes_nothing_lets_the_delay_begin_anew() -> None:
    driver = started(counted(delay=60.0))
    driver.finish("tune[0]", outcome=gave(n=0))
    driver.tick(after=50)
    driver.ask("mark", task="tune[0]", state="success", outputs={"n": 1})
    assert driver.told("tune") == (TaskState.RUNNING, "repeat_delay")
    driver.tick(after=50)
    driver.take_over()
    assert driver.queued() == []
    driver.tick(after=15)
    assert driver.queued() == ["tune[1]"]


def test_what_a_mark_lets_run_in_the_round_that_has_ended_is_waited_for_in_place_of_the_delay() -> None:
    body = (task("p"), task("q", "p", when="tasks.p.outputs.go"))
    driver = started(repeated("tune", until="false", most=5, delay=60.0, body=body))
    driver.finish("tune[0].p", outcome=gave(go=False))
    assert driver.told("tune") == (TaskState.RUNNING, "repeat_delay")
    driver.ask("mark", task="tune[0].p", state="success", outputs={"go": True})
    assert driver.queued() == ["tune[0].q"]
    assert driver.told("tune") == (TaskState.RUNNING, "repeating")
    driver.tick(after=100)
    driver.take_over()
    assert driver.queued() == ["tune[0].q"], "no round begins beside another"
    driver.finish("tune[0].q", outcome=SKIP)
    driver.tick(after=50)
    assert driver.queued() == []
    driver.tick(after=15)
    assert driver.queued() == ["tune[1].p"]
